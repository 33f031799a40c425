"""Disco messages and their envelope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoSecret, NodeKey
from gw.wire.disco import envelope, messages
from gw.wire.disco.messages import CallMeMaybe, Message, Ping, Pong
from gw.wire.x25519 import clamp

TX = bytes(range(12))
NODE = NodeKey(b"\x05" * 32)
ENDPOINTS = st.builds(lambda address, port: AddrPort.of(str(address), port), st.ip_addresses(), st.integers(0, 65535))
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, st.just(TX), st.none()),
    st.builds(Ping, st.just(TX), st.just(NODE), st.integers(0, 1300)),
    st.builds(Ping, st.just(TX), st.just(NODE), st.integers(0, 1300), st.integers(0, 2**64 - 1)),
    st.builds(Pong, st.just(TX), ENDPOINTS),
    st.builds(Pong, st.just(TX), ENDPOINTS, st.integers(0, 2**64 - 1)),
    st.builds(CallMeMaybe, st.lists(ENDPOINTS, min_size=1, max_size=20)),
)


@given(MESSAGES)
def test_every_message_round_trips(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


def test_sizes_are_those_of_the_reference() -> None:
    """An unpadded ping with node key is 124 bytes on the wire, a pong 110."""
    alice = envelope.Envelopes(DiscoSecret(clamp(b"\x01" * 32)))
    bob = envelope.Envelopes(DiscoSecret(clamp(b"\x02" * 32)))
    assert len(alice.seal(bob.key, bytes(24), messages.encode(Ping(TX, NODE)))) == 124
    assert len(alice.seal(bob.key, bytes(24), messages.encode(Pong(TX, AddrPort("1.2.3.4", 5))))) == 110


def test_newer_peers_may_append() -> None:
    pong = messages.encode(Pong(TX, AddrPort("1.2.3.4", 5)))
    assert messages.decode(pong + b"more") == Pong(TX, AddrPort("1.2.3.4", 5))
    assert messages.decode(b"\x30\x00whatever") is None


def test_counts_look_like_padding_to_who_does_not_know_them() -> None:
    """A stock peer reads the transaction, the node key, and how many bytes follow."""
    plain, counting = messages.encode(Ping(TX, NODE)), messages.encode(Ping(TX, NODE, sent=7))
    assert counting.startswith(plain)
    assert messages.decode(plain + bytes(12)) == Ping(TX, NODE, 12)
    assert messages.decode(counting[:-1]) == Ping(TX, NODE, 11)


def test_a_strange_call_me_maybe_is_an_empty_one() -> None:
    for raw in (b"\x03\x00", b"\x03\x01" + bytes(18), b"\x03\x00" + bytes(17)):
        assert messages.decode(raw) == CallMeMaybe()


def test_what_one_seals_the_other_opens_and_nobody_else() -> None:
    alice, bob, eve = (envelope.Envelopes(DiscoSecret(clamp(bytes([n]) * 32))) for n in (1, 2, 3))
    datagram = alice.seal(bob.key, bytes(24), b"\x01\x00" + TX)
    assert envelope.is_disco(datagram)
    assert envelope.sender(datagram) == alice.key
    assert bob.open(datagram) == b"\x01\x00" + TX
    for changed in (datagram[:-1], datagram[:-1] + b"\0", datagram[:6] + eve.key.raw + datagram[38:]):
        with pytest.raises(WireError):
            bob.open(changed)
    with pytest.raises(WireError):
        eve.open(datagram)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_one_error(raw: bytes) -> None:
    bob = envelope.Envelopes(DiscoSecret(clamp(b"\x02" * 32)))
    for attempt in (lambda: messages.decode(raw), lambda: bob.open(raw), lambda: bob.open(envelope.MAGIC + raw)):
        try:
            attempt()
        except WireError:
            continue
