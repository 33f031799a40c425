"""DNS messages against dnspython, and against nonsense."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.wire import dns as wire


def query(name: str, kind: str, *, edns: int | None = 1232) -> bytes:
    message = dns.message.make_query(name, kind, use_edns=edns is not None, payload=edns or 1232)
    return message.to_wire()


def test_a_query_is_read_whatever_its_letter_case() -> None:
    found = wire.read_query(query("Ann.Ghost.Internal.", "AAAA"))
    assert (found.name, found.kind, found.recursion, found.edns, found.udp_bytes) == (
        "ann.ghost.internal", wire.AAAA, True, True, 1232,
    )  # fmt: skip
    assert wire.read_query(query("x.", "A", edns=None)).udp_bytes == 512


def test_an_answer_is_what_another_library_reads() -> None:
    raw = query("Ann.ghost.internal", "ANY")
    records = [
        wire.Record("", wire.A, 60, "100.64.0.1"),
        wire.Record("", wire.AAAA, 60, "fd7a:115c:a1e0::1"),
        wire.Record("", wire.PTR, 60, "ann.ghost.internal"),
        wire.Record("", wire.TXT, 60, "t" * 300),
    ]
    answer = dns.message.from_wire(wire.answer(wire.read_query(raw), records))
    assert answer.flags & dns.flags.AA
    assert answer.flags & dns.flags.QR
    assert str(answer.question[0].name) == "Ann.ghost.internal."
    told = {dns.rdatatype.to_text(rrset.rdtype): rrset[0].to_text() for rrset in answer.answer}
    assert told["A"] == "100.64.0.1"
    assert told["AAAA"] == "fd7a:115c:a1e0::1"
    assert told["PTR"] == "ann.ghost.internal."
    assert told["TXT"].count("t") == 300


def test_a_no_names_its_zone() -> None:
    raw = query("nobody.ghost.internal", "A")
    answer = dns.message.from_wire(
        wire.answer(wire.read_query(raw), [], code=wire.NXDOMAIN, soa=("ghost.internal", 10))
    )
    assert answer.rcode() == 3
    assert str(answer.authority[0].name) == "ghost.internal."
    assert answer.authority[0].ttl == 10


def test_what_does_not_fit_is_cut_and_says_so() -> None:
    raw = query("ann.ghost.internal", "A", edns=None)
    many = [wire.Record("", wire.A, 60, f"100.64.0.{n}") for n in range(200)]
    read = wire.read_query(raw)
    cut = wire.answer(read, many, limit=read.udp_bytes)
    assert len(cut) <= 512
    assert dns.message.from_wire(cut).flags & dns.flags.TC
    whole = wire.answer(read, many)
    shortened = dns.message.from_wire(wire.truncated(whole, 512))
    assert shortened.flags & dns.flags.TC
    assert shortened.id == read.id


@given(st.binary(max_size=300))
def test_any_bytes_are_a_query_or_one_error(data: bytes) -> None:
    try:
        found = wire.read_query(data)
    except WireError:
        assert isinstance(wire.refusal(data, wire.FORMERR), bytes)
    else:
        dns.message.from_wire(wire.answer(found, []))


@given(st.binary(max_size=40), st.integers(0, 60))
def test_a_spoilt_query_is_a_query_or_one_error(noise: bytes, at: int) -> None:
    raw = query("ann.ghost.internal", "A")
    try:
        wire.read_query(raw[:at] + noise + raw[at:])
    except WireError:
        pass


def test_responses_are_not_answered() -> None:
    raw = bytearray(query("x.", "A"))
    raw[2] |= 0x80
    with pytest.raises(WireError):
        wire.read_query(bytes(raw))
    assert wire.refusal(bytes(raw), wire.FORMERR) == b""


@pytest.mark.parametrize("name", ["ä" * 70, "a" * 64, "a..b", ".".join(["abcdefgh"] * 30), "\ud800.x"])
def test_a_name_that_dns_cannot_say_is_one_error(name: str) -> None:
    """Records may hold what a person wrote; the server goes on with the next question."""
    with pytest.raises(WireError):
        wire.encode_name(name)
