"""The node's relay client against the real `gwrelay serve`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gw.engine.relayclient import RelayPool
from gw.engine.relaydial import open_derp, probe_latency
from gw.errors import GwError
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.model.keys import NodeKey, NodeSecret
from gw.net.tcp import Streams, connect
from gw.relay.certificates import pin
from gw.wire.derp.frames import KEEP_ALIVE_FRAME
from gw.wire.x25519 import clamp, public_key

from .scripts import free_port


@contextmanager
def relaying(state: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`gwrelay serve` that lets everybody in, until the block ends."""
    log = (state.parent / "relay.log").open("ab")
    words = ["serve", "--listen", f"127.0.0.1:{port}", "--stun", "off", "--admit", "all", "--hostname", "127.0.0.1"]
    with log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "gwrelay"), *words, "--self-signed"],
            stdout=log, stderr=log, cwd="/", env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)},
        )  # fmt: skip
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0 and list((state / "relay").glob("*.pem")):
                    break
            if server.poll() is not None:
                raise AssertionError((state.parent / "relay.log").read_text())
            time.sleep(0.05)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=10)


def node_of(state: Path, port: int, *, certificate_pin: str = "") -> DERPNode:
    pem = next((state / "relay").glob("*.pem"))
    name = certificate_pin or pin(pem.read_bytes())
    return DERPNode(name="1a", region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", derpport=port, cert_name=name)


def map_of(node: DERPNode) -> DERPMap:
    return DERPMap(regions={1: DERPRegion(region_id=1, region_code="one", nodes=[node])})


class End:
    """One node's pool and what came to it."""

    def __init__(self) -> None:
        secret = NodeSecret(clamp(os.urandom(32)))
        self.key = NodeKey(public_key(secret.raw))
        self.pool = RelayPool(secret, self)
        self.got: list[tuple[NodeKey, bytes]] = []
        self.ups = 0
        self.downs = 0
        self.news = asyncio.Event()

    def packets(self, region: int, batch: list[tuple[NodeKey, bytes]]) -> None:
        self.got += batch
        self.news.set()

    def peer_gone(self, region: int, peer: NodeKey) -> None:
        self.news.set()

    def connected(self, region: int) -> None:
        self.ups += 1
        self.news.set()

    def disconnected(self, region: int) -> None:
        self.downs += 1
        self.news.set()

    async def until(self, wanted: Callable[[], object], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not wanted():
                self.news.clear()
                await self.news.wait()


def wait_until_stopped(process: int) -> None:
    """No thread of it runs any more after SIGSTOP."""
    deadline = time.monotonic() + 20
    threads = list(Path(f"/proc/{process}/task").iterdir())
    while any((thread / "stat").read_text().rpartition(") ")[2][0] != "T" for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_two_nodes_exchange_packets_and_find_the_relay_again(state: Path) -> None:
    port = free_port()
    ann, bob = End(), End()
    async with ann.pool, bob.pool:
        with relaying(state, port):
            for end in (ann, bob):
                end.pool.set_map(map_of(node_of(state, port)))
            ann.pool.set_home(1)
            bob.pool.set_home(1)
            await ann.until(lambda: ann.pool.is_connected(1))
            await bob.until(lambda: bob.pool.is_connected(1))
            assert ann.pool.send(bob.key, 1, [b"one", b"two"])
            await bob.until(lambda: bob.got == [(ann.key, b"one"), (ann.key, b"two")])
            assert await ann.pool.latency_check(1) < 5.0
        await ann.until(lambda: ann.downs == 1)
        with relaying(state, port):
            await ann.until(lambda: ann.ups == 2)
            await bob.until(lambda: bob.ups == 2)
            assert bob.pool.send(ann.key, 1, [b"again"])
            await ann.until(lambda: (bob.key, b"again") in ann.got)


async def test_a_relay_with_another_certificate_is_not_talked_to(state: Path) -> None:
    port = free_port()
    with relaying(state, port):
        wrong = node_of(state, port, certificate_pin="sha256-raw:" + "0" * 64)
        with pytest.raises(GwError, match="another certificate"):
            await probe_latency(wrong)
        ann = End()
        async with ann.pool:
            ann.pool.set_map(map_of(wrong))
            ann.pool.set_home(1)
            await asyncio.sleep(1.0)
            assert ann.ups == 0


async def test_nonsense_in_place_of_http_is_one_error_and_asked_ever_more_seldom() -> None:
    dials = 0

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        writer.write(b"nonsense\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # port 80 with InsecureForTests is the plain form; the listener stands elsewhere, so dial by hand
    import gw.engine.relaydial as relaydial
    from gw.net.tcp import connect

    async def plain(node: DERPNode) -> object:
        return await connect("127.0.0.1", port)

    real, relaydial._connect = relaydial._connect, plain  # type: ignore[assignment]
    try:
        with pytest.raises(GwError):
            await probe_latency(DERPNode(host_name="127.0.0.1"))
        ann = End()
        async with ann.pool:
            ann.pool.set_map(map_of(DERPNode(name="1a", region_id=1, host_name="127.0.0.1")))
            ann.pool.set_home(1)
            await asyncio.sleep(2.5)
        assert dials <= 8
    finally:
        relaydial._connect = real
        server.close()


async def test_sighup_keeps_clients_and_a_stop_tells_them(state: Path) -> None:
    port = free_port()
    ann = End()
    async with ann.pool:
        with relaying(state, port) as server:
            ann.pool.set_map(map_of(node_of(state, port)))
            ann.pool.set_home(1)
            await ann.until(lambda: ann.pool.is_connected(1))
            server.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.5)
            assert ann.downs == 0
            assert server.poll() is None
            bob = End()
            async with bob.pool:
                bob.pool.set_map(map_of(node_of(state, port)))
                bob.pool.set_home(1)
                await bob.until(lambda: bob.pool.is_connected(1))
                assert ann.pool.send(bob.key, 1, [b"x"])
                await bob.until(lambda: bob.got == [(ann.key, b"x")])


async def test_a_family_that_the_map_rules_out_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    asked: list[tuple[str, int]] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def dial(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("gw.net.tcp._dial", dial)
    for ipv4, ipv6, expected in (("none", "", {"::1"}), ("", "none", {"127.0.0.1"}), ("", "", {"::1", "127.0.0.1"})):
        asked.clear()
        node = DERPNode(name="1a", region_id=1, host_name="relay.example", ipv4=ipv4, ipv6=ipv6)
        with pytest.raises(GwError):
            await open_derp(node, node)
        assert {host for host, _ in asked} == expected


async def test_a_relay_map_of_nonsense_harms_nothing() -> None:
    """Names, ports and addresses of relays come from the control server; the daemon lives on whatever they are."""
    ann = End()
    nonsense = [
        DERPNode(name="1a", region_id=1, host_name=".", ipv4="127.0.0.1", derpport=1),
        DERPNode(name="1b", region_id=1, host_name="\0", ipv4="127.0.0.1"),
        DERPNode(name="1c", region_id=1, host_name="127.0.0.1", derpport=99999),
        DERPNode(name="1d", region_id=1, host_name="a..b", ipv4="none", ipv6="no address"),
        DERPNode(name="1e", region_id=1, host_name="127.0.0.1", ipv4="localhost", derpport=1),
    ]
    async with ann.pool:
        for node in nonsense:
            with pytest.raises(GwError):
                await open_derp(node, node)
            ann.pool.set_map(map_of(node))
            ann.pool.set_home(1)
            await asyncio.sleep(0.1)
        assert ann.ups == 0


async def test_a_relay_that_takes_nobody_in_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It upgrades, says its key and then keeps us waiting, a byte now and then."""
    monkeypatch.setattr("gw.engine.relayclient.HELLO_S", 0.5)
    left = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(KEEP_ALIVE_FRAME)
                await asyncio.sleep(0.1)
                await writer.drain()
        except OSError:
            pass
        left.set()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    plain = DERPNode(name="1a", region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", insecure_for_tests=True)
    plain.derpport = 80
    port = server.sockets[0].getsockname()[1]
    real = connect

    async def to_ours(host: str, number: int, **words: Any) -> Streams:
        return await real(host, port, **words)

    monkeypatch.setattr("gw.engine.relaydial.connect", to_ours)
    ann = End()
    async with server, ann.pool:
        ann.pool.set_map(map_of(plain))
        ann.pool.set_home(1)
        async with asyncio.timeout(20):
            await left.wait()
    assert ann.ups == 0


async def test_the_first_frames_do_not_wait_for_an_http_answer(state: Path) -> None:
    port = free_port()
    with relaying(state, port):
        node = node_of(state, port)
        reader, writer, key = await open_derp(node, node)
        try:
            assert len(key) == 32
            assert (await reader.readexactly(45))[5:] == b"DERP\xf0\x9f\x94\x91" + key  # not `HTTP/1.1`
        finally:
            writer.close()


async def test_a_connection_that_did_not_survive_a_change_of_network_is_noticed_soon(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gw.engine.relayclient.PING_S", 0.5)
    port = free_port()
    ann = End()
    async with ann.pool:
        with relaying(state, port) as server:
            ann.pool.set_map(map_of(node_of(state, port)))
            ann.pool.set_home(1)
            await ann.until(lambda: ann.pool.is_connected(1))
            ann.pool.network_changed()
            await asyncio.sleep(1.0)
            assert ann.downs == 0  # the relay answered
            server.send_signal(signal.SIGSTOP)
            try:
                wait_until_stopped(server.pid)  # on a busy machine its thread that forwards still answers for a while
                ann.pool.network_changed()
                await ann.until(lambda: ann.downs == 1)
            finally:
                server.send_signal(signal.SIGCONT)
            await ann.until(lambda: ann.ups == 2, 20)


async def test_the_limit_that_a_relay_tells_is_kept(state: Path) -> None:
    state.mkdir()
    (state / "config.toml").write_text(
        'server_url = "http://127.0.0.1:1"\n[relay]\nrate_bytes_per_second = 1000\nrate_burst_bytes = 1000\n'
    )
    port = free_port()
    ann, bob = End(), End()
    async with ann.pool, bob.pool:
        with relaying(state, port):
            for end in (ann, bob):
                end.pool.set_map(map_of(node_of(state, port)))
                end.pool.set_home(1)
                await end.until(lambda end=end: end.pool.is_connected(1))  # type: ignore[misc]
            ann.pool.send(bob.key, 1, [bytes(1400)] * 200)  # the burst is one frame of the largest kind: 45 of these
            await bob.until(lambda: len(bob.got) >= 45)
            await asyncio.sleep(0.5)
            assert len(bob.got) <= 46


@pytest.mark.against("DERPER")
async def test_two_nodes_talk_by_a_stock_relay(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "derper.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [
                os.environ["DERPER"], "-a", f"127.0.0.1:{port}", "-certmode", "manual", "-certdir", str(tmp_path),
                "-hostname", "127.0.0.1", "-stun=false", "-http-port", "-1", "-c", str(tmp_path / "derper.key"),
            ],
            stdout=out, stderr=out,
        )  # fmt: skip
    ann, bob = End(), End()
    try:
        deadline = time.monotonic() + 20
        while "sha256-raw:" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.05)
        shown = log.read_text().partition("sha256-raw:")[2][:64]
        node = DERPNode(
            name="1a", region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", derpport=port,
            cert_name=f"sha256-raw:{shown}",
        )  # fmt: skip
        _, writer, key = await open_derp(node, node)
        writer.close()
        assert len(key) == 32  # its certificates tell its key, too
        async with ann.pool, bob.pool:
            for end in (ann, bob):
                end.pool.set_map(map_of(node))
                end.pool.set_home(1)
                await end.until(lambda end=end: end.pool.is_connected(1))  # type: ignore[misc]
            ann.pool.send(bob.key, 1, [b"one", bytes(1400)])
            await bob.until(lambda: bob.got == [(ann.key, b"one"), (ann.key, bytes(1400))])
            assert await ann.pool.latency_check(1) < 5.0
            ann.pool.network_changed()
            await asyncio.sleep(0.3)
            assert ann.pool.is_connected(1)
    finally:
        server.terminate()
        server.wait(10)
