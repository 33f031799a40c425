"""WireGuard is WireGuard: our tunnel and wireguard-go, each in a namespace of its own.

ours (10.9.0.1, inner 100.64.9.1) ──veth── wireguard-go (10.9.0.2, inner 100.64.9.2)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gw.wire.x25519 import clamp, public_key
from tests.netns.namespaces import Namespaces, needs_namespaces

pytestmark = [
    needs_namespaces(),
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="needs wireguard-go"),
    pytest.mark.skipif(shutil.which("wg") is None, reason="needs wireguard-tools"),
    pytest.mark.timeout(300),
]

PORT = 51820


class End:
    """Our end, driven by lines."""

    def __init__(
        self, spaces: Namespaces, name: str, config: dict[str, object], folder: Path, *, cores: set[int] | None = None
    ) -> None:
        """cores: those it may use."""
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        self.log = (folder / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            spaces.argv(name, sys.executable, str(Path(__file__).with_name("tunnelend.py")), str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
        assert self.line()["ready"]

    def line(self) -> dict[str, object]:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, Path(self.log.name).read_text()
        return json.loads(text)

    def ask(self, text: str) -> dict[str, object]:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        assert self.process.returncode == 0, Path(self.log.name).read_text()


class Pair:
    """Both ends and the wire between them."""

    def __init__(self, spaces: Namespaces, folder: Path, cores: set[int] | None) -> None:
        self.cores = cores
        self.spaces = spaces
        self.folder = folder
        self.ours = clamp(os.urandom(32))
        self.theirs = clamp(os.urandom(32))
        self.end: End | None = None
        self.go: subprocess.Popen[bytes] | None = None

    def start(self, *, we_know: bool, they_know: bool) -> None:
        """Who knows the other's endpoint is who can initiate."""
        self.go = subprocess.Popen(
            self.spaces.argv("go", "wireguard-go", "-f", "wg0"),
            env={**os.environ, "LOG_LEVEL": "error", "WG_SUDO": "1"},
        )
        sock = Path("/var/run/wireguard/wg0.sock")
        for _ in range(100):
            if sock.exists():
                break
            time.sleep(0.05)
        key = self.folder / "go.key"
        key.write_text(base64.b64encode(self.theirs).decode())
        endpoint = ["endpoint", f"10.9.0.1:{PORT}"] if they_know else []
        ours = base64.b64encode(public_key(self.ours)).decode()
        self.spaces.run(
            "go", "wg", "set", "wg0", "listen-port", str(PORT), "private-key", str(key),
            "peer", ours, "allowed-ips", "100.64.9.1/32", *endpoint,
        )  # fmt: skip
        self.spaces.ip("go", "addr add 100.64.9.2/24 dev wg0")
        self.spaces.ip("go", "link set wg0 mtu 1280 up")
        self.end = End(
            self.spaces,
            "ours",
            {
                "secret": self.ours.hex(),
                "tun": "gw0",
                "port": PORT,
                "address": "100.64.9.1/24",
                "peers": [
                    {
                        "key": public_key(self.theirs).hex(),
                        "allowed": ["100.64.9.2/32"],
                        "endpoint": f"10.9.0.2:{PORT}" if we_know else "",
                    }
                ],
            },
            self.folder,
            cores=self.cores,
        )

    def stop(self) -> None:
        if self.end is not None:
            self.end.close()
        if self.go is not None:
            self.go.terminate()
            self.go.wait(timeout=10)

    def ping(self, space: str, count: int = 3) -> None:
        address = "100.64.9.2" if space == "ours" else "100.64.9.1"
        out = self.spaces.run(space, "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "5", address)
        assert " 0% packet loss" in out


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Ours on all cores of the machine, or on one."""
    cores = {min(os.sched_getaffinity(0))} if getattr(request, "param", "") == "one core" else None
    with Namespaces("wg", ["ours", "go"]) as spaces:
        spaces.link("ours", "10.9.0.1/24", "go", "10.9.0.2/24")
        pair = Pair(spaces, tmp_path, cores)
        try:
            yield pair
        finally:
            pair.stop()


def test_we_initiate_and_packets_pass_both_ways(pair: Pair) -> None:
    pair.start(we_know=True, they_know=False)
    pair.ping("ours")
    pair.ping("go")
    shown = pair.spaces.run("go", "wg", "show", "wg0", "latest-handshakes").split()
    assert abs(int(shown[1]) - time.time()) < 30


def test_wireguard_go_initiates_and_packets_pass_both_ways(pair: Pair) -> None:
    pair.start(we_know=False, they_know=True)
    pair.ping("go")
    pair.ping("ours")
    assert pair.end is not None
    stats = pair.end.ask("stats")
    assert abs(float(str(stats["handshake"])) - time.time()) < 30
    assert int(str(stats["rx"])) > 0


def test_a_new_handshake_takes_over_without_loss(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    assert pair.end is not None
    before = pair.end.ask("stats")["sessions"]
    for _ in range(3):
        pair.end.ask("renew")
        pair.ping("ours", 2)
        pair.ping("go", 2)
    assert pair.end.ask("stats")["sessions"] == int(str(before)) + 3


def test_the_peer_moves_and_is_followed(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    pair.spaces.run("go", "wg", "set", "wg0", "listen-port", "51999")
    # the answer to its first packet may still go to the old place: the engine hears of the move beside it
    pair.spaces.run("go", "ping", "-n", "-c", "1", "-W", "1", "100.64.9.1", check=False)
    pair.ping("go")
    pair.ping("ours")


@pytest.mark.parametrize("pair", ["one core"], indirect=True)
def test_on_one_core_one_process_serves_both_planes(pair: Pair) -> None:
    pair.start(we_know=True, they_know=False)
    pair.ping("ours")
    assert pair.end is not None
    before = pair.end.ask("stats")["health"]["workers"]
    assert before["outbound"] == before["inbound"]
    pair.end.ask("kill outbound")
    time.sleep(1.5)
    pair.ping("ours")
    pair.ping("go")
    after = pair.end.ask("stats")["health"]["workers"]
    assert after["outbound"] == after["inbound"] != before["outbound"]


@pytest.mark.parametrize("kind", ["outbound", "inbound"])
def test_a_killed_worker_is_replaced_and_the_keypair_with_it(pair: Pair, kind: str) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    assert pair.end is not None
    before = int(str(pair.end.ask("stats")["sessions"]))
    pair.end.ask(f"kill {kind}")
    time.sleep(1.5)
    pair.ping("ours")
    pair.ping("go")
    after = pair.end.ask("stats")
    assert int(str(after["sessions"])) > before
    assert set(after["health"]["workers"]) == {"outbound", "inbound"}


def test_the_filter_denies_what_no_rule_allows(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    pair.ping("go")
    assert pair.end is not None
    pair.end.ask("filter none")
    out = pair.spaces.run("go", "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "100.64.9.1", check=False)
    assert "100% packet loss" in out
    pair.ping("ours")  # answers to what we began pass
    drops = pair.end.ask("stats")["health"]["drops"]
    assert drops["acl"] >= 2
    pair.end.ask("filter all")
    pair.ping("go")


@pytest.mark.parametrize("pair", ["all cores", "one core"], indirect=True)
def test_bulk_tcp_passes_both_ways_and_whole(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    server = subprocess.Popen(
        pair.spaces.argv("go", "iperf3", "-s", "-B", "100.64.9.2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        for extra in ([], ["-R"], ["-u", "-b", "50M", "-l", "1200"]):
            report = json.loads(pair.spaces.run("ours", "iperf3", "-c", "100.64.9.2", "-t", "2", "-J", *extra))
            end = report["end"]
            received = end["sum"] if "-u" in extra else end["sum_received"]
            assert received["bytes"] > 5_000_000, end
            if "-u" in extra:
                assert received["lost_percent"] < 20
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_garbage_on_the_port_is_handed_over_or_dropped(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    script = (
        "import os,socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
        "for n in (0,1,3,31,32,33,92,148,1400):\n"
        f"  s.sendto(os.urandom(n),('10.9.0.1',{PORT}))\n"
        f"  s.sendto(b'\\x04\\0\\0\\0'+os.urandom(n),('10.9.0.1',{PORT}))\n"
        f"  s.sendto(b'\\x01\\0\\0\\0'+os.urandom(144),('10.9.0.1',{PORT}))\n"
    )
    pair.spaces.run("go", sys.executable, "-c", script)
    pair.ping("ours")
    assert pair.end is not None
    assert pair.end.ask("stats")["health"]["drops"]["unknown-session"] >= 5


@pytest.mark.long
def test_rekey_after_two_minutes_loses_nothing(pair: Pair) -> None:
    """150 s of pings at 20 a second: the initiator's rekey at 120 s is not noticed."""
    pair.start(we_know=True, they_know=True)
    pair.ping("ours")
    out = pair.spaces.run("ours", "ping", "-n", "-q", "-i", "0.05", "-w", "150", "100.64.9.2", timeout=200)
    assert " 0% packet loss" in out
    assert pair.end is not None
    assert int(str(pair.end.ask("stats")["sessions"])) >= 2


def test_the_port_answers_nothing_to_a_stranger(pair: Pair) -> None:
    pair.start(we_know=True, they_know=True)
    script = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(1)\n"
        f"s.sendto(b'\\x01\\0\\0\\0'+bytes(144),('10.9.0.1',{PORT}))\n"
        "try:\n  s.recv(100); raise SystemExit('answered')\nexcept TimeoutError: pass\n"
    )
    pair.spaces.run("go", sys.executable, "-c", script)
