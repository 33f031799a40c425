"""Which routers of a shared subnet are alive: a stream alone does not prove it, an answer to a ping does.

    every probe_interval, each router of a subnet that has several:
        PingRequest on its map stream ──▶ HEAD /machine/ping-response?id=… comes back    it is alive
        no answer in half of probe_timeout: once more; none in probe_timeout             it is unwell
    unwell → another router takes over; well again after three answers in a row, without taking its subnets back

A client is judged only once it answered a ping on its present stream: one that cannot answer is as alive as its stream.
So a router that comes and goes moves each subnet at most once, and where all are unwell nothing moves.

Ref: control protocol §7.1
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from gw.control.records import NodeRecord
from gw.control.tailnet import Tailnet

logger = logging.getLogger(__name__)

PATH: Final = "/machine/ping-response"
ID_BYTES: Final = 8
WELL_AFTER: Final = 3  # answers in a row
IDLE_S: Final = 1.0  # how soon new settings are noticed

Send = Callable[[NodeRecord, str], int]  # node and URL → number of its stream, 0 where it has none


@dataclass(slots=True)
class _Health:
    """What is known of one router. stream: the number of the map stream that it is true of."""

    stream: int = 0
    is_proven: bool = False  # it answered on this stream
    in_a_row: int = 0
    waiting: frozenset[str] = frozenset()  # ids of the pings that may still be answered
    answered: bool = False


@final
class Liveness:
    """Probes routers while `run` runs; `answered` takes what they say. send: puts a ping on a node's stream."""

    def __init__(self, tailnet: Tailnet, send: Send) -> None:
        self._tailnet = tailnet
        self._send = send
        self._health: dict[int, _Health] = {}
        self._pings: dict[str, int] = {}  # id -> node id

    async def run(self) -> None:
        """Probe round after round until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            settings = self._tailnet.config.routes
            interval_s, timeout_s = settings.probe_interval_s, settings.probe_timeout_s
            begun = loop.time()
            routers = self._tailnet.routes.contenders() if interval_s else []
            if routers:
                self.begin(routers)
                await asyncio.sleep(timeout_s / 2)
                self.remind()
                await asyncio.sleep(timeout_s / 2)
                self.judge()
            elif self._health:
                self.forget()
            await asyncio.sleep(max(IDLE_S, interval_s - (loop.time() - begun) if routers else IDLE_S))

    def forget(self) -> None:
        """Nobody is probed any more: everyone is as well as its stream."""
        for node_id in list(self._health):
            node = self._tailnet.nodes.get(node_id)
            if node is not None:
                self._tailnet.reports.set_unwell(node, False)
        self._health.clear()
        self._pings.clear()

    def begin(self, routers: list[NodeRecord]) -> None:
        """A round: ping these routers."""
        wanted = {node.id for node in routers}
        for node_id in [each for each in self._health if each not in wanted]:
            del self._health[node_id]
            node = self._tailnet.nodes.get(node_id)
            if node is not None:
                self._tailnet.reports.set_unwell(node, False)
        for node in routers:
            health = self._health.setdefault(node.id, _Health())
            health.waiting, health.answered = frozenset(), False
            if node.online:
                self._ping(node, health)

    def remind(self) -> None:
        """Half of the time is over: ping again who is silent."""
        for node_id, health in self._health.items():
            node = self._tailnet.nodes.get(node_id)
            if node is not None and health.waiting and not health.answered:
                self._ping(node, health)

    def _ping(self, node: NodeRecord, health: _Health) -> None:
        ping = secrets.token_hex(ID_BYTES)
        stream = self._send(node, f"{self._tailnet.config.server_url.rstrip('/')}{PATH}?id={ping}")
        if not stream:
            return
        if stream != health.stream:  # another stream, perhaps another process: nothing is known of it
            health.stream, health.is_proven, health.in_a_row = stream, False, 0
            self._drop(health)
        health.waiting |= {ping}
        self._pings[ping] = node.id

    def _drop(self, health: _Health) -> None:
        for ping in health.waiting:
            self._pings.pop(ping, None)
        health.waiting = frozenset()

    def answered(self, ping: str) -> bool:
        """An answer came in; whether it was asked for."""
        node_id = self._pings.pop(ping, None)
        health = self._health.get(node_id or 0)
        if health is None:
            return False
        health.answered = True
        return True

    def judge(self) -> None:
        """The time is over: who answered is well, who is known to answer and did not is unwell."""
        for node_id, health in list(self._health.items()):
            node = self._tailnet.nodes.get(node_id)
            asked = bool(health.waiting)
            self._drop(health)
            if node is None:
                del self._health[node_id]
            elif not asked:
                continue
            elif health.answered:
                health.is_proven = True
                health.in_a_row += 1
                if health.in_a_row >= WELL_AFTER or not node.is_unwell:
                    self._tailnet.reports.set_unwell(node, False)
            else:
                health.in_a_row = 0
                if health.is_proven and not node.is_unwell:
                    logger.warning("router %s does not answer: another one takes its subnets", node.doc.given_name)
                    self._tailnet.reports.set_unwell(node, True)
