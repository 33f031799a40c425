"""Who is told what: one message for all that need the same, in an order that no client chokes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from gw.control import fanout as f
from gw.control.fanout import Fanout
from gw.control.mapper import Mapper
from gw.control.records import NodeRecord

from .conftest import ALLOW_ALL, MakeWorld, World


class Recorder:
    """An edge that keeps what it is given, and can be full."""

    def __init__(self) -> None:
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.deliveries: list[tuple[dict[str, Any], list[int], bool]] = []
        self.opened: list[int] = []
        self.ended: list[int] = []
        self.full = False

    def reply(self, connection: int, stream: int, status: int, body: bytes, content_type: str) -> None: ...

    def open(self, connection: int, stream: int, number: int, compress: bool) -> None:
        self.opened.append(number)

    def deliver(self, message: bytes, numbers: Iterable[int], *, is_whole: bool) -> None:
        found, listed = json.loads(message), list(numbers)
        self.deliveries.append((found, listed, is_whole))
        for number in listed:
            self.told.setdefault(number, []).append(found)

    def end(self, number: int) -> None:
        self.ended.append(number)

    def is_full(self) -> bool:
        return self.full


class Stage:
    def __init__(self, world: World) -> None:
        self.world = world
        self.fanout = Fanout(world.tailnet, Mapper(world.tailnet))
        world.tailnet.subscribe(self.fanout.take)
        self.edge = Recorder()

    def open(self, node: NodeRecord, edge: Recorder | None = None) -> f.Session:
        return self.fanout.open(node, edge or self.edge, node.id, 1, (True, False))

    def of(self, session: f.Session) -> list[dict[str, Any]]:
        return self.edge.told.get(session.number, [])

    async def settle(self) -> None:
        """Until everything that was gathered is told."""
        await asyncio.sleep(0)
        for _ in range(200):
            if self.fanout._timer is None and self.fanout._slicing is None:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never settles")


@pytest.fixture
async def stage(make_world: MakeWorld) -> Stage:
    return Stage(make_world(ALLOW_ALL))


async def three(stage: Stage) -> tuple[list[NodeRecord], list[f.Session]]:
    nodes = [await stage.world.node(hostname=name) for name in ("a", "b", "c")]
    sessions = [stage.open(node) for node in nodes]
    await stage.settle()
    stage.edge.deliveries.clear()
    for told in stage.edge.told.values():
        told.clear()
    return nodes, sessions


async def test_a_stream_begins_with_everything(stage: Stage) -> None:
    nodes = [await stage.world.node(hostname=name) for name in ("a", "b")]
    session = stage.open(nodes[0])
    await stage.settle()
    first = stage.of(session)[0]
    assert first["Node"]["ID"] == nodes[0].id
    assert [peer["ID"] for peer in first["Peers"]] == [nodes[1].id]
    assert {"DERPMap", "DNSConfig", "PacketFilters", "UserProfiles", "SSHPolicy"} <= first.keys()
    assert stage.edge.opened == [session.number]


async def test_a_change_is_one_message_for_all_that_see_it(stage: Stage) -> None:
    nodes, sessions = await three(stage)
    stage.world.tailnet.reports.observe(nodes[0], endpoints=["192.0.2.7:41641"])
    stage.world.tailnet.reports.observe(nodes[0], endpoints=["192.0.2.8:41641"])
    await stage.settle()
    [(message, numbers, is_whole)] = stage.edge.deliveries
    assert message == {"PeersChangedPatch": [{"NodeID": nodes[0].id, "Endpoints": ["192.0.2.8:41641"]}]}
    assert sorted(numbers) == [sessions[1].number, sessions[2].number]
    assert not is_whole


async def test_changes_of_several_reach_each_without_itself(stage: Stage) -> None:
    nodes, sessions = await three(stage)
    for node in nodes:
        stage.world.tailnet.reports.observe(node, endpoints=[f"192.0.2.{node.id}:41641"])
    await stage.settle()
    for node, session in zip(nodes, sessions, strict=True):
        [message] = stage.of(session)
        told = [patch["NodeID"] for patch in message["PeersChangedPatch"]]
        assert told == sorted(each.id for each in nodes if each is not node)


async def test_each_edge_gets_a_change_once(stage: Stage) -> None:
    nodes, _ = await three(stage)
    other = Recorder()
    extra = [await stage.world.node(hostname=f"d{number}") for number in range(3)]
    sessions = [stage.open(node, other) for node in extra]
    await stage.settle()
    other.deliveries.clear()
    stage.edge.deliveries.clear()
    stage.world.tailnet.reports.observe(nodes[0], endpoints=["192.0.2.7:41641"])
    await stage.settle()
    assert len(stage.edge.deliveries) == len(other.deliveries) == 1
    assert sorted(other.deliveries[0][1]) == [each.number for each in sessions]


async def test_a_patch_of_a_node_not_sent_yet_is_the_whole_node(stage: Stage) -> None:
    _nodes, sessions = await three(stage)
    late = await stage.world.node(hostname="late")
    stage.world.tailnet.reports.observe(late, endpoints=["192.0.2.9:41641"])
    await stage.settle()
    message = stage.of(sessions[0])[0]
    assert [peer["ID"] for peer in message["PeersChanged"]] == [late.id]
    assert "PeersChangedPatch" not in message
    assert message["PeersChanged"][0]["Endpoints"] == ["192.0.2.9:41641"]


async def test_nothing_follows_a_removal_and_a_used_slot_is_another_node(stage: Stage) -> None:
    nodes, sessions = await three(stage)
    stage.world.tailnet.reports.observe(nodes[2], endpoints=["192.0.2.9:41641"])
    await stage.world.tailnet.delete(nodes[2])
    await stage.settle()
    assert stage.of(sessions[0]) == [{"PeersRemoved": [nodes[2].id]}]
    fresh = await stage.world.node(hostname="fresh")
    stage.world.tailnet.reports.observe(fresh, endpoints=["192.0.2.10:41641"])
    await stage.settle()
    assert [peer["ID"] for peer in stage.of(sessions[0])[-1]["PeersChanged"]] == [fresh.id]


async def test_a_deleted_node_is_told_that_its_key_is_over(stage: Stage) -> None:
    nodes, sessions = await three(stage)
    await stage.world.tailnet.delete(nodes[1])
    await stage.settle()
    assert stage.of(sessions[1])[-1]["Node"]["KeyExpiry"].startswith("2000-")


async def test_who_is_behind_gets_a_whole_map_when_it_reads_again(stage: Stage) -> None:
    nodes, sessions = await three(stage)
    stage.fanout.behind(sessions[1].number)
    stage.world.tailnet.reports.observe(nodes[0], endpoints=["192.0.2.7:41641"])
    await stage.world.tailnet.delete(nodes[2])
    await stage.settle()
    assert stage.of(sessions[1]) == []
    stage.fanout.drained(sessions[1].number)
    await stage.settle()
    [whole] = stage.of(sessions[1])
    assert [peer["ID"] for peer in whole["Peers"]] == [nodes[0].id]
    assert whole["PeersRemoved"] == [nodes[2].id]
    assert whole["Peers"][0]["Endpoints"] == ["192.0.2.7:41641"]


async def test_whole_maps_wait_while_their_edge_is_full(stage: Stage) -> None:
    node = await stage.world.node(hostname="a")
    stage.edge.full = True
    session = stage.open(node)
    await asyncio.sleep(0.02)
    assert stage.of(session) == []
    assert stage.edge.opened == []  # no empty answer meanwhile
    stage.edge.full = False
    await stage.settle()
    assert "Node" in stage.of(session)[0]


async def test_a_new_stream_ends_the_older_one(stage: Stage) -> None:
    node = await stage.world.node(hostname="a")
    first = stage.open(node)
    await stage.settle()
    second = stage.open(node)
    await stage.settle()
    assert stage.edge.ended == [first.number]
    stage.fanout.close(first)
    assert node.online
    assert "Node" in stage.of(second)[0]


async def test_owners_are_told_once_and_again_when_they_are_others(stage: Stage) -> None:
    _nodes, sessions = await three(stage)
    bobs = await stage.world.node(user="bob", hostname="bobs")
    await stage.settle()
    assert [each["LoginName"] for each in stage.of(sessions[0])[-1]["UserProfiles"]] == ["bob"]
    await stage.world.tailnet.rename(bobs, "other")
    await stage.settle()
    assert "UserProfiles" not in stage.of(sessions[0])[-1]
