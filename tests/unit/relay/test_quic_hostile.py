"""What strangers and clients gone wrong may do to a relay's QUIC port: little, and to themselves."""

from __future__ import annotations

import gc
import logging
import os
import weakref

import pytest
from aioquic.quic.rangeset import RangeSet

from gw.quic.gate import CONTROL_WINDOW_BYTES
from gw.quic.link import PROBE_SIZES
from gw.relay import quicport
from gw.wire.derp.frames import encode
from gw.wire.quic import datagrams

from .ends import House
from .street import QuicGuest, Street


def _served(street: Street, guest: QuicGuest) -> quicport.QuicClient:
    return next(each for each in street.port._all if each.session.port.key == guest.key.raw)


def _stranger(street: Street, number: int) -> QuicGuest:
    """It shakes hands, and proves no node key."""
    guest = QuicGuest(street, number, join=False)
    guest.client._say_who = lambda: None  # type: ignore[method-assign]
    assert street.run(2, lambda: guest.link.is_settled)
    return guest


def test_an_echo_that_comes_several_times_counts_once() -> None:
    """Each copy took the size one step up, past the end of the table: an IndexError that ended the loop of all."""
    street = Street(House())
    guest = _stranger(street, 1)
    echoes = 0
    probe = guest.link._probe_untrusted

    def many(datagram: bytes, now: float) -> None:
        nonlocal echoes
        if datagram[0] != datagrams.PROBE:
            probe(datagram, now)
            return
        for _ in range(6):
            echoes += 1
            guest.link.send(datagrams.echo_of(datagram))

    guest.link._probe_untrusted = many  # type: ignore[method-assign]
    street.run(4)
    assert guest.end is None
    assert echoes >= 12
    (client,) = street.port._all
    assert client.session.link.udp_bytes == PROBE_SIZES[-1]


@pytest.mark.parametrize("where", ["receive", "poll"])
def test_a_defect_that_one_client_meets_ends_that_client_only(where: str, caplog: pytest.LogCaptureFixture) -> None:
    street = Street(House())
    alice, bob = QuicGuest(street, 1), QuicGuest(street, 2)
    mallory = QuicGuest(street, 3)
    client = _served(street, mallory)

    def fail(*_: object) -> None:
        raise IndexError("a defect")

    class Broken:
        def __init__(self, link: object) -> None:
            self._link = link

        def __getattr__(self, name: str) -> object:
            return fail if name == where else getattr(self._link, name)

    client.session.link = Broken(client.session.link)  # type: ignore[misc, assignment]
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
