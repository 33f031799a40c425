"""TSMP: small messages between nodes inside the tunnel, IP protocol 99.

    a  the sender's disco key, 32 bytes      p  ping, 8 bytes      o  pong, the 8 bytes and a port      !  rejected flow

Ref: spec dataplane §3.4; tailscale net/packet/tsmp.go
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from gw.errors import WireError
from gw.model.keys import DiscoKey

PROTOCOL: Final = 99
TCP: Final = 6
TTL: Final = 64
IPV4_BYTES: Final = 20
IPV6_BYTES: Final = 40
PING_BYTES: Final = 8

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class DiscoAdvert:
    key: DiscoKey


@dataclass(frozen=True, slots=True)
class Ping:
    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes
    peerapi_port: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """The peer dropped the SYN of a flow: protocol, why ('A' policy, 'S' shields up, …), and its ports."""

    protocol: int
    reason: str
    source_port: int
    destination_port: int


Message = DiscoAdvert | Ping | Pong | Reject


def encode(message: Message, source: Address, destination: Address) -> bytes:
    """A whole IP packet. Both addresses are of one family."""
    body = _body(message)
    if isinstance(source, ipaddress.IPv6Address):
        return struct.pack(">IHBB", 6 << 28, len(body), PROTOCOL, TTL) + source.packed + destination.packed + body
    head = struct.pack(">BBHHHBBH", 0x45, 0, IPV4_BYTES + len(body), 0, 0, TTL, PROTOCOL, 0)
    head += source.packed + destination.packed
    total = sum(struct.unpack(">10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checksum: bytes = (0xFFFF ^ total).to_bytes(2, "big")
    return head[:10] + checksum + head[12:] + body


def _body(message: Message) -> bytes:
    match message:
        case DiscoAdvert(key):
            return b"a" + key.raw
        case Ping(data):
            return b"p" + data
        case Pong(data, port):
            return b"o" + data + struct.pack(">H", port)
        case Reject(protocol, reason, source_port, destination_port):
            return struct.pack(">cBcHH", b"!", protocol, reason.encode(), source_port, destination_port)


def decode(packet: bytes) -> tuple[Address, Address, Message | None]:
    """(source, destination, message) of an IP packet; None for a type that a newer peer may send. Raises WireError."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= IPV4_BYTES and packet[9] == PROTOCOL:
        head = (packet[0] & 15) * 4
        if head < IPV4_BYTES:
            raise WireError("IPv4 header of a strange length")
        body = packet[head:]
        return ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20]), _message(body)
    if version == 6 and len(packet) >= IPV6_BYTES and packet[6] == PROTOCOL:
        body = packet[IPV6_BYTES:]
        return ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40]), _message(body)
    raise WireError("not TSMP")


def _message(body: bytes) -> Message | None:
    kind, rest = body[:1], body[1:]
    if kind == b"a" and len(rest) >= 32:
        return DiscoAdvert(DiscoKey(rest[:32]))
    if kind == b"p" and len(rest) >= PING_BYTES:
        return Ping(rest[:PING_BYTES])
    if kind == b"o" and len(rest) >= PING_BYTES + 2:
        return Pong(rest[:PING_BYTES], int.from_bytes(rest[PING_BYTES : PING_BYTES + 2], "big"))
    if kind == b"!" and len(rest) >= 6:
        return Reject(rest[0], chr(rest[1]), *struct.unpack(">HH", rest[2:6]))
    if kind in (b"a", b"p", b"o", b"!"):
        raise WireError("TSMP cut off")
    return None
