"""The relay's end: clients of our own in memory, and strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.keys import NodeKey, NodeSecret, RelaySecret
from gw.wire.derp import client as c
from gw.wire.derp import frames
from gw.wire.derp.server import Admission, Client, Relay, page
from gw.wire.x25519 import clamp, public_key

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"


class Link:
    """A client of ours and the relay's end of it; implements Owner."""

    def __init__(self, relay: Relay, number: int, *, fast: bool = False) -> None:
        self.secret = NodeSecret(clamp(bytes([number]) * 32))
        self.key = NodeKey(public_key(self.secret.raw))
        self.end = Client(relay, self, 0.0)
        self.must_be_closed = False
        self.end.feed(UPGRADE + (b"Derp-Fast-Start: 1\r\n\r\n" if fast else b"\r\n"), 0.0)
        self.client = c.Client(self.secret, bytes(24), relay_key=relay.key if fast else b"")
        self.events: list[c.Event] = []
        self.is_http = not fast
        self.turn()

    def wants_to_write(self) -> None: ...

    def must_close(self) -> None:
        self.must_be_closed = True

    def turn(self) -> None:
        for _ in range(3):
            down = b"".join(self.end.out)
            self.end.out.clear()
            if self.is_http and down:
                assert down.startswith(b"HTTP/1.1 101 ")
                down = down.partition(b"\r\n\r\n")[2]
                self.is_http = False
            self.events += self.client.feed(down)
            up = self.client.data_to_send()
            if up:
                self.end.feed(up, 0.0)


def relay(verdict: Admission = Admission.ALLOWED) -> Relay:
    return Relay(RelaySecret(clamp(b"\x77" * 32)), lambda node, source: verdict, lambda: bytes(24))


@pytest.mark.parametrize("fast", [False, True])
def test_packets_reach_the_key_they_are_for(fast: bool) -> None:
    shared = relay()
    alice, bob = Link(shared, 1, fast=fast), Link(shared, 2)
    assert c.Connected(0, 0) in alice.events
    alice.client.send(bob.key, [b"one", b"two"])
    alice.turn()
    bob.turn()
    assert bob.events[1:] == [c.Received(alice.key, b"one"), c.Received(alice.key, b"two")]


def test_who_got_packets_hears_that_the_sender_left() -> None:
    shared = relay()
    alice, bob, carol = (Link(shared, number) for number in (1, 2, 3))
    alice.client.send(bob.key, [b"x"])
    alice.turn()
    shared.leave(alice.end)
    bob.turn()
    carol.turn()
    assert c.PeerGone(alice.key, frames.GONE_DISCONNECTED) in bob.events
    assert c.PeerGone(alice.key, frames.GONE_DISCONNECTED) not in carol.events


def test_disco_to_a_key_that_is_not_here_is_answered_three_times_at_most() -> None:
    alice = Link(relay(), 1)
    alice.client.send(NodeKey(b"\x05" * 32), [b"TS\xf0\x9f\x92\xac" + bytes(60)] * 10 + [b"data"])
    alice.turn()
    gone = [event for event in alice.events if isinstance(event, c.PeerGone)]
    assert gone == [c.PeerGone(NodeKey(b"\x05" * 32), frames.GONE_NOT_HERE)] * 3


def test_a_reader_that_stops_gets_the_newest_packets_only() -> None:
    shared = relay()
    alice, bob = Link(shared, 1), Link(shared, 2)
    bob.end.is_blocked = True
    alice.client.send(bob.key, [bytes([number]) for number in range(100)])
    alice.turn()
    bob.end.unblock()
    bob.turn()
    assert [event.packet for event in bob.events[1:] if isinstance(event, c.Received)] == [
        bytes([number]) for number in range(68, 100)
    ]
    assert shared.dropped == 68


def test_the_last_connection_that_spoke_receives() -> None:
    shared = relay()
    alice, old, new = Link(shared, 1), Link(shared, 2), Link(shared, 2)
    for receiver, other in ((new, old), (old, new)):
        before = len(other.events)
        receiver.client.send(alice.key, [b"hello"])
        receiver.turn()
        alice.client.send(new.key, [b"x"])
        alice.turn()
        old.turn()
        new.turn()
        assert receiver.events[-1] == c.Received(alice.key, b"x")
        assert len(other.events) == before
    shared.leave(old.end)
    alice.client.send(new.key, [b"y"])
    alice.turn()
    new.turn()
    assert new.events[-1] == c.Received(alice.key, b"y")


def test_a_key_that_is_not_admitted_is_refused() -> None:
    with pytest.raises(WireError, match="admitted"):
        Link(relay(Admission.DENIED), 1)


def test_an_unknown_key_waits_and_its_packets_with_it() -> None:
    verdicts = {"now": Admission.UNKNOWN}
    shared = Relay(RelaySecret(clamp(b"\x77" * 32)), lambda node, source: verdicts["now"], lambda: bytes(24))
    alice = Link(shared, 1)
    assert alice.end.is_waiting
    alice.client.send(alice.key, [b"to myself"])
    alice.end.feed(alice.client.data_to_send(), 0.0)
    verdicts["now"] = Admission.ALLOWED
    alice.end.decide(1.0)
    alice.turn()
    assert alice.events == [c.Connected(0, 0), c.Received(alice.key, b"to myself")]


@pytest.mark.parametrize("kind", [frames.FORWARD_PACKET, frames.WATCH_CONNS, frames.CLOSE_PEER])
def test_mesh_frames_of_clients_are_refused(kind: int) -> None:
    alice = Link(relay(), 1)
    with pytest.raises(WireError, match="mesh"):
        alice.end.feed(frames.encode(kind, bytes(32)), 0.0)


@given(st.binary(max_size=300), st.booleans(), st.integers(1, 40))
def test_any_bytes_are_taken_or_one_error(raw: bytes, after_upgrade: bool, cut: int) -> None:
    shared = relay()
    end = Link(shared, 1).end if after_upgrade else Client(shared, Link(shared, 3), 0.0)
    try:
        for at in range(0, len(raw), cut):
            end.feed(raw[at : at + cut], 0.0)
    except WireError:
        return


def test_the_pages_that_clients_probe() -> None:
    assert page("GET", "/derp", {}).startswith(b"HTTP/1.1 426 ")
    assert page("GET", "/derp/latency-check", {}).startswith(b"HTTP/1.1 200 ")
    assert page("POST", "/derp/probe", {}).startswith(b"HTTP/1.1 405 ")
    challenge = {"x-tailscale-challenge": "ts_relay.example"}
    assert b"X-Tailscale-Response: response ts_relay.example\r\n" in page("GET", "/generate_204", challenge)
    evil = {"x-tailscale-challenge": "a\r\nSet-Cookie: x"}
    assert b"Set-Cookie" not in page("GET", "/generate_204", evil)


def test_a_client_that_does_not_read_gets_no_pongs_piled_up() -> None:
    """Else anybody who is let in fills the relay's memory at line rate."""
    alice = Link(relay(), 1)
    alice.end.is_blocked = True
    alice.end.feed(frames.encode(frames.PING, bytes(8)) * 1000, 1.0)
    assert alice.end.out == []
    alice.end.unblock()
    alice.end.feed(frames.encode(frames.PING, bytes(8)), 1.0)
    assert alice.end.out == [frames.encode(frames.PONG, bytes(8))]


def test_requests_without_end_are_cut_off_before_they_are_answered() -> None:
    """A stranger's pipelined requests may neither pile up answers nor cost more than their length."""

    class Deaf:
        def wants_to_write(self) -> None: ...
        def must_close(self) -> None: ...

    stranger = Client(relay(), Deaf(), 0.0)
    with pytest.raises(WireError, match="too many requests"):
        stranger.feed(b"GET / HTTP/1.1\r\n\r\n" * 7000, 0.0)
    assert len(stranger.out) < 100
    with pytest.raises(WireError, match="head too large"):
        Client(relay(), Deaf(), 0.0).feed(b"GET / HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 0.0)
