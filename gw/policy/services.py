"""Protocols and ports as policies write them.

    ACL     "proto": "tcp", "dst": ["tag:web:80,8000-8100"]
    grant   "ip": ["tcp:443", "80", "*"]

Ref: spec policy §4.4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

PROTOCOLS: Final[dict[str, int]] = {
    "icmp": 1,
    "igmp": 2,
    "ipv4": 4,
    "ip-in-ip": 4,
    "tcp": 6,
    "egp": 8,
    "igp": 9,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "sctp": 132,
    "fc": 133,
}
UNSTATED: Final = (1, 6, 17, 58)  # what a rule without protocol is about
WITH_PORTS: Final = (6, 17, 132)
_SHOWN: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
LAST_PORT: Final = 65535
_ICMP: Final = (1, 58)

Ports = tuple[int, int]
ALL_PORTS: Final[Ports] = (0, LAST_PORT)


@final
@dataclass(frozen=True, slots=True)
class Service:
    """What a rule opens. protocol: 0 for TCP, UDP and ICMP of both families together."""

    protocol: int = 0
    ports: Ports = ALL_PORTS

    def protocols(self) -> tuple[int, ...]:
        return (self.protocol,) if self.protocol else UNSTATED

    def opens(self, protocol: int, port: int) -> bool:
        """As a node's filter decides: any rule opens ICMP; other protocols than TCP, UDP and SCTP need all ports."""
        if protocol in _ICMP:
            return True
        if protocol not in self.protocols():
            return False
        if protocol not in WITH_PORTS:
            return self.ports == ALL_PORTS
        return self.ports[0] <= port <= self.ports[1]


def protocol_name(number: int) -> str:
    """As a policy says it; the number where it has no common name."""
    return _SHOWN.get(number, str(number))


def parse_protocol(text: str) -> int:
    """The number of a protocol; 0 for "". Raises ValueError with the message to show."""
    if not text:
        return 0
    known = PROTOCOLS.get(text.lower())
    if known is not None:
        return known
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'unknown protocol: "{text}"')
    if text.startswith("0"):
        raise ValueError(f'leading 0 not permitted in protocol number: "{text}"')
    if int(text) > 255:
        raise ValueError(f"protocol number out of range: {text}")
    return int(text)


def parse_ports(text: str) -> list[Ports]:
    """`*`, or a comma list of `n` and `a-b`. Raises ValueError with the message to show."""
    if text == "*":
        return [ALL_PORTS]
    return [_range(part) for part in text.split(",")]


def parse_service(text: str) -> list[Service]:
    """An entry of a grant's `ip`. Raises ValueError with the message to show."""
    text = text.strip()
    if text == "*":
        return [Service()]
    name, colon, ports = text.rpartition(":")
    if colon and ":" in name:
        raise ValueError(f'"{text}": too many colons')
    protocol = parse_protocol(name.strip()) if colon else 0
    if colon and not protocol:
        raise ValueError(f'"{text}": protocol is missing')
    return [Service(protocol, each) for each in parse_ports(ports if colon else text)]


def _range(text: str) -> Ports:
    low, dash, high = text.partition("-")
    first = _port(low, f'port range "{text}": invalid first integer')
    if not dash:
        if first == 0:
            raise ValueError(f"port range \"{text}\": first port must be >0, or use '*' for wildcard")
        return first, first
    last = _port(high, f'port range "{text}": invalid last integer')
    if first > last:
        raise ValueError("invalid port range: first port is greater than last port")
    return first, last


def _port(text: str, fault: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(fault)
    if int(text) > LAST_PORT:
        raise ValueError("port number out of range")
    return int(text)
