"""What a peer of the tailnet may send in a valid QUIC packet: any frames, any number of them, and no acknowledgment.

    mallory ──packets of her own making──▶ bob: nothing raises, and what he keeps for her has a bound

Ref: RFC 9000 §19, RFC 9221; spec quic §13
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import types
from collections.abc import Callable
from typing import Final

import pytest
from aioquic import tls
from aioquic.buffer import encode_uint_var as number
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.engine import defects
from gw.engine.peerline import MAX_TICKETS, PeerLine
from gw.quic.connection import MAX_GAPS
from gw.wire.derp import frames as derp
from gw.wire.quic import datagrams, frames, peering

from .peers import Net

MAX_KEPT_BYTES: Final = 1 << 20  # of one connection, whatever comes
MAX_GROWTH_BYTES: Final = 40_000  # while the second half of a flood comes
PACKETS: Final = 1200
_SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType)
TICKET = (
    b"\x04\0\0\x60" + (3600).to_bytes(4, "big") + bytes(4) + b"\x08" + bytes(8) + (75).to_bytes(2, "big") + bytes(77)
)


def kept(line: PeerLine, owner: object) -> int:
    """Bytes of all objects that the connection alone has."""
    seen, total = {id(owner)}, 0
    todo: list[object] = [line]
    while todo:
        each = todo.pop()
        if id(each) not in seen and not isinstance(each, _SHARED):
            seen.add(id(each))
            total += sys.getsizeof(each)
            todo += gc.get_referents(each)
    return total


class Mallory:
    """Ann's end of a connection with Bob, from which nothing comes but what she makes."""

    def __init__(self, *, dials: bool, fast: bool = True) -> None:
        self.net = Net()
        self.net.bob.fast = fast
        self.net.bob.start()
        self.net.connected(self.net.ann if dials else self.net.bob)
        self.net.run(2)
        self.end = self.net.ann.lines._lines[self.net.bob.key]
        self.line = self.net.bob.lines._lines[self.net.ann.key]
        connection = self.line.link.connection
        self.dials = dials
        self.control = connection._streams[0].receiver.starting_offset()
        self.crypto = connection._crypto_streams[tls.Epoch.ONE_RTT].receiver.starting_offset()

    def uni(self, index: int) -> int:
        return (2 if self.dials else 3) + 4 * index

    def bidi(self, index: int) -> int:
        return (4 if self.dials else 1) + 4 * index

    def say(self, data: bytes) -> bytes:
        """On the control stream, in order."""
        self.control += len(data)
        return stream(0, self.control - len(data), data)

    def hand_ticket(self) -> bytes:
        self.crypto += len(TICKET)
        return b"\x06" + number(self.crypto - len(TICKET)) + number(len(TICKET)) + TICKET

    def skip(self, count: int) -> bytes:
        """Packet numbers that are never sent; then a ping."""
        self.end.link.connection._packet_number += count
        return b"\x01"

    def send(self, plain: bytes) -> None:
        fast = self.end.link._fast
        assert fast is not None
        self.end.link.connection._peer_cid.cid = self.line.link.connection.host_cid
        packet, _ = fast.seal([plain.ljust(4, b"\0")], self.net.now)[0]
        bob = self.net.bob.lines
        bob.receive(packet, len(packet), self.net.ann.address, self.net.ann.key, self.net.now)
        bob.poll(self.net.now)
        self.net.now += 0.0003


def stream(which: int, offset: int, data: bytes, *, is_end: bool = False) -> bytes:
    return bytes([0x0E | is_end]) + number(which) + number(offset) + number(len(data)) + data


FLOODS: dict[str, Callable[[Mallory, int], bytes]] = {
    "pings": lambda m, n: b"\x01",
    "unknown control": lambda m, n: m.say(derp.encode(0x7F, bytes(100))),
    "control pings": lambda m, n: m.say(peering.encode_ping(b"12345678") * 30),
    "routes": lambda m, n: m.say(peering.encode_routes(peering.Routes(n, ()))),
    "control with gaps": lambda m, n: stream(0, m.control + 1 + n * 7919 % 200_000, b"x"),
    "reports without an end": lambda m, n: stream(m.uni(n), 0, b"{"),
    "reports": lambda m, n: stream(m.uni(n), 0, b"{}", is_end=True),
    "streams": lambda m, n: stream(m.bidi(n), 0, b"x", is_end=True),
    "resets": lambda m, n: b"\x04" + number(m.uni(n)) + number(1) + number(0),
    "limits": lambda m, n: b"\x10" + number(n + 1_000_000) + b"\x12" + number(n + 1000) + b"\x13" + number(n + 1000),
    "connection ids": lambda m, n: b"\x18" + number(n + 10) + number(n + 8) + b"\x08" + os.urandom(24),
    "path challenges": lambda m, n: b"\x1a" + os.urandom(8),
    "path responses": lambda m, n: b"\x1b" + os.urandom(8),
    "tickets": lambda m, n: m.hand_ticket(),
    "tokens": lambda m, n: b"\x07" + number(100) + bytes(100),
    "blocked": lambda m, n: b"\x14" + number(n) + b"\x16" + number(n) + b"\x15" + number(0) + number(n),
    "strange datagrams": lambda m, n: b"\x30" + os.urandom(50),
    "first parts": lambda m, n: b"\x30\x02" + n.to_bytes(2, "big") + b"\x02" + bytes(900),
    "heartbeats": lambda m, n: b"\x30" + peering.encode_heartbeat(peering.Heartbeat(n, n, n, n)),
    "probes": lambda m, n: b"\x30" + datagrams.encode_probe(n, 0, 1100),
    "messages": lambda m, n: b"\x30\x10\x04\0\0\0" + bytes(100),
    "packets never sent": lambda m, n: m.skip(2),
}


STOCK = ("pings", "control pings", "messages", "packets never sent")


@pytest.fixture(autouse=True)
def met(monkeypatch: pytest.MonkeyPatch) -> defects.Defects:
    made = defects.Defects(types.SimpleNamespace(now=1.0))
    monkeypatch.setattr(defects, "of_node", made)
    return made


@pytest.mark.parametrize(("what", "fast"), [(what, True) for what in FLOODS] + [(what, False) for what in STOCK])
def test_a_flood_of_one_kind_is_held_in_bounds(what: str, fast: bool, met: defects.Defects) -> None:
    """Acknowledgments that were never acknowledged themselves were booked for as long as the connection lived."""
    mallory = Mallory(dials=len(what) % 2 == 0 and what != "tickets", fast=fast)
    line, owner = mallory.line, mallory.net.bob.lines
    sizes: list[int] = []
    for count in range(PACKETS):
        mallory.send(FLOODS[what](mallory, count))
        if count in (PACKETS // 2, PACKETS - 1):
            sizes.append(kept(line, owner))
        if line.is_over:
            break
    assert kept(line, owner) < MAX_KEPT_BYTES
    if what != "routes":  # whose answers go out one by one, until the congestion window is full of them
        assert line.is_over or sizes[-1] - sizes[0] < MAX_GROWTH_BYTES
    assert met.met == 0


def test_single_bytes_far_apart_end_the_connection() -> None:
    """Each gap was an entry of its own, walked through for the next."""
    mallory = Mallory(dials=True)
    for count in range(MAX_GAPS + 2):
        mallory.send(stream(0, mallory.control + 2 + 2 * count, b"x"))
    assert mallory.line.is_over


def test_of_very_many_tickets_few_are_kept() -> None:
    """Each was a file written; before the peer's proof they piled up."""
    mallory = Mallory(dials=False)
    writes: list[bytes] = []
    mallory.net.bob.box.keep = lambda peer, ticket: writes.append(ticket)  # type: ignore[method-assign]
    for _ in range(50):
        mallory.send(mallory.hand_ticket())
    assert not mallory.line.is_over
    assert 0 < len(writes) <= MAX_TICKETS
    assert not mallory.line.tickets


small = st.integers(0, 64)
varint = st.one_of(small, st.integers(0, 1 << 20), st.integers(0, (1 << 62) - 1)).map(number)
blob = st.binary(max_size=60)
control = st.builds(
    derp.encode,
    st.sampled_from(
        [derp.PING, derp.PONG, frames.AUTH, frames.AUTH_OK, frames.ROUTES, frames.ROUTES_ACK, derp.KEEP_ALIVE, 0x7F]
    ),
    blob,
)
frame = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.tuples(st.integers(0, 0x1E).map(number), varint, varint, varint, blob).map(b"".join),
    st.builds(stream, small, st.one_of(small, st.integers(0, 1 << 19)), blob, is_end=st.booleans()),
    st.tuples(st.just(b"\x30"), st.sampled_from([b"\x10", b"\x02", b"\x11", b"\x12", b"\x13", b"\x03"]), blob).map(
        b"".join
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(st.one_of(frame, control.map(bytearray)), min_size=1, max_size=25))
def test_any_frames_in_a_valid_packet_end_at_most_their_own_connection(
    dials: bool, fast: bool, words: list[bytes | bytearray]
) -> None:
    """bytearray: for the control stream, in order."""
    before = defects.of_node.met
    mallory = _again(dials, fast)
    for word in words:
        if mallory.line.is_over:
            break
        mallory.send(mallory.say(bytes(word)) if isinstance(word, bytearray) else word)
        mallory.net.now += 0.05
    assert defects.of_node.met == before
    assert kept(mallory.line, mallory.net.bob.lines) < MAX_KEPT_BYTES
    bob = mallory.net.bob.lines
    assert mallory.line.is_over == (mallory.line not in bob._all)


def _again(dials: bool, fast: bool) -> Mallory:
    """The one of before, unless her connection is over: a handshake costs more than a test."""
    if _usual(dials, fast).line.is_over:
        _usual.cache_clear()
    return _usual(dials, fast)


@functools.lru_cache
def _usual(dials: bool, fast: bool) -> Mallory:
    return Mallory(dials=dials, fast=fast)
