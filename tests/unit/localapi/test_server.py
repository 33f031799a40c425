"""The daemon's local API over a real unix socket, called by our own client and by bytes that no client sends."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from gw.errors import AuthRequired, Conflict, GwError, NotFound, PermissionNeeded, TimedOut, UsageError
from gw.localapi import unixhttp
from gw.localapi.broadcast import QUEUE_ITEMS, Broadcast
from gw.localapi.client import Client, events
from gw.localapi.notify import Notify, PingResult
from gw.localapi.prefs import Prefs
from gw.localapi.server import MAX_BODY_BYTES, local_api
from gw.localapi.status import PeerStatus, Status

T = TypeVar("T")
NOBODY = 65534
API = "/localapi/v0"


class Node:
    """A backend with one peer. Calls are written down; `fail` is raised by the next call that may fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.kept = Prefs(control_url="https://control.example", want_running=True)
        self.fail: Exception | None = None
        self.notes: Broadcast[Notify] = Broadcast()
        self.changes: Broadcast[dict[str, Any]] = Broadcast()
        self.whole: dict[str, Any] = {"Status": {"BackendState": "Running"}}
        self.pinging = asyncio.Event()
        self.ping_ended = asyncio.Event()
        self.answer_ping = True
        self.events_ended = asyncio.Event()

    def _called(self, *call: object) -> None:
        self.calls.append(call)
        if self.fail is not None:
            raise self.fail

    def status(self) -> Status:
        self._called("status")
        peer = PeerStatus(dns_name="bob.ghost.internal.", tailscale_ips=["100.64.0.2"], online=True)
        own = PeerStatus(dns_name="ann.ghost.internal.", tailscale_ips=["100.64.0.1"])
        return Status(backend_state="Running", have_node_key=True, self_=own, peer={"nodekey:b": peer})

    def prefs(self) -> Prefs:
        return self.kept

    def health(self) -> dict[str, object]:
        return {"state": "Running"}

    def metrics(self, *, peers: bool) -> str:
        self._called("metrics", peers)
        return f"one_total 1\npeers {int(peers)}\n"

    def whois(self, address: str) -> dict[str, object]:
        self._called("whois", address)
        return {"Node": {"Name": "bob.ghost.internal."}}

    async def edit_prefs(self, masked: dict[str, Any]) -> Prefs:
        self._called("edit", masked)
        return self.kept

    async def start(self, auth_key: str, *, fresh: bool) -> None:
        self._called("start", auth_key, fresh)

    async def login_interactive(self) -> None:
        self._called("login")

    async def logout(self) -> None:
        self._called("logout")

    async def ping(self, address: str) -> PingResult:
        self._called("ping", address)
        self.pinging.set()
        try:
            if not self.answer_ping:
                await asyncio.Event().wait()
        finally:
            self.ping_ended.set()
        return PingResult(ip=address, node_ip=address, node_name="bob", latency_seconds=0.003, endpoint="192.0.2.1:5")

    async def notifications(self, *, initial: bool) -> AsyncIterator[Notify]:
        def state() -> list[Notify]:
            return [Notify(state=6)]

        async with aclosing(self.notes.listen(state if initial else list, state)) as heard:
            async for note in heard:
                yield note

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        try:
            async with aclosing(self.changes.listen(lambda: [self.whole], lambda: [self.whole])) as heard:
                async for event in heard:
                    yield event
        finally:
            self.events_ended.set()


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def path(node: Node, tmp_path: Path) -> AsyncIterator[Path]:
    where = tmp_path / "run" / "gwd.sock"
    async with asyncio.timeout(30), local_api(node, where):
        yield where


async def call(action: Callable[[], T]) -> T:
    """What a command does, in a thread as in a process of its own."""
    return await asyncio.to_thread(action)


async def exchange(path: Path, raw: bytes, *, half_close: bool = False) -> bytes:
    """Send these bytes, return the whole answer."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(raw)
    if half_close:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_status_arrives_as_it_was(path: Path) -> None:
    status = await call(Client(path).status)
    assert status.backend_state == "Running"
    assert status.find("bob").tailscale_ips == ["100.64.0.2"]


async def test_status_without_peers_has_none(path: Path) -> None:
    answer = await call(lambda: unixhttp.request(path, "GET", f"{API}/status?peers=false"))
    assert answer.json()["Peer"] is None
    assert answer.json()["Self"]["TailscaleIPs"] == ["100.64.0.1"]


async def test_metrics_are_text_and_name_peers_only_when_asked(path: Path) -> None:
    assert await call(lambda: Client(path).metrics(peers=False)) == b"one_total 1\npeers 0\n"
    assert await call(lambda: Client(path).metrics(peers=True)) == b"one_total 1\npeers 1\n"
    raw = await exchange(path, f"GET {API}/usermetrics HTTP/1.0\r\n\r\n".encode())  # what `tailscale metrics` reads
    assert b"text/plain; version=0.0.4" in raw


async def test_changed_preferences_name_only_what_changed(path: Path, node: Node) -> None:
    await call(lambda: Client(path).edit_prefs(want_running=False))
    assert node.calls == [("edit", {"WantRunning": False, "WantRunningSet": True})]


async def test_start_hands_over_key_and_then_asks_for_a_login(path: Path, node: Node) -> None:
    await call(lambda: Client(path).start({"hostname": "ann"}, "secret", force_reauth=True))
    assert node.calls == [("edit", {"Hostname": "ann", "HostnameSet": True}), ("start", "secret", True), ("login",)]


async def test_start_of_a_stock_client_carries_whole_preferences(path: Path, node: Node) -> None:
    """tailscale up sends ipn.Options with every preference it knows; ours are taken, the others left."""
    options = {"AuthKey": "", "UpdatePrefs": {"ControlURL": "https://c.example", "NoSNAT": False}}
    answer = await call(lambda: unixhttp.request(path, "POST", f"{API}/start", options))
    assert answer.status == 204
    assert node.calls[0] == ("edit", {"ControlURL": "https://c.example", "ControlURLSet": True})


async def test_ping_finds_the_peer_by_name(path: Path, node: Node) -> None:
    result = await call(lambda: Client(path).ping("bob"))
    assert result.describe() == "pong from bob (100.64.0.2) via 192.0.2.1:5 in 3.0 ms"
    assert ("ping", "100.64.0.2") in node.calls


async def test_kind_of_ping_that_is_not_there_is_refused(path: Path, node: Node) -> None:
    answer = await call(lambda: unixhttp.request(path, "POST", f"{API}/ping?ip=100.64.0.2&type=ICMP"))
    assert answer.status == 400
    assert isinstance(answer.error(), UsageError)
    assert node.calls == []


async def test_ping_is_given_up_when_the_caller_leaves(path: Path, node: Node) -> None:
    """Ctrl-C of `gw ping` must not leave probes going."""
    node.answer_ping = False
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(f"POST {API}/ping?ip=100.64.0.2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    await node.pinging.wait()
    writer.close()
    await node.ping_ended.wait()


async def test_whois_logout_and_health_answer(path: Path, node: Node) -> None:
    who = await call(lambda: unixhttp.request(path, "GET", f"{API}/whois?addr=100.64.0.2:80"))
    health = await call(lambda: unixhttp.request(path, "GET", f"{API}/gw/health"))
    await call(Client(path).logout)
    assert who.json()["Node"]["Name"] == "bob.ghost.internal."
    assert health.json() == {"state": "Running"}
    assert node.calls == [("whois", "100.64.0.2:80"), ("logout",)]


@pytest.mark.parametrize(
    ("body", "objection"), [({"WantRunning": True}, False), ({"WantRunning": "perhaps"}, True), ({"New": 1}, False)]
)
async def test_preferences_are_checked_without_being_taken(
    path: Path, node: Node, body: dict[str, object], objection: bool
) -> None:
    answer = await call(lambda: unixhttp.request(path, "POST", f"{API}/check-prefs", body))
    assert answer.status == 200
    assert bool(answer.json()["Error"]) is objection
    assert node.calls == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("no such peer: `x`", hint="gw status"), 404),
        (AuthRequired("not logged in"), 500),
        (UsageError("not an address: `x`"), 400),
        (PermissionNeeded("not yours"), 403),
        (Conflict("there already"), 409),
        (TimedOut("no answer"), 504),
        (GwError("it broke", hint="try again"), 500),
    ],
    ids=lambda value: value.code if isinstance(value, GwError) else str(value),
)
async def test_error_of_the_daemon_is_the_same_error_at_the_caller(
    path: Path, node: Node, error: GwError, status: int
) -> None:
    node.fail = error
    answer = await call(lambda: unixhttp.request(path, "GET", f"{API}/whois?addr=1.2.3.4"))
    carried = answer.error()
    assert answer.status == status
    assert (type(carried), carried.message, carried.hint) == (type(error), error.message, error.hint)


async def test_bug_of_the_daemon_is_answered_and_the_next_call_works(path: Path, node: Node) -> None:
    node.fail = ZeroDivisionError("a bug")
    answer = await call(lambda: unixhttp.request(path, "POST", f"{API}/logout"))
    assert answer.status == 500
    assert answer.error().message == "gwd failed at this"
    node.fail = None
    assert (await call(Client(path).status)).backend_state == "Running"


@pytest.mark.parametrize("target", ["/", "/status", f"{API}/nothing", f"{API}/status/", "/localapi/v1/status"])
async def test_unknown_path_is_not_found(path: Path, target: str) -> None:
    answer = await call(lambda: unixhttp.request(path, "GET", target))
    assert answer.status == 404
    assert isinstance(answer.error(), NotFound)


async def test_wrong_verb_is_not_found(path: Path, node: Node) -> None:
    answer = await call(lambda: unixhttp.request(path, "GET", f"{API}/logout"))
    assert answer.status == 404
    assert node.calls == []


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /localapi/v0/status HTTP/1.1\r\n\r\n",  # no Host
        b"GET /localapi/v0/status HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /localapi/v0/watch-ipn-bus?mask=%C2%B2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /localapi/v0/watch-ipn-bus?mask=-1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]",
        b"PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9000,
        b"POST /localapi/v0/start HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n" + b'{"UpdatePrefs":1}',
        b"PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PATCH /localapi/v0/prefs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n",
    ],
)
async def test_bytes_that_no_client_sends_get_400(path: Path, node: Node, raw: bytes) -> None:
    answer = await exchange(path, raw)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]
    assert node.calls == []


async def test_body_that_is_too_long_is_refused(path: Path, node: Node) -> None:
    head = f"PATCH {API}/prefs HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    answer = await exchange(path, head + b" " * (MAX_BODY_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert node.calls == []


@pytest.mark.parametrize("cut", [0, 10, 60])
async def test_request_that_breaks_off_does_nothing(path: Path, node: Node, cut: int) -> None:
    raw = f"POST {API}/logout HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n".encode()
    await exchange(path, raw[:cut], half_close=True)
    assert node.calls == []


@pytest.mark.parametrize("header", ["Origin: http://evil.example", "Referer: http://evil.example/"])
async def test_page_in_a_browser_is_refused(path: Path, node: Node, header: str) -> None:
    """A local proxy to the socket must not let web pages drive the node."""
    answer = await exchange(path, f"POST {API}/logout HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert node.calls == []


async def test_notifications_begin_with_the_state_and_go_on(path: Path, node: Node) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> list[Notify]:
        heard = []
        for note in Client(path).watch(timeout_s=20, ready=lambda: loop.call_soon_threadsafe(started.set)):
            heard.append(note)
            if note.state_name == "Stopped":
                break
        return heard

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(call(watch))
        await started.wait()
        node.notes.publish(Notify(browse_to_url="https://control.example/register/1"))
        node.notes.publish(Notify(state=4))
    assert [note.browse_to_url for note in watching.result()] == ["https://control.example/register/1", None]


async def test_events_begin_with_a_whole_status_and_go_on(path: Path, node: Node) -> None:
    async with aclosing(events(path)) as heard:
        assert await anext(heard) == {"Status": {"BackendState": "Running"}}
        node.changes.publish({"Removed": ["nodekey:b"]})
        assert await anext(heard) == {"Removed": ["nodekey:b"]}


async def test_caller_that_left_is_noticed_without_any_event(path: Path, node: Node) -> None:
    """A dashboard that was closed must not be computed for, on however quiet a mesh."""
    async with aclosing(events(path)) as heard:
        await anext(heard)
        assert node.changes
    await node.events_ended.wait()
    assert not node.changes


async def test_dashboard_that_stops_reading_catches_up_with_one_whole_status(path: Path, node: Node) -> None:
    """Bounded memory: what waits for a slow reader collapses to the whole state."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as channel:
        channel.setblocking(False)
        await loop.sock_connect(channel, str(path))
        await loop.sock_sendall(channel, f"GET {API}/gw/events HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        begun = b""
        while b"Running" not in begun:
            begun += await loop.sock_recv(channel, 65536)
        filler = {"Peers": {"nodekey:b": {"HostName": "x" * 100_000}}}
        node.whole = {"Status": {"BackendState": "Stopped"}}
        for _ in range(2 * QUEUE_ITEMS):  # 50 MB, of which the sockets hold a little
            node.changes.publish(filler)
            await asyncio.sleep(0)
        received = b""
        while b"Stopped" not in received:
            received += await loop.sock_recv(channel, 1 << 20)
    assert 0 < received.count(b"Peers") < QUEUE_ITEMS / 8


async def test_socket_is_for_its_owner_alone(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.parent.stat().st_mode & stat.S_IXUSR


async def test_socket_goes_with_the_daemon_and_ends_its_streams(node: Node, tmp_path: Path) -> None:
    where = tmp_path / "gwd.sock"
    async with local_api(node, where):
        heard = events(where)
        await anext(heard)
    with pytest.raises(StopAsyncIteration):
        await anext(heard)
    assert not where.exists()
    assert not node.changes


async def test_socket_of_a_killed_daemon_is_replaced(node: Node, tmp_path: Path) -> None:
    where = tmp_path / "gwd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(where))
    async with local_api(node, where):
        assert (await call(Client(where).status)).backend_state == "Running"


async def entering(node: Node, where: Path, operator: str = "") -> GwError:
    with pytest.raises(GwError) as refused:
        async with local_api(node, where, operator=operator):
            pass
    return refused.value


async def test_second_daemon_on_one_socket_is_a_conflict(path: Path, node: Node) -> None:
    assert isinstance(await entering(node, path), Conflict)
    assert (await call(Client(path).status)).backend_state == "Running"


async def test_file_in_the_way_is_kept(node: Node, tmp_path: Path) -> None:
    where = tmp_path / "notes.txt"
    where.write_text("mine")
    assert isinstance(await entering(node, where), Conflict)
    assert where.read_text() == "mine"


async def test_path_that_cannot_be_a_socket_is_said_so(node: Node, tmp_path: Path) -> None:
    assert "too long" in (await entering(node, tmp_path / ("x" * 120))).message
    (tmp_path / "file").write_text("")
    assert "cannot make" in (await entering(node, tmp_path / "file" / "gwd.sock")).message


async def test_unknown_operator_is_refused(node: Node, tmp_path: Path) -> None:
    assert isinstance(await entering(node, tmp_path / "s", operator="no-such-user"), NotFound)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the host can enter; pytest's own are closed."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def request_as(uid: int, where: Path, target: str) -> bytes:
    """Connect as this user; the kernel tells the daemon who it was."""
    with socket.socket(socket.AF_UNIX) as channel:
        os.seteuid(uid)
        try:
            channel.connect(str(where))
        finally:
            os.seteuid(0)
        channel.sendall(f"GET {API}{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while part := channel.recv(65536):
            parts.append(part)
    return b"".join(parts)


async def test_other_user_gets_403_where_somebody_opened_the_socket(node: Node, open_folder: Path) -> None:
    where = open_folder / "gwd.sock"
    async with local_api(node, where, operator="daemon"):
        where.chmod(0o666)
        answer = await call(lambda: request_as(NOBODY, where, "/status"))
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["code"] == "permission-needed"
    assert node.calls == []


async def test_operator_may_do_what_root_may(node: Node, open_folder: Path) -> None:
    where = open_folder / "gwd.sock"
    async with local_api(node, where, operator="nobody"):
        assert (await call(lambda: request_as(NOBODY, where, "/status"))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("operator", ["", "daemon"])
async def test_other_user_cannot_even_connect(node: Node, open_folder: Path, operator: str) -> None:
    where = open_folder / "gwd.sock"
    async with local_api(node, where, operator=operator):
        with pytest.raises(PermissionError):
            await call(lambda: request_as(NOBODY, where, "/status"))
