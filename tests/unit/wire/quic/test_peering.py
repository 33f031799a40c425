"""What peers say in gw-peer/1. Spec quic §13."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.wire.quic import frames, peering
from gw.wire.quic.peering import Heartbeat, Messages, Network, Report, Routes


def networks(version: int) -> st.SearchStrategy[Network]:
    addresses = st.ip_addresses(v=version)  # type: ignore[arg-type]
    lengths = st.integers(0, 32 if version == 4 else 128)
    return st.builds(lambda address, length: ipaddress.ip_network((address, length), strict=False), addresses, lengths)


NETWORKS = networks(4) | networks(6)
DECODERS = (
    peering.decode_routes,
    peering.decode_routes_ack,
    peering.decode_heartbeat,
    peering.decode_report,
    peering.answer_to,
    lambda raw: Messages().feed(raw, 1.0),
)


@given(st.binary(min_size=1, max_size=1500), st.integers(600, 1400), st.integers(0, 1 << 20))
def test_a_message_arrives_whole_in_one_datagram_or_two(message: bytes, limit: int, part: int) -> None:
    inbox = Messages()
    datagrams = peering.encode_message(message, limit, part)
    if not datagrams:
        assert len(message) > 2 * (limit - 5)
        return
    assert all(len(datagram) <= limit for datagram in datagrams)
    found = [inbox.feed(datagram, 1.0) for datagram in reversed(datagrams)]
    assert found[-1] == message
    assert found[:-1] == [None] * (len(datagrams) - 1)


@given(st.builds(Routes, st.integers(0, 2**64 - 1), st.lists(NETWORKS, max_size=20).map(tuple)))
def test_routes_round_trip(routes: Routes) -> None:
    ((kind, body),) = peering.peer_reader().feed(peering.encode_routes(routes))
    assert kind == frames.ROUTES
    assert peering.decode_routes(body) == routes


def test_a_heartbeat_round_trips() -> None:
    beat = Heartbeat(5, 123456789012, 4, 1000)
    assert peering.decode_heartbeat(peering.encode_heartbeat(beat)) == beat


def test_a_report_round_trips() -> None:
    report = Report(sent=5, received=4, dropped=1, rtt_ms=1.5, jitter_ms=0.25)
    assert peering.decode_report(peering.encode_report(report)) == report


@given(st.binary(max_size=300), st.sampled_from(DECODERS))
def test_any_bytes_are_a_value_or_the_one_error(raw: bytes, decode: object) -> None:
    assert callable(decode)
    try:
        decode(raw)
    except WireError:
        pass


@given(st.binary(max_size=300))
def test_any_control_bytes_are_frames_or_the_one_error(raw: bytes) -> None:
    try:
        peering.peer_reader().feed(raw)
    except WireError:
        pass


@pytest.mark.parametrize("body", [
    bytes(8) + b"\x01",  # fewer than it says
    bytes(8) + b"\x01\x21\x04" + bytes(4),  # longer than an IPv4 prefix can be
    bytes(8) + b"\x01\x08\x04\x0a\x00\x00\x01",  # bits beyond its length
    bytes(8) + b"\x01\x08\x05" + bytes(5),
])  # fmt: skip
def test_what_is_no_prefix_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        peering.decode_routes(body)
