"""The packet filter: which inner packets a peer may send us. Nothing passes that no rule allows.

What was decided once for (source, destination, protocol, port) is remembered until the rules change: a packet costs one
dictionary look-up however many rules there are, and the first one of a flow a few more (`gw.native.rules`).

Ref: tailscale wgengine/filter/filter.go; spec dataplane §3.2
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import read_i16_be
from mypy_extensions import i64, mypyc_attr

from gw.native.counters import (
    DROP_ACL,
    DROP_FRAGMENT,
    DROP_LINK_LOCAL,
    DROP_MALFORMED,
    DROP_MULTICAST,
    DROP_NOT_LOCAL,
    DROP_UNKNOWN_PROTOCOL,
)
from gw.native.flows import FlowTable, key
from gw.native.prefixes import NOBODY, PrefixMap
from gw.native.rules import ANY_PORT, EVERY_PORT, RuleSet

ACCEPT: Final = -1
TSMP_PACKET: Final = -2  # for us, not for the TUN

ICMP4: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMP6: Final = 58
TSMP: Final = 99
SCTP: Final = 132
FRAGMENT6: Final = 44

SYN: Final = 0x02
ACK: Final = 0x10
MIN_FRAGMENT_OFFSET: Final = 10  # in units of 8 bytes: (60 + 20) / 8
MAX_REMEMBERED: Final = 65536


@final
@mypyc_attr(native_class=True)
class Filter:
    """Rules and our own addresses; replaced as a whole when either changes."""

    def __init__(self, rules: RuleSet, local: PrefixMap, flows: FlowTable) -> None:
        self.rules: RuleSet = rules
        self.local: PrefixMap = local
        self.flows: FlowTable = flows
        self.decided: dict[bytes, bool] = {}

    def decide(self, packet: bytes, length: i64, now_ns: i64) -> i64:
        """ACCEPT, TSMP_PACKET, or the reason for dropping an IP packet of `length` bytes that a peer sent."""
        version: i64 = i64(packet[0]) >> 4
        ip_length: i64 = 20
        protocol: i64 = 0
        v6 = version == 6
        if v6:
            if length < 40:
                return DROP_MALFORMED
            ip_length = 40
            protocol = i64(packet[6])
            if i64(packet[24]) == 0xFF:
                return DROP_MULTICAST
            if i64(packet[24]) == 0xFE and i64(packet[25]) & 0xC0 == 0x80:
                return DROP_LINK_LOCAL
            if protocol == FRAGMENT6:
                if length < 48:
                    return DROP_FRAGMENT
                offset6: i64 = (i64(read_i16_be(packet, 42)) & 0xFFFF) >> 3
                if offset6 != 0:
                    return ACCEPT if offset6 >= MIN_FRAGMENT_OFFSET else DROP_FRAGMENT
                protocol = i64(packet[40])
                ip_length = 48
            if self.local.find6(packet, 24) == NOBODY:
                return DROP_NOT_LOCAL
        else:
            ip_length = (i64(packet[0]) & 15) * 4
            if version != 4 or ip_length < 20 or length < ip_length:
                return DROP_MALFORMED
            protocol = i64(packet[9])
            if i64(packet[16]) & 0xF0 == 0xE0:
                return DROP_MULTICAST
            if i64(packet[16]) == 169 and i64(packet[17]) == 254:
                return DROP_LINK_LOCAL
            offset4: i64 = i64(read_i16_be(packet, 6)) & 0x1FFF
            if offset4 != 0:
                return ACCEPT if offset4 >= MIN_FRAGMENT_OFFSET else DROP_FRAGMENT
            if self.local.find4(packet, 16) == NOBODY:
                return DROP_NOT_LOCAL
        if protocol == TCP:
            if length < ip_length + 20:
                return DROP_FRAGMENT
            if i64(packet[ip_length + 13]) & (SYN | ACK) != SYN:
                return ACCEPT
            return self._ruled(packet, ip_length, protocol, v6, i64(read_i16_be(packet, ip_length + 2)) & 0xFFFF)
        if protocol == UDP or protocol == SCTP:
            if length < ip_length + 8:
                return DROP_FRAGMENT
            verdict = self._ruled(packet, ip_length, protocol, v6, i64(read_i16_be(packet, ip_length + 2)) & 0xFFFF)
            if verdict != ACCEPT and self.flows.knows(key(packet, ip_length, protocol), now_ns):
                return ACCEPT
            return verdict
        if (protocol == ICMP4 and not v6) or (protocol == ICMP6 and v6):
            if length < ip_length + 8:
                return DROP_FRAGMENT
            if _is_icmp_answer(i64(packet[ip_length]), v6):
                return ACCEPT
            return self._ruled(packet, ip_length, protocol, v6, ANY_PORT)
        if protocol == TSMP:
            return TSMP_PACKET
        if protocol == 0 or protocol == 43 or protocol == 60 or protocol == FRAGMENT6:
            return DROP_UNKNOWN_PROTOCOL
        return self._ruled(packet, ip_length, protocol, v6, EVERY_PORT)

    def _ruled(self, packet: bytes, ip_length: i64, protocol: i64, v6: bool, port: i64) -> i64:
        addresses = packet[8:40] if v6 else packet[12:20]
        question = addresses + bytes([int(protocol)])
        if port >= 0:
            question += packet[ip_length + 2 : ip_length + 4]
        known = self.decided.get(question)
        if known is None:
            half = len(addresses) // 2
            source = int.from_bytes(addresses[:half], "big")
            destination = int.from_bytes(addresses[half:], "big")
            known = self.rules.allow(v6, source, destination, int(protocol), int(port))
            if len(self.decided) >= MAX_REMEMBERED:
                self.decided = {}
            self.decided[question] = known
        return ACCEPT if known else DROP_ACL


def _is_icmp_answer(kind: i64, v6: bool) -> bool:
    """An echo reply, or an error about something we sent."""
    if v6:
        return kind < 128 or kind == 129
    return kind == 0 or kind == 3 or kind == 11 or kind == 12
