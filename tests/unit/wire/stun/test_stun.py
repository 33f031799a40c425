"""STUN both ways, and from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.wire import stun

TX = bytes(range(12))


def test_the_request_is_the_known_forty_bytes() -> None:
    assert stun.encode_request(TX).hex() == (
        "000100142112a442000102030405060708090a0b802200087461696c6e6f646580280004" + stun.encode_request(TX)[-4:].hex()
    )
    assert stun.decode_request(stun.encode_request(TX)) == TX


@given(st.binary(min_size=12, max_size=12), st.ip_addresses(), st.integers(0, 65535))
def test_the_answer_tells_where_the_request_came_from(tx_id: bytes, address: object, port: int) -> None:
    source = AddrPort.of(str(address), port)
    answer = stun.encode_answer(tx_id, source)
    assert len(answer) == (44 if source.is_v6 else 32)
    assert stun.is_stun(answer)
    assert stun.decode_answer(answer) == (tx_id, source)


def test_a_mapped_address_from_a_dual_stack_server_is_ipv4() -> None:
    """derper without a host in its listen address answers so."""
    value = bytes.fromhex("0002") + (5000 ^ 0x2112).to_bytes(2, "big")
    address = b"\0" * 10 + b"\xff\xff" + bytes([1, 2, 3, 4])
    value += bytes(a ^ b for a, b in zip(address, stun.COOKIE + TX, strict=True))
    answer = bytes.fromhex("01010018") + stun.COOKIE + TX + bytes.fromhex("00200014") + value
    assert stun.decode_answer(answer) == (TX, AddrPort("1.2.3.4", 5000))


def test_a_plain_mapped_address_is_a_fallback() -> None:
    attribute = bytes.fromhex("00010008") + bytes.fromhex("000113880a000001")
    answer = bytes.fromhex("0101000c") + stun.COOKIE + TX + attribute
    assert stun.decode_answer(answer) == (TX, AddrPort("10.0.0.1", 5000))


@pytest.mark.parametrize("position", [0, 3, 5, 20, 25, 39])
def test_requests_of_strangers_are_not_answered(position: int) -> None:
    request = bytearray(stun.encode_request(TX))
    request[position] ^= 1
    with pytest.raises(WireError):
        stun.decode_request(bytes(request))


@given(st.binary(max_size=100), st.booleans())
def test_any_bytes_are_a_message_or_one_error(raw: bytes, dressed: bool) -> None:
    if dressed:
        raw = b"\x01\x01" + len(raw).to_bytes(2, "big") + stun.COOKIE + TX + raw
    for decode in (stun.decode_request, stun.decode_answer):
        try:
            decode(raw)
        except WireError:
            continue
