"""QUIC between two real nodes: asked for, chosen where UDP fails WireGuard, left again, moved, resumed.

internet ── quinn
   └─────── rosa           nftables in a node's namespace are the box in the middle
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gw.lab import Lab, Nat, NodeSpec
from gw.lab.demo import resolve
from gw.lab.topology import run

from .namespaces import needs_namespaces
from .test_mesh import eventually

pytestmark = [needs_namespaces(), pytest.mark.timeout(240)]

# the first four bytes of its messages
WIREGUARD = "udp dport 41641 @th,64,32 { 0x01000000, 0x02000000, 0x03000000, 0x04000000 }"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    nodes = [NodeSpec("quinn", Nat.NONE), NodeSpec("rosa", Nat.NONE)]
    with Lab(nodes, folder=tmp_path_factory.mktemp("quic") / "pair") as lab:
        yield lab


@pytest.fixture
def lab(pair: Lab) -> Iterator[Lab]:
    """The pair as it was: transport `auto`, nothing in the middle."""
    yield pair
    for name in ("quinn", "rosa", "hub"):
        pair.run(name, "nft", "flush", "ruleset")
    for name in ("quinn", "rosa"):  # by way of `udp`: what was measured is forgotten
        pair.run(name, "gw", "set", "--transport", "udp")
        pair.run(name, "gw", "set", "--transport", "auto")
    eventually(lambda: ping(pair, 1) and transports(pair) == ("udp", "udp"), 60)


def peer(lab: Lab, name: str = "quinn") -> dict[str, Any]:
    """What the node tells of the other one."""
    peers: dict[str, dict[str, Any]] = lab.status(name)["Peer"]  # type: ignore[assignment]
    return next(iter(peers.values()))


def transports(lab: Lab) -> tuple[str, str]:
    return peer(lab)["Transport"], peer(lab, "rosa")["Transport"]


def ping(lab: Lab, count: int = 5) -> bool:
    lab.run("quinn", "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "2", "rosa")
    return True


def set_both(lab: Lab, transport: str) -> None:
    for name in ("quinn", "rosa"):
        lab.run(name, "gw", "set", "--transport", transport)


def in_the_middle(lab: Lab, name: str, *rules: str) -> None:
    """Drop what the rules say of what comes to the node."""
    lines = "\n".join(f"{rule} drop" for rule in rules)
    text = f"table inet middle {{\nchain in {{\ntype filter hook input priority 0\n{lines}\n}}\n}}\n"
    run(lab.argv(name, "nft", "-f", "-"), text=text)


@contextmanager
def flow(lab: Lab, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """One TCP flow from quinn to rosa; its end reports on the process's stdout."""
    module = [sys.executable, "-P", "-m", "gw.lab.throughput"]
    address = resolve(lab, "quinn", "rosa")
    with subprocess.Popen(
        lab.argv("rosa", *module, "serve", address), env=lab.environment("rosa"), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        client = subprocess.Popen(
            lab.argv("quinn", *module, "send", address, str(seconds)), env=lab.environment("quinn")
        )
        try:
            yield server
        finally:
            client.terminate()
            client.wait()
            server.terminate()


BULK_BYTES = 48 << 20
RECEIVE = """
import hashlib, socket, sys
with socket.create_server((sys.argv[1], 7070)) as server:
    print("ready", flush=True)
    channel, _ = server.accept()
    digest, size = hashlib.sha256(), 0
    while data := channel.recv(1 << 16):
        digest.update(data)
        size += len(data)
print(size, digest.hexdigest(), flush=True)
"""
SEND = """
import hashlib, random, socket, sys
digest, source = hashlib.sha256(), random.Random(7)
with socket.create_connection((sys.argv[1], 7070)) as channel:
    for _ in range(int(sys.argv[2]) >> 20):
        piece = source.randbytes(1 << 20)
        digest.update(piece)
        channel.sendall(piece)
print(digest.hexdigest())
"""


def transfer(lab: Lab, size: int) -> None:
    """Noise in one TCP flow from quinn to rosa; every byte of it arrives as it was sent."""
    address = resolve(lab, "quinn", "rosa")
    with subprocess.Popen(
        lab.argv("rosa", sys.executable, "-c", RECEIVE, address), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            digest = lab.run("quinn", sys.executable, "-c", SEND, address, str(size)).strip()
            assert server.stdout.readline().split() == [str(size), digest]
        finally:
            server.terminate()


def carried(lab: Lab, name: str) -> dict[str, dict[str, float]]:
    """Bytes that the node counts inside the tunnel, by direction and path."""
    found: dict[str, dict[str, float]] = {"inbound": {}, "outbound": {}}
    for line in lab.run(name, "gw", "metrics").splitlines():
        if match := re.match(r'tailscaled_(inbound|outbound)_bytes_total\{path="(.+)"\} (.+)', line):
            found[match[1]][match[2]] = float(match[3])
    return found


@contextmanager
def pings(lab: Lab) -> Iterator[None]:
    """Some traffic all the while."""
    with subprocess.Popen(
        lab.argv("quinn", "ping", "-n", "-i", "0.2", resolve(lab, "quinn", "rosa")), stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()


def test_who_asks_for_quic_gets_it_and_sees_it_everywhere(lab: Lab) -> None:
    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and transports(lab) == ("quic", "quic"))
    before = peer(lab)
    assert ping(lab, 10)
    after = peer(lab)
    assert after["QUIC"]["Sent"] - before["QUIC"]["Sent"] >= 10
    assert after["QUIC"]["Received"] - before["QUIC"]["Received"] >= 10
    assert after["TransportReason"] == "asked"
    assert "quic 198.51.100." in lab.run("quinn", "gw", "status")
    assert "via quic 198.51.100." in lab.run("quinn", "gw", "ping", "-c", "1", "rosa")
    metrics = lab.run("quinn", "gw", "metrics")
    assert 'ghostwire_active_peers{path="quic"} 1' in metrics
    series = 'tailscaled_outbound_packets_total{path="quic"}'
    assert float(next(line for line in metrics.splitlines() if line.startswith(series)).split()[-1]) >= 10


def test_bulk_arrives_inside_quic(lab: Lab) -> None:
    """Whole, and by no other way: plain UDP and relays are closed, and the counters of both ends say so too."""
    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and transports(lab) == ("quic", "quic"))
    eventually(lambda: ping(lab, 1) and peer(lab)["QUIC"]["PacketBytes"] == 1452)
    for name in ("quinn", "rosa"):
        in_the_middle(lab, name, WIREGUARD)
    in_the_middle(lab, "hub", "tcp dport 443", "udp dport { 443, 3478 }")
    before = {name: carried(lab, name) for name in ("quinn", "rosa")}
    messages = peer(lab)["QUIC"]["Sent"]
    transfer(lab, BULK_BYTES)
    for name, direction in (("quinn", "outbound"), ("rosa", "inbound")):
        moved = {path: size - before[name][direction][path] for path, size in carried(lab, name)[direction].items()}
        assert moved.pop("quic") > BULK_BYTES
        assert sum(moved.values()) < BULK_BYTES / 1000, moved  # single packets may be booked to the path before
    assert peer(lab)["QUIC"]["Sent"] - messages >= BULK_BYTES / 1452


def test_who_asks_for_udp_neither_dials_nor_answers(lab: Lab) -> None:
    lab.run("rosa", "gw", "set", "--transport", "udp")
    lab.run("quinn", "gw", "set", "--transport", "quic")
    assert ping(lab, 15)
    assert transports(lab) == ("udp", "udp")
    assert peer(lab, "rosa")["QUIC"] is None


def test_quic_is_taken_where_wireguard_does_not_get_through_and_left_when_it_does(lab: Lab) -> None:
    """Disco and QUIC pass the box, WireGuard does not. A real connection lives through both changes."""
    with flow(lab, 100), pings(lab):
        eventually(lambda: peer(lab)["Transport"] == "udp" and peer(lab)["RxPackets"] > 50)
        in_the_middle(lab, "rosa", WIREGUARD)
        in_the_middle(lab, "quinn", WIREGUARD)
        eventually(lambda: transports(lab) == ("quic", "quic"), 60)
        assert peer(lab)["TransportReason"] in ("blocked", "stalled", "peer")
        moved = peer(lab)["RxPackets"], peer(lab)["TxPackets"]
        eventually(lambda: peer(lab)["RxPackets"] > moved[0] + 20 and peer(lab)["TxPackets"] > moved[1] + 20)
        for name in ("quinn", "rosa"):
            lab.run(name, "nft", "flush", "ruleset")
        eventually(lambda: transports(lab) == ("udp", "udp"), 120)
        assert ping(lab)


def test_a_session_begins_inside_quic_where_no_handshake_gets_through(lab: Lab) -> None:
    """Path found, nothing inside: both ends of the cable are fine, the first byte is not."""
    in_the_middle(lab, "rosa", WIREGUARD)
    process = lab._running["gwd-quinn"]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    in_the_middle(lab, "hub", "tcp dport 443", "udp dport { 443, 3478 }")  # no relay either
    restart(lab)
    eventually(lambda: ping(lab, 1), 60)
    assert peer(lab)["Transport"] == "quic"


def test_quic_is_taken_where_wireguard_is_throttled(lab: Lab) -> None:
    """By bytes, as providers do it. The throughput before and after is what decides."""
    in_the_middle(lab, "rosa", "udp dport 41641 @th,64,32 0x04000000 limit rate over 40 kbytes/second burst 40 kbytes")
    with flow(lab, 60):
        eventually(lambda: peer(lab)["TransportReason"] == "lossy" and peer(lab)["Transport"] == "quic", 40)
        time.sleep(12)  # longer than the trial
        assert peer(lab)["TransportReason"] == "lossy"
        assert peer(lab)["Transport"] == "quic"


@pytest.mark.parametrize(("mover", "old", "new"), [("quinn", 11, 55), ("rosa", 12, 66)])
def test_a_connection_inside_lives_on_when_a_node_gets_another_address(
    lab: Lab, mover: str, old: int, new: int
) -> None:
    """Without a handshake: nothing is lost beyond what was under way."""
    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and transports(lab) == ("quic", "quic"))
    namespace = lab._record().namespace(mover)

    def change(before: int, after: int) -> None:
        run(["ip", "-n", namespace, "addr", "del", f"198.51.100.{before}/24", "dev", "eth0"])
        run(["ip", "-n", namespace, "addr", "add", f"198.51.100.{after}/24", "dev", "eth0"])

    ups = up_count(lab)
    try:
        with flow(lab, 10) as server:
            time.sleep(3)
            change(old, new)
            assert server.stdout is not None
            report = json.loads(server.stdout.readline())
        assert report["seconds"] > 9.5
        other = "rosa" if mover == "quinn" else "quinn"
        assert peer(lab, other)["CurAddr"] == f"198.51.100.{new}:41641"
        assert transports(lab) == ("quic", "quic")
        assert up_count(lab) == ups
    finally:
        change(new, old)


def test_a_node_that_restarts_resumes_in_the_first_flight(lab: Lab) -> None:
    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and transports(lab) == ("quic", "quic"))
    dialer = "quinn" if peer(lab)["QUIC"]["Dialer"] else "rosa"
    lab.run("rosa" if dialer == "quinn" else "quinn", "gw", "set", "--transport", "auto")  # it only answers
    folder = lab.state(dialer) / "node" / "peertickets"
    eventually(lambda: list(folder.iterdir()))
    assert all(each.stat().st_mode & 0o77 == 0 for each in folder.iterdir())
    process = lab._running[f"gwd-{dialer}"]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    restart(lab, dialer)
    eventually(lambda: ping(lab, 1) and peer(lab, dialer)["Transport"] == "quic")
    assert peer(lab, dialer)["QUIC"]["Resumed"]
    assert "QUIC connection is up, resumed, first messages in the first flight" in log(lab, dialer)


def restart(lab: Lab, name: str = "quinn") -> None:
    (lab.folder / f"gwd-{name}.log").write_text("")
    lab.start(name, f"gwd-{name}", "gwd", "run")
    lab.await_ready(f"gwd-{name}")


def log(lab: Lab, name: str) -> str:
    return (lab.folder / f"gwd-{name}.log").read_text()


def up_count(lab: Lab) -> int:
    return sum(len(re.findall("QUIC connection is up", log(lab, name))) for name in ("quinn", "rosa"))
