"""What the control server tells relays and DNS servers, as it happens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec

from gw.control.feed import feed_lines
from gw.policy.reader import read_policy
from gw.policy.starting import DENY_ALL
from gw.state.config import ExtraRecord
from gw.state.feed import FeedMessage


async def test_nodes_and_records_of_the_policy_are_told_once_each(make_world: Any) -> None:
    record = '{"Name": "nas.home.test", "Value": "192.168.1.2"}'
    world = make_world(read_policy(f'{{"acls": [], "extraDNSRecords": [{record}]}}'.encode()))
    lines = feed_lines(world.tailnet)

    async def told() -> FeedMessage:
        async with asyncio.timeout(5):
            return msgspec.json.decode(await anext(lines), type=FeedMessage)

    async with aclosing(lines):
        first = await told()
        assert (first.full, first.nodes) == (True, [])
        assert first.records == [ExtraRecord(name="nas.home.test", type="", value="192.168.1.2")]
        await world.user("ann")
        node = await world.node()
        change = await told()
        assert ([each.id for each in change.nodes], change.records) == ([node.id], None)
        world.tailnet.rules.put_in_force(read_policy(b'{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'))
        assert (await told()).records == []
        world.tailnet.rules.put_in_force(DENY_ALL)  # other rules, the same records: not told
        await world.tailnet.delete(node)
        gone = await told()
        assert (gone.removed, gone.records) == ([node.id], None)
