"""What an administrator does to one node: approval, addresses, owner."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from gw.control import accounts, enrolment, nodes
from gw.control.mapper import Mapper
from gw.control.records import ChangeKind
from gw.control.registration import register
from gw.control.watching import take_over_node
from gw.errors import Conflict, GwError, UsageError
from gw.model.hostinfo import Hostinfo
from gw.model.keys import MachineKey
from gw.state.config import NodeSettings
from gw.state.documents import NodeDoc

STRICT = {"node": NodeSettings(require_approval=True)}
MACHINE = MachineKey(bytes([7]) * 32)


async def test_a_device_reaches_nobody_until_it_is_approved(make_world: Any) -> None:
    world = make_world(**STRICT)
    tailnet = world.tailnet
    first, second = await world.node(hostname="a", preapproved=True), await world.node(hostname="b")
    assert (first.doc.approved, second.doc.approved) == (True, False)
    assert tailnet.policy.peers_of(second) == []
    assert tailnet.policy.peers_of(first) == []
    assert tailnet.policy.filter_for(second) == []
    own = Mapper(tailnet).own(second)
    assert b'"MachineAuthorized":true' not in own
    assert nodes.waiting(tailnet) == [second]
    world.changes.clear()
    await nodes.approve(tailnet, second)
    assert [(change.kind, change.anew) for change in world.changes] == [(ChangeKind.CHANGED, True)]
    assert tailnet.policy.peers_of(second) == [first]
    assert b'"MachineAuthorized":true' in Mapper(tailnet).own(second)
    assert world.events[-1].event == "node-approved"
    assert nodes.waiting(tailnet) == []


async def test_every_question_about_a_device_that_waits_has_an_answer(make_world: Any) -> None:
    """Each part of the server asks the policy on its own: none may stumble over a node that it does not know."""
    world = make_world(**STRICT)
    tailnet = world.tailnet
    known, waits = await world.node(hostname="a", preapproved=True), await world.node(hostname="b")
    policy = tailnet.policy
    assert policy.visible(known, waits) is policy.visible(waits, known) is False
    assert (policy.peers_of(waits), policy.filter_for(waits), policy.ssh_for(waits)) == ([], [], [])
    assert (policy.attributes_of(waits), policy.has_ipv4(waits)) == ({}, True)
    assert policy.approved(waits, ["10.0.0.0/8"]) == []
    assert list(policy.rivals(waits)) == []
    asked = 0
    for name, method in inspect.getmembers(type(policy), inspect.isfunction):
        wanted = [each.name for each in inspect.signature(method).parameters.values() if each.default is each.empty]
        if wanted == ["self", "node"] and name[0] != "_" and name not in ("add", "update", "remove"):
            method(policy, waits)
            asked += 1
    assert asked >= 8
    assert policy.audience_of(waits) not in (policy.audience_of(known), policy.audience_of(await world.node()))
    tailnet.reports.observe(
        waits, hostinfo=Hostinfo(hostname="b", routable_ips=["10.0.0.0/8"]), endpoints=["192.0.2.1:1"]
    )
    tailnet.reports.set_online(waits, True)
    await tailnet.upkeep.maintain()
    await tailnet.approve_routes(waits, ["10.0.0.0/8"])
    assert waits.served_routes == []
    await nodes.approve(tailnet, waits)
    assert waits.served_routes == ["10.0.0.0/8"]
    assert tailnet.routes.primary("10.0.0.0/8") == waits.id


async def test_an_approval_is_withdrawn_and_its_peers_lose_the_node(make_world: Any) -> None:
    world = make_world()
    first, second = await world.node(hostname="a"), await world.node(hostname="b")
    world.changes.clear()
    await nodes.approve(world.tailnet, second, False)
    (change,) = world.changes
    assert list(change.lost) == [first]
    assert world.tailnet.policy.peers_of(first) == []
    again = world.reloaded().tailnet
    assert again.policy.peers_of(again.nodes[first.id]) == []
    await world.tailnet.rename(second, "c")  # what else changes of it does not let it in
    assert world.tailnet.policy.peers_of(second) == []
    await world.tailnet.delete(second)


async def test_the_client_is_told_that_it_waits(make_world: Any) -> None:
    world = make_world(**STRICT)
    request = world.request(await world.key())
    answer = await register(world.tailnet, MACHINE, request)
    assert (answer.machine_authorized, answer.error, answer.auth_url) == (False, "", "")
    await nodes.approve(world.tailnet, world.tailnet.nodes[1])
    assert (await register(world.tailnet, MACHINE, request)).machine_authorized is True


async def test_a_login_that_a_person_lets_in_is_approved_with_it(make_world: Any) -> None:
    world = make_world(**STRICT)
    auth_id = enrolment.begin_auth(world.tailnet, str(MACHINE), world.request())
    assert (await enrolment.approve(world.tailnet, auth_id, await world.user())).doc.approved


async def test_a_key_promises_an_address_to_its_node_alone(world: Any) -> None:
    tailnet = world.tailnet
    key = await world.key(addresses=["100.64.0.1"])
    other = await world.node(hostname="other")
    assert "100.64.0.1" not in other.addresses
    with pytest.raises(Conflict, match="pre-auth key"):
        await world.key(addresses=["100.64.0.1"])
    assert "100.64.0.1" not in world.reloaded().tailnet.addresses.allocate()
    node = await enrolment.register_preauth(tailnet, world.fresh("mkey:"), world.request(key))
    assert node.addresses == ["100.64.0.1", "fd7a:115c:a1e0::2"]
    assert tailnet.roster.find("100.64.0.1") is node
    await tailnet.delete(node)
    assert tailnet.addresses.claim("100.64.0.1")


@pytest.mark.parametrize("way", ["expire", "delete", "time"])
async def test_a_promise_ends_with_its_key(world: Any, way: str) -> None:
    from datetime import timedelta

    await world.key(addresses=["100.64.0.9"], expiration=world.now + timedelta(hours=1))
    (doc,) = world.tailnet.preauth_keys.values()
    if way == "expire":
        await accounts.expire_preauth_key(world.tailnet, doc)
    elif way == "delete":
        await accounts.delete_preauth_key(world.tailnet, doc)
    else:
        world.forward(hours=2)
    await world.key(addresses=["100.64.0.9"])


async def test_a_promise_that_cannot_be_written_is_none(world: Any) -> None:
    await world.user()
    world.store.broken = True
    with pytest.raises(GwError, match="no space"):
        await world.key(addresses=["100.64.0.9"])
    assert world.tailnet.addresses.claim("100.64.0.9")


@pytest.mark.parametrize(
    "address", ["100.100.100.100", "100.64.0.0", "10.0.0.1", "fd7a:115c:a1e0::53", "100.115.92.7", "x", "100.64.0.7/32"]
)
async def test_an_address_no_node_may_have_is_refused(world: Any, address: str) -> None:
    node = await world.node()
    with pytest.raises(UsageError, match="no node may have|not an address"):
        await nodes.set_addresses(world.tailnet, node, [address])


async def test_an_address_is_chosen_and_the_old_one_is_free(world: Any) -> None:
    tailnet = world.tailnet
    node, other = await world.node(), await world.node(hostname="other")
    await nodes.set_addresses(tailnet, node, ["100.64.7.7"])
    assert node.addresses == ["100.64.7.7", "fd7a:115c:a1e0::1"]
    assert tailnet.roster.find("100.64.7.7") is node
    with pytest.raises(Conflict, match="another node"):
        await nodes.set_addresses(tailnet, other, ["100.64.7.7"])
    world.store.broken = True
    with pytest.raises(GwError, match="no space"):
        await nodes.set_addresses(tailnet, other, ["100.64.0.1"])
    world.store.broken = False
    await nodes.set_addresses(tailnet, other, ["100.64.0.1", "fd7a:115c:a1e0::9"])
    assert other.addresses == ["100.64.0.1", "fd7a:115c:a1e0::9"]
    assert world.reloaded().tailnet.roster.find("fd7a:115c:a1e0::9").id == other.id


async def test_a_family_that_came_later_is_filled_in(world: Any) -> None:
    node = await world.node()
    world.store.documents["node", node.id] = node.doc.edited(addresses=["100.64.0.1"])
    tailnet = world.reloaded().tailnet
    assert [each.id for each in await nodes.fill_addresses(tailnet)] == [node.id]
    assert tailnet.nodes[node.id].addresses == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert await nodes.fill_addresses(tailnet) == []


async def test_a_node_is_moved_to_another_user(world: Any) -> None:
    machine = world.fresh("mkey:")
    node, ben = await world.node(machine=machine), await world.user("ben")
    await nodes.move(world.tailnet, node, ben)
    assert (node.user, world.tailnet.roster.of_user("ann"), world.tailnet.roster.of_user("ben")) == ("ben", [], [node])
    twin = await world.node(machine=machine)
    with pytest.raises(Conflict, match="logged in as `ben` too"):
        await nodes.move(world.tailnet, twin, ben)


@pytest.mark.parametrize(
    "wrong", [{"given_name": "not a label"}, {"given_name": "Box"}, {"node_key": "nodekey:1"}, {"addresses": ["x"]}]
)
async def test_a_document_that_would_harm_every_map_is_left_out(world: Any, wrong: dict[str, Any]) -> None:
    node, other = await world.node(), await world.node(hostname="other")
    doc: NodeDoc = node.doc.edited(**wrong)
    assert take_over_node(world.tailnet, node.id, doc) != ""
    world.store.documents["node", node.id] = doc
    assert list(world.reloaded().tailnet.nodes) == [other.id]


async def test_an_ephemeral_node_that_came_back_is_looked_at_again_later(world: Any) -> None:
    """Also where the time allowed was made longer meanwhile: the old deadline must not be the last."""
    tailnet = world.tailnet
    node = await world.node(ephemeral=True)
    world.forward(minutes=20)
    tailnet.reports.set_online(node, True)
    tailnet.reports.set_online(node, False)
    world.forward(minutes=15)
    due = await tailnet.upkeep.maintain()
    assert due == pytest.approx(15 * 60)
    assert tailnet.roster.has(node)
    world.forward(minutes=16)
    await tailnet.upkeep.maintain()
    assert not tailnet.roster.has(node)


async def test_a_clean_up_that_failed_is_tried_again(world: Any) -> None:
    node = await world.node(ephemeral=True)
    world.forward(hours=1)
    world.store.broken = True
    with pytest.raises(GwError):
        await world.tailnet.upkeep.maintain()
    world.store.broken = False
    assert await world.tailnet.upkeep.maintain() == pytest.approx(60)
    world.forward(minutes=1)
    await world.tailnet.upkeep.maintain()
    assert not world.tailnet.roster.has(node)
