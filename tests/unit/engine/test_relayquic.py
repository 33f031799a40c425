"""A relay over QUIC, its line without a socket."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from aioquic.tls import CipherSuite, SessionTicket

from gw.engine import defects, peerlines
from gw.engine.quicpeers import QuicPeers
from gw.engine.relayquic import HAND_OVER, QUEUE_PACKETS, MemoryTickets, QuicLine
from gw.engine.transport import Mode
from gw.model.addresses import AddrPort
from gw.model.derpmap import DERPNode
from gw.model.keys import NodeKey, NodeSecret
from gw.quic.patience import DEAF_S
from gw.wire.derp import frames as derp
from gw.wire.quic import auth, frames
from gw.wire.x25519 import clamp, public_key

SOURCE = AddrPort("192.0.2.1", 1)
NODE = clamp(b"\x21" * 32)
RELAY = clamp(b"\x42" * 32)


@pytest.fixture(autouse=True)
def met(monkeypatch: pytest.MonkeyPatch) -> defects.Defects:
    """Of this test alone: many are logged seldom."""
    made = defects.Defects(SimpleNamespace(now=1.0))
    monkeypatch.setattr(defects, "of_node", made)
    return made


def proof(bind: bytes, now_ms: int) -> bytes:
    claim = auth.Claim(role=auth.RELAY, bind=bind.hex(), at=now_ms)
    sealed = auth.seal_claim(RELAY, public_key(NODE), os.urandom(24), claim)
    return frames.encode_hello(public_key(RELAY)) + derp.encode(frames.AUTH_OK, sealed)


def ticket() -> SessionTicket:
    now = datetime.now(UTC)
    return SessionTicket(
        age_add=1, cipher_suite=CipherSuite.AES_128_GCM_SHA256, not_valid_before=now,
        not_valid_after=now + timedelta(hours=1), resumption_secret=b"s" * 32, server_name="relay.test", ticket=b"t",
    )  # fmt: skip


class Silent:
    """Stands for the `Link`, its window full until `is_open`."""

    limit = 1200
    is_closed = False
    is_open = False
    is_settled = True
    unsent = acknowledged = 0

    def __init__(self) -> None:
        self.connection: Any = SimpleNamespace(_peer_cid=SimpleNamespace(cid=b"12345678"))
        self.queue: list[bytes] = []

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def send(self, datagram: bytes) -> None:
        self.queue.append(datagram)

    def send_stream(self, data: bytes) -> None: ...

    def poll(self, now: float) -> list[bytes]:
        out = self.queue if self.is_open else []
        self.queue = [] if self.is_open else self.queue
        return out

    def deadline(self) -> float:
        return float("inf")


class Socket:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.arriving: list[tuple[bytes, int, tuple[str, int]]] = []

    def fileno(self) -> int:
        return 99

    def close(self) -> None: ...

    def take_refusals(self) -> bool:
        return False

    def receive(self) -> tuple[bytes, int, tuple[str, int]]:
        if not self.arriving:
            raise BlockingIOError
        return self.arriving.pop()

    def send(self, packets: list[bytes]) -> None:
        self.sent += packets


async def test_a_ticket_is_kept_only_of_a_relay_that_has_proven_its_key() -> None:
    """Who resumes by a ticket shows no certificate again: a stranger's would pass the pin."""
    tickets = MemoryTickets()
    line = QuicLine(DERPNode(host_name="relay.test", quic_port=3478), NodeSecret(NODE), tickets, lambda events: None)
    line._link = Silent()  # type: ignore[assignment]
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    line._client.begin(bytes(32), now_ms, is_resumed=False)
    line._keep_ticket(ticket())
    assert tickets.take(line.name) is None
    line.stream(proof(bytes(32), now_ms), 1.0)
    assert tickets.take(line.name) is not None
    line._keep_ticket(ticket())
    assert tickets.take(line.name) is not None


async def test_handshakes_and_disco_go_first_and_the_oldest_data_gives_way() -> None:
    """The window is full: what waits in the link stays, data behind it is as new as can be."""
    line = QuicLine(DERPNode(host_name="relay.test"), NodeSecret(NODE), MemoryTickets(), lambda events: None)
    link, channel = Silent(), Socket()
    line._link, line._socket = link, channel  # type: ignore[assignment]
    peer = NodeKey(b"p" * 32)
    link.queue.append(b"probe")
    for number in range(1000):
        line.send(peer, [b"\x04\0\0\0" + number.to_bytes(4, "big")])
        line._flush()
        if number == 500:
            line.send(peer, [b"\x01\0\0\0handshake", b"TS\xf0\x9f\x92\xacdisco"])
    link.is_open = True
    line._flush()
    assert channel.sent[0] == b"probe"
    behind = [datagram[-9:] for datagram in channel.sent[HAND_OVER:]]
    assert behind[0] == b"handshake"
    assert behind[1].endswith(b"disco")
    assert channel.sent[-1].endswith((999).to_bytes(4, "big"))
    assert len(channel.sent) == HAND_OVER + 2 + QUEUE_PACKETS


class Clock:
    """Stands for the loop: its time is set, its timers are looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[float] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, order: Callable[[], None]) -> None: ...

    def call_at(self, when: float, order: Callable[[], None]) -> Any:
        self.due.append(when)
        return SimpleNamespace(cancel=lambda: None)

    def remove_reader(self, number: int) -> None: ...


class Deaf(Silent):
    """The relay sends, and takes nothing of the control stream."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.end: tuple[int, str] | None = None

    @property
    def heard_at(self) -> float:
        return self.clock.now

    def send_stream(self, data: bytes) -> None:
        self.unsent += len(data)

    def nudge(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.end = code, reason


async def test_a_relay_that_pings_and_takes_no_answers_is_left() -> None:
    """Its pings were answered into a buffer that grew with each."""
    line = QuicLine(DERPNode(host_name="relay.test"), NodeSecret(NODE), MemoryTickets(), lambda events: None)
    clock = Clock()
    link = Deaf(clock)
    line._loop, line._link, line._socket = clock, link, Socket()  # type: ignore[assignment]
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    line._client.begin(bytes(32), now_ms, is_resumed=False)
    line.stream(proof(bytes(32), now_ms), 1.0)
    while clock.now < 1060 and link.end is None:
        line.stream(derp.encode(derp.PING, b"12345678") * 4000, clock.now)
        line._flush()
        clock.now += 0.1
    assert link.unsent < 2 * frames.MAX_UNSENT_BYTES
    assert link.end == (frames.CLOSED, "takes nothing of what waits for it")
    assert clock.now < 1000 + DEAF_S + 1
    assert clock.due[-1] <= 1000 + DEAF_S + 0.2  # it would be closed then, also if no more came


@pytest.mark.parametrize("where", ["poll", "receive", "move", "close"])
async def test_a_defect_ends_the_connection_with_the_relay_and_is_told(
    where: str, caplog: pytest.LogCaptureFixture, met: defects.Defects
) -> None:
    """The line lost its timer, and whoever served it waited for ever."""
    line = QuicLine(DERPNode(host_name="relay.test"), NodeSecret(NODE), MemoryTickets(), lambda events: None)
    clock = Clock()
    link, channel = Deaf(clock), Socket()
    line._loop, line._link, line._socket = clock, link, channel  # type: ignore[assignment]
    link.__dict__[where] = fail
    with caplog.at_level(logging.ERROR):
        match where:
            case "poll":
                line._flush()
            case "receive":
                channel.arriving.append((b"train", 5, ("192.0.2.1", 3478)))
                line._address = ("192.0.2.1", 3478)
                line._readable()
            case "move":
                line.network_changed()
            case "close":
                line.close()
    assert met.met == 1
    assert "a defect, please report it" in caplog.text
    assert line._socket is None
    assert line.end is not None
    async with asyncio.timeout(1):
        await line.serve()


async def test_a_defect_that_one_event_meets_costs_that_event(met: defects.Defects) -> None:
    """The rest of the events was lost, and the timer."""
    peer, other = NodeKey(b"p" * 32), NodeKey(b"o" * 32)
    taken: list[NodeKey] = []

    class Host(Bare):
        def peer_moved(self, peer: NodeKey, source: AddrPort) -> None:
            if peer == other:
                taken.append(peer)
            else:
                fail()

    class Lines:
        def poll(self, now: float) -> tuple[list[Any], list[Any]]:
            return [], [peerlines.Moved(peer, SOURCE), peerlines.Moved(other, SOURCE)]

        def deadline(self) -> float:
            return time.monotonic() + 100

    peers = QuicPeers(NodeSecret(NODE), peer, Host(), mode=Mode.AUTO, tickets=None)
    peers._lines = Lines()  # type: ignore[assignment]
    peers._flush()
    assert taken == [other]
    assert met.met == 1
    assert peers._timer is not None
    peers._timer.cancel()


def fail(*arguments: object, **others: object) -> NoReturn:
    raise RuntimeError("a defect")


class Bare:
    """A `Host` of which little is asked."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None
