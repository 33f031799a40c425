"""What the packet filter lets in, and why not."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from mmap import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.native.counters import (
    DROP_ACL,
    DROP_FRAGMENT,
    DROP_LINK_LOCAL,
    DROP_MULTICAST,
    DROP_NOT_LOCAL,
    DROP_UNKNOWN_PROTOCOL,
)
from gw.native.filter import ACCEPT, TSMP_PACKET, Filter
from gw.native.flows import SHARED_BYTES, FlowTable, answer_key
from gw.native.prefixes import PrefixMap
from gw.native.rules import RuleSet

ANN, BOB, EVE = "100.64.0.1", "100.64.0.2", "100.64.0.3"
ANN6, BOB6 = "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"
SYN, SYN_ACK, RST = 0x02, 0x12, 0x04


def packet(source: str, destination: str, protocol: int, body: bytes, *, fragment: int = 0) -> bytes:
    a, b = ip_address(source), ip_address(destination)
    if a.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + a.packed + b.packed + body
    return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, protocol, 0) + a.packed + b.packed + body


def tcp(source: str, destination: str, port: int, flags: int) -> bytes:
    return packet(source, destination, 6, struct.pack(">HHIIBBHHH", 40000, port, 0, 0, 0x50, flags, 0, 0, 0))


def udp(source: str, destination: str, from_port: int, port: int) -> bytes:
    return packet(source, destination, 17, struct.pack(">HHHH", from_port, port, 8, 0))


Rule = tuple[str, str, int, int, list[int]]


def rule(source: str, destination: str, low: int, high: int, protocols: list[int] | None = None) -> Rule:
    return source, destination, low, high, protocols or [6, 17, 1, 58]


def rules(*found: Rule) -> RuleSet:
    made = RuleSet()
    for source, destination, low, high, protocols in found:
        a, b = ip_address(source), ip_address(destination)
        v6 = a.version == 6
        made.add(protocols, [(v6, a.packed, a.packed)], [(v6, b.packed, b.packed, low, high)])
    return made


@pytest.fixture
def flows() -> FlowTable:
    return FlowTable(mmap(-1, SHARED_BYTES))


@pytest.fixture
def filter_(flows: FlowTable) -> Filter:
    local = PrefixMap()
    for address in (ANN, ANN6):
        raw = ip_address(address).packed
        local.put(raw, len(raw) * 8, 1)
    return Filter(
        rules(rule(BOB, ANN, 80, 90), rule(BOB6, ANN6, 0, 65535), rule(BOB, ANN, 0, 65535, [47])), local, flows
    )


def decide(filter_: Filter, data: bytes) -> int:
    return int(filter_.decide(data, len(data), 10**12))


def test_what_a_rule_allows_passes_and_nothing_else_does(filter_: Filter) -> None:
    assert decide(filter_, tcp(BOB, ANN, 80, SYN)) == ACCEPT
    assert decide(filter_, tcp(BOB, ANN, 90, SYN)) == ACCEPT
    assert decide(filter_, tcp(BOB, ANN, 79, SYN)) == DROP_ACL
    assert decide(filter_, tcp(EVE, ANN, 80, SYN)) == DROP_ACL
    assert decide(filter_, udp(BOB, ANN, 5, 85)) == ACCEPT
    assert decide(filter_, udp(EVE, ANN, 5, 85)) == DROP_ACL
    assert decide(filter_, tcp(BOB6, ANN6, 1, SYN)) == ACCEPT


def test_nobody_passes_without_rules(flows: FlowTable) -> None:
    local = PrefixMap()
    local.put(ip_address(ANN).packed, 32, 1)
    empty = Filter(rules(), local, flows)
    assert decide(empty, tcp(BOB, ANN, 80, SYN)) == DROP_ACL
    assert decide(empty, packet(BOB, ANN, 1, b"\x08\0" + bytes(6))) == DROP_ACL


def test_tcp_that_was_begun_passes(filter_: Filter) -> None:
    assert decide(filter_, tcp(EVE, ANN, 1, SYN_ACK)) == ACCEPT
    assert decide(filter_, tcp(EVE, ANN, 1, RST)) == ACCEPT


def test_answers_to_our_udp_pass_for_five_minutes(filter_: Filter, flows: FlowTable) -> None:
    ours = udp(ANN, EVE, 1234, 53)
    answer = udp(EVE, ANN, 53, 1234)
    assert decide(filter_, answer) == DROP_ACL
    flows.note(answer_key(ours, 20, 17), 10**12 - 1)
    assert decide(filter_, answer) == ACCEPT
    assert decide(filter_, udp(EVE, ANN, 54, 1234)) == DROP_ACL
    assert int(filter_.decide(answer, len(answer), 10**12 + 400 * 10**9)) == DROP_ACL


def test_icmp_answers_pass_and_requests_need_a_rule(filter_: Filter) -> None:
    assert decide(filter_, packet(EVE, ANN, 1, b"\0\0" + bytes(6))) == ACCEPT
    assert decide(filter_, packet(EVE, ANN, 1, b"\x03\x01" + bytes(6))) == ACCEPT
    assert decide(filter_, packet(EVE, ANN, 1, b"\x08\0" + bytes(6))) == DROP_ACL
    assert decide(filter_, packet(BOB, ANN, 1, b"\x08\0" + bytes(6))) == ACCEPT
    assert decide(filter_, packet(BOB6, ANN6, 58, b"\x80\0" + bytes(6))) == ACCEPT


def test_other_protocols_need_a_rule_for_all_ports(filter_: Filter) -> None:
    assert decide(filter_, packet(BOB, ANN, 47, bytes(8))) == ACCEPT
    assert decide(filter_, packet(EVE, ANN, 47, bytes(8))) == DROP_ACL
    assert decide(filter_, packet(BOB, ANN, 50, bytes(8))) == DROP_ACL
    assert decide(filter_, packet(BOB6, ANN6, 43, bytes(8))) == DROP_UNKNOWN_PROTOCOL
    assert decide(filter_, packet(EVE, ANN, 99, b"a" + bytes(32))) == TSMP_PACKET


def test_only_our_own_addresses_are_delivered(filter_: Filter) -> None:
    assert decide(filter_, tcp(BOB, EVE, 80, SYN_ACK)) == DROP_NOT_LOCAL
    assert decide(filter_, udp(BOB, "224.0.0.251", 5353, 5353)) == DROP_MULTICAST
    assert decide(filter_, udp(BOB, "169.254.1.1", 1, 2)) == DROP_LINK_LOCAL
    assert decide(filter_, packet(BOB6, "ff02::1", 58, bytes(8))) == DROP_MULTICAST
    assert decide(filter_, packet(BOB6, "fe80::1", 58, bytes(8))) == DROP_LINK_LOCAL


def test_first_fragments_must_be_long_and_later_ones_far_in(filter_: Filter) -> None:
    assert decide(filter_, packet(BOB, ANN, 6, bytes(8), fragment=0x2000)) == DROP_FRAGMENT
    assert decide(filter_, packet(BOB, ANN, 6, bytes(64), fragment=0x2001)) == DROP_FRAGMENT
    assert decide(filter_, packet(BOB, ANN, 6, bytes(64), fragment=100)) == ACCEPT


@given(st.binary(min_size=20, max_size=100), st.sampled_from([0x45, 0x60, 0x4F, 0x41, 0x00]))
def test_any_packet_gets_a_verdict(data: bytes, first: int) -> None:
    local = PrefixMap()
    local.put(bytes(4), 0, 1)
    local.put(bytes(16), 0, 1)
    filter_ = Filter(rules(rule(BOB, ANN, 0, 65535)), local, FlowTable(mmap(-1, SHARED_BYTES)))
    data = bytes([first]) + data[1:]
    if first == 0x60 and len(data) < 40:
        return
    verdict = decide(filter_, data)
    assert -2 <= verdict < 16
