"""Real `gwrelay` processes: three relays of one region, and one relay of several workers. Members are killed.

ann, bob, cat … (RelayPool of gwd) ── relay a ══ relay b ══ relay c     full mesh, one hop
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.relay.certificates import pin

from .scripts import free_port
from .test_relay_client import End

MESH_KEY = "5a" * 32


class Relay:
    """One `gwrelay serve` with a state directory of its own."""

    def __init__(self, folder: Path, name: str, port: int, udp: int = 0) -> None:
        self.state = folder / name
        self.name = name
        self.port = port
        self.udp = udp  # 0: neither STUN nor QUIC
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "gwrelay"), "serve", "--listen", f"127.0.0.1:{self.port}",
                    "--stun", f"127.0.0.1:{self.udp}" if self.udp else "off", "--admit", "all",
                    "--hostname", "127.0.0.1", "--self-signed", "--node-name", self.name,
                    "--log-level", "debug", *words,
                ],
                stdout=log, stderr=log, cwd="/", env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(self.state)},
            )  # fmt: skip
        self.until("info gw: relay ")

    def until(self, line: str, count: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.log.read_text().count(line) < count:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no `{line}`:\n{self.log.read_text()}"
            time.sleep(0.05)

    @property
    def pin(self) -> str:
        return pin((self.state / "relay" / "self-signed.pem").read_bytes())

    def node(self) -> DERPNode:
        return DERPNode(
            name=self.name, region_id=1, host_name="127.0.0.1", ipv4="127.0.0.1", derpport=self.port,
            cert_name=self.pin, quic_port=self.udp,
        )  # fmt: skip

    def metric(self, name: str) -> float:
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(f"https://127.0.0.1:{self.port}/metrics", context=context, timeout=10) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"gwrelay_{name} "):
                    return float(line.split()[1])
        raise AssertionError(name)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(timeout=15) == 0


@contextmanager
def stopped(relays: list[Relay]) -> Iterator[None]:
    try:
        yield
    finally:
        for relay in relays:
            relay.stop()


def seen_from(relay: Relay, others: list[Relay]) -> DERPMap:
    """A map whose region has this relay first: where a client is at home is then ours to say."""
    nodes = [each.node() for each in (relay, *(other for other in others if other is not relay))]
    return DERPMap(regions={1: DERPRegion(region_id=1, region_code="one", nodes=nodes)})


async def every_pair_talks(ends: list[End], word: bytes, within_s: float) -> None:
    """Every end reaches every other one: sent again and again, as whoever has no answer does."""
    pairs = [(one, other) for one in ends for other in ends if one is not other]
    async with asyncio.timeout(within_s):
        while missing := [(one, other) for one, other in pairs if (one.key, word) not in other.got]:
            for one, other in missing:
                one.pool.send(other.key, 1, [word])
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("over", ["tls", "quic"])
async def test_every_pair_is_back_after_a_relay_of_three_was_killed(tmp_path: Path, over: str) -> None:
    key_file = tmp_path / "mesh.key"
    key_file.write_text(MESH_KEY + "\n")
    key_file.chmod(0o600)
    ports = [free_port() for _ in range(3)]
    relays = [
        Relay(tmp_path, name, port, free_port() if over == "quic" else 0)
        for name, port in zip("abc", ports, strict=True)
    ]
    with stopped(relays):
        for relay in relays:
            relay.start()  # for the certificate
            relay.stop()
        for relay in relays:
            words = [f"--mesh-with=127.0.0.1:{other.port}#{other.pin}" for other in relays]  # itself too
            relay.start("--mesh-key-file", str(key_file), *words)
        for relay in relays:
            relay.until("is up", 2)
            relay.until("is this relay")

        async def all_over_quic() -> None:
            """Every relay of those that live has a link to every other."""
            deadline = time.monotonic() + 30
            alive = [relay for relay in relays if relay.process is not None and relay.process.poll() is None]
            while over == "quic":
                links: list[float] = []
                with suppress(OSError):  # one that is just starting
                    links = [await asyncio.to_thread(relay.metric, "quic_links") for relay in alive]
                if links == [len(alive) - 1] * len(alive):
                    break
                assert time.monotonic() < deadline, links
                await asyncio.sleep(0.2)

        await all_over_quic()
        ends = [End() for _ in range(6)]
        async with AsyncExitStack() as stack:
            for number, end in enumerate(ends):
                await stack.enter_async_context(end.pool)
                end.pool.set_map(seen_from(relays[number % 3], relays))
                end.pool.set_home(1)
            await every_pair_talks(ends, b"before", 20)
            await asyncio.to_thread(relays[0].kill)
            await every_pair_talks(ends, b"after", 5)
            deadline = time.monotonic() + 10  # figures are stored once a second
            while not await asyncio.to_thread(relays[1].metric, "packets_forwarded_in_total"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
            await asyncio.to_thread(relays[0].start, "--mesh-key-file", str(key_file), *words)
            await asyncio.to_thread(relays[1].until, "is up", 3)  # the link to it is made again
            await every_pair_talks(ends, b"again", 10)
            await all_over_quic()
            await every_pair_talks(ends, b"as before", 10)
            for relay in relays:
                assert "Traceback" not in relay.log.read_text()


def worker_ids(relay: Relay) -> list[int]:
    assert relay.process is not None
    children = Path(f"/proc/{relay.process.pid}/task/{relay.process.pid}/children").read_text()
    return [int(word) for word in children.split()]


async def test_workers_are_one_relay_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    relay = Relay(tmp_path, "a", free_port())
    with stopped([relay]):
        relay.start("--workers", "3")
        relay.until("link to worker-", 6)
        ends = [End() for _ in range(8)]  # the kernel spreads them over the workers
        async with AsyncExitStack() as stack:
            for end in ends:
                await stack.enter_async_context(end.pool)
                end.pool.set_map(seen_from(relay, [relay]))
                end.pool.set_home(1)
            await every_pair_talks(ends, b"before", 20)

            def all_counted() -> bool:
                return relay.metric("clients") == 8 and relay.metric("packets_forwarded_in_total") > 0

            deadline = time.monotonic() + 20
            while not await asyncio.to_thread(all_counted):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
            victim = worker_ids(relay)[0]
            os.kill(victim, signal.SIGKILL)
            await asyncio.to_thread(relay.until, "another takes its place")
            await every_pair_talks(ends, b"after", 20)
            assert relay.process is not None
            relay.process.send_signal(signal.SIGHUP)
            await every_pair_talks(ends, b"reloaded", 20)
            assert all(end.pool.is_connected(1) for end in ends)
    assert "Traceback" not in relay.log.read_text()


def start_linked(folder: Path, relays: list[Relay], *words: str) -> Path:
    """Start two relays that are each other's mesh; the file of their key."""
    key_file = folder / "mesh.key"
    key_file.write_text(MESH_KEY + "\n")
    key_file.chmod(0o600)
    for relay in relays:
        relay.start()  # for the certificate
        relay.stop()
    for relay, other in (relays, reversed(relays)):
        relay.start("--mesh-key-file", str(key_file), "--mesh-with", f"127.0.0.1:{other.port}#{other.pin}", *words)
    return key_file


async def test_workers_of_two_relays_are_linked_over_quic(tmp_path: Path) -> None:
    """Whoever dialled: the kernel leads the answers to the worker that asked."""
    relays = [Relay(tmp_path, name, free_port(), free_port()) for name in "ab"]
    with stopped(relays):
        start_linked(tmp_path, relays, "--workers", "2")
        deadline = time.monotonic() + 40
        while True:
            with suppress(OSError):
                if min([await asyncio.to_thread(relay.metric, "quic_links") for relay in relays]) >= 2:
                    break
            assert time.monotonic() < deadline, [relay.log.read_text() for relay in relays]
            await asyncio.sleep(0.2)
        ends = [End() for _ in range(8)]
        async with AsyncExitStack() as stack:
            for number, end in enumerate(ends):
                await stack.enter_async_context(end.pool)
                end.pool.set_map(seen_from(relays[number % 2], relays))
                end.pool.set_home(1)
            await every_pair_talks(ends, b"across", 20)
    assert not any("Traceback" in relay.log.read_text() for relay in relays)


async def test_a_changed_mesh_key_revokes_who_has_the_old_one(tmp_path: Path) -> None:
    """Read again by SIGHUP: first at one of two relays, then at both."""
    relays = [Relay(tmp_path, name, free_port(), free_port()) for name in "ab"]
    with stopped(relays):
        key_file = start_linked(tmp_path, relays)

        async def until(name: str, wanted: float) -> None:
            deadline = time.monotonic() + 60
            while True:
                with suppress(OSError):  # one that is just starting
                    if [await asyncio.to_thread(relay.metric, name) for relay in relays] == [wanted] * 2:
                        return
                assert time.monotonic() < deadline, [relay.log.read_text() for relay in relays]
                await asyncio.sleep(0.2)

        await until("quic_links", 1)
        await until("watchers", 2)  # by TLS and by QUIC
        key_file.write_text("a5" * 32 + "\n")
        for relay, watchers in zip(relays, (0, 2), strict=True):
            assert relay.process is not None
            relay.process.send_signal(signal.SIGHUP)
            await until("watchers", watchers)
            await until("quic_links", watchers / 2)
    assert not any("Traceback" in relay.log.read_text() for relay in relays)


def test_a_worker_is_for_the_relay_alone() -> None:
    program = Path(sys.executable).parent / "gwrelay"
    told = subprocess.run([program, "worker", "0"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert told.returncode != 0
    assert "Traceback" not in told.stderr


async def test_settings_are_read_again_while_clients_stay(tmp_path: Path) -> None:
    relay = Relay(tmp_path, "a", free_port())
    relay.state.mkdir()
    config = relay.state / "config.toml"
    config.write_text('server_url = "http://127.0.0.1:1"\n')
    with stopped([relay]):
        relay.start()
        end = End()
        async with end.pool:
            end.pool.set_map(seen_from(relay, [relay]))
            end.pool.set_home(1)
            await end.until(lambda: end.pool.is_connected(1))
            config.write_text(
                'server_url = "http://127.0.0.1:1"\n[relay]\nhome = "https://a.example/"\nmax_clients_per_address = 1\n'
            )
            assert relay.process is not None
            relay.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 20
            while True:  # the one client uses up the address: who comes now is closed at once
                try:
                    await asyncio.to_thread(relay.metric, "clients")
                except OSError:
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
            config.write_text('server_url = "http://127.0.0.1:1"\n[relay]\nmax_clients = "many"\n')
            relay.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(relay.until, "the settings stay as they were")
            end.pool.send(end.key, 1, [b"still here"])
            await end.until(lambda: (end.key, b"still here") in end.got)
            assert end.ups == 1


@pytest.mark.parametrize("content", ["short", "zz" * 32])
def test_a_mesh_key_that_is_none_is_one_clear_line(tmp_path: Path, content: str) -> None:
    key_file = tmp_path / "mesh.key"
    key_file.write_text(content)
    key_file.chmod(0o600)
    told = subprocess.run(
        [
            Path(sys.executable).parent / "gwrelay", "serve", "--listen", "127.0.0.1:0", "--stun", "off",
            "--admit", "all", "--hostname", "127.0.0.1", "--mesh-key-file", key_file,
        ],
        capture_output=True, text=True, timeout=30, env={**os.environ, "GW_STATE_DIR": str(tmp_path / "state")},
    )  # fmt: skip
    assert told.returncode == 9
    assert "64 hex digits" in told.stderr
    assert content not in told.stderr
