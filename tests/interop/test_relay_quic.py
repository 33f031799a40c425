"""The node's relay client over QUIC against real `gwrelay` processes; between them a NAT that changes its mind.

ann ── QUIC ──▶ Nat ──▶ gwrelay ◀── TLS ── bob
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gw.engine import relayclient
from gw.engine.relayclient import RelayPool
from gw.engine.relayquic import MemoryTickets
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.model.keys import NodeKey, NodeSecret
from gw.relay.certificates import pin
from gw.wire.x25519 import clamp, public_key

from .scripts import free_port
from .test_relay_client import End


@contextmanager
def relaying(state: Path, port: int, udp: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`gwrelay serve` that lets everybody in, until the block ends."""
    log = state.parent / "relay.log"
    seen = log.read_text().count("info gw: relay ") if log.exists() else 0
    with log.open("ab") as out:
        server = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "gwrelay"), "serve", "--listen", f"127.0.0.1:{port}",
                "--stun", f"127.0.0.1:{udp}", "--admit", "all", "--hostname", "127.0.0.1", "--self-signed",
                "--log-level", "debug", *words,
            ],
            stdout=out, stderr=out, cwd="/", env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while log.read_text().count("info gw: relay ") <= seen:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=20)


class Nat(asyncio.DatagramProtocol):
    """Passes UDP on from a port of its own, until it is told to take another, or none."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.is_open = True
        self.passed = 0
        self._inside: tuple[str, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._outer: socket.socket | None = None

    async def begin(self) -> int:
        self._transport, _ = await self._loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.rebind()
        return int(self._transport.get_extra_info("sockname")[1])

    def rebind(self) -> None:
        if self._outer is not None:
            self._loop.remove_reader(self._outer)
            self._outer.close()
        outer = self._outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outer.setblocking(False)
        outer.bind(("127.0.0.1", 0))
        self._loop.add_reader(outer, self._down)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._inside = addr
        if self.is_open and self._outer is not None:
            self.passed += 1
            self._outer.sendto(data, ("127.0.0.1", self.target))

    def _down(self) -> None:
        with suppress(BlockingIOError):
            while self._outer is not None:
                data = self._outer.recv(65536)
                if self.is_open and self._inside is not None:
                    self._transport.sendto(data, self._inside)

    def end(self) -> None:
        self._transport.close()
        if self._outer is not None:
            self._loop.remove_reader(self._outer)
            self._outer.close()


class QuicEnd(End):
    """A node with a key and tickets that outlive it."""

    def __init__(self, secret: NodeSecret | None = None, tickets: MemoryTickets | None = None) -> None:
        super().__init__()
        self.secret = secret or NodeSecret(clamp(os.urandom(32)))
        self.tickets = tickets or MemoryTickets()
        self.key = NodeKey(public_key(self.secret.raw))
        self.pool = RelayPool(self.secret, self, self.tickets)

    async def over(self, transport: str, timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while True:
                if self.pool.transport(1) == transport:
                    return
                await asyncio.sleep(0.02)

    async def got_from(self, other: QuicEnd, packet: bytes, *, send: bool = True) -> None:
        """Packets come through from now on."""
        async with asyncio.timeout(60):
            while (other.key, packet) not in self.got:
                if send:
                    other.pool.send(self.key, 1, [packet])
                await asyncio.sleep(0.05)


def map_of(state: Path, port: int, udp: int) -> DERPMap:
    """udp: 0 for no QUIC."""
    certificate = pin((state / "relay" / "self-signed.pem").read_bytes())
    node = DERPNode(
        name="1a", region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", derpport=port, cert_name=certificate,
        quic_port=udp,
    )  # fmt: skip
    return DERPMap(regions={1: DERPRegion(region_id=1, region_code="one", nodes=[node])})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_quic_and_tls_clients_of_one_relay_and_a_nat_that_rebinds(state: Path) -> None:
    """QUIC ↔ TLS both ways; then the client's address changes in the middle of the flow: no new handshake."""
    port, udp = free_port(), free_port()
    ann, bob, nat = QuicEnd(), QuicEnd(), Nat(udp)
    with relaying(state, port, udp):
        inside = await nat.begin()
        async with ann.pool, bob.pool:
            ann.pool.set_map(map_of(state, port, inside))
            bob.pool.set_map(map_of(state, port, 0))
            for end in (ann, bob):
                end.pool.set_home(1)
            await ann.over("quic")
            await bob.over("derp")
            for size in (40, 1200, 1400, 2000):
                await bob.got_from(ann, os.urandom(4) + bytes(size))
                await ann.got_from(bob, os.urandom(4) + bytes(size))
            before = (ann.ups, ann.downs)
            for number in range(300):
                if number == 100:
                    nat.rebind()
                ann.pool.send(bob.key, 1, [b"%04d" % number + bytes(900)])
                bob.pool.send(ann.key, 1, [b"%04d" % number + bytes(900)])
                await asyncio.sleep(0.003)
            await ann.got_from(bob, b"end of the flow")
            await bob.got_from(ann, b"end of the flow")
            up = {packet[:4] for _, packet in bob.got}
            down = {packet[:4] for _, packet in ann.got}
            numbers = {b"%04d" % number for number in range(300)}
            assert len(numbers - up) == 0  # a new address costs nothing on the way up
            assert len(numbers - down) <= 100  # what was under way to the old one, on a slow machine
            assert {b"%04d" % number for number in range(250, 300)} <= down
            assert (ann.ups, ann.downs) == before
            assert ann.pool.transport(1) == "quic"
    nat.end()


async def test_a_restarted_node_sends_with_its_first_packet(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    port, udp = free_port(), free_port()
    ann, bob = QuicEnd(), QuicEnd()
    with relaying(state, port, udp, "--workers", "2"):
        async with bob.pool:
            bob.pool.set_map(map_of(state, port, udp))
            bob.pool.set_home(1)
            async with ann.pool:
                ann.pool.set_map(map_of(state, port, udp))
                ann.pool.set_home(1)
                await ann.over("quic")
                await bob.over("quic")
                await bob.got_from(ann, b"before" * 8)
            again = QuicEnd(ann.secret, ann.tickets)
            async with again.pool:
                again.pool.set_map(map_of(state, port, udp))
                with caplog.at_level("DEBUG", "gw.engine.relayclient"):
                    assert again.pool.send(bob.key, 1, [b"early" * 8])
                    await bob.got_from(again, b"early" * 8, send=False)
                    await again.over("quic")
                    again.pool.set_home(1)
                    await again.got_from(bob, b"answer" * 8)
    assert "resumed with early data" in caplog.text


async def test_where_udp_is_blocked_tls_carries_and_quic_comes_back(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayclient, "UDP_BLOCKED_S", 0.5)
    port, udp = free_port(), free_port()
    ann, bob, nat = QuicEnd(), QuicEnd(), Nat(udp)
    with relaying(state, port, udp):
        inside = await nat.begin()
        nat.is_open = False
        async with ann.pool, bob.pool:
            ann.pool.set_map(map_of(state, port, inside))
            bob.pool.set_map(map_of(state, port, 0))
            for end in (ann, bob):
                end.pool.set_home(1)
            await ann.over("derp")
            await bob.got_from(ann, b"by TLS" * 9)
            nat.is_open = True
            await ann.over("quic")
            await bob.got_from(ann, b"by QUIC" * 9)
            await asyncio.sleep(2 * relayclient.QUIC_PROVEN_S)
            nat.is_open = False  # the path goes silent: TLS steps in
            await bob.got_from(ann, b"by TLS again" * 9)
            await ann.got_from(bob, b"and back" * 9)
            assert ann.downs == 0
    nat.end()


async def test_a_relay_that_was_killed_is_found_again(state: Path) -> None:
    """A relay without memory resets its clients' connections, so that nobody waits for a timeout."""
    port, udp = free_port(), free_port()
    ann, bob = QuicEnd(), QuicEnd()
    async with ann.pool, bob.pool:
        with relaying(state, port, udp) as relay:
            for end in (ann, bob):
                end.pool.set_map(map_of(state, port, udp))
                end.pool.set_home(1)
            await ann.over("quic")
            await bob.over("quic")
            relay.kill()
            relay.wait()
        with relaying(state, port, udp):
            await bob.got_from(ann, b"again" * 9)
            await ann.over("quic")
            await bob.over("quic")


async def test_a_relay_with_another_certificate_is_not_talked_to_over_quic(state: Path) -> None:
    port, udp = free_port(), free_port()
    with relaying(state, port, udp):
        ann = QuicEnd()
        wrong = map_of(state, port, udp)
        assert wrong.regions is not None
        nodes = wrong.regions[1].nodes
        assert nodes
        nodes[0] = msgspec.structs.replace(nodes[0], cert_name="sha256-raw:" + "0" * 64)
        async with ann.pool:
            ann.pool.set_map(wrong)
            ann.pool.set_home(1)
            await asyncio.sleep(2.0)
            assert (ann.ups, ann.pool.transport(1)) == (0, "")


class NarrowNat(Nat):
    """Its way in carries `rate` bytes a second, and keeps 30 KB."""

    rate = 1e9
    free_at = 0.0

    def _down(self) -> None:
        with suppress(BlockingIOError):
            while self._outer is not None:
                data = self._outer.recv(65536)
                now = self._loop.time()
                self.free_at = max(self.free_at, now)
                if self._inside is not None and self.free_at - now < 30_000 / self.rate:
                    self.free_at += len(data) / self.rate
                    self._loop.call_at(self.free_at, self._transport.sendto, data, self._inside)


async def test_a_slow_peer_leaves_the_other_flows_of_its_sender_alone(state: Path) -> None:
    """The relay lets a client send 1 MB/s. Half of what is offered is for a peer that takes a tenth of it."""
    port, udp = free_port(), free_port()
    ann, bob, cat, nat = QuicEnd(), QuicEnd(), QuicEnd(), NarrowNat(udp)
    state.mkdir()
    config = 'server_url = "http://127.0.0.1:1"\n[relay]\nrate_bytes_per_second = 1000000\n'
    (state / "config.toml").write_text(config)
    with relaying(state, port, udp):
        inside = await nat.begin()
        async with ann.pool, bob.pool, cat.pool:
            for end, way in ((ann, udp), (bob, inside), (cat, udp)):
                end.pool.set_map(map_of(state, port, way))
                end.pool.set_home(1)
            for end in (ann, bob, cat):
                await end.over("quic")
            for end in (bob, cat):
                await end.got_from(ann, b"begin")
            nat.rate = 100_000
            loop = asyncio.get_running_loop()

            async def offer(seconds: float, mark: bytes) -> int:
                """0.8 MB/s for each; a machine with other work sends less, not all at once later."""
                due = loop.time()
                end_at, sent = due + seconds, 0
                while (now := loop.time()) < end_at:
                    due = max(due, now - 0.01)
                    while due < now:
                        for end in (bob, cat):
                            ann.pool.send(end.key, 1, [b"\x04" + mark + bytes(790)])
                        sent, due = sent + 1, due + 0.001
                    await asyncio.sleep(0.002)
                return sent

            await offer(1.5, b"w")
            sent = await offer(2.0, b"m")

            def arrived(end: QuicEnd) -> int:
                return sum(1 for _, packet in end.got if packet[1:2] == b"m")

            for _ in range(200):
                if arrived(cat) >= 0.9 * sent:
                    break
                await asyncio.sleep(0.05)
            assert arrived(cat) >= 0.9 * sent, f"{arrived(cat)} of {sent}"
            assert arrived(bob) > 50
    nat.end()


@pytest.mark.parametrize(
    "node",
    [
        DERPNode(name="1a", host_name="127.0.0.1", ipv4="127.0.0.1", derpport=9, quic_port=99_999),
        DERPNode(name="1a", host_name="127.0.0.1", ipv4="127.0.0.1", derpport=9, quic_port=-1),
        DERPNode(name="1a", host_name="a\0b", derpport=9, quic_port=9),
        DERPNode(name="1a", host_name="\u00e4" * 80, ipv4="127.0.0.1", derpport=9, quic_port=9),
        DERPNode(name="1a", host_name="127.0.0.1", ipv4="none", ipv6="none", derpport=9, quic_port=9),
        DERPNode(name="1a", host_name="127.0.0.1", ipv4="127.0.0.1", derpport=9, quic_port=9, relay_key="zz"),
    ],
)
async def test_whatever_a_map_says_of_quic_does_not_end_the_node(node: DERPNode) -> None:
    ann = QuicEnd()
    region = DERPRegion(region_id=1, region_code="one", nodes=[node])
    async with ann.pool:
        ann.pool.set_map(DERPMap(regions={1: region}))
        ann.pool.set_home(1)
        await asyncio.sleep(0.6)
        assert ann.pool.transport(1) == ""
        ann.pool.set_map(DERPMap(regions={}))
