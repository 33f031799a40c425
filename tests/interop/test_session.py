"""The node's control session against the real `gwctl serve`: logins, maps, restarts, endings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gw.errors import GwError
from gw.model.addresses import AddrPort
from gw.model.hostinfo import NetInfo
from gw.model.keys import DiscoKey
from gw.node.control import ControlClient
from gw.node.hostinfo import gather
from gw.node.identity import Identity
from gw.node.netmap import Netmap, NetmapChange
from gw.node.session import ControlSession, State

from .scripts import key, run, serving


class Machine:
    """One node: its session, and what it was told."""

    def __init__(self, folder: Path, port: int, name: str) -> None:
        self.identity = Identity.load(folder / name)
        self.client = ControlClient(f"http://127.0.0.1:{port}", self.identity.machine)
        self.states: list[State] = []
        self.urls: list[str] = []
        self.refusals: list[str] = []
        self.problems: list[str | None] = []
        self.changes: list[NetmapChange] = []
        self.news = asyncio.Event()
        self.session = ControlSession(
            self.client, self.identity, DiscoKey(os.urandom(32)), gather(name), self, jitter=lambda: 0.0
        )

    def state(self, state: State) -> None:
        self.states.append(state)
        self.news.set()

    def browse(self, url: str) -> None:
        self.urls.append(url)
        self.news.set()

    def refused(self, text: str) -> None:
        self.refusals.append(text)
        self.news.set()

    def netmap(self, netmap: Netmap, change: NetmapChange) -> None:
        self.changes.append(change)
        self.news.set()

    def problem(self, text: str | None) -> None:
        self.problems.append(text)
        self.news.set()

    def peers(self) -> list[str]:
        return sorted(node.name.split(".")[0] for node in self.session.netmap.peers.values())

    async def until(self, wanted: Callable[[], object], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not wanted():
                self.news.clear()
                await self.news.wait()

    @asynccontextmanager
    async def running(self, auth_key: str = "", *, fresh: bool = False) -> AsyncIterator[None]:
        async with self.client, asyncio.TaskGroup() as group:
            task = group.create_task(self.session.run(auth_key, fresh=fresh))
            try:
                yield
            finally:
                task.cancel()


async def test_two_nodes_log_in_and_see_each_other_come_change_and_go(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        auth = key(state, "--reusable")
        ann, bob = Machine(tmp_path, port, "ann"), Machine(tmp_path, port, "bob")
        async with ann.running(auth):
            await ann.until(lambda: State.CONNECTED in ann.states)
            assert ann.session.netmap.self_node is not None
            assert ann.session.netmap.self_node.name == "ann.ghost.internal."
            async with bob.running(auth):
                await bob.until(lambda: bob.peers() == ["ann"])
                await ann.until(lambda: ann.peers() == ["bob"])
                await ann.until(lambda: ann.session.netmap.packet_filter)
                bob.session.set_endpoints([(AddrPort("192.0.2.1", 5), 2)])
                bob.session.set_netinfo(NetInfo(preferred_derp=900))
                await ann.until(lambda: [n.endpoints for n in ann.session.netmap.peers.values()] == [["192.0.2.1:5"]])
                await ann.until(lambda: [n.home_derp for n in ann.session.netmap.peers.values()] == [900])
                await bob.session.log_out()
            await ann.until(lambda: ann.peers() == [] or all(n.expired for n in ann.session.netmap.peers.values()))
        assert not bob.identity.has_node_key


async def test_a_wrong_and_a_used_key_are_refused_in_the_servers_words(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        once = key(state)
        ann, bob, eve = (Machine(tmp_path, port, name) for name in ("ann", "bob", "eve"))
        async with ann.running(once):
            await ann.until(lambda: State.CONNECTED in ann.states)
        for machine, auth in ((bob, once), (eve, "nonsense")):
            async with machine.running(auth):
                await machine.until(lambda m=machine: State.NEEDS_LOGIN in m.states)
            assert machine.refusals
            assert State.CONNECTED not in machine.states


async def test_a_login_by_browser_waits_for_its_approval(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        ann = Machine(tmp_path, port, "ann")
        async with ann.running():
            await ann.until(lambda: ann.urls)
            number = ann.urls[0].rsplit("/", 1)[1]
            approved = await asyncio.to_thread(run, "gwctl", "auth", "approve", number, "-u", "ann", state=state)
            assert approved.returncode == 0, approved.stderr
            await ann.until(lambda: State.CONNECTED in ann.states)


async def test_a_killed_server_is_found_again_without_a_new_login(state: Path, port: int, tmp_path: Path) -> None:
    ann = Machine(tmp_path, port, "ann")
    with serving(state, port) as server:
        auth = key(state)
        async with ann.running(auth):
            await ann.until(lambda: State.CONNECTED in ann.states)
            node_key = str(ann.identity.node_key)
            server.kill()
            server.wait()
            await ann.until(lambda: ann.problems and ann.problems[-1])
            ann.states.clear()
            with serving(state, port):
                await ann.until(lambda: State.CONNECTED in ann.states)
                assert str(ann.identity.node_key) == node_key
                assert not ann.refusals


async def test_a_deleted_node_needs_a_login(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        ann = Machine(tmp_path, port, "ann")
        async with ann.running(key(state)):
            await ann.until(lambda: State.CONNECTED in ann.states)
            done = await asyncio.to_thread(run, "gwctl", "nodes", "delete", "-i", "1", "--force", state=state)
            assert done.returncode == 0, done.stderr
            await ann.until(lambda: ann.states[-1] == State.NEEDS_LOGIN)


async def test_a_new_login_keeps_the_node_and_changes_its_key(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        auth = key(state, "--reusable")
        ann = Machine(tmp_path, port, "ann")
        async with ann.running(auth):
            await ann.until(lambda: State.CONNECTED in ann.states)
            assert ann.session.netmap.self_node is not None
            before, number = str(ann.identity.node_key), ann.session.netmap.self_node.id
        again = Machine(tmp_path, port, "ann")
        async with again.running(auth, fresh=True):
            await again.until(lambda: State.CONNECTED in again.states)
            assert again.session.netmap.self_node is not None
            assert again.session.netmap.self_node.id == number
            assert str(again.identity.node_key) != before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://no-such-host.invalid", "no such host"),
        ("http://127.0.0.1:1", "cannot reach"),
        ("https://127.0.0.1:{port}", "TLS"),
    ],
)
async def test_an_unreachable_server_is_named_in_one_line(
    state: Path, port: int, tmp_path: Path, url: str, words: str
) -> None:
    with serving(state, port):
        machine = Machine(tmp_path, port, "ann")
        machine.client = ControlClient(url.format(port=port), machine.identity.machine)
        async with machine.client:
            with pytest.raises(GwError) as caught:
                await machine.client.register(machine.session._register_request())
        assert words in caught.value.message
        assert "\n" not in caught.value.message


def test_keys_are_kept_and_are_nobody_elses_to_read(tmp_path: Path) -> None:
    first = Identity.load(tmp_path / "n")
    node = first.node_key
    again = Identity.load(tmp_path / "n")
    assert (again.machine_key, again.node_key) == (first.machine_key, node)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "n").iterdir()} == {0o600}
    again.rotate()
    assert again.previous_key == node
    assert Identity.load(tmp_path / "n").previous_key == node


async def test_a_node_that_is_expired_by_its_server_needs_a_login(state: Path, port: int, tmp_path: Path) -> None:
    with serving(state, port):
        ann = Machine(tmp_path, port, "ann")
        async with ann.running(key(state)):
            await ann.until(lambda: State.CONNECTED in ann.states)
            old = str(ann.identity.node_key)
            expired = await asyncio.to_thread(run, "gwctl", "nodes", "expire", "-i", "1", state=state)
            assert expired.returncode == 0, expired.stderr
            await ann.until(lambda: ann.states[-1] is State.NEEDS_LOGIN)
            extended = await asyncio.to_thread(run, "gwctl", "nodes", "extend", "-i", "1", state=state)
            assert extended.returncode == 0, extended.stderr
            await ann.until(lambda: ann.states[-1] is State.CONNECTED)
            assert str(ann.identity.node_key) == old
            expired = await asyncio.to_thread(run, "gwctl", "nodes", "expire", "-i", "1", state=state)
            assert expired.returncode == 0, expired.stderr
            await ann.until(lambda: ann.states[-1] is State.NEEDS_LOGIN)
        again = Machine(tmp_path, port, "ann")
        async with again.running(key(state)):
            await again.until(lambda: State.CONNECTED in again.states)
            assert str(again.identity.node_key) != old
