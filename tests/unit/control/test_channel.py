"""The transport of idle clients, plain and with TLS, over real socket pairs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from gw.control.channel import Poller
from gw.control.tls.holder import CertificateHolder
from gw.net import certificates


class Echo(asyncio.Protocol):
    """Sends back what it gets, and notes what its transport says."""

    made: list[Echo]

    def __init__(self, made: list[Echo]) -> None:
        made.append(self)
        self.transport: asyncio.Transport
        self.paused = self.resumed = self.got = 0
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if data == b"close":
            self.transport.write(b"bye")
            self.transport.close()
        elif data == b"flood":
            self.transport.write(b"z" * 5_000_000)
        elif data == b"fail":
            raise RuntimeError("a protocol's mistake")
        else:
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.resumed += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def listener_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(50)
    listener.setblocking(False)
    return listener


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA, folder: Path, name: str = "box.test") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    issued = authority.issue_cert(name)
    (folder / "cert.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    outer = ssl.create_default_context()
    authority.configure_trust(outer)
    return certificates.read(str(folder / "cert.pem"), str(folder / "key.pem")).context, outer


@pytest.mark.parametrize("with_tls", [False, True])
async def test_bytes_go_both_ways_and_a_close_flushes(tmp_path: Path, authority: trustme.CA, with_tls: bool) -> None:
    inner, outer = contexts(authority, tmp_path) if with_tls else (None, None)
    listener = listener_at(tmp_path / "s")
    made: list[Echo] = []
    poller = Poller(listener, lambda: Echo(made), inner, 10)
    poller.start()
    options = {"ssl": outer, "server_hostname": "box.test"} if with_tls else {}
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"), **options)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.write(b"flood")
    await until(lambda: made[0].paused == 1)
    assert await reader.readexactly(5_000_000) == b"z" * 5_000_000
    await until(lambda: made[0].resumed == 1)
    writer.write(b"close")
    assert await reader.read() == b"bye"
    writer.close()
    await until(lambda: made[0].lost and not len(poller))
    poller.close()
    listener.close()


async def test_nobody_is_accepted_above_the_limit_until_somebody_goes(tmp_path: Path) -> None:
    listener = listener_at(tmp_path / "s")
    made: list[Echo] = []
    poller = Poller(listener, lambda: Echo(made), None, 2)
    poller.start()
    streams = [await asyncio.open_unix_connection(str(tmp_path / "s")) for _ in range(3)]
    await until(lambda: len(made) == 2)
    await asyncio.sleep(0.05)
    assert len(made) == 2
    streams[0][1].close()
    await until(lambda: len(made) == 3)
    poller.close()
    await until(lambda: all(each.lost for each in made))
    for _, writer in streams:
        writer.close()
    listener.close()


async def test_a_protocol_that_fails_costs_its_own_connection(tmp_path: Path) -> None:
    listener = listener_at(tmp_path / "s")
    made: list[Echo] = []
    poller = Poller(listener, lambda: Echo(made), None, 5)
    poller.start()
    one = await asyncio.open_unix_connection(str(tmp_path / "s"))
    two = await asyncio.open_unix_connection(str(tmp_path / "s"))
    one[1].write(b"fail")
    assert await one[0].read() == b""
    two[1].write(b"still")
    assert await two[0].readexactly(5) == b"still"
    for _, writer in (one, two):
        writer.close()
    poller.close()
    listener.close()


async def test_renewed_certificates_are_taken_over_and_broken_ones_are_not(
    tmp_path: Path, authority: trustme.CA
) -> None:
    _, outer = contexts(authority, tmp_path)
    holder = CertificateHolder(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), "", lambda: datetime.now(UTC))
    holder.load()
    listener = listener_at(tmp_path / "s")
    poller = Poller(listener, lambda: Echo([]), holder.context, 50)
    poller.start()
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(holder.follow())
        await asyncio.sleep(0.02)
        (tmp_path / "cert.pem").write_text("nonsense")
        await asyncio.sleep(0.05)
        await reach(tmp_path, outer, "box.test")
        contexts(authority, tmp_path, "other.test")
        async with asyncio.timeout(20):
            while True:
                try:
                    await reach(tmp_path, outer, "other.test")
                    break
                except ssl.SSLError:
                    await asyncio.sleep(0.02)
        following.cancel()
    poller.close()
    listener.close()


async def reach(folder: Path, outer: ssl.SSLContext, name: str) -> None:
    _, writer = await asyncio.open_unix_connection(str(folder / "s"), ssl=outer, server_hostname=name)
    writer.close()
