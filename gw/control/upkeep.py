"""What happens by itself: keys expire, ephemeral nodes go, names follow host names, the policy approves routes.

One heap of deadlines, one entry a node: the clock is looked at when the earliest is due, and no node is walked past.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, final

from gw.control import events
from gw.control.names import follows
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.errors import GwError

if TYPE_CHECKING:
    from gw.control.tailnet import Tailnet

logger = logging.getLogger(__name__)

RETRY_S: Final = 60.0
CONNECT_S: Final = 120.0  # a client's patience with one attempt; whoever is let in has as long to open its map stream


@final
class Upkeep:
    """Of one tailnet. `keep_time` runs for ever; `maintain` does what is due now."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self._deadlines: list[tuple[float, int]] = []
        self._wake = asyncio.Event()
        self._renamed_hosts: dict[int, None] = {}
        self._advertising: dict[int, None] = {}  # nodes whose routes the policy may approve

    def wake(self) -> None:
        """Look again now."""
        self._wake.set()

    def follow_hostname(self, node: NodeRecord) -> None:
        """The host has another name: the node's follows it, unless a person chose one."""
        self._renamed_hosts[node.id] = None
        self._wake.set()

    def consider_routes(self, node: NodeRecord) -> None:
        """The policy may approve what the node advertises."""
        if node.advertised_routes:
            self._advertising[node.id] = None
            self._wake.set()

    async def keep_time(self) -> None:
        while True:
            self._wake.clear()
            try:
                due = await self.maintain()
            except GwError as error:
                logger.error("clean-up failed and is tried again in a minute: %s", error.message)
                due = RETRY_S
            try:
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def maintain(self) -> float | None:
        """Do what is due now. Returns the seconds until the next thing is, None if nothing waits."""
        for node_id in list(self._renamed_hosts):
            del self._renamed_hosts[node_id]
            node = self._tailnet.nodes.get(node_id)
            if node is not None:
                await self._rename(node)
        for node_id in list(self._advertising):
            del self._advertising[node_id]
            node = self._tailnet.nodes.get(node_id)
            if node is not None:
                try:
                    await self._approve_by_policy(node)
                except GwError:
                    self._advertising[node_id] = None  # tried again with the rest
                    raise
        while self._deadlines:
            now = self._tailnet.clock()
            when, node_id = self._deadlines[0]
            if when > now.timestamp():
                return when - now.timestamp()
            heapq.heappop(self._deadlines)
            node = self._tailnet.nodes.get(node_id)
            if node is None or node.armed != when:
                continue
            node.armed = float("inf")
            if node.is_expired(now) and not node.expiry_told:
                node.expiry_told = True
                self._tailnet.record("node-expired", f"node:{node.id}")
                self._tailnet.publish(Change(ChangeKind.CHANGED, node))
            if self._ephemeral_deadline(node, now) <= now.timestamp():
                try:
                    await self._tailnet.delete(node)
                except GwError:
                    self.arm(node, now.timestamp() + RETRY_S)
                    raise
                logger.info("ephemeral node %s was away too long: removed", node.doc.given_name)
            else:
                self.arm(node)  # seen again since, or the time allowed was made longer
        return None

    def _ephemeral_deadline(self, node: NodeRecord, now: datetime) -> float:
        if not node.doc.ephemeral or node.online:
            return float("inf")
        allowed_s = self._tailnet.config.node.ephemeral_timeout_s
        seen = max(node.last_seen or self._tailnet.started, self._tailnet.started, node.doc.created)
        due = seen + timedelta(seconds=allowed_s)
        if node.awaited is not None:
            due = max(due, node.awaited + timedelta(seconds=max(allowed_s, CONNECT_S)))
        return due.timestamp()

    def expect(self, node: NodeRecord) -> None:
        """The node was just told that it is in: it has time to open its map stream before it counts as away."""
        node.awaited = self._tailnet.clock()

    def arm(self, node: NodeRecord, earliest: float = 0.0) -> None:
        """See to the node when its time has come. One entry a node: a later one is found when the earlier is due."""
        due = self._ephemeral_deadline(node, self._tailnet.clock())
        if node.doc.expiry is not None and not node.expiry_told:
            due = min(due, node.doc.expiry.timestamp())
        due = max(due, earliest)
        if due < node.armed:
            node.armed = due
            heapq.heappush(self._deadlines, (due, node.id))
            if self._deadlines[0] == (due, node.id):
                self._wake.set()

    async def _rename(self, node: NodeRecord) -> None:
        hostname = node.hostinfo.hostname
        if hostname == node.doc.hostname:
            return
        if not follows(node.doc.given_name, node.doc.hostname):
            await self._tailnet.change_node(node, "node-hostname-changed", hostname=hostname)
            return
        self._tailnet.names.release(node.doc.given_name)
        label = self._tailnet.names.take(hostname)
        if label != node.doc.given_name and node.doc.given_name not in self._tailnet.names:
            self._tailnet.names.claim(node.doc.given_name)
        try:
            await self._tailnet.change_node(node, "node-hostname-changed", hostname=hostname, given_name=label)
        finally:
            if self._tailnet.by_name.get(label) is not node:
                self._tailnet.names.release(label)

    async def _approve_by_policy(self, node: NodeRecord) -> None:
        """Approve what the policy approves by itself. It only ever adds: people remove."""
        fresh = [
            route
            for route in self._tailnet.policy.approved(node, node.advertised_routes)
            if route not in node.doc.approved_routes
        ]
        if fresh:
            with events.acting_as("policy"):
                await self._tailnet.approve_routes(node, [*node.doc.approved_routes, *fresh])
