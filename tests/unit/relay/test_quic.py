"""Clients over QUIC on a relay, beside those over TLS; strangers at the port."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.model.keys import NodeKey
from gw.native.relaying import QUEUE_PACKETS
from gw.relay import quicnewcomers
from gw.relay.admission import Admission
from gw.wire import stun
from gw.wire.derp import client as c
from gw.wire.quic import frames
from gw.wire.quic.datagrams import encode_packet
from gw.wire.quic.flows import MAX_FLOWS, encode_open

from .ends import Guest, House
from .street import QuicGuest, Standin, Street

NOBODY = NodeKey(b"\x05" * 32)
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(60)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [40, 1100, 1400, 2200])
def test_quic_and_tls_clients_reach_each_other(size: int, fast: bool) -> None:
    """Whatever the size: in one datagram, or in two parts that the relay joins again."""
    house = House()
    street = Street(house, fast=fast)
    alice, bob = QuicGuest(street, 1, fast=fast), QuicGuest(street, 2, fast=fast)
    carol = Guest(house, 3)
    packet = os.urandom(size)
    alice.send(bob.key, packet)
    alice.send(carol.key, packet)
    carol.send(alice.key, packet)
    street.run(0.1)
    carol.move()
    assert bob.packets == [(alice.key, packet)]
    assert carol.packets == [(alice.key, packet)]
    assert alice.packets == [(carol.key, packet)]


@pytest.mark.parametrize("knows_key", [True, False])
def test_the_relay_says_where_it_sees_the_client(knows_key: bool) -> None:
    street = Street(House())
    assert QuicGuest(street, 1, knows_key=knows_key).observed == ["192.0.2.1:4000"]


def test_a_key_that_is_not_admitted_is_told_so() -> None:
    house = House()
    house.verdict = Admission.DENIED
    street = Street(house)
    guest = QuicGuest(street, 1, join=False)
    assert street.run(2, lambda: guest.end is not None)
    assert guest.end == (frames.NOT_ALLOWED, "node key is not admitted")
    assert house.reception.refused == 1
    assert len(street.port) == 0


def test_who_waits_for_admission_is_let_in_when_it_is_known() -> None:
    house = House()
    house.verdict = Admission.UNKNOWN
    street = Street(house)
    guest = QuicGuest(street, 1, join=False)
    street.run(5)
    assert not guest.client.is_connected
    assert guest.end is None
    house.verdict = Admission.ALLOWED
    street.port.decide(street.now, NOBODY.raw)  # an answer about another
    assert not street.run(0.5, lambda: guest.client.is_connected)
    street.port.decide(street.now, guest.key.raw)
    assert street.run(1, lambda: guest.client.is_connected)


def test_who_waits_for_admission_waits_ten_seconds_at_most() -> None:
    """Made-up keys, while a /verify URL was slow, took all the room that newcomers have."""
    house = House()
    house.verdict = Admission.UNKNOWN
    street = Street(house)
    guests = [QuicGuest(street, number, join=False) for number in (1, 2)]
    street.run(2)
    assert len(street.port) == 2
    assert street.run(12, lambda: all(guest.end is not None for guest in guests))
    street.run(3)
    assert len(street.port) == len(street.port._waiting) == 0
    assert not street.port._unproven


def test_who_does_not_prove_a_key_is_disconnected() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1, join=False)
    guest.client._say_who = lambda: None  # type: ignore[method-assign]
    assert street.run(15, lambda: guest.end is not None)
    assert guest.end[0] == frames.NO_AUTH  # type: ignore[index]
    assert street.house.switch.local == {}


def test_a_proof_for_another_session_opens_nothing() -> None:
    """Whoever sits between two TLS sessions and carries the AUTH over."""
    street = Street(House())
    guest = QuicGuest(street, 1, join=False)
    begin = guest.client.begin
    guest.client.begin = lambda bind, now_ms, is_resumed: begin(b"x" * 32, now_ms, is_resumed=is_resumed)  # type: ignore[method-assign]
    assert street.run(5, lambda: guest.end is not None)
    assert guest.end == (frames.BROKEN, "claim for another session")


def test_a_removed_node_is_disconnected() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    for port in street.house.presence.ports_of(guest.key.raw):
        port.owner.close()
    street.flush()
    street.run(0.1)
    assert guest.end == (frames.NOT_ALLOWED, "disconnected by the relay")
    assert street.house.switch.local == {}


def test_frames_beside_packets_work_as_over_tls() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    guest.client.note_preferred(True)
    guest.client.ping(b"12345678")
    guest.send(NOBODY, DISCO)
    street.run(0.1)
    assert street.house.reception.homes == 1
    assert c.Pong(b"12345678") in guest.events
    assert c.PeerGone(NOBODY, 1) in guest.events
    guest.link.close()
    street.run(0.1)
    assert street.house.reception.homes == 0


def test_who_got_packets_hears_that_their_sender_left() -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    alice.send(bob.key, b"x" * 40)
    street.run(0.1)
    alice.link.close()
    street.run(0.1)
    assert c.PeerGone(alice.key, 0) in bob.events
    assert street.addresses["192.0.2.1"] == 0


def test_a_client_that_moves_receives_at_its_new_address() -> None:
    """Issue: reconnect after an address change without a new handshake."""
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    street.run(3)
    alice.address = ("203.0.113.7", 9)
    alice.link.move(street.now)
    street.run(0.01)
    for number in range(20):
        bob.send(alice.key, b"%d" % number)
        alice.send(bob.key, b"%d" % number)
        street.run(0.01)
    assert [packet for _, packet in alice.packets] == [b"%d" % number for number in range(20)]
    assert [packet for _, packet in bob.packets] == [b"%d" % number for number in range(20)]
    assert alice.observed == ["192.0.2.1:4000", "203.0.113.7:9"]
    assert street.port.accepted == 2
    assert street.port.moves == 1


def test_a_client_that_comes_back_sends_in_its_first_packet() -> None:
    """Spec quic §10: forwarded before the handshake is over, without becoming the active connection."""
    house = House()
    street = Street(house)
    bob = QuicGuest(street, 2)
    first = QuicGuest(street, 1)
    first.client.note_preferred(True)
    street.run(0.1)
    street.guests.remove(first)
    again = QuicGuest(street, 1, ticket=first.tickets[-1], join=False)
    again.address = ("192.0.2.1", 5000)
    again.send(bob.key, b"early" * 10)
    again.client.note_preferred(False)
    flight = again.poll()
    active = house.switch.local[first.key.raw]
    for packet, _ in flight:
        street.arrive(packet, again.address)
    assert (first.key, b"early" * 10) in bob.packets
    assert house.switch.local[first.key.raw] is active
    assert house.reception.homes == 1
    assert street.run(2, lambda: again.client.is_connected)
    street.run(0.1)
    assert again.link.is_early_accepted
    assert street.port.resumed == 1
    assert house.switch.local[first.key.raw] is not active
    bob.send(again.key, b"down" * 10)
    street.run(0.1)
    assert (bob.key, b"down" * 10) in again.packets


def test_early_data_counts_for_the_rate_limit_and_stays_counted() -> None:
    """Spec quic §10: a client that comes back again and again had 64 packets free each time."""
    house = House()
    house.reception.bytes_per_second, house.reception.burst_bytes = 1000, 2600
    street = Street(house)
    bob, first = QuicGuest(street, 2), QuicGuest(street, 1)
    again = QuicGuest(street, 1, ticket=first.tickets[-1], join=False)
    again.address = ("192.0.2.1", 5000)
    for _ in range(8):
        again.send(bob.key, b"early" * 200)
    for packet, _ in again.poll():
        street.arrive(packet, again.address)
    street.run(0.05)
    assert len(bob.packets) == 2
    assert street.port.limited == 6
    assert street.run(2, lambda: again.client.is_connected)
    again.send(bob.key, b"later" * 200)
    street.run(0.1)
    assert len(bob.packets) == 2  # its bucket is the same one


def test_a_replayed_first_flight_is_nobody() -> None:
    street = Street(House())
    bob, first = QuicGuest(street, 2), QuicGuest(street, 1)
    again = QuicGuest(street, 1, ticket=first.tickets[-1], join=False)
    again.address = ("192.0.2.1", 5000)
    again.send(bob.key, b"early" * 10)
    flight = again.poll()
    street.guests.remove(again)
    for source in (again.address, ("203.0.113.66", 6)):
        for packet, _ in flight:
            street.arrive(packet, source)
        street.run(0.05)
    assert bob.packets.count((first.key, b"early" * 10)) == 1


def test_a_ticket_of_a_node_that_was_removed_opens_nothing() -> None:
    street = Street(House())
    bob, first = QuicGuest(street, 2), QuicGuest(street, 1)
    street.house.verdict = Admission.DENIED
    again = QuicGuest(street, 1, ticket=first.tickets[-1], join=False)
    again.address = ("192.0.2.1", 5000)
    again.send(bob.key, b"early" * 10)
    assert street.run(2, lambda: again.end is not None)
    assert again.end == (frames.NOT_ALLOWED, "node key is not admitted")
    assert bob.packets == []


def test_a_relay_that_was_restarted_tells_its_clients_at_once() -> None:
    """Stateless reset: nobody waits for an idle timeout."""
    street = Street(House())
    guest = QuicGuest(street, 1)
    street.port._clients.clear()  # as if it had never heard of anyone
    guest.client.ping(b"12345678")
    assert street.run(2, lambda: guest.end is not None)


def test_clients_hear_that_the_relay_stops() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    street.port.goodbye(lambda: 300, 60_000)
    street.run(0.1)
    assert c.Restarting(300, 60_000) in guest.events
    assert guest.end == (frames.RESTARTING, "the relay restarts")
    assert len(street.port) == 0


def test_a_client_that_floods_gets_its_bucket() -> None:
    house = House()
    house.reception.bytes_per_second, house.reception.burst_bytes = 50_000, 70_000
    street = Street(house)
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    assert c.Connected(50_000, 70_000) in alice.events
    for _ in range(200):
        alice.send(bob.key, *[bytes(1000)] * 3)
        street.run(0.01)
    got = sum(len(packet) for _, packet in bob.packets)
    assert 100_000 < got < 230_000
    assert street.port.limited > 300


def test_a_client_that_hears_nothing_fills_only_its_own_queue() -> None:
    """Spec quic §11: the relay never stops reading."""
    house = House()
    street = Street(house)
    alice, bob, carol = QuicGuest(street, 1), QuicGuest(street, 2), QuicGuest(street, 3)
    deaf = bob.address
    street.lose = lambda packet, up: False
    bob.address = ("nowhere", 0)
    for number in range(400):
        alice.send(bob.key, b"%05d" % number + bytes(900))
        alice.send(carol.key, b"%05d" % number + bytes(900))
        street.run(0.002)
    street.run(0.2)
    assert len(carol.packets) == 400
    port = house.switch.local[bob.key.raw]
    assert port.is_blocked
    assert port.queue is not None
    assert port.queue.count <= QUEUE_PACKETS
    assert house.switch.dropped_queue > 0
    bob.address = deaf
    street.run(8)
    assert bob.packets[-1][1][:5] == b"00399"


def test_the_newest_connection_of_a_key_receives() -> None:
    house = House()
    street = Street(house)
    bob = QuicGuest(street, 2)
    tls = Guest(house, 1)
    quic = QuicGuest(street, 1)
    bob.send(quic.key, b"x" * 40)
    street.run(0.1)
    tls.move()
    assert quic.packets == [(bob.key, b"x" * 40)]
    assert tls.packets == []
    quic.link.close()
    street.run(0.1)
    bob.send(quic.key, b"y" * 40)
    street.run(0.1)
    tls.move()
    assert tls.packets == [(bob.key, b"y" * 40)]


def test_stun_and_quic_share_the_port() -> None:
    street = Street(House())
    QuicGuest(street, 1)
    street.arrive(stun.encode_request(b"t" * 12), ("203.0.113.5", 77))
    ((answer, target),) = street.strays
    assert target == ("203.0.113.5", 77)
    assert stun.decode_answer(answer)[0] == b"t" * 12
    assert street.port.stun_requests == 1


def test_under_pressure_an_address_has_to_be_proven_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry, RFC 9000 §8.1.2."""
    monkeypatch.setattr(quicnewcomers, "BUSY_UNPROVEN", 0)
    street = Street(House())
    QuicGuest(street, 1)
    assert street.port.accepted == 1
    forged = QuicGuest(street, 2, join=False)
    street.guests.remove(forged)
    for packet, _ in forged.poll():
        street.arrive(packet, ("203.0.113.99", 1))
    assert street.port.accepted == 1
    assert sum(len(packet) for packet, _ in street.strays) < 1200


def test_an_address_with_too_many_clients_gets_no_more() -> None:
    street = Street(House(), room=lambda host: host != "192.0.2.9")
    guest = QuicGuest(street, 9, join=False)
    street.run(1)
    assert not guest.link.is_up
    assert (street.port.rejected > 0, len(street.port)) == (True, 0)


def test_another_version_is_answered_with_ours() -> None:
    street = Street(House())
    street.arrive(b"\xc0\x1a\x2a\x3a\x4a\x08" + b"d" * 8 + b"\x08" + b"s" * 8 + bytes(1200), ("203.0.113.5", 77))
    ((answer, _),) = street.strays
    assert answer[1:5] == bytes(4)
    assert answer.endswith(b"\x00\x00\x00\x01")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_datagrams_end_nobody_and_keep_no_state(data: st.DataObject) -> None:
    street, alice, bob = _shared()
    noise = data.draw(st.binary(max_size=1300))
    head = data.draw(st.sampled_from([b"", b"\xc0\0\0\0\1\x08", b"\x40", b"\xe0\0\0\0\1", b"\0\1\0\0\x21\x12\xa4\x42"]))
    street.arrive(head + noise, data.draw(st.sampled_from([("203.0.113.5", 77), alice.address])))
    before = len(bob.packets)
    alice.send(bob.key, b"still" * 8)
    street.run(0.02)
    assert len(bob.packets) == before + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=120)), min_size=1, max_size=4))
def test_an_admitted_client_may_send_what_it_likes(sent: list[tuple[bool, bytes]]) -> None:
    """Bytes inside the encryption: control frames and datagrams of noise, of a key that is known."""
    street, _, bob = _shared()
    mallory = QuicGuest(street, 66)
    for is_control, noise in sent:
        if is_control:
            mallory.link.send_stream(noise)
        else:
            mallory.link.send(noise[1:])
            mallory.link.send(encode_packet(bob.key.raw, bytes(2000), 1167, 1)[0][:34] + noise)
        street.run(0.01)
    mallory.link.close()
    street.run(0.05)
    street.guests.remove(mallory)
    assert street.addresses["192.0.2.66"] == 0
    assert bob.end is None


_kept: list[tuple[Street, QuicGuest, QuicGuest]] = []


def _shared() -> tuple[Street, QuicGuest, QuicGuest]:
    if not _kept:
        street = Street(House())
        _kept.append((street, QuicGuest(street, 1), QuicGuest(street, 2)))
    return _kept[0]


def _numbers_of(guest: QuicGuest) -> dict[bytes, bytes]:
    return guest.client._numbers


@pytest.mark.parametrize("fast", [True, False])
def test_numbers_take_the_place_of_keys(fast: bool) -> None:
    """Spec quic §8.3: 28 bytes less in each datagram, both ways, and nothing lost where they change over."""
    house = House()
    street = Street(house, fast=fast)
    alice, bob = QuicGuest(street, 1, fast=fast), QuicGuest(street, 2, fast=fast)
    sent: list[bytes] = []
    for number in range(60):
        sent.append(b"%04d" % number + os.urandom(500))
        alice.send(bob.key, sent[-1])
        street.run(0.002)
    street.run(0.1)
    assert [packet for _, packet in bob.packets] == sent
    assert {source for source, _ in bob.packets} == {alice.key}
    port = house.switch.local[alice.key.raw]
    assert port.keys[_numbers_of(alice)[bob.key.raw]] == bob.key.raw
    assert house.switch.local[bob.key.raw].numbers[alice.key.raw]
    (datagram,) = alice.client.wrap(bob.key, b"x" * 500, 1000)
    assert len(datagram) == 504


def test_a_source_whose_number_made_room_gets_another() -> None:
    """It was asked for once a connection: after a number was lost packets carried the key for good."""
    house = House()
    street = Street(house)
    bob = QuicGuest(street, 2)
    client = next(each for each in street.port._all if each.session.port.key == bob.key.raw)
    flows = client.session._outflow.flows  # type: ignore[attr-defined]
    sources = [QuicGuest(street, number) for number in (3, 4, 5)]
    flows.limit = 2
    for _ in range(3):
        for source in sources:
            for _ in range(20):
                source.send(bob.key, b"\x04" + bytes(100))
                street.run(0.005)
            street.run(0.1)
            assert source.key.raw in house.switch.local[bob.key.raw].numbers


def test_numbers_let_the_usual_packet_through_where_keys_do_not() -> None:
    """1,312 bytes of a tunnel's packet at a path of 1,349: one datagram instead of two."""
    street = Street(House())
    street.lose = lambda packet, up: len(packet) > 1349
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    street.run(4)  # until the size is known
    for _ in range(20):
        alice.send(bob.key, bytes(1312))
        street.run(0.01)
    assert len(bob.packets) == 20
    assert len(alice.client.wrap(bob.key, bytes(1312), alice.link.limit)) == 1
    assert alice.link.udp_bytes == 1349


def test_a_number_of_nobody_reaches_nobody() -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    alice.link.send(b"\0\0\0\x07" + bytes(40))
    alice.link.send(b"\0\0\0\0" + bytes(40))
    street.run(0.1)
    assert bob.packets == []
    assert street.house.switch.dropped_unknown == 2


def test_numbers_of_one_client_mean_nothing_to_another() -> None:
    street = Street(House())
    alice, bob, mallory = QuicGuest(street, 1), QuicGuest(street, 2), QuicGuest(street, 66)
    for _ in range(20):
        alice.send(bob.key, b"x" * 40)
        street.run(0.005)
    number = _numbers_of(alice)[bob.key.raw]
    before = len(bob.packets)
    mallory.link.send(b"\0" + number + b"forged" * 9)
    street.run(0.1)
    assert len(bob.packets) == before


def test_openings_in_early_data_wait_and_hold_once() -> None:
    """Spec quic §10: idempotent."""
    street = Street(House())
    bob, first = QuicGuest(street, 2), QuicGuest(street, 1)
    street.guests.remove(first)
    again = QuicGuest(street, 1, ticket=first.tickets[-1], join=False)
    again.address = ("192.0.2.1", 5000)
    opening = again.client._flows.want(bob.key.raw)
    again.link.send_stream(opening + opening)
    again.link.send(b"\0\0\0\x01" + b"too early" * 9)
    assert street.run(2, lambda: again.client.is_connected)
    street.run(0.1)
    assert bob.packets == []
    assert _numbers_of(again) == {bob.key.raw: b"\0\0\x01"}
    again.send(bob.key, b"by number" * 9)
    street.run(0.1)
    assert bob.packets == [(again.key, b"by number" * 9)]


def test_a_client_with_many_flows_keeps_a_bounded_part_of_the_relay() -> None:
    street = Street(House())
    mallory = QuicGuest(street, 66)
    for number in range(1, 3000):
        mallory.link.send_stream(encode_open(number.to_bytes(3, "big"), number.to_bytes(32, "big")))
        if number % 100 == 0:
            street.run(0.02)
    street.run(0.5)
    port = street.house.switch.local[mallory.key.raw]
    assert len(port.keys) == MAX_FLOWS
    assert mallory.end is None


def test_a_datagram_that_came_alone_is_taken_alone_and_its_sender_hears_of_it_in_time() -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    street.run(2)  # the path's size is known
    (sender,) = [client for client in street.port._all if client.session.port.key == alice.key.raw]
    polled: list[float] = []
    session = sender.session
    sender.session = Standin(session, pour=lambda now: (polled.append(now), session.pour(now))[1])  # type: ignore[assignment]
    street.came_alone = True
    alice.send(bob.key, b"one" * 20)
    alice.send(bob.key, b"two" * 30)
    (one, _), (two, _) = alice.poll()
    street._arriving = [(one, alice.address), (two, alice.address)]
    street.port.ready()
    street.flush()
    assert [packet for _, packet in bob.packets] == [b"one" * 20]
    assert polled == []
    street.port.ready()
    street.flush()
    assert [packet for _, packet in bob.packets] == [b"one" * 20, b"two" * 30]
    street.run(0.01)
    assert polled
    assert alice.link.connection._loss.bytes_in_flight == 0


def test_who_sends_much_does_not_keep_the_others_waiting() -> None:
    street = Street(House())
    hog, alice, bob = QuicGuest(street, 1), QuicGuest(street, 2), QuicGuest(street, 3)
    (client,) = [each for each in street.port._all if each.session.port.key == hog.key.raw]
    train = (b"\x40" + client.session.link.connection.host_cid + bytes(1291)) * 48
    for _ in range(40):
        street.port._inboxes.put(client, train, 1300, hog.address)
    alice.send(bob.key, b"short" * 20)
    ((packet, _),) = alice.poll()
    street.arrive(packet, alice.address)
    assert [packet for _, packet in bob.packets] == [b"short" * 20]
    assert street.port._inboxes.cost > 0
    street.run(0.01)
    assert street.port._inboxes.cost == 0
    assert client in street.port._all
