"""SSH connections that have to be confirmed: who may ask, who may confirm, how long it holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gw.control.api.v1_logins import approve_login
from gw.control.sshchecks import LIFETIME_S, MAX_WAITING
from gw.errors import NotFound, PermissionNeeded
from gw.model.sshpolicy import SSHAction
from gw.policy.reader import read_policy
from gw.policy.sshrules import ACCEPT

CHECKED = read_policy(b"""{
    "tagOwners": {"tag:web": []},
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
    "ssh": [
        {"action": "check", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["root"], "checkPeriod": "1h"},
        {"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"],
         "checkPeriod": "always"},
    ],
}""")


class Trial:
    def __init__(self, world: Any) -> None:
        self.world, self.tailnet = world, world.tailnet

    async def nodes(self) -> tuple[Any, Any]:
        source = await self.world.node(hostname="laptop")
        return source, await self.world.node("", hostname="web", tags=["tag:web"])

    async def ask(self, source: Any, destination: Any, more: str = "", machine: str = "") -> SSHAction:
        target = f"/machine/ssh/action/{source.id}/to/{destination.id}?local_user=root{more}"
        answer: SSHAction = await self.tailnet.ssh_checks.answer(machine or destination.doc.machine_key, target)
        return answer

    def begun(self, first: SSHAction) -> str:
        """The id in the address that the person is shown, and in the place where the node asks next."""
        auth_id = first.message.partition("http://mesh.test/auth/")[2].split()[0]
        assert first.hold_and_delegate.endswith(f"?local_user=$LOCAL_USER&auth_id={auth_id}")
        return auth_id


@pytest.fixture
def trial(make_world: Any) -> Trial:
    return Trial(make_world(CHECKED))


@pytest.mark.parametrize("approved", [True, False])
async def test_a_connection_waits_for_the_verdict(trial: Trial, approved: bool) -> None:
    source, web = await trial.nodes()
    auth_id = trial.begun(await trial.ask(source, web))
    waiting = asyncio.get_running_loop().create_task(trial.ask(source, web, f"&auth_id={auth_id}"))
    await asyncio.sleep(0)
    assert not waiting.done()
    if approved:
        answer = await approve_login(trial.tailnet, auth_id, "")
        assert answer.node.given_name == "laptop"
    else:
        checks = trial.tailnet.ssh_checks
        checks.decide(checks.require(auth_id), approved=False)
    assert (await waiting == ACCEPT) is approved
    told = trial.world.events[-1]
    assert told.event == ("ssh-check-approved" if approved else "ssh-check-rejected")
    assert (told.subject, told.after) == ("node:1", {"destination": 2, "local_user": "root"})
    with pytest.raises(NotFound):
        await approve_login(trial.tailnet, auth_id, "")


async def test_an_approval_holds_for_the_rules_period_and_for_this_way_alone(trial: Trial) -> None:
    source, web = await trial.nodes()
    other = await trial.world.node(hostname="other")
    await approve_login(trial.tailnet, trial.begun(await trial.ask(source, web)), "")
    assert await trial.ask(source, web) == ACCEPT
    trial.begun(await trial.ask(other, web))
    trial.world.forward(minutes=59)
    assert await trial.ask(source, web) == ACCEPT
    trial.world.forward(minutes=2)
    trial.begun(await trial.ask(source, web))


async def test_always_means_each_time(trial: Trial) -> None:
    source, other = await trial.world.node(hostname="laptop"), await trial.world.node(hostname="desk")
    await approve_login(trial.tailnet, trial.begun(await trial.ask(source, other)), "")
    trial.begun(await trial.ask(source, other))


async def test_a_device_that_changed_hands_is_asked_for_again(trial: Trial) -> None:
    from gw.control import nodes

    source, web = await trial.nodes()
    await approve_login(trial.tailnet, trial.begun(await trial.ask(source, web)), "")
    await nodes.move(trial.tailnet, source, await trial.world.user("ben"))
    trial.begun(await trial.ask(source, web))


async def test_only_the_node_that_is_connected_to_may_ask(trial: Trial) -> None:
    source, web = await trial.nodes()
    with pytest.raises(PermissionNeeded):
        await trial.ask(source, web, machine=source.doc.machine_key)
    for place in ("/machine/ssh/action/1/to/99", "/machine/ssh/action/x/to/2", "/machine/ssh/action/1/to/2/more"):
        with pytest.raises(NotFound):
            await trial.tailnet.ssh_checks.answer(web.doc.machine_key, place)


async def test_what_no_check_opens_is_rejected(trial: Trial) -> None:
    source, web = await trial.nodes()
    assert (await trial.ask(web, source)).reject
    stranger = await trial.world.node("ben", hostname="ben")
    assert (await trial.ask(stranger, source)).reject
    await trial.tailnet.expire(source, trial.world.now)
    assert (await trial.ask(source, web)).reject


async def test_a_verdict_is_for_the_connection_it_was_asked_for(trial: Trial) -> None:
    source, web = await trial.nodes()
    other = await trial.world.node(hostname="other")
    auth_id = trial.begun(await trial.ask(source, web))
    await approve_login(trial.tailnet, auth_id, "")
    assert (await trial.ask(other, web, f"&auth_id={auth_id}")).reject
    assert (await trial.ask(source, web, "&auth_id=hskey-sshcheck-none")).reject


async def test_who_waits_too_long_is_rejected_and_the_table_is_bounded(trial: Trial) -> None:
    source, web = await trial.nodes()
    auth_id = trial.begun(await trial.ask(source, web))
    assert trial.begun(await trial.ask(source, web)) == auth_id
    waiting = asyncio.get_running_loop().create_task(trial.ask(source, web, f"&auth_id={auth_id}"))
    await asyncio.sleep(0)
    trial.world.forward(seconds=LIFETIME_S + 1)
    assert not trial.tailnet.ssh_checks.waiting()
    assert (await waiting).reject
    checks = trial.tailnet.ssh_checks
    for number in range(MAX_WAITING + 5):
        await checks.answer(web.doc.machine_key, f"/machine/ssh/action/1/to/2?local_user=u{number}")
    assert len(checks.waiting()) == MAX_WAITING
