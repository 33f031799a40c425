"""One connection of a relay: handshake, packets, pages, WebSocket; clients of our own, and strangers."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey
from gw.relay.admission import Admission
from gw.relay.presence import DUPLICATE
from gw.relay.session import MAX_REQUESTS, Offer, Session
from gw.wire import websocket
from gw.wire.derp import client as c
from gw.wire.derp import frames
from gw.wire.derp.http import Pages, parse_request

from .ends import UPGRADE, End, Guest, House, flush, settle

NOBODY = NodeKey(b"\x05" * 32)
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(60)


@pytest.mark.parametrize("fast", [False, True])
def test_packets_reach_the_key_they_are_for(fast: bool) -> None:
    house = House()
    alice, bob = Guest(house, 1, fast=fast), Guest(house, 2)
    assert c.Connected(0, 0) in alice.events
    alice.send(bob.key, b"one", b"two", bytes(65536))
    settle(bob)
    assert bob.packets == [(alice.key, b"one"), (alice.key, b"two"), (alice.key, bytes(65536))]


def test_who_got_packets_hears_that_the_sender_left() -> None:
    house = House()
    alice, bob, carol = (Guest(house, number) for number in (1, 2, 3))
    alice.send(bob.key, b"x")
    settle(bob, carol)
    alice.leave()
    settle(bob, carol)
    gone = c.PeerGone(alice.key, frames.GONE_DISCONNECTED)
    assert gone in bob.events
    assert gone not in carol.events


def test_disco_to_a_key_that_is_not_here_is_answered_three_times_at_most() -> None:
    alice = Guest(House(), 1)
    alice.send(NOBODY, *[DISCO] * 10, b"data")
    gone = [event for event in alice.events if isinstance(event, c.PeerGone)]
    assert gone == [c.PeerGone(NOBODY, frames.GONE_NOT_HERE)] * 3


def test_a_reader_that_stops_gets_the_newest_packets_only() -> None:
    house = House()
    alice, bob = Guest(house, 1), Guest(house, 2)
    settle(bob)
    bob.end.is_stuck = True
    alice.send(bob.key, b"out already")
    alice.send(bob.key, *[number.to_bytes(2, "big") for number in range(300)])
    bob.end.unstick()
    settle(bob)
    got = [packet for _, packet in bob.packets]
    assert got == [b"out already"] + [number.to_bytes(2, "big") for number in range(300 - 128, 300)]
    assert house.switch.dropped_queue == 300 - 128


def test_a_flood_does_not_push_out_what_others_sent_to_a_slow_reader() -> None:
    house = House()
    flooder, quiet, bob = (Guest(house, number) for number in (1, 2, 3))
    settle(bob)
    bob.end.is_stuck = True
    flooder.send(bob.key, b"first")
    quiet.send(bob.key, b"from quiet")
    flooder.send(bob.key, *[b"flood"] * 5000)
    quiet.send(bob.key, DISCO)
    bob.end.unstick()
    settle(bob)
    assert (quiet.key, b"from quiet") in bob.packets
    assert (quiet.key, DISCO) in bob.packets


def test_the_last_connection_that_spoke_receives_and_the_other_is_told() -> None:
    house = House()
    alice, old, new = Guest(house, 1), Guest(house, 2), Guest(house, 2)
    for receiver, other in ((new, old), (old, new)):
        before = len(other.packets)
        receiver.send(alice.key, b"hello")
        alice.send(new.key, b"x")
        settle(old, new)
        assert receiver.packets[-1] == (alice.key, b"x")
        assert len(other.packets) == before
    assert c.Health(DUPLICATE) in new.events
    old.leave()
    settle(new)
    assert new.events[-1] == c.Health("")
    alice.send(new.key, b"y")
    settle(new)
    assert new.packets[-1] == (alice.key, b"y")


def test_a_key_that_is_not_admitted_is_refused() -> None:
    house = House()
    house.verdict = Admission.DENIED
    with pytest.raises(WireError, match="admitted"):
        Guest(house, 1)
    assert house.reception.refused == 1


def test_an_unknown_key_waits_and_its_packets_with_it() -> None:
    house = House()
    house.verdict = Admission.UNKNOWN
    alice = Guest(house, 1)
    assert alice.end.session.is_waiting
    alice.client.send(alice.key, [b"to myself"])
    alice.end.session.feed(alice.client.data_to_send(), 0.0)
    house.verdict = Admission.ALLOWED
    alice.end.session.decide(1.0)
    settle(alice)
    assert alice.events == [c.Connected(0, 0), c.Received(alice.key, b"to myself")]


def test_the_rate_limit_is_told_to_clients() -> None:
    house = House()
    house.reception.bytes_per_second, house.reception.burst_bytes = 1000, 70000
    assert Guest(house, 1).events == [c.Connected(1000, 70000)]


def test_pings_are_answered_but_not_stored_for_who_does_not_read() -> None:
    house = House()
    alice = Guest(house, 1)
    alice.client.ping(b"12345678")
    settle(alice)
    assert alice.events[-1] == c.Pong(b"12345678")
    alice.end.is_stuck = True
    alice.client.ping(b"xxxxxxxx")
    settle(alice)
    for _ in range(1000):
        alice.client.ping(b"abcdefgh")
    settle(alice)
    assert len(alice.end.port.out) < 5


def test_homes_are_counted() -> None:
    house = House()
    alice = Guest(house, 1)
    for is_home in (True, True, False, True):
        alice.client.note_preferred(is_home)
    settle(alice)
    assert house.reception.homes == 1
    alice.leave()
    assert house.reception.homes == 0


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (frames.encode(frames.FORWARD_PACKET, bytes(64)), "mesh"),
        (frames.encode(frames.WATCH_CONNS, b""), "mesh"),
        (frames.encode(frames.CLOSE_PEER, bytes(32)), "mesh"),
        (frames.encode(frames.SEND_PACKET, bytes(31)), "31 bytes"),
        (frames.encode(frames.SEND_PACKET, bytes(32 + 65537)), "bytes"),
        (frames.encode(frames.PING, bytes(7)), "ping"),
        (frames.encode(frames.NOTE_PREFERRED, bytes(2)), "preferred"),
    ],
)
def test_frames_that_break_the_protocol_are_refused(frame: bytes, problem: str) -> None:
    alice = Guest(House(), 1)
    with pytest.raises(WireError, match=problem):
        alice.end.session.feed(frame, 0.0)


def test_unknown_frames_of_any_length_are_passed_over_as_they_stream_in() -> None:
    house = House()
    alice, bob = Guest(house, 1), Guest(house, 2)
    alice.end.session.feed(b"\x77" + (3 << 20).to_bytes(4, "big"), 0.0)
    for _ in range(3):
        alice.end.session.feed(bytes(1 << 20), 0.0)
    assert len(alice.end.port.rest) < 10
    alice.send(bob.key, b"still here")
    settle(bob)
    assert bob.packets == [(alice.key, b"still here")]


@given(st.lists(st.binary(max_size=120), max_size=6), st.integers(1, 40))
def test_packets_survive_any_cut(packets: list[bytes], cut: int) -> None:
    house = House()
    alice, bob = Guest(house, 1), Guest(house, 2)
    alice.client.send(bob.key, packets)
    wire = alice.client.data_to_send()
    for at in range(0, len(wire), cut):
        alice.end.session.feed(wire[at : at + cut], 0.0)
    settle(bob)
    assert [packet for _, packet in bob.packets] == packets


@given(st.binary(max_size=300), st.booleans(), st.integers(1, 40))
def test_any_bytes_are_taken_or_one_error(raw: bytes, after_handshake: bool, cut: int) -> None:
    house = House()
    session = Guest(house, 1).end.session if after_handshake else End(house).session
    try:
        for at in range(0, len(raw), cut):
            session.feed(raw[at : at + cut], 0.0)
    except WireError:
        return


def recorded() -> bytes:
    """What a client says from its first byte on."""
    house = House()
    bob = Guest(house, 2)
    client = c.Client(bob.secret, bytes(24), relay_key=house.reception.identity.key)
    client.note_preferred(True)
    client.send(bob.key, [b"hello", DISCO])
    client.ping(b"12345678")
    return UPGRADE + b"Derp-Fast-Start: 1\r\n\r\n" + client.data_to_send()


RECORDED = recorded()


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(RECORDED) - 1), st.integers(0, 255)), max_size=6), st.integers(1, 400))
def test_a_mutated_recording_is_taken_or_one_error(changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(RECORDED)
    for at, value in changes:
        raw[at] = value
    house = House()
    end = End(house)
    try:
        for at in range(0, len(raw), cut):
            end.session.feed(bytes(raw[at : at + cut]), 0.0)
            flush(house)
    except WireError:
        return
    end.session.leave()
    assert not house.switch.local


# WebSocket

WS = (
    b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
)


def unwrapped(raw: bytes) -> bytes:
    """The payloads of a server's frames (none masked, none fragmented)."""
    carried = b""
    while raw:
        size, start = raw[1], 2
        if size == 126:
            size, start = int.from_bytes(raw[2:4], "big"), 4
        if raw[0] & 0x0F == websocket.BINARY:
            carried += raw[start : start + size]
        raw = raw[start + size :]
    return carried


def test_websocket_messages_carry_the_same_stream() -> None:
    house = House()
    bob = Guest(house, 2)
    end = End(house)
    end.session.feed(WS, 0.0)
    flush(house)
    head, _, rest = end.down.partition(b"\r\n\r\n")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # RFC 6455 §1.3
    assert b"Sec-WebSocket-Protocol: derp" in head
    assert end.down.count(b"HTTP/1.1") == 1
    alice = Guest(house, 1)
    client = c.Client(alice.secret, bytes(24))
    client.feed(unwrapped(rest))
    client.send(bob.key, [b"by websocket", bytes(3000)])
    up = client.data_to_send()
    wire = b"".join(
        websocket.encode(websocket.BINARY, up[at : at + 700], os.urandom(4)) for at in range(0, len(up), 700)
    )
    wire += websocket.encode(websocket.PING, b"are you there", os.urandom(4))
    end.down = b""
    for at in range(0, len(wire), 100):
        end.session.feed(wire[at : at + 100], 0.0)
    flush(house)
    assert websocket.encode(websocket.PONG, b"are you there") in end.down
    settle(bob)
    assert bob.packets == [(alice.key, b"by websocket"), (alice.key, bytes(3000))]
    bob.send(alice.key, b"back")
    assert client.feed(unwrapped(end.down))[-1] == c.Received(bob.key, b"back")
    end.down = b""
    bob.send(alice.key, bytes(60000))
    sizes, rest = [], end.down
    while rest:
        assert rest[1] in (126, *range(126))  # no message is longer than 64 KiB
        size, start = (int.from_bytes(rest[2:4], "big"), 4) if rest[1] == 126 else (rest[1], 2)
        sizes.append(size)
        rest = rest[start + size :]
    assert max(sizes) <= 16 << 10  # stock clients give up at 32 KiB
    end.session.feed(websocket.encode(websocket.CLOSE, b"\x03\xe8", os.urandom(4)), 0.0)
    assert end.must_be_closed


@given(st.binary(max_size=200), st.integers(1, 40))
def test_any_bytes_after_a_websocket_upgrade_are_taken_or_one_error(raw: bytes, cut: int) -> None:
    end = End(House())
    end.session.feed(WS, 0.0)
    try:
        for at in range(0, len(raw), cut):
            end.session.feed(raw[at : at + cut], 0.0)
    except WireError:
        return


def test_an_upgrade_to_websocket_without_the_subprotocol_is_a_raw_one() -> None:
    house = House()
    end = End(house)
    end.session.feed(WS.replace(b"Sec-WebSocket-Protocol: derp\r\n", b""), 0.0)
    flush(house)
    assert end.down.startswith(b"HTTP/1.1 101 ")
    assert end.down.endswith(house.reception.identity.greeting)


# Pages


def page(path: str, method: str = "GET", *, pages: Pages | None = None, **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return (pages or Pages()).answer(
        parse_request(f"{method} {path} HTTP/1.1\r\n{lines}".removesuffix("\r\n").encode())
    )


def test_the_pages_that_clients_probe() -> None:
    assert page("/derp").startswith(b"HTTP/1.1 426 ")
    assert page("/derp/latency-check").startswith(b"HTTP/1.1 200 ")
    assert b"Access-Control-Allow-Origin: *\r\n" in page("/derp/probe", "HEAD")
    assert page("/derp/probe", "POST").startswith(b"HTTP/1.1 405 ")
    assert page("/", "POST").startswith(b"HTTP/1.1 405 ")
    assert page("/elsewhere").startswith(b"HTTP/1.1 404 ")
    assert page("/robots.txt").endswith(b"User-agent: *\nDisallow: /\n")
    answer = page("/generate_204", x_tailscale_challenge="ts_relay.example")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert b"X-Tailscale-Response: response ts_relay.example\r\n" in answer
    assert b"X-Tailscale-Response" not in page("/generate_204", x_tailscale_challenge="a b")
    assert b"X-Tailscale-Response" not in page("/generate_204", x_tailscale_challenge="a" * 65)


def test_the_home_page_may_lead_elsewhere() -> None:
    assert b"<h1>" in page("/")
    assert page("/", "HEAD").endswith(b"\r\n\r\n")
    moved = page("/", pages=Pages(home="https://example.org/"))
    assert moved.startswith(b"HTTP/1.1 302 ")
    assert b"Location: https://example.org/\r\n" in moved


def test_bootstrap_dns_tells_unpublished_names_only_to_who_asks() -> None:
    pages = Pages(published={"control.example": ["192.0.2.1"]}, unpublished={"hidden.example": ["192.0.2.2"]})

    def names(query: str) -> object:
        answer = page(f"/bootstrap-dns{query}", pages=pages)
        assert b"Connection: close\r\n" in answer
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    assert names("") == names("?q=other.example") == {"control.example": ["192.0.2.1"]}
    assert names("?q=hidden.example") == {"hidden.example": ["192.0.2.2"]}


def test_requests_follow_one_another_on_one_connection_within_reason() -> None:
    house = House()
    end = End(house)
    end.session.feed(b"GET /robots.txt HTTP/1.1\r\n\r\n" * MAX_REQUESTS, 0.0)
    flush(house)
    assert end.down.count(b"HTTP/1.1 200 OK") == MAX_REQUESTS
    with pytest.raises(WireError):
        end.session.feed(b"GET / HTTP/1.1\r\n\r\n", 0.0)


@pytest.mark.parametrize(
    ("offer", "source", "seen"),
    [
        (Offer(derp=False, metrics=True), "192.0.2.1", True),
        (Offer(local_metrics=True), "127.0.0.1", True),
        (Offer(local_metrics=True), "192.0.2.1", False),
        (Offer(), "127.0.0.1", False),
    ],
)
def test_metrics_are_for_whom_the_listener_says(offer: Offer, source: str, seen: bool) -> None:
    house = House()
    house.reception.metrics = lambda: "gwrelay_clients 0\n"
    end = End(house)
    end.session = Session(house.reception, end, AddrPort(source, 1), 0.0, offer)
    end.session.feed(b"GET /metrics HTTP/1.1\r\n\r\n", 0.0)
    flush(house)
    assert (b"gwrelay_clients 0\n" in end.down) == seen


def test_a_plain_http_listener_has_no_derp() -> None:
    house = House()
    end = End(house)
    end.session = Session(house.reception, end, AddrPort("192.0.2.1", 1), 0.0, Offer(derp=False))
    end.session.feed(UPGRADE + b"\r\n", 0.0)
    flush(house)
    assert end.down.startswith(b"HTTP/1.1 426 ")
