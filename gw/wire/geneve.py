"""The Geneve header that stands before what a UDP relay between two nodes carries. Eight bytes, no options.

    0   00              version 0, no options
    1   80 or 00        control: between a client and the relay; else the relay forwards it untouched
    2   7a 11 | 7a 12   disco | WireGuard follows
    4   24-bit VNI      which pair of clients, big-endian
    7   00

Ref: RFC 8926 §3.4; tailscale net/packet/geneve.go
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gw.errors import WireError

HEADER_BYTES: Final = 8
DISCO: Final = 0x7A11
WIREGUARD: Final = 0x7A12
MAX_VNI: Final = (1 << 24) - 1
_CONTROL: Final = 0x80


@dataclass(frozen=True, slots=True)
class Header:
    """vni: 1 to MAX_VNI, 0 is nobody's."""

    protocol: int
    vni: int
    control: bool = False


def encode(header: Header) -> bytes:
    """The eight bytes."""
    first = bytes([0, _CONTROL if header.control else 0])
    return first + header.protocol.to_bytes(2, "big") + header.vni.to_bytes(3, "big") + b"\0"


def decode(datagram: bytes) -> Header:
    """The header of a datagram. Raises WireError where it is none that this relay knows."""
    if len(datagram) < HEADER_BYTES:
        raise WireError("no room for a Geneve header")
    flags, protocol = datagram[1], int.from_bytes(datagram[2:4], "big")
    if datagram[0] or flags & ~_CONTROL or datagram[7] or protocol not in (DISCO, WIREGUARD):
        raise WireError("not a Geneve header of a relay between nodes")
    return Header(protocol, int.from_bytes(datagram[4:7], "big"), bool(flags))
