"""`gwctl serve --workers N` from outside: one tailnet over several processes, any of which may die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gw.model.hostinfo import Service

from .controlclient import Node
from .scripts import BIN, key

UPDATES = 250


def workers_of(server: subprocess.Popen[str]) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


@contextmanager
def serving(state: Path, port: int, count: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The server, once all its workers take connections."""
    server = subprocess.Popen(
        [str(BIN / "gwctl"), "serve", "--workers", str(count), *flags],
        text=True,
        cwd="/",
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)},
    )
    try:
        answers(port)
        yield server
    finally:
        children = workers_of(server)
        server.send_signal(signal.SIGTERM)
        try:
            server.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]  # nobody outlives the server


def answers(port: int, path: str = "/health") -> bytes:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def owner(node: Node, pids: list[int]) -> int:
    """The worker that holds the node's connection."""
    host, port = node.socket.getsockname()
    local = f"{bytes(reversed([int(each) for each in host.split('.')])).hex().upper()}:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] != local:
            continue
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(link) == f"socket:[{fields[9]}]":
                        return pid
                except OSError:
                    continue
    return 0


def join(port: int, auth: str, names: list[str]) -> list[Node]:
    nodes = []
    for name in names:
        node = Node(port, name)
        assert node.register(auth)["MachineAuthorized"]
        node.open_stream()
        nodes.append(node)
    return nodes


def told(node: Node) -> str:
    message = node.until(lambda m: any("Endpoints" in p for p in m.get("PeersChangedPatch") or []))
    return str(message["PeersChangedPatch"][-1]["Endpoints"][0])


@pytest.mark.timeout(240)
def test_nodes_at_several_workers_see_each_other_and_the_death_of_one_cuts_off_its_own_alone(
    state: Path, port: int
) -> None:
    with serving(state, port, 2) as server:
        assert b"pass" in answers(port)  # a web request comes through a worker
        auth = key(state, "--reusable")
        deadline = time.monotonic() + 60
        nodes: list[Node] = []
        while len({owner(node, workers_of(server)) for node in nodes}) < 2 and time.monotonic() < deadline:
            nodes += join(port, auth, [f"n{len(nodes)}"])
        pids = workers_of(server)
        homes = {id(node): owner(node, pids) for node in nodes}
        assert set(homes.values()) == set(pids)

        sender = nodes[0]
        for number in range(1, 6):  # everyone sees the same changes in the same order
            point = f"192.0.2.{number}:41641"
            assert sender.call("/machine/map", sender.request(omit_peers=True, endpoints=[point]))[0] == 200
            assert [told(node) for node in nodes[1:]] == [point] * (len(nodes) - 1)

        victim = homes[id(nodes[-1])]
        lost = [node for node in nodes if homes[id(node)] == victim]
        kept = [node for node in nodes if homes[id(node)] != victim]
        os.kill(victim, signal.SIGKILL)
        for node in lost:
            with pytest.raises(ConnectionError):
                node.until(lambda message: False)
        for node in lost:  # another worker takes them, or the new one
            node.connect()
            node.open_stream()
        mover = kept[0]
        point = "192.0.2.99:41641"
        assert mover.call("/machine/map", mover.request(omit_peers=True, endpoints=[point]))[0] == 200
        assert [told(node) for node in (*kept[1:], *lost)] == [point] * (len(nodes) - 1)
        deadline = time.monotonic() + 60
        while len(workers_of(server)) < 2:  # it was replaced
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [0, 1])
def test_a_reader_that_stops_harms_nobody_and_gets_a_whole_map_later(state: Path, port: int, count: int) -> None:
    with serving(state, port, count):
        auth = key(state, "--reusable")
        sleeper, sender, reader = join(port, auth, ["sleeper", "sender", "reader"])
        for number in range(UPDATES):  # some 60 KB each for the sleeper: more than windows and sockets hold
            sender.services = [Service("tcp", port, os.urandom(96).hex()) for port in range(1, 301)]
            last = f"192.0.2.{number % 250}:{20000 + number}"
            assert sender.call("/machine/map", sender.request(omit_peers=True, endpoints=[last]))[0] == 200
            reader.until(
                lambda m, last=last: any(p.get("Endpoints") == [last] for p in m.get("PeersChanged") or []), 60
            )
        messages = wholes = 0
        endpoints: list[str] = []
        while endpoints != [last]:
            message = sleeper.until(lambda m: m.get("Peers") or m.get("PeersChanged"), 60)
            messages += 1
            wholes += bool(message.get("Peers"))
            peers = [*(message.get("Peers") or []), *(message.get("PeersChanged") or [])]
            endpoints = next((p.get("Endpoints") for p in peers if p["Name"].startswith("sender")), endpoints)
        assert wholes, "what it missed has to come as a whole map"
        assert messages < UPDATES, "nothing was left out: the queue of a client that does not read has no bound"


def test_workers_write_their_log_as_the_server_does(state: Path, port: int) -> None:
    with serving(state, port, 1, "--log-level", "debug", "--log-format", "json") as server:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/ts2021",
            b"",
            {"Upgrade": "tailscale-control-protocol", "X-Tailscale-Handshake": "bm90IG9uZQ=="},
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request, timeout=10)
        assert server.stderr is not None
        told = {}
        while told.get("logger") != "gw.control.frontdoor":  # written by the worker alone
            told = json.loads(server.stderr.readline())
        assert told["message"].startswith("handshake refused")
