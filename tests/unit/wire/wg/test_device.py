"""Two devices, a wire between them that the test holds, and a clock that it turns."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.wire.wg import Activity, Device, Install, Keepalive, Keypair, Output, Reply, Retire, Transmit, Unreachable
from gw.wire.wg.cookies import BUSY_HANDSHAKES, SOURCE_BURST, CookieChecker
from gw.wire.wg.messages import COOKIE, INITIATION, RESPONSE, kind_of
from gw.wire.wg.peer import MAX_ATTEMPTS, NEVER
from gw.wire.wg.transport import open_packet, seal_packet

SOURCE = b"\x7f\x00\x00\x01\x12\x34"
OTHER = b"\x7f\x00\x00\x02\x12\x34"


class End:
    """A device with the keypairs that it was told to use."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.wall_ns = 1_700_000_000_000_000_000
        self.device = Device(self.random.randbytes(32), self.random.randbytes, lambda: self.wall_ns)
        self.receive: dict[int, Keypair] = {}
        self.send: Keypair | None = None

    def take(self, outputs: list[Output]) -> list[bytes]:
        """Do what the device says; what is to be sent comes back."""
        wire: list[bytes] = []
        for output in outputs:
            match output:
                case Transmit(_, datagram) | Reply(_, datagram):
                    wire.append(datagram)
                case Install(_, keypair, send):
                    self.receive[keypair.local_index] = keypair
                    if send:
                        self.send = keypair
                case Retire(_, index):
                    self.receive.pop(index, None)
                    if self.send is not None and self.send.local_index == index:
                        self.send = None
                case Keepalive() | Unreachable():
                    pass
        return wire


@pytest.fixture
def ends() -> tuple[End, End]:
    ann, bob = End(1), End(2)
    ann.device.add_peer(bob.device.public)
    bob.device.add_peer(ann.device.public)
    return ann, bob


def connect(ann: End, bob: End, now: float) -> None:
    """ann initiates; her first packet confirms."""
    ann.wall_ns = bob.wall_ns = 1_700_000_000_000_000_000 + int(now * 1e9)
    (first,) = ann.take(ann.device.renew(bob.device.public, now))
    (second,) = bob.take(bob.device.receive(first, SOURCE, now))
    assert ann.take(ann.device.receive(second, SOURCE, now)) == []
    assert ann.send is not None
    deliver(ann, bob, now)


def deliver(sender: End, receiver: End, now: float) -> None:
    assert sender.send is not None
    keypair = receiver.receive[sender.send.remote_index]
    assert open_packet(keypair, seal_packet(sender.send, 0, b""))[1] == b""
    receiver.take(receiver.device.confirmed(keypair.local_index, now))


def test_a_session_carries_packets_both_ways(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    deliver(bob, ann, 0.0)
    assert ann.device.has_session(bob.device.public, 100.0)
    assert not ann.device.has_session(bob.device.public, 180.0)


def test_the_responder_sends_nothing_before_the_first_packet(ends: tuple[End, End]) -> None:
    ann, bob = ends
    (first,) = ann.take(ann.device.want_session(bob.device.public, 0.0))
    outputs = bob.device.receive(first, SOURCE, 0.0)
    assert [output.send for output in outputs if isinstance(output, Install)] == [False]
    assert not bob.device.has_session(ann.device.public, 0.0)


def test_a_repeated_initiation_is_dropped(ends: tuple[End, End]) -> None:
    ann, bob = ends
    (first,) = ann.take(ann.device.want_session(bob.device.public, 0.0))
    bob.device.receive(first, SOURCE, 0.0)
    with pytest.raises(WireError):
        bob.device.receive(first, SOURCE, 1.0)


def test_time_stamps_grow_though_the_clock_is_set_back(ends: tuple[End, End]) -> None:
    ann, bob = ends
    (first,) = ann.take(ann.device.renew(bob.device.public, 0.0))
    bob.device.receive(first, SOURCE, 0.0)
    ann.wall_ns -= 3600 * 10**9
    (again,) = ann.take(ann.device.renew(bob.device.public, 6.0))
    assert kind_of(bob.take(bob.device.receive(again, SOURCE, 6.0))[0]) == RESPONSE


def test_a_stranger_gets_no_answer(ends: tuple[End, End]) -> None:
    _, bob = ends
    eve = End(3)
    eve.device.add_peer(bob.device.public)
    (first,) = eve.take(eve.device.want_session(bob.device.public, 0.0))
    with pytest.raises(WireError, match="stranger"):
        bob.device.receive(first, SOURCE, 0.0)


def test_an_unanswered_initiation_is_repeated_and_given_up(ends: tuple[End, End]) -> None:
    ann, bob = ends
    ann.device.want_session(bob.device.public, 0.0)
    sent, now, gave_up = 1, 0.0, False
    while not gave_up:
        due = ann.device.deadline()
        assert due is not None
        assert due - now >= 5.0
        now = due
        outputs = ann.device.poll(now)
        sent += sum(isinstance(output, Transmit) for output in outputs)
        gave_up = any(isinstance(output, Unreachable) for output in outputs)
    assert sent == MAX_ATTEMPTS + 2
    assert 90 < now < 110
    assert not ann.device.is_pending(bob.device.public)


def test_want_session_is_rate_limited_but_not_forgotten(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    ann.device.reset(bob.device.public)
    assert len(ann.device.want_session(bob.device.public, 0.1)) == 1  # a reset begins anew at once
    assert ann.device.want_session(bob.device.public, 0.2) == []


def test_a_new_path_repeats_the_initiation_at_once(ends: tuple[End, End]) -> None:
    ann, bob = ends
    ann.device.want_session(bob.device.public, 0.0)
    assert ann.device.nudge(bob.device.public, 0.1) == []
    assert len(ann.device.nudge(bob.device.public, 0.5)) == 1


def test_simultaneous_initiations_both_work(ends: tuple[End, End]) -> None:
    ann, bob = ends
    (a1,) = ann.take(ann.device.want_session(bob.device.public, 0.0))
    (b1,) = bob.take(bob.device.want_session(ann.device.public, 0.0))
    (a2,) = ann.take(ann.device.receive(b1, SOURCE, 0.0))
    (b2,) = bob.take(bob.device.receive(a1, SOURCE, 0.0))
    ann.take(ann.device.receive(b2, SOURCE, 0.1))
    bob.take(bob.device.receive(a2, SOURCE, 0.1))
    deliver(ann, bob, 0.2)
    deliver(bob, ann, 0.2)


def test_the_initiator_rekeys_after_two_minutes_of_sending(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    quiet = Activity(sent_data=100.0, sent_any=100.0, received_data=100.0, received_any=100.0)
    assert ann.device.observe(bob.device.public, quiet, 130.0) == []
    busy = Activity(sent_data=121.0, sent_any=121.0, received_data=121.0, received_any=121.0)
    assert any(isinstance(output, Transmit) for output in ann.device.observe(bob.device.public, busy, 121.5))
    assert bob.device.observe(ann.device.public, busy, 121.5) == []  # the responder leaves it to the initiator


def test_the_initiator_rekeys_when_old_keys_still_bring_data(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    heard = Activity(sent_any=160.0, received_data=166.0, received_any=166.0)
    outputs = ann.device.observe(bob.device.public, heard, 166.0)
    assert any(isinstance(output, Transmit) for output in outputs)


def test_received_data_is_answered_by_a_keepalive(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    heard = Activity(received_data=1.0, received_any=1.0)
    assert bob.device.observe(ann.device.public, heard, 1.5) == []
    assert bob.device.observe(ann.device.public, heard, 11.1) == [Keepalive(ann.device.public)]


def test_silence_after_sending_begins_a_new_handshake(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    sent = Activity(sent_data=10.0, sent_any=10.0, received_any=1.0)
    assert ann.device.observe(bob.device.public, sent, 10.5) == []
    later = Activity(sent_data=24.0, sent_any=24.0, received_any=1.0)
    outputs = ann.device.observe(bob.device.public, later, 25.1)
    assert [kind_of(output.datagram) for output in outputs if isinstance(output, Transmit)] == [INITIATION]


def test_a_peer_that_answers_now_and_then_is_not_silent(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    for step in range(1, 200):  # each look finds something sent after the last answer
        now = step * 0.5
        answered = now - now % 2.0 - 0.1
        activity = Activity(sent_data=now, sent_any=now, received_data=answered, received_any=answered)
        assert ann.device.observe(bob.device.public, activity, now) == []
        turned = Activity(sent_data=answered, sent_any=answered, received_data=now, received_any=now)
        assert bob.device.observe(ann.device.public, turned, now) == []


def test_old_keypairs_are_retired(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    assert len(bob.receive) == 1
    bob.take(bob.device.poll(180.0))
    assert bob.receive == {}
    assert bob.send is None


def test_at_most_three_keypairs_stand(ends: tuple[End, End]) -> None:
    ann, bob = ends
    for round_ in range(6):
        connect(ann, bob, round_ * 6.0)
        assert len(ann.receive) <= 3
        assert len(bob.receive) <= 3
        deliver(bob, ann, round_ * 6.0)


def test_under_load_a_cookie_is_asked_for_and_taken() -> None:
    bob = End(2)
    ann = End(1)
    bob.device.add_peer(ann.device.public)
    ann.device.add_peer(bob.device.public)
    flood = End(9)
    flood.device.add_peer(bob.device.public)
    (junk,) = flood.take(flood.device.renew(bob.device.public, 0.0))
    for _ in range(BUSY_HANDSHAKES + 1):
        try:
            bob.device.receive(junk, OTHER, 0.0)
        except WireError:
            pass
    (first,) = ann.take(ann.device.renew(bob.device.public, 0.0))
    (cookie,) = bob.take(bob.device.receive(first, SOURCE, 0.1))
    assert kind_of(cookie) == COOKIE
    assert ann.device.receive(cookie, SOURCE, 0.1) == []
    (again,) = ann.take(ann.device.renew(bob.device.public, 0.2))
    with_cookie = bob.device.receive(again, SOURCE, 0.3)
    assert any(isinstance(output, Install) for output in with_cookie)


def test_a_cookie_serves_one_address_only() -> None:
    bob, ann = End(2), End(1)
    bob.device.add_peer(ann.device.public)
    ann.device.add_peer(bob.device.public)
    (first,) = ann.take(ann.device.renew(bob.device.public, 0.0))
    for _ in range(BUSY_HANDSHAKES + 1):
        try:
            (cookie,) = (out.datagram for out in bob.device.receive(first, SOURCE, 0.0) if isinstance(out, Reply))
        except (WireError, ValueError):
            continue
    ann.device.receive(cookie, SOURCE, 0.1)
    (again,) = ann.take(ann.device.renew(bob.device.public, 0.2))
    outputs = bob.device.receive(again, OTHER, 0.3)
    assert [kind_of(output.datagram) for output in outputs if isinstance(output, Reply)] == [COOKIE]


def test_removing_a_peer_retires_its_keypairs(ends: tuple[End, End]) -> None:
    ann, bob = ends
    connect(ann, bob, 0.0)
    bob.take(bob.device.remove_peer(ann.device.public))
    assert bob.receive == {}
    assert bob.device.latest_handshake(ann.device.public) == NEVER


@given(st.binary(max_size=200), st.integers(0, 4))
def test_any_bytes_are_handled_or_raise_one_error(data: bytes, kind: int) -> None:
    device = End(5).device
    device.add_peer(bytes(range(32)))
    sized = kind.to_bytes(4, "little") + data
    for datagram in (
        data,
        sized,
        sized.ljust(148, b"\0")[:148],
        sized.ljust(92, b"\0")[:92],
        sized.ljust(64, b"x")[:64],
    ):
        try:
            device.receive(datagram, SOURCE, 0.0)
        except WireError:
            pass


def test_flipping_any_bit_of_a_handshake_breaks_it(ends: tuple[End, End]) -> None:
    ann, bob = ends
    (first,) = ann.take(ann.device.renew(bob.device.public, 0.0))
    for position in range(0, len(first) - 16, 7):
        broken = bytearray(first)
        broken[position] ^= 1
        with pytest.raises(WireError):
            bob.device.receive(bytes(broken), SOURCE, float(position) / 100)


def test_an_ipv6_host_has_one_allowance_for_all_its_addresses() -> None:
    """A host owns a whole /64: counted by address, it would have as many handshakes as it likes."""
    checker = CookieChecker(bytes(32), bytes)
    prefix = bytes.fromhex("20010db800000001")
    passed = sum(checker.may_pass(prefix + number.to_bytes(8, "big"), 0.0) for number in range(100))
    assert passed == SOURCE_BURST
    assert checker.may_pass(bytes.fromhex("20010db800000002") + bytes(8), 0.0)
    assert [checker.may_pass(bytes([192, 0, 2, last]), 0.0) for last in (1, 2)] == [True, True]
