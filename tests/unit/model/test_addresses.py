"""AddrPort: text and 18-byte forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort


@given(st.ip_addresses(), st.integers(0, 0xFFFF))
def test_text_and_packed_forms_round_trip(address: object, port: int) -> None:
    endpoint = AddrPort.of(str(address), port)
    assert AddrPort.parse(str(endpoint)) == endpoint
    assert AddrPort.unpack(endpoint.pack()) == endpoint


def test_mapped_addresses_become_ipv4() -> None:
    assert AddrPort.parse("[::ffff:1.2.3.4]:5") == AddrPort("1.2.3.4", 5)


@given(
    st.text()
    | st.sampled_from(["1.2.3.4", "1.2.3.4:", "::1:5", "[::1]", "[fe80::1%eth0]:5", "1.2.3.4:65536", "x:1", ":1"])
)
def test_any_text_is_an_endpoint_or_one_error(text: str) -> None:
    try:
        endpoint = AddrPort.parse(text)
    except WireError:
        return
    assert AddrPort.parse(str(endpoint)) == endpoint


@given(st.binary(max_size=40))
def test_any_bytes_are_an_endpoint_or_one_error(raw: bytes) -> None:
    try:
        assert AddrPort.unpack(raw).pack() == raw or raw[:12] != b"\0" * 10 + b"\xff\xff"
    except WireError:
        assert len(raw) != 18


def test_bad_endpoints_are_refused() -> None:
    for text in ("1.2.3.4", "::1:5", "[fe80::1%eth0]:5", "1.2.3.4:65536", "x:1"):
        with pytest.raises(WireError):
            AddrPort.parse(text)
