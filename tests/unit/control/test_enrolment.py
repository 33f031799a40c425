"""Logging in: control protocol §4.3 and §4.4."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gw.control import accounts, enrolment
from gw.control.pending import LIFETIME_S, MAX_PENDING
from gw.control.records import ChangeKind, NodeRecord
from gw.errors import AuthRequired, GwError, NotFound
from gw.model.hostinfo import Hostinfo
from gw.policy.reader import read_policy
from gw.state.changes import Put


async def register(world: Any, machine: str, request: Any) -> Any:
    return await enrolment.register_preauth(world.tailnet, machine, request)


async def test_a_key_lets_a_machine_in_and_peers_hear_of_it(world: Any) -> None:
    key = await world.key()
    node = await register(world, "mkey:1", world.request(key, "Box"))
    assert node.fqdn == "box.ghost.internal"
    assert node.addresses == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert node.doc.register_method == "authkey"
    assert [(change.kind, change.node) for change in world.changes] == [(ChangeKind.ADDED, node)]
    assert [event.event for event in world.events] == ["user-created", "preauthkey-created", "node-registered"]


async def test_a_one_shot_key_lets_exactly_one_of_many_in(world: Any) -> None:
    key = await world.key()
    async with world.tailnet.running():
        results = await asyncio.gather(
            *(register(world, f"mkey:{n}", world.request(key)) for n in range(50)), return_exceptions=True
        )
    nodes = [result for result in results if not isinstance(result, BaseException)]
    assert len(nodes) == len(world.tailnet.nodes) == 1
    assert {str(result) for result in results if result not in nodes} == {"authkey already used"}


async def test_a_one_shot_key_stays_good_when_the_disk_refused_its_first_use(world: Any) -> None:
    key = await world.key()
    world.store.broken = True
    with pytest.raises(GwError, match="no space left"):
        await register(world, "mkey:1", world.request(key))
    assert not world.tailnet.nodes
    world.store.broken = False
    node = await register(world, "mkey:2", world.request(key))
    assert (node.doc.given_name, node.addresses[0]) == ("box", "100.64.0.2")


async def test_a_reusable_key_lets_many_in_side_by_side(world: Any) -> None:
    """All wait for the disk at once, so that they share its work."""
    key = await world.key(reusable=True)
    world.store.gate.clear()
    async with world.tailnet.running(), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(register(world, f"mkey:{n}", world.request(key))) for n in range(20)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not world.tailnet.nodes
        world.store.gate.set()
    nodes = [task.result() for task in waiting]
    assert len({node.doc.given_name for node in nodes}) == len({node.addresses[0] for node in nodes}) == 20


async def test_nothing_is_shown_before_it_is_durable(world: Any) -> None:
    key = await world.key()
    world.store.gate.clear()
    async with world.tailnet.running(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(register(world, "mkey:1", world.request(key)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not world.changes
        assert not world.tailnet.by_node_key
        world.store.gate.set()
    assert task.result().id == 1


async def test_a_registration_runs_to_its_end_when_the_caller_leaves(world: Any) -> None:
    """Else the node would be on disk and not in memory."""
    key = await world.key()
    world.store.gate.clear()
    async with world.tailnet.running():
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(register(world, "mkey:1", world.request(key)))
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
        world.store.gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
    assert [node.id for node in world.tailnet.nodes.values()] == [1]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda key: "tskey-auth-abc", "not a pre-auth key"),
        (lambda key: key[:-1], "not a pre-auth key"),
        (lambda key: key[:11] + "0" * 12 + key[23:], "invalid pre auth key"),
        (lambda key: key[:-64] + "0" * 64, "wrong secret"),
        (lambda key: "", "not a pre-auth key"),
    ],
)
async def test_a_wrong_key_is_refused_and_never_repeated(world: Any, spoil: Any, text: str) -> None:
    key = spoil(await world.key())
    with pytest.raises(AuthRequired, match=text) as caught:
        await register(world, "mkey:1", world.request(key))
    assert not key or key not in str(caught.value)


async def test_expired_revoked_and_orphaned_keys_are_refused(world: Any) -> None:
    expired = await world.key(expiration=world.now.replace(hour=1))
    world.forward(hours=2)
    with pytest.raises(AuthRequired, match="authkey expired"):
        await register(world, "mkey:1", world.request(expired))
    text = await world.key()
    await accounts.expire_preauth_key(world.tailnet, accounts.find_preauth_key(world.tailnet, text))
    with pytest.raises(AuthRequired, match="authkey expired"):
        await register(world, "mkey:1", world.request(text))
    orphaned = await world.key("ben", reusable=True)
    del world.tailnet.users["ben"]
    with pytest.raises(AuthRequired, match="user is gone"):
        await register(world, "mkey:1", world.request(orphaned))


async def test_only_a_hash_of_the_key_is_kept(world: Any) -> None:
    key = await world.key()
    secret = key.rpartition("-")[2]
    assert all(secret not in str(change) for commit in world.store.commits for change in commit)
    assert all(secret not in str(event) and "hash" not in str(event.after) for event in world.events)


async def test_a_used_key_survives_a_restart_of_the_node_it_let_in(world: Any) -> None:
    key = await world.key()
    request = world.request(key)
    node = await register(world, "mkey:1", request)
    writes = len(world.store.commits)
    assert await register(world, "mkey:1", request) is node
    await accounts.delete_preauth_key(world.tailnet, accounts.find_preauth_key(world.tailnet, key))
    assert await register(world, "mkey:1", request) is node
    assert len(world.store.commits) == writes + 1  # the deletion alone


async def test_a_new_key_for_a_known_machine_keeps_id_addresses_and_name(world: Any) -> None:
    node = await world.node(machine="mkey:m")
    before = node.doc
    again = await register(world, "mkey:m", world.request(await world.key(), "other"))
    assert again is node
    assert (node.id, node.addresses, node.doc.given_name) == (before.id, before.addresses, before.given_name)
    assert node.doc.node_key != before.node_key
    assert world.tailnet.by_node_key == {node.doc.node_key: node}


async def test_a_second_user_of_a_machine_gets_a_second_node(world: Any) -> None:
    first = await world.node(machine="mkey:m")
    second = await world.node("ben", machine="mkey:m")
    assert second is not first
    assert world.tailnet.by_machine_key["mkey:m"] == [first, second]


async def test_the_present_node_key_under_another_user_needs_a_new_one(world: Any) -> None:
    """Stock `up --auth-key` sends the node key it has: the client is told to make another."""
    node = await world.node(machine="mkey:m")
    with pytest.raises(enrolment.NewKeyNeeded):
        await register(world, "mkey:m", world.request(await world.key("ben"), node_key=node.doc.node_key))


async def test_a_node_key_of_another_machine_is_refused(world: Any) -> None:
    node = await world.node()
    with pytest.raises(AuthRequired, match="in use by another machine"):
        await register(world, "mkey:thief", world.request(await world.key(), node_key=node.doc.node_key))


async def test_two_machines_with_one_node_key_at_once_leave_one_node(world: Any) -> None:
    key = await world.key(reusable=True)
    request = world.request(key)
    results = await asyncio.gather(
        register(world, "mkey:1", request), register(world, "mkey:2", request), return_exceptions=True
    )
    assert sum(isinstance(result, AuthRequired) for result in results) == 1
    assert len(world.tailnet.nodes) == 1


@pytest.mark.parametrize("node_key", ["", "nodekey:" + "0" * 64, "nodekey:zz", "mkey:" + "1" * 64])
async def test_a_bad_node_key_is_refused(world: Any, node_key: str) -> None:
    request = world.request(await world.key())
    request.node_key = node_key
    with pytest.raises(AuthRequired, match="node key"):
        await register(world, "mkey:1", request)


async def test_a_tagged_key_takes_the_node_from_its_user(world: Any) -> None:
    node = await world.node(machine="mkey:m")
    peer = await world.node()
    world.changes.clear()
    again = await register(world, "mkey:m", world.request(await world.key(None, tags=["tag:b", "tag:a"])))
    assert again is node
    assert (node.user, node.tags, node.doc.expiry) == ("", ["tag:a", "tag:b"], None)
    assert list(world.changes[0].lost) == [peer]


async def test_an_expired_key_is_renewed_by_an_auth_key(make_world: Any) -> None:
    from gw.state.config import NodeSettings

    world = make_world(node=NodeSettings(key_expiry="1h"))
    node = await world.node(machine="mkey:m")
    world.forward(hours=2)
    assert world.tailnet.is_expired(node)
    await register(world, "mkey:m", world.request(await world.key(), node_key=node.doc.node_key))
    assert not world.tailnet.is_expired(node)


async def test_all_is_there_after_a_restart(world: Any) -> None:
    nodes = [await world.node(hostname=name) for name in ("a", "b", "b")]
    again = world.reloaded().tailnet
    assert {each.id: each.doc for each in again.nodes.values()} == {node.id: node.doc for node in nodes}
    fresh = await register(world, "mkey:new", world.request(await world.key()))
    assert fresh.addresses[0] == "100.64.0.4"


# Interactive


async def test_an_approved_login_gets_the_node_that_waits_for_it(world: Any) -> None:
    user = await world.user()
    auth_id = enrolment.begin_auth(world.tailnet, "mkey:1", world.request())
    assert auth_id.startswith("hskey-authreq-")
    assert len(auth_id) == 38
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(enrolment.wait_auth(world.tailnet, auth_id))
        await asyncio.sleep(0)
        node = await enrolment.approve(world.tailnet, auth_id, user)
    assert waiting.result() is node
    assert node.doc.register_method == "cli"
    assert await enrolment.wait_auth(world.tailnet, auth_id) is node  # a lost connection asks again
    with pytest.raises(NotFound):
        await enrolment.approve(world.tailnet, auth_id, user)


async def test_a_rejected_login_is_told_so(world: Any) -> None:
    auth_id = enrolment.begin_auth(world.tailnet, "mkey:1", world.request())
    enrolment.reject(world.tailnet, auth_id)
    with pytest.raises(AuthRequired, match="rejected"):
        await enrolment.wait_auth(world.tailnet, auth_id)
    assert not world.tailnet.nodes


async def test_a_login_ages_out(world: Any) -> None:
    auth_id = enrolment.begin_auth(world.tailnet, "mkey:1", world.request())
    world.forward(seconds=LIFETIME_S + 1)
    assert await enrolment.wait_auth(world.tailnet, auth_id) is None
    with pytest.raises(NotFound):
        await enrolment.approve(world.tailnet, auth_id, await world.user())


async def test_the_same_machine_and_key_get_the_same_login(world: Any) -> None:
    request = world.request()
    first = enrolment.begin_auth(world.tailnet, "mkey:1", request)
    assert enrolment.begin_auth(world.tailnet, "mkey:1", request) == first
    assert enrolment.begin_auth(world.tailnet, "mkey:2", request) != first


async def test_a_flood_of_logins_drops_the_oldest(world: Any) -> None:
    ids = [enrolment.begin_auth(world.tailnet, "mkey:1", world.request()) for _ in range(MAX_PENDING + 1)]
    assert len(world.tailnet.logins) == MAX_PENDING
    assert await enrolment.wait_auth(world.tailnet, ids[0]) is None


async def test_a_failed_approval_can_be_repeated(world: Any) -> None:
    user = await world.user()
    auth_id = enrolment.begin_auth(world.tailnet, "mkey:1", world.request())
    world.store.broken = True
    with pytest.raises(GwError):
        await enrolment.approve(world.tailnet, auth_id, user)
    world.store.broken = False
    assert (await enrolment.approve(world.tailnet, auth_id, user)).id


async def test_key_and_node_become_durable_in_one_commit(world: Any) -> None:
    """A crash in between would leave a used key without its node, or a node and a key that admits another."""
    await world.node()
    kinds = [change.document.kind for change in world.store.commits[-1] if isinstance(change, Put)]
    assert kinds == ["node", "preauthkey"]


async def test_a_node_may_ask_for_tags_that_its_user_owns(make_world: Any) -> None:
    text = b'{"acls": [], "tagOwners": {"tag:mine": ["ann@"], "tag:other": []}}'
    world = make_world(read_policy(text))
    await world.user("ann")

    async def register(*tags: str) -> NodeRecord:
        request = world.request(await world.key("ann"), "box")
        request.hostinfo = Hostinfo(hostname="box", request_tags=list(tags))
        return await enrolment.register_preauth(world.tailnet, world.fresh("mkey:"), request)

    node = await register("tag:mine")
    assert (node.tags, node.user) == (["tag:mine"], "")
    with pytest.raises(AuthRequired, match=r"requested tags \[tag:other\] are invalid or not permitted"):
        await register("tag:mine", "tag:other")
    assert (await register()).user == "ann"


async def test_a_node_with_asked_tags_survives_restarts_with_its_used_key(make_world: Any) -> None:
    world = make_world(read_policy(b'{"acls": [], "tagOwners": {"tag:mine": ["ann@"], "tag:two": ["ann@"]}}'))
    await world.user("ann")
    request = world.request(await world.key("ann"), "box")
    request.hostinfo = Hostinfo(hostname="box", request_tags=["tag:mine"])
    machine = world.fresh("mkey:")
    node = await enrolment.register_preauth(world.tailnet, machine, request)
    assert await enrolment.register_preauth(world.tailnet, machine, request) is node
    request.hostinfo = Hostinfo(hostname="box", request_tags=["tag:mine", "tag:two"])
    with pytest.raises(AuthRequired, match="used"):  # another wish is another login
        await enrolment.register_preauth(world.tailnet, machine, request)
