"""TSMP: packets both ways, and strangers' bytes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.keys import DiscoKey
from gw.wire import tsmp

ENDS = [
    (ipaddress.ip_address("100.64.0.1"), ipaddress.ip_address("100.64.0.2")),
    (ipaddress.ip_address("fd7a:115c:a1e0::1"), ipaddress.ip_address("fd7a:115c:a1e0::2")),
]
MESSAGES = [tsmp.DiscoAdvert(DiscoKey(b"\x05" * 32)), tsmp.Ping(b"12345678"), tsmp.Pong(b"12345678", 80),
            tsmp.Reject(6, "A", 1234, 443)]  # fmt: skip


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_comes_back_as_it_went(message: tsmp.Message, ends: tuple[tsmp.Address, tsmp.Address]) -> None:
    assert tsmp.decode(tsmp.encode(message, *ends)) == (*ends, message)


def test_a_header_shorter_than_ipv4_has_is_refused() -> None:
    """Its own source address must not be read as the message."""
    packet = bytearray(tsmp.encode(MESSAGES[0], *ENDS[0]))
    packet[0] = 0x43
    packet[12] = ord("a")
    with pytest.raises(WireError, match="strange length"):
        tsmp.decode(bytes(packet) + bytes(32))


@given(st.binary(max_size=120))
def test_any_bytes_are_a_message_or_one_error(raw: bytes) -> None:
    for packet in (raw, b"\x45" + raw, bytes([0x45]) + raw[:8] + b"\x63" + raw[8:], b"\x60" + raw[:5] + b"\x63" + raw):
        try:
            tsmp.decode(packet)
        except WireError:
            continue
