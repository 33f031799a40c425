"""What strangers and clients gone wrong may do to a relay's QUIC port: little, and to themselves."""

from __future__ import annotations

import gc
import logging
import os
import weakref

import pytest
from aioquic import tls
from aioquic.quic.rangeset import RangeSet

from gw.quic.gate import CONTROL_WINDOW_BYTES
from gw.quic.link import PROBE_SIZES, apart
from gw.relay import quicnewcomers, quicport
from gw.relay.quicsession import EARLY_ECHOES
from gw.wire import stun
from gw.wire.derp.buckets import PrefixBuckets
from gw.wire.derp.frames import encode
from gw.wire.quic import datagrams, frames

from .ends import House
from .street import QuicGuest, Standin, Street, hear


def _served(street: Street, guest: QuicGuest) -> quicport.QuicClient:
    return next(each for each in street.port._all if each.session.port.key == guest.key.raw)


def _stranger(street: Street, number: int, *, fast: bool = True) -> QuicGuest:
    """It shakes hands, and proves no node key."""
    guest = QuicGuest(street, number, fast=fast, join=False)
    guest.client._say_who = lambda: None  # type: ignore[method-assign]
    assert street.run(2, lambda: guest.link.is_settled)
    return guest


def test_an_echo_that_comes_several_times_counts_once() -> None:
    """Each copy took the size one step up, past the end of the table: an IndexError that ended the loop of all."""
    street = Street(House())
    guest = _stranger(street, 1, fast=False)
    echoes = 0

    def take(datagram: bytes) -> bool:
        nonlocal echoes
        if datagram[0] != datagrams.PROBE:
            return False
        for _ in range(6):
            echoes += 1
            guest.link.send(datagrams.echo_of(datagram))
        return True

    hear(guest, take)
    street.run(4)
    assert guest.end is None
    assert echoes >= 12
    (client,) = street.port._all
    assert client.session.link.udp_bytes == PROBE_SIZES[-1]


@pytest.mark.parametrize("where", ["receive", "pour", "poured"])
def test_a_defect_that_one_client_meets_ends_that_client_only(where: str, caplog: pytest.LogCaptureFixture) -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    mallory = QuicGuest(street, 3)
    client = _served(street, mallory)

    def fail(*_: object) -> None:
        raise IndexError("a defect")

    client.session = Standin(client.session, **{where: fail})  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR):
        mallory.client.ping(b"12345678")
        street.run(0.1)
    assert client not in street.port._all
    assert street.addresses[mallory.address[0]] == 0
    assert mallory.key.raw not in street.house.switch.local
    assert "192.0.2.3" in caplog.text
    alice.send(bob.key, b"still" * 8)
    street.run(0.1)
    assert bob.packets == [(alice.key, b"still" * 8)]


def test_a_defect_that_a_first_packet_meets_costs_that_packet() -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)

    def fail(*_: object, **__: object) -> None:
        raise IndexError("a defect")

    street.port._newcomers.meet = fail  # type: ignore[method-assign]
    QuicGuest(street, 3, join=False)
    street.run(0.2)
    assert street.port.broken > 0
    assert len(street.port) == 2
    alice.send(bob.key, b"still" * 8)
    street.run(0.1)
    assert bob.packets == [(alice.key, b"still" * 8)]


def test_a_defect_that_a_change_of_the_limit_meets_ends_that_client_only() -> None:
    street = Street(House())
    alice, mallory = QuicGuest(street, 1), QuicGuest(street, 3)
    client = _served(street, mallory)

    def fail() -> None:
        raise IndexError("a defect")

    client.session = Standin(client.session, limit=fail)  # type: ignore[assignment]
    street.house.reception.bytes_per_second, street.house.reception.burst_bytes = 1_000_000, 70_000
    street.port.limit()
    street.run(0.1)
    assert [each.session.port.key for each in street.port._all] == [alice.key.raw]
    assert _served(street, alice).session.tokens is not None  # type: ignore[attr-defined]


def test_who_takes_no_answers_may_still_close_its_flows() -> None:
    street = Street(House())
    client = _served(street, QuicGuest(street, 1))
    port, outflow = client.session.port, client.session._outflow  # type: ignore[attr-defined]
    outflow.flow_untrusted(frames.FLOW_OPEN, b"\0\0\7" + bytes(32))
    client.session.link.connection.send_stream_data(0, bytes(frames.MAX_UNSENT_BYTES + 1))
    outflow.flow_untrusted(frames.FLOW_OPEN, b"\0\0\x08" + bytes(32))  # no answer may wait for it
    assert list(port.keys) == [b"\0\0\7"]
    outflow.flow_untrusted(frames.FLOW_CLOSE, b"\0\0\7\0")
    assert not port.keys


def test_timers_of_a_client_that_sends_stay_few() -> None:
    """Every packet left one more entry behind, each of which then ordered the next."""
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    for _ in range(500):
        alice.send(bob.key, b"\x04" + bytes(200))
        street.run(0.004)
    assert len(bob.packets) == 500
    assert len(street._timers) < 20


def test_timers_keep_no_client_that_is_gone() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    gone = weakref.ref(_served(street, guest))
    guest.link.close()
    street.run(0.5)
    street.guests.clear()
    gc.collect()
    assert len(street.port) == 0
    assert gone() is None


def test_a_reset_token_ends_no_connection_of_a_server() -> None:
    """A client never resets; a server that listened to such packets kept what they ended for ever."""
    street = Street(House())
    guest = QuicGuest(street, 1)
    street.run(1.5)
    client = _served(street, guest)
    tokens = [each.stateless_reset_token for each in guest.link.connection._host_cids if each.stateless_reset_token]
    client.receive(b"\x41" + os.urandom(40) + tokens[-1], 57, guest.address, street.now)
    street.flush()
    assert guest.key.raw in street.house.switch.local
    guest.client.ping(b"12345678")
    street.run(0.1)
    assert street.house.reception.pings == 1


def test_who_ends_while_a_packet_is_taken_is_forgotten() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    client = _served(street, guest)
    client.session.link.abandon("ended here")
    client.receive(b"\x41" + os.urandom(40), 41, guest.address, street.now)
    assert len(street.port) == 0
    assert street.addresses[guest.address[0]] == 0


def _write_at(guest: QuicGuest, stream_id: int, offset: int, data: bytes) -> None:
    """Stream bytes that begin at `offset`, with nothing before them."""
    sender = guest.link.connection._streams[stream_id].sender
    sender._buffer_start = sender._buffer_stop = sender.highest_offset = offset
    sender._buffer.clear()
    sender._pending, sender._acked = RangeSet(), RangeSet()
    guest.link.connection._remote_max_data_used = 0
    sender.write(data)
    guest.link._is_dirty = True


def test_single_bytes_far_ahead_do_not_fill_the_relay() -> None:
    """Gaps are filled with zeros, and each byte at the end of the window doubled the window: 11 bytes, 255 MB."""
    street = Street(House())
    guest = QuicGuest(street, 1, join=False)
    guest.client._say_who = lambda: None  # type: ignore[method-assign]
    guest.link.connection.send_stream_data(0, b"\x00")
    street.run(0.2)
    (client,) = street.port._all
    connection = guest.link.connection
    for _ in range(8):
        limit = min(connection._streams[0].max_stream_data_remote, connection._remote_max_data)
        _write_at(guest, 0, limit - 1, b"y")
        street.run(0.03)
    streams = client.session.link.connection._streams
    assert sum(len(each.receiver._buffer) for each in streams.values()) <= CONTROL_WINDOW_BYTES
    assert connection._streams[0].max_stream_data_remote <= 2 * CONTROL_WINDOW_BYTES


def test_a_relay_offers_one_stream() -> None:
    street = Street(House())
    guest = QuicGuest(street, 1)
    connection = guest.link.connection
    assert (connection._remote_max_streams_bidi, connection._remote_max_streams_uni) == (1, 0)


def test_a_long_control_stream_is_read_to_its_end() -> None:
    """The window follows what was read."""
    street = Street(House())
    guest = QuicGuest(street, 1)
    filler = encode(0x7F, bytes(1 << 20))
    guest.link.send_stream(filler)
    guest.client.ping(b"12345678")
    assert street.run(20, lambda: street.house.reception.pings == 1)
    assert guest.end is None


def test_who_floods_with_probes_fills_nothing() -> None:
    """Each was answered into a queue without bound, and listed the port once more."""
    street = Street(House())
    guest = QuicGuest(street, 1)
    street.run(3)
    client = _served(street, guest)
    street.lose = lambda packet, up: not up
    controller = guest.link.connection._loss._cc
    controller.congestion_window = 1 << 30
    for _ in range(5):
        for number in range(300):
            guest.link.send(datagrams.encode_probe(number, 0, 13))
        controller.bytes_in_flight = 0
        street.run(0.05)
    assert client.session.link.waiting < 10
    assert len(client.session.port.out) < 10


def test_a_stranger_gets_few_answers_to_its_probes() -> None:
    street = Street(House())
    guest = _stranger(street, 1, fast=False)
    got: list[bytes] = []

    def take(datagram: bytes) -> bool:
        got.append(datagram)
        return True

    hear(guest, take)
    for number in range(100):
        guest.link.send(datagrams.encode_probe(number, 0, 13))
        street.run(0.005)
    assert 0 < sum(each[0] == datagrams.ECHO for each in got) <= EARLY_ECHOES


def test_pings_of_who_takes_no_answers_are_not_answered_and_end_it() -> None:
    """Answers went into the send buffer of a stream for which no credit came."""
    street = Street(House())
    guest = QuicGuest(street, 1)
    client = _served(street, guest)
    connection = client.session.link.connection
    connection._streams[0].max_stream_data_remote = connection._streams[0].sender.highest_offset
    guest.link.connection._write_stream_limits = lambda *a, **k: None  # type: ignore[method-assign]
    most = 0
    for _ in range(400):
        for _ in range(20):
            guest.client.ping(b"12345678")
        street.run(0.01)
        most = max(most, client.session.link.unsent)
        if guest.end is not None:
            break
    assert most < frames.MAX_UNSENT_BYTES + 2000
    assert guest.end is not None
    assert len(street.port) == 0


def test_control_frames_are_in_the_bucket() -> None:
    house = House()
    house.reception.bytes_per_second, house.reception.burst_bytes = 5_000, 20_000
    street = Street(house)
    guest = QuicGuest(street, 1)
    for _ in range(100):
        for _ in range(50):
            guest.client.ping(b"12345678")
        street.run(0.01)
    assert house.reception.pings * 13 < 30_000
    assert street.port.limited > 0


def test_who_goes_on_flooding_the_control_stream_is_closed_with_a_word() -> None:
    """Its debt silenced it, packets too, for as long as it would take to pay."""
    house = House()
    house.reception.bytes_per_second, house.reception.burst_bytes = 5_000, 20_000
    street = Street(house)
    guest = QuicGuest(street, 1)
    guest.link.send_stream(encode(0x7F, bytes(40_000)))
    street.run(1)
    assert guest.end is None  # a debt of some seconds is paid by waiting
    guest.link.send_stream(encode(0x7F, bytes(200_000)))
    assert street.run(5, lambda: guest.end is not None)
    assert guest.end == (frames.FLOODING, "more on the control stream than the rate limit allows")
    assert len(street.port) == 0


def test_who_sends_but_takes_nothing_is_disconnected() -> None:
    """docs/relay.md promises two seconds."""
    street = Street(House())
    alice, bob = QuicGuest(street, 1, fast=False), QuicGuest(street, 2, fast=False)
    client = _served(street, bob)
    bob.link.connection._write_ack_frame = lambda *a, **k: None  # type: ignore[method-assign]
    for _ in range(150):
        alice.send(bob.key, *[bytes(900)] * 4)
        street.run(0.004)
    assert client.session.link.waiting
    began = street.now
    while client in street.port._all and street.now < began + 6:
        bob.send(alice.key, b"x" * 40)
        street.run(0.1)
    assert 1 < street.now - began < 4
    assert bob.key.raw not in street.house.switch.local
    assert alice.end is None


def test_who_is_away_for_some_seconds_is_kept() -> None:
    """It may be changing networks. What it hears when it is back, it takes."""
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    street.lose = lambda packet, up: False
    here, bob.address = bob.address, ("nowhere", 0)
    street.guests.remove(bob)
    for _ in range(100):
        alice.send(bob.key, *[bytes(900)] * 4)
        street.run(0.004)
    street.run(3)
    street.guests.append(bob)
    bob.address = here
    for _ in range(60):
        bob.send(alice.key, b"x" * 40)
        street.run(0.1)
    assert bob.end is None
    alice.send(bob.key, b"y" * 40)
    street.run(0.1)
    assert bob.packets[-1] == (alice.key, b"y" * 40)


def _garbage() -> bytes:
    """An Initial by its head, noise inside."""
    head = b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
    rest = 1200 - len(head) - 2
    return head + (0x4000 | rest).to_bytes(2, "big") + bytes(rest)


def test_an_initial_of_garbage_leaves_nothing_behind() -> None:
    """Each kept a connection for ten seconds."""
    street = Street(House())
    for number in range(50):
        street.arrive(_garbage(), (f"10.0.{number}.1", 5))
    assert len(street.port) == 0
    assert sum(street.addresses.values()) == 0


def test_a_network_of_strangers_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits were global: one address could use up what all had."""
    monkeypatch.setattr(quicnewcomers, "BUSY_UNPROVEN", 10_000)
    street = Street(House())
    made = 0
    meet = street.port.gate._newcomer

    def count(now: float, **ids: bytes) -> object:
        nonlocal made
        made += 1
        return meet(now, **ids)

    street.port.gate._newcomer = count  # type: ignore[method-assign, assignment]
    for number in range(600):
        street.arrive(_garbage(), (f"2001:db8:0:1::{number:x}", 5))
    assert made <= quicnewcomers.HANDSHAKE_BURST_A_PREFIX + 1
    assert street.port.rejected > 400
    QuicGuest(street, 1)


def test_who_proves_a_key_gives_its_share_back() -> None:
    street = Street(House())
    bucket = street.port._newcomers._prefixes.of("192.0.2.1")
    for _ in range(5):
        guest = QuicGuest(street, 1)
        guest.link.close()
        street.run(0.05)
        street.guests.remove(guest)
    assert bucket._left >= quicnewcomers.HANDSHAKE_BURST_A_PREFIX - 1


def test_what_comes_from_port_0_is_not_answered() -> None:
    """There is nobody at port 0; the kernel refuses what is sent there, and with it the whole train."""
    street = Street(House())
    street.arrive(stun.encode_request(b"t" * 12), ("203.0.113.5", 0))
    assert street.strays == []
    assert street.port.ignored == 1


def test_a_train_with_packets_of_two_clients_reaches_both() -> None:
    """Behind one address and port of a NAT, or forged: the first client got the train whole."""
    street = Street(House())
    alice, bob, carol = QuicGuest(street, 1), QuicGuest(street, 2), QuicGuest(street, 3)
    trains = []
    for guest, mark in ((alice, b"a"), (alice, b"A"), (bob, b"b")):
        guest.send(carol.key, mark * 200)
        (packet,) = [packet for packet, _ in apart(guest.link.poll(street.now)) if len(packet) > 200]
        trains.append(packet)
    segment = len(trains[0])
    assert {len(packet) for packet in trains} == {segment}
    whole = [(b"".join(trains), segment, alice.address)]

    def receive() -> tuple[bytes, int, object]:
        if not whole:
            raise BlockingIOError
        return whole.pop()

    street.receive = receive  # type: ignore[method-assign]
    street.port.ready()
    street.flush()
    assert sorted(packet for _, packet in carol.packets) == [b"A" * 200, b"a" * 200, b"b" * 200]


def test_buckets_of_networks_are_bounded_in_memory() -> None:
    buckets = PrefixBuckets(1, 2, limit=10)
    assert buckets.of("2001:db8::1") is buckets.of("2001:db8:0:ff::2")
    assert buckets.of("2001:db8::1") is not buckets.of("2001:db8:0:100::1")
    assert buckets.of("192.0.2.1") is buckets.of("::ffff:192.0.2.1")
    for number in range(100):
        buckets.of(f"192.0.2.{number}")
    assert len(buckets._buckets) == 10


def test_a_broken_handshake_is_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Handshake bytes far ahead: the gap was filled with 512 KiB of zeros. aioquic warned of each stranger's error."""
    street = Street(House())
    guest = QuicGuest(street, 1, join=False)
    street.guests.remove(guest)
    sender = guest.link.connection._crypto_streams[tls.Epoch.INITIAL].sender
    sender._buffer_start += 400_000
    sender._buffer_stop += 400_000
    sender._pending = RangeSet([range(sender._buffer_start, sender._buffer_stop)])
    for packet, _ in apart(guest.link.poll(street.now)):
        street.arrive(packet, guest.address)
    street.run(1)
    assert (len(street.port), street.port.accepted, street.port.faults) == (0, 1, 1)
    assert caplog.text == ""
