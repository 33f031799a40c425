"""Messages about UDP relays, and the Geneve header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey
from gw.wire import geneve
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import (
    ANSWER,
    BIND,
    CHALLENGE,
    KINDS,
    AllocateRequest,
    AllocateResponse,
    Bind,
    CallMeMaybeVia,
    RelayEndpoint,
    pair_of,
)
from gw.wire.geneve import Header

A, B, S = DiscoKey(bytes([1]) * 32), DiscoKey(bytes([2]) * 32), DiscoKey(bytes([3]) * 32)
ENDPOINT = RelayEndpoint(
    S, (A, B), 7, 0x010203, 30.0, 300.0, (AddrPort("192.0.2.1", 3478), AddrPort("2001:db8::1", 41641))
)
ENDPOINT_HEX = (
    "03" * 32 + "01" * 32 + "02" * 32 + "0000000000000007" + "00010203" + "00000006fc23ac00" + "00000045d964b800"
    + "00" * 10 + "ffffc0000201" + "0d96" + "20010db8000000000000000000000001" + "a2a9"
)  # fmt: skip
ROWS = [
    (Bind(BIND, 5, 9, B), "0400" + "00000005" + "00000009" + "02" * 32 + "00" * 32),
    (Bind(CHALLENGE, 5, 9, B, b"c" * 32), "0500" + "00000005" + "00000009" + "02" * 32 + "63" * 32),
    (Bind(ANSWER, 5, 9, B, b"c" * 32), "0600" + "00000005" + "00000009" + "02" * 32 + "63" * 32),
    (CallMeMaybeVia(ENDPOINT), "0700" + ENDPOINT_HEX),
    (AllocateRequest((A, B), 3), "0800" + "01" * 32 + "02" * 32 + "00000003"),
    (AllocateResponse(3, ENDPOINT), "0900" + "00000003" + ENDPOINT_HEX),
]


@pytest.mark.parametrize(("message", "wire"), ROWS)
def test_each_message_has_the_form_of_the_reference(message: object, wire: str) -> None:
    assert encode(message).hex() == wire  # type: ignore[arg-type]
    assert decode(bytes.fromhex(wire)) == message
    assert decode(bytes.fromhex(wire) + b"newer") == message
    with pytest.raises(WireError):
        decode(bytes.fromhex(wire)[:30])


@pytest.mark.parametrize(
    "body",
    [
        "0400" + "00000005" + "00000000" + "02" * 32 + "00" * 32,  # generation 0
        "0800" + "02" * 32 + "01" * 32 + "00000003",  # out of order
        "0800" + "01" * 32 + "01" * 32 + "00000003",  # with itself
        "0700" + ENDPOINT_HEX.replace("00010203", "00000000", 1),  # nobody's VNI
        "0700" + ENDPOINT_HEX.replace("00010203", "01000000", 1),
        "0700" + ENDPOINT_HEX[: 2 * 124],  # no address
    ],
)
def test_what_makes_no_sense_is_refused(body: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(body))


def test_a_pair_is_in_order() -> None:
    assert pair_of(A, B) == pair_of(B, A) == (A, B)


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=1000))
def test_any_body_is_a_message_or_a_wire_error(kind: int, body: bytes) -> None:
    try:
        message = decode(bytes([kind, 0]) + body)
    except WireError:
        return
    assert message is not None
    if not isinstance(message, CallMeMaybeVia | AllocateResponse):  # lifetimes are rounded and cut, addresses unmapped
        assert (bytes([kind, 0]) + body).startswith(encode(message))


@pytest.mark.parametrize(
    ("header", "wire"),
    [
        (Header(geneve.DISCO, 0x010203, control=True), "00807a1101020300"),
        (Header(geneve.WIREGUARD, geneve.MAX_VNI), "00007a12ffffff00"),
    ],
)
def test_a_geneve_header_has_the_form_of_the_reference(header: Header, wire: str) -> None:
    assert geneve.encode(header).hex() == wire
    assert geneve.decode(bytes.fromhex(wire) + b"rest") == header


@given(st.binary(max_size=20))
def test_any_bytes_are_a_geneve_header_or_a_wire_error(noise: bytes) -> None:
    try:
        header = geneve.decode(noise)
    except WireError:
        return
    assert geneve.encode(header) == noise[:8]
