"""Claims, control frames and datagrams of gw-relay/1, and the protocols of one UDP port."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.wire import stun
from gw.wire.derp.frames import FrameReader, encode
from gw.wire.quic import auth, datagrams, demux, frames
from gw.wire.quic.demux import Kind, kind_of
from gw.wire.quic.peering import peer_reader
from gw.wire.x25519 import clamp, public_key

NODE = clamp(b"\x21" * 32)
RELAY = clamp(b"\x42" * 32)
BIND = b"\x07" * 32
NOW_MS = 1_800_000_000_000


def claim(**changes: object) -> auth.Claim:
    fields: dict[str, object] = {"role": auth.CLIENT, "bind": BIND.hex(), "at": NOW_MS}
    return auth.Claim(**{**fields, **changes})  # type: ignore[arg-type]


def sealed(**changes: object) -> bytes:
    return auth.seal_claim(NODE, public_key(RELAY), bytes(24), claim(**changes))


def opened(raw: bytes, **changes: object) -> auth.Claim:
    fields: dict[str, object] = {"role": auth.CLIENT, "bind": BIND, "now_ms": NOW_MS}
    return auth.open_claim(RELAY, public_key(NODE), raw, **{**fields, **changes})  # type: ignore[arg-type]


def test_a_claim_opens_for_whom_it_is() -> None:
    assert opened(sealed(rate=5)) == claim(rate=5)


def test_a_reflected_claim_fails() -> None:
    """The keys of a box are symmetric: without roles a relay could be shown its own."""
    with pytest.raises(WireError, match="role"):
        auth.open_claim(NODE, public_key(RELAY), sealed(), role=auth.RELAY, bind=BIND, now_ms=NOW_MS)


def test_a_claim_carried_into_another_session_fails() -> None:
    with pytest.raises(WireError, match="another session"):
        opened(sealed(), bind=b"\x08" * 32)


def test_a_claim_for_another_relay_fails() -> None:
    other = auth.seal_claim(NODE, public_key(clamp(b"\x55" * 32)), bytes(24), claim())
    with pytest.raises(WireError, match="does not open"):
        opened(other)


@pytest.mark.parametrize("skew", [-300_001, 300_001])
def test_an_old_claim_fails(skew: int) -> None:
    with pytest.raises(WireError, match="clocks"):
        opened(sealed(at=NOW_MS + skew))


@given(st.binary(max_size=400))
def test_noise_is_no_claim(noise: bytes) -> None:
    with pytest.raises(WireError):
        opened(noise)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_claim_fails(place: int, change: int) -> None:
    raw = bytearray(sealed())
    raw[place % len(raw)] ^= change
    with pytest.raises(WireError):
        opened(bytes(raw))


@given(st.binary(max_size=200))
def test_what_is_no_json_inside_fails(inside: bytes) -> None:
    """A node with a key may still send nonsense."""
    raw = bytes(Box(PrivateKey(NODE), PublicKey(public_key(RELAY))).encrypt(inside, bytes(24)))
    with pytest.raises(WireError):
        opened(raw)


strange = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=80)


@given(st.dictionaries(st.sampled_from(["role", "at", "v", "rate", "burst", "mesh", "peer_relay", "x"]), strange))
@example({"mesh": "\ud800"})
@example({"mesh": "é"})
@example({"at": 10**400})
def test_any_document_inside_is_a_claim_or_an_error(changes: dict[str, object]) -> None:
    inside = json.dumps({"role": auth.CLIENT, "bind": BIND.hex(), "at": NOW_MS} | changes).encode()
    raw = bytes(Box(PrivateKey(NODE), PublicKey(public_key(RELAY))).encrypt(inside, bytes(24)))
    try:
        found = opened(raw)
    except WireError:
        return
    assert not auth.check_mesh(found, "ab" * 32, BIND, b"d" * 32, b"a" * 32)


def test_a_key_of_small_order_is_no_crash() -> None:
    with pytest.raises(WireError):
        auth.seal_claim(NODE, bytes(32), bytes(24), claim())
    with pytest.raises(WireError):
        auth.open_claim(RELAY, bytes(32), sealed(), role=auth.CLIENT, bind=BIND, now_ms=NOW_MS)


def test_control_frames_come_back() -> None:
    reader = frames.client_reader()
    address = AddrPort("2001:db8::1", 3478)
    raw = (
        frames.encode_hello(b"r" * 32)
        + struct.pack(">BI", 0x7E, 3)
        + b"???"
        + frames.encode_limits(1_500_001, 70_000)
        + frames.encode_observed(address)
    )
    found = [each for at in range(len(raw)) for each in reader.feed(raw[at : at + 1])]
    assert [kind for kind, _ in found] == [frames.HELLO, frames.LIMITS, frames.OBSERVED_ADDR]
    assert frames.decode_hello(found[0][1]) == b"r" * 32
    assert frames.decode_limits(found[1][1]) == (1_501_000, 70_000)
    assert frames.decode_observed(found[2][1]) == address
    ((kind, body),) = frames.relay_reader().feed(frames.encode_auth(b"n" * 32, b"s" * 60))
    assert (kind, frames.decode_auth(body)) == (frames.AUTH, (b"n" * 32, b"s" * 60))


@given(st.binary(max_size=60))
def test_bodies_of_noise_raise_one_error(body: bytes) -> None:
    for decode in (frames.decode_hello, frames.decode_auth, frames.decode_limits, frames.decode_observed):
        try:
            decode(body)
        except WireError:
            pass


def test_a_frame_that_is_too_large_is_refused_before_it_is_there() -> None:
    with pytest.raises(WireError):
        frames.relay_reader().feed(struct.pack(">BI", frames.AUTH, 1 << 20))


@given(st.binary(min_size=1, max_size=2200), st.integers(0, 1 << 20), st.booleans())
def test_packets_come_through_whole_or_in_two_parts(packet: bytes, number: int, swap: bool) -> None:
    sent = datagrams.encode_packet(b"k" * 32, packet, 1167, number)
    assert all(len(each) <= 1167 for each in sent)
    if len(packet) > 2 * (1167 - datagrams.FRAG_HEAD_BYTES):
        assert sent == []
        return
    if len(sent) == 1:
        assert datagrams.decode_packet(sent[0]) == (b"k" * 32, packet)
        return
    joiner = datagrams.Joiner()
    first, second = reversed(sent) if swap else sent
    assert joiner.feed(first, 1.0) is None
    assert joiner.feed(second, 1.2) == (b"k" * 32, packet)
    assert joiner.feed(second, 1.2) is None


def test_a_part_without_its_half_is_forgotten() -> None:
    first, second = datagrams.encode_packet(b"k" * 32, bytes(2000), 1167, 1)
    joiner = datagrams.Joiner()
    assert joiner.feed(first, 1.0) is None
    assert joiner.feed(second, 1.3) is None


def test_parts_of_strangers_fill_no_memory() -> None:
    joiner = datagrams.Joiner()
    for number in range(5000):
        part = datagrams.encode_packet(number.to_bytes(4, "big") * 8, bytes(2000), 1167, number)[0]
        joiner.feed(part, 1.0)
    assert len(joiner._open) <= datagrams.MAX_OPEN
    for number in range(100):
        joiner.feed(datagrams.encode_packet(b"k" * 32, bytes(2000), 1167, number)[0], 2.0)
    assert len(joiner._open) <= datagrams.MAX_OPEN


@given(st.binary(max_size=100))
def test_datagrams_of_noise_raise_one_error(noise: bytes) -> None:
    for decode in (datagrams.decode_packet, datagrams.decode_echo, datagrams.echo_of):
        try:
            decode(noise)
        except WireError:
            pass
    try:
        datagrams.Joiner().feed(noise, 1.0)
    except WireError:
        pass


def test_an_echo_is_smaller_than_its_probe() -> None:
    probe = datagrams.encode_probe(7, 99, 1000)
    assert len(probe) == 1000
    assert datagrams.decode_echo(datagrams.echo_of(probe)) == (7, 99)
    assert len(datagrams.echo_of(probe)) == datagrams.PROBE_BYTES


SAMPLES = [
    (lambda: bytes([0x40 | os.urandom(1)[0] & 0x3F]) + b"\x10" + os.urandom(40), Kind.QUIC_SHORT),
    (lambda: bytes([0xC0 | os.urandom(1)[0] & 0x3F]) + b"\0\0\0\1\x08" + os.urandom(40), Kind.QUIC_LONG),
    (lambda: bytes([0x80 | os.urandom(1)[0] & 0x3F]) + b"\0\0\0\0\x08" + os.urandom(30), Kind.QUIC_LONG),
    (lambda: b"\x04\0\0\0" + os.urandom(28), Kind.WIREGUARD),
    (lambda: b"\x01\0\0\0" + os.urandom(144), Kind.WIREGUARD),
    (lambda: b"\x02\0\0\0" + os.urandom(88), Kind.WIREGUARD),
    (lambda: b"\x03\0\0\0" + os.urandom(60), Kind.WIREGUARD),
    (lambda: stun.encode_request(os.urandom(12)), Kind.STUN),
    (lambda: stun.encode_answer(os.urandom(12), AddrPort("192.0.2.1", 9)), Kind.STUN),
    (lambda: b"TS\xf0\x9f\x92\xac" + os.urandom(100), Kind.DISCO),
    (lambda: b"\0\x80\x7a\x12" + os.urandom(40), Kind.GENEVE),
    (lambda: b"\x81" + b"\x07" * 30, Kind.NOTHING),
    (lambda: b"\x04\0\0", Kind.NOTHING),
    (lambda: b"", Kind.NOTHING),
]


@pytest.mark.parametrize(("make", "kind"), SAMPLES)
def test_protocols_of_one_port_are_told_apart(make: object, kind: Kind) -> None:
    for _ in range(200):
        assert kind_of(make()) is kind  # type: ignore[operator]


@given(st.binary(max_size=200))
def test_any_datagram_is_of_some_kind(noise: bytes) -> None:
    kind = kind_of(noise)
    if kind in (Kind.QUIC_LONG, Kind.QUIC_SHORT):
        assert len(demux.destination_of(noise)) <= demux.MAX_CID_BYTES
        demux.is_initial(noise)


def test_halves_without_the_other_are_bounded_in_number_and_bytes() -> None:
    """2,048 halves of 1.4 kB were kept of each client, and looked through for every further part."""
    joiner = datagrams.Joiner()
    for number in range(1000):
        halves = datagrams.encode_packet(number.to_bytes(32, "big"), bytes(2600), 1400, number)
        assert joiner.feed(halves[0], 1.0) is None
        assert len(joiner._open) <= datagrams.MAX_OPEN
        assert sum(len(part) for _, part, _ in joiner._open.values()) == joiner._bytes <= datagrams.MAX_OPEN_BYTES
    assert joiner.feed(halves[1], 1.1) == ((999).to_bytes(32, "big"), bytes(2600))
    joiner.feed(halves[0], 9.0)
    assert len(joiner._open) == 1


@pytest.mark.parametrize("reader", [frames.client_reader, frames.relay_reader, frames.mesh_reader, peer_reader])
@given(body=st.one_of(st.binary(max_size=8), st.just(b"\0\0"), st.just(bytes(frames.MAX_BODY_BYTES))))
def test_mtu_info_is_passed_over_by_either_end(reader: Callable[[], FrameReader], body: bytes) -> None:
    """Whatever size the other side claims: probes tell what passes."""
    feed = reader().feed
    assert not list(feed(encode(frames.MTU_INFO, body)))
    known = frames.AUTH if reader in (frames.relay_reader, peer_reader) else frames.AUTH_OK
    assert list(feed(encode(known, b"x"))) == [(known, b"x")]
