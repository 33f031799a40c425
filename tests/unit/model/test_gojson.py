"""Field names and nulls as Go writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.gojson import decoder, encode
from gw.model.mapping import MapRequest, MapResponse
from gw.model.node import Node
from gw.model.registration import RegisterRequest, RegisterResponse

read_map = decoder(MapResponse)


def test_names_are_those_of_go() -> None:
    node = Node(
        id=7, stable_id="n7", allowed_ips=["100.64.0.7/32"], home_derp=900, disco_key="d", derp="127.3.3.40:900"
    )
    for name in (b'"ID":7', b'"StableID"', b'"AllowedIPs"', b'"HomeDERP":900', b'"DiscoKey"', b'"DERP"'):
        assert name in encode(node)


def test_absent_fields_are_left_out_and_empty_lists_are_not() -> None:
    assert encode(MapResponse(packet_filters={"base": []})) == b'{"PacketFilters":{"base":[]}}'


def test_a_register_request_says_all_it_must() -> None:
    raw = encode(RegisterRequest(version=113))
    for part in (
        b'"OldNodeKey":"nodekey:00',
        b'"NLKey":"nlpub:00',
        b'"Expiry":"0001-01-01T00:00:00Z"',
        b'"Followup":""',
    ):
        assert part in raw
    assert b'"AuthURL":""' in encode(RegisterResponse())


def test_nulls_are_accepted_wherever_go_writes_them() -> None:
    message = read_map(
        b'{"Peers":null,"DERPMap":null,"Node":{"ID":1,"Endpoints":null,"CapMap":{"x":null}},"Unknown":1}'
    )
    assert message.peers is None
    assert message.node is not None
    assert message.node.cap_map == {"x": None}


def test_nanoseconds_are_read() -> None:
    message = read_map(b'{"ControlTime":"2030-01-01T00:00:00.123456789Z"}')
    assert message.control_time is not None
    assert message.control_time.year == 2030


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes_are_a_message_or_one_error(raw: bytes) -> None:
    for kind in (MapRequest, MapResponse, RegisterRequest):
        try:
            decoder(kind)(raw)
        except WireError:
            continue


def test_deep_nesting_is_one_error() -> None:
    with pytest.raises(WireError):
        read_map(b'{"SSHPolicy":' + b"[" * 100_000 + b"}")
