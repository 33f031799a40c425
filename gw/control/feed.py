"""The feed that relays and DNS servers follow: a snapshot, then who came, changed and went.

Changes of one node between two messages are told once, as it is now; a slow reader therefore costs at most one entry a
node. What a feed does not tell (endpoints, presence) wakes nobody.

Ref: gw.state.feed
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from gw.control.records import Change, ChangeKind
from gw.control.tailnet import Tailnet
from gw.state.config import ExtraRecord
from gw.state.feed import FeedMessage, feed_node

GATHER_S: Final = 0.02
KEEPALIVE_S: Final = 25.0
_TOLD: Final = (ChangeKind.ADDED, ChangeKind.CHANGED, ChangeKind.REMOVED)


async def feed_lines(tailnet: Tailnet) -> AsyncGenerator[bytes, None]:
    """Endless JSON lines; an empty one when nothing happened for 25 s."""
    dirty: dict[int, None] = {}
    wake = asyncio.Event()
    shown = _records(tailnet)

    def note(change: Change) -> None:
        if change.kind in (ChangeKind.POLICY, ChangeKind.DNS) and _records(tailnet) != shown:
            wake.set()
        if change.kind in _TOLD and change.node is not None:
            dirty[change.node.id] = None
            wake.set()

    unsubscribe = tailnet.subscribe(note)
    try:
        yield _line(tailnet, list(tailnet.nodes), shown, full=True)
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    await wake.wait()
            except TimeoutError:
                yield b"\n"
                continue
            await asyncio.sleep(GATHER_S)
            wake.clear()
            told = list(dirty)
            dirty.clear()
            records = _records(tailnet)
            is_other, shown = records != shown, records
            yield _line(tailnet, told, records if is_other else None, full=False)
    finally:
        unsubscribe()


def _records(tailnet: Tailnet) -> list[ExtraRecord]:
    found = [*tailnet.commons.extra_records, *tailnet.policy.policy.dns_records]
    return [ExtraRecord(name=each.name, type=each.type, value=each.value) for each in found]


def _line(tailnet: Tailnet, ids: list[int], records: list[ExtraRecord] | None, *, full: bool) -> bytes:
    wall = tailnet.clock().timestamp()
    known = [(node_id, tailnet.nodes.get(node_id)) for node_id in sorted(ids)]
    there = [node for _, node in known if node is not None and node.doc.approved]
    message = FeedMessage(
        full=full,
        domain=tailnet.domain,
        nodes=[feed_node(node.doc, tailnet.domain, wall) for node in there],
        removed=[] if full else [node_id for node_id, node in known if node is None or not node.doc.approved],
        records=records,
    )
    return msgspec.json.encode(message) + b"\n"
