"""Nodes once they are in: changes, observations, and what happens by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from gw.control.records import ChangeKind
from gw.control.registration import register
from gw.control.upkeep import CONNECT_S
from gw.errors import Conflict, GwError, NotFound, UsageError
from gw.model.hostinfo import Hostinfo, NetInfo
from gw.model.keys import MachineKey
from gw.policy.reader import read_policy
from gw.policy.starting import ALLOW_ALL_TEXT
from gw.state.config import NodeSettings

DISCO = "discokey:" + "ab" * 32


async def test_rename_pins_the_name_and_frees_the_old_one(world: Any) -> None:
    node, other = await world.node(), await world.node()
    await world.tailnet.rename(node, "NAS")
    assert node.fqdn == "nas.ghost.internal"
    with pytest.raises(Conflict, match="name is taken: `nas`"):
        await world.tailnet.rename(other, "nas")
    await world.tailnet.rename(other, "box")
    world.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname="desk"))
    await world.tailnet.upkeep.maintain()
    assert (node.doc.given_name, node.doc.hostname) == ("nas", "desk")


async def test_a_name_follows_its_host(world: Any) -> None:
    node = await world.node(hostname="box")
    world.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname="Desk"))
    await world.tailnet.upkeep.maintain()
    assert node.doc.given_name == "desk"
    assert world.tailnet.roster.find("desk") is node
    assert (await world.node(hostname="box")).doc.given_name == "box"


async def test_a_failed_change_leaves_everything_as_it_was(world: Any) -> None:
    node = await world.node()
    before, told = node.doc, len(world.changes)
    world.store.broken = True
    for change in (
        world.tailnet.rename(node, "nas"),
        world.tailnet.set_tags(node, ["tag:x"]),
        world.tailnet.expire(node, world.now),
        world.tailnet.delete(node),
    ):
        with pytest.raises(GwError):
            await change
    assert node.doc is before
    assert len(world.changes) == told
    assert "nas" not in world.tailnet.names
    assert world.tailnet.nodes == {1: node}


async def test_changes_of_one_node_at_once_are_all_kept(world: Any) -> None:
    node = await world.node()
    await asyncio.gather(
        world.tailnet.rename(node, "nas"),
        world.tailnet.approve_routes(node, ["10.0.0.0/8"]),
        world.tailnet.set_tags(node, ["tag:x"]),
    )
    assert (node.doc.given_name, node.doc.approved_routes, node.tags) == ("nas", ["10.0.0.0/8"], ["tag:x"])
    assert world.store.documents["node", node.id] == node.doc
    assert node.doc.revision == 3


async def test_a_deleted_node_is_gone_for_its_peers_and_its_id_is_never_given_again(world: Any) -> None:
    node, peer, other = await world.node(), await world.node(), await world.node("ben")
    await world.tailnet.delete(other)
    await world.tailnet.delete(node)
    change = world.changes[-1]
    assert (change.kind, list(change.lost), list(change.filters)) == (ChangeKind.REMOVED, [peer], [peer])
    await world.tailnet.delete(node)
    assert world.changes[-1] is change
    assert (await world.reloaded().node()).id == 4
    with pytest.raises(NotFound):
        await world.tailnet.rename(node, "x")


async def test_tags_are_checked_and_the_last_one_stays(world: Any) -> None:
    node = await world.node()
    for bad in ("x", "tag:", "tag:1a", "tag:a b", "tag:ü"):
        with pytest.raises(UsageError):
            await world.tailnet.set_tags(node, [bad])
    with pytest.raises(UsageError, match="last tag"):
        await world.tailnet.set_tags(node, [])


async def test_one_exit_route_brings_the_other_family_along(world: Any) -> None:
    node = await world.node()
    await world.tailnet.approve_routes(node, ["::/0", "10.0.0.0/8"])
    assert node.doc.approved_routes == ["0.0.0.0/0", "10.0.0.0/8", "::/0"]
    with pytest.raises(UsageError, match=r"not a route: `10\.0\.0\.1/8`"):
        await world.tailnet.approve_routes(node, ["10.0.0.1/8"])


async def test_logout_expires_a_node_and_removes_an_ephemeral_one(world: Any) -> None:
    node, guest = await world.node(), await world.node(ephemeral=True)
    await world.tailnet.logout(node)
    await world.tailnet.logout(guest)
    assert world.tailnet.is_expired(node)
    assert list(world.tailnet.nodes.values()) == [node]


async def test_an_expiry_is_told_when_its_time_comes(world: Any) -> None:
    node = await world.node()
    await world.tailnet.expire(node, world.now + timedelta(hours=1))
    world.changes.clear()
    assert await world.tailnet.upkeep.maintain() == 3600.0
    world.forward(hours=1)
    await world.tailnet.upkeep.maintain()
    await world.tailnet.upkeep.maintain()
    assert [(change.kind, change.node) for change in world.changes] == [(ChangeKind.CHANGED, node)]
    assert world.events[-1].event == "node-expired"


async def test_an_expiry_that_was_moved_or_lifted_is_not_told(world: Any) -> None:
    node = await world.node()
    await world.tailnet.expire(node, world.now + timedelta(hours=1))
    await world.tailnet.expire(node, None)
    world.changes.clear()
    world.forward(hours=2)
    await world.tailnet.upkeep.maintain()
    assert not world.changes


async def test_an_ephemeral_node_goes_after_its_absence_and_not_before(world: Any) -> None:
    guest = await world.node(ephemeral=True)
    world.tailnet.reports.set_online(guest, True)
    world.forward(hours=5)
    await world.tailnet.upkeep.maintain()
    world.tailnet.reports.set_online(guest, False)
    world.forward(minutes=29)
    await world.tailnet.upkeep.maintain()
    assert world.tailnet.roster.has(guest)
    world.forward(minutes=1)
    await world.tailnet.upkeep.maintain()
    assert not world.tailnet.nodes
    assert ("node", guest.id) not in world.store.documents


async def test_an_ephemeral_node_has_its_time_again_after_a_restart_of_the_server(world: Any) -> None:
    await world.node(ephemeral=True)
    world.forward(hours=9)
    again = world.reloaded()
    again.tailnet.started = again.now
    await again.tailnet.upkeep.maintain()
    assert len(again.tailnet.nodes) == 1


@pytest.mark.parametrize("way", ["same key", "new key", "auth key"])
async def test_an_ephemeral_node_that_logs_in_again_has_time_to_connect(world: Any, way: str) -> None:
    """It had been away for almost as long as it may: from its login on it has its time again."""
    key = await world.key(ephemeral=True, reusable=True)
    machine = world.fresh("mkey:")
    first = world.request(key)
    assert not (await register(world.tailnet, MachineKey.parse(machine), first)).error
    world.tailnet.reports.set_online(world.tailnet.nodes[1], True)
    world.tailnet.reports.set_online(world.tailnet.nodes[1], False)
    world.forward(minutes=29, seconds=59)
    again = {
        "same key": world.request(node_key=first.node_key),
        "auth key": world.request(key, node_key=first.node_key),
        "new key": world.request(key),
    }[way]
    assert (await register(world.tailnet, MachineKey.parse(machine), again)).machine_authorized
    world.forward(minutes=29)
    await world.tailnet.upkeep.maintain()
    assert list(world.tailnet.nodes) == [1]
    world.forward(minutes=1)
    await world.tailnet.upkeep.maintain()
    assert not world.tailnet.nodes


async def test_however_short_an_absence_may_be_a_client_has_time_to_connect(make_world: Any) -> None:
    world = make_world(node=NodeSettings(ephemeral_timeout="1s"))
    await world.node(ephemeral=True)
    world.forward(seconds=CONNECT_S - 1)
    again = world.reloaded()
    for each in (world, again):
        await each.tailnet.upkeep.maintain()
        assert len(each.tailnet.nodes) == 1
    guest = world.tailnet.nodes[1]
    world.tailnet.reports.set_online(guest, True)
    world.tailnet.reports.set_online(guest, False)
    world.forward(seconds=1)
    await world.tailnet.upkeep.maintain()
    assert not world.tailnet.nodes, "it has been there: from now on its absence counts"


async def test_peers_hear_only_of_real_differences(world: Any) -> None:
    node = await world.node()
    observe = world.tailnet.reports.observe
    report = Hostinfo(hostname="box", os="linux", net_info=NetInfo(preferred_derp=900))
    observe(node, hostinfo=report, endpoints=["192.0.2.1:41641"], disco_key=DISCO, cap=113)
    world.changes.clear()
    observe(node, hostinfo=report, endpoints=["192.0.2.1:41641"], disco_key=DISCO, cap=113)
    observe(node, hostinfo=Hostinfo(hostname="box", os="linux", net_info=NetInfo(preferred_derp=900, upnp=True)))
    observe(node, hostinfo=Hostinfo(hostname="box", os="linux"))
    observe(node, disco_key="discokey:" + "0" * 64)
    observe(node, disco_key="nonsense")
    assert not world.changes
    assert node.home_derp == 900
    assert node.hostinfo.net_info is not None
    observe(node, endpoints=["192.0.2.2:1"], home_derp=901)
    (change,) = world.changes
    assert change.kind is ChangeKind.PATCHED
    assert (change.patch.endpoints, change.patch.derp_region, change.patch.key) == (["192.0.2.2:1"], 901, None)
    observe(node, hostinfo=Hostinfo(hostname="box", os="freebsd"))
    assert world.changes[-1].kind is ChangeKind.CHANGED


async def test_presence_is_a_patch_with_the_time_of_leaving(world: Any) -> None:
    node = await world.node()
    world.changes.clear()
    world.tailnet.reports.set_online(node, True)
    world.tailnet.reports.set_online(node, True)
    world.forward(minutes=1)
    world.tailnet.reports.set_online(node, False)
    first, second = (change.patch for change in world.changes)
    assert (first.online, first.last_seen) == (True, None)
    assert (second.online, second.last_seen) == (False, world.now)


async def test_one_online_router_a_subnet_and_the_next_takes_over(make_world: Any) -> None:
    world = make_world(read_policy(ALLOW_ALL_TEXT.encode()))
    tailnet = world.tailnet
    routers = [await world.node(), await world.node()]
    for router in routers:
        tailnet.reports.observe(router, hostinfo=Hostinfo(hostname="box", routable_ips=["10.0.0.0/8", "0.0.0.0/0"]))
        await tailnet.approve_routes(router, ["10.0.0.0/8"])
        tailnet.reports.set_online(router, True)
    first, second = routers
    assert (tailnet.routes.primaries_of(first), tailnet.routes.primaries_of(second)) == (["10.0.0.0/8"], [])
    world.changes.clear()
    tailnet.reports.set_online(first, False)
    assert tailnet.routes.primaries_of(second) == ["10.0.0.0/8"]
    assert {change.node for change in world.changes if change.kind is ChangeKind.CHANGED} == {first, second}
    tailnet.reports.set_online(first, True)
    assert tailnet.routes.primaries_of(second) == ["10.0.0.0/8"]  # no flapping back
    await tailnet.delete(second)
    assert tailnet.routes.primaries_of(first) == ["10.0.0.0/8"]


async def test_a_served_subnet_changes_every_filter_under_allow_all(make_world: Any) -> None:
    world = make_world(read_policy(ALLOW_ALL_TEXT.encode()))
    router, peer = await world.node(), await world.node()
    await world.tailnet.approve_routes(router, ["10.0.0.0/8"])
    world.changes.clear()
    world.tailnet.reports.observe(router, hostinfo=Hostinfo(hostname="box", routable_ips=["10.0.0.0/8"]))
    assert set(world.changes[0].filters) == {router, peer}


async def test_a_failing_subscriber_does_not_keep_the_others_from_hearing(world: Any) -> None:
    def broken(change: object) -> None:
        raise ValueError

    heard: list[object] = []
    world.tailnet.subscribe(broken)
    stop = world.tailnet.subscribe(heard.append)
    node = await world.node()
    assert len(heard) == 1
    stop()
    world.tailnet.reports.set_online(node, True)
    assert len(heard) == 1


@pytest.mark.parametrize("text", ["1", "box", "BOX.ghost.internal.", "100.64.0.1", "fd7a:115c:a1e0::1"])
async def test_a_node_is_found_by_id_name_and_address(world: Any, text: str) -> None:
    node = await world.node()
    assert world.tailnet.roster.find(text) is node


async def test_a_document_that_clashes_is_left_out_at_start(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    node = await world.node()
    for number, change in enumerate(
        ({"addresses": node.addresses}, {"given_name": "box"}, {"node_key": node.doc.node_key}, {"user": "nobody"}), 7
    ):
        fields = {"node_key": f"nodekey:{number:064x}", "given_name": f"n{number}", "addresses": [], **change}
        doc = node.doc.edited(id=number, **fields)
        world.store.documents["node", number] = doc
    assert list(world.reloaded().tailnet.nodes) == [1]
    assert caplog.text.count("the node is left out") == 4


async def test_the_clock_task_wakes_for_what_is_due(world: Any) -> None:
    """`running` sleeps until the next deadline and is woken by a nearer one."""
    guest = await world.node(ephemeral=True)
    async with world.tailnet.running():
        await asyncio.sleep(0)
        world.forward(hours=1)
        world.tailnet.reports.set_online(await world.node(ephemeral=True, hostname="new"), True)
        world.tailnet.upkeep.wake()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not world.tailnet.roster.has(guest)
