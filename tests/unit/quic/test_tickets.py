from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from aioquic.tls import CipherSuite, SessionTicket
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.quic.connection import random_cid, worker_cid
from gw.quic.tickets import LIFETIME_S, TicketStore, decode_ticket, encode_ticket

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NODE = b"n" * 32
CID = b"c" * 8


def ticket(name: bytes = b"t" * 64) -> SessionTicket:
    return SessionTicket(
        age_add=5,
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        not_valid_before=NOW,
        not_valid_after=NOW + timedelta(days=1),
        resumption_secret=b"s" * 32,
        server_name="relay.test",
        ticket=name,
        max_early_data_size=0xFFFFFFFF,
        other_extensions=[(57, b"parameters")],
    )


def test_a_ticket_opens_once() -> None:
    store = TicketStore()
    store.keep(ticket(), NODE, 100.0)
    found = store.take(b"t" * 64, 101.0)
    assert found is not None
    assert found.node == NODE
    assert store.take(b"t" * 64, 101.0) is None


def test_an_old_ticket_opens_nothing() -> None:
    store = TicketStore()
    store.keep(ticket(), NODE, 100.0)
    assert store.take(b"t" * 64, 100.0 + LIFETIME_S) is None


def test_a_kept_ticket_comes_back_for_its_node_and_relay() -> None:
    now = NOW.timestamp()
    raw = encode_ticket(ticket(), NODE, CID, now)
    found, cid = decode_ticket(raw, NODE, "relay.test", now + 10)
    assert cid == CID
    assert found.is_valid or found.not_valid_after == NOW + timedelta(seconds=LIFETIME_S)
    assert (found.ticket, found.resumption_secret, found.other_extensions) == (
        b"t" * 64,
        b"s" * 32,
        [(57, b"parameters")],
    )
    for node, name, at in ((b"x" * 32, "relay.test", 10), (NODE, "other", 10), (NODE, "relay.test", LIFETIME_S + 1)):
        with pytest.raises(WireError):
            decode_ticket(raw, node, name, now + at)


@given(st.binary(max_size=200))
def test_noise_is_no_ticket(noise: bytes) -> None:
    with pytest.raises(WireError):
        decode_ticket(noise, NODE, "relay.test", NOW.timestamp())


@given(st.integers(0, 5000), st.integers(1, 255))
def test_a_changed_file_raises_the_one_error(place: int, change: int) -> None:
    raw = bytearray(encode_ticket(ticket(), NODE, CID, NOW.timestamp()))
    raw[place % len(raw)] ^= change
    try:
        decode_ticket(bytes(raw), NODE, "relay.test", NOW.timestamp())
    except WireError:
        pass


def test_connection_ids_name_their_worker_and_never_look_like_disco() -> None:
    for slot in range(3):
        make = worker_cid(slot, 3)
        made = [make() for _ in range(300)]
        assert {cid[0] % 3 for cid in made} == {slot}
    assert all(random_cid()[0] != 0x53 for _ in range(2000))
