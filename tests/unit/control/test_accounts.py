"""Users and pre-auth keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gw.control import accounts, enrolment
from gw.errors import AuthRequired, Conflict, GwError, NotFound, UsageError


@pytest.mark.parametrize("name", ["a", "1a", "a b", "a/b", "../x", "a@b@c", "a" * 64, "ü" * 3, ""])
async def test_a_name_that_headscale_refuses_is_refused(world: Any, name: str) -> None:
    with pytest.raises(UsageError, match="not a user name"):
        await accounts.create_user(world.tailnet, name)


async def test_letter_case_does_not_tell_two_users_apart(world: Any) -> None:
    await accounts.create_user(world.tailnet, "ann")
    with pytest.raises(Conflict, match="user exists: `Ann`"):
        await accounts.create_user(world.tailnet, "Ann")


async def test_one_of_two_users_of_a_name_made_at_once_wins(world: Any) -> None:
    results = await asyncio.gather(
        *(accounts.create_user(world.tailnet, "ann") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 4


async def test_a_user_with_nodes_stays(world: Any) -> None:
    node = await world.node()
    user = world.tailnet.people.of_name("ann")
    with pytest.raises(Conflict, match=r"user has nodes: `ann` \(box\)"):
        await accounts.destroy_user(world.tailnet, user)
    await world.tailnet.delete(node)
    await accounts.destroy_user(world.tailnet, user)
    assert not world.tailnet.users
    assert not world.tailnet.preauth_keys
    assert (await accounts.create_user(world.tailnet, "ann")).id == 2  # numbers are never given twice
    assert (await world.reloaded().user("ben")).id == 3


async def test_a_user_cannot_go_while_a_node_logs_in(world: Any) -> None:
    key = await world.key()
    world.store.gate.clear()
    async with world.tailnet.running(), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(enrolment.register_preauth(world.tailnet, "mkey:1", world.request(key)))
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(Conflict, match="just logging in"):
            await accounts.destroy_user(world.tailnet, world.tailnet.people.of_name("ann"))
        world.store.gate.set()
    assert task.result().user == "ann"


async def test_nobody_logs_in_as_a_user_who_is_just_removed(world: Any) -> None:
    key = await world.key()
    user = world.tailnet.people.of_name("ann")
    world.store.gate.clear()
    async with world.tailnet.running(), asyncio.TaskGroup() as tasks:
        tasks.create_task(accounts.destroy_user(world.tailnet, user))
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(AuthRequired):
            await enrolment.register_preauth(world.tailnet, "mkey:1", world.request(key))
        world.store.gate.set()
    assert not world.tailnet.nodes


async def test_a_rename_takes_nodes_and_keys_along(world: Any) -> None:
    node = await world.node()
    key = await world.key(reusable=True)
    await accounts.rename_user(world.tailnet, world.tailnet.people.of_name("ann"), "anna")
    peer = await enrolment.register_preauth(world.tailnet, "mkey:2", world.request(key))
    assert node.user == peer.user == "anna"
    assert world.tailnet.policy.visible(node, peer)
    assert list(world.reloaded().tailnet.users) == ["anna"]


async def test_a_rename_that_fails_changes_nothing(world: Any) -> None:
    node = await world.node()
    world.store.broken = True
    with pytest.raises(GwError, match="no space"):
        await accounts.rename_user(world.tailnet, world.tailnet.people.of_name("ann"), "anna")
    assert (list(world.tailnet.users), node.user) == (["ann"], "ann")


async def test_a_key_needs_an_owner_and_a_future(world: Any) -> None:
    with pytest.raises(UsageError, match="needs a user or tags"):
        await accounts.create_preauth_key(world.tailnet, user=None)
    with pytest.raises(UsageError, match="expired at once"):
        await accounts.create_preauth_key(world.tailnet, user=await world.user(), expiration=world.now)


async def test_a_key_is_found_by_id_prefix_and_whole_text(world: Any) -> None:
    text = await world.key()
    doc = next(iter(world.tailnet.preauth_keys.values()))
    for name in ("1", doc.prefix, text, f"hskey-auth-{doc.prefix}-***"):
        assert accounts.find_preauth_key(world.tailnet, name) is doc
    with pytest.raises(NotFound) as caught:
        accounts.find_preauth_key(world.tailnet, "hskey-auth-" + "0" * 12 + "-" + "5" * 64)
    assert "5555" not in str(caught.value)


async def test_an_expiry_does_not_undo_the_use_of_a_key(world: Any) -> None:
    """Both change the same document at once."""
    text = await world.key()
    key = accounts.find_preauth_key(world.tailnet, text)
    async with world.tailnet.running():
        await asyncio.gather(
            enrolment.register_preauth(world.tailnet, "mkey:1", world.request(text)),
            accounts.expire_preauth_key(world.tailnet, key),
        )
    after = accounts.find_preauth_key(world.tailnet, text)
    assert after.used
    assert after.expiration == world.now
