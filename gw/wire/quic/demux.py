"""Which protocol a datagram of a shared UDP port belongs to, told by its first bytes.

A connection id of ours never begins with 0x53: disco's magic would otherwise look like a short header. QUIC's fixed bit
keeps all other QUIC packets above WireGuard (1 to 4), STUN (0 to 3) and Geneve, so the grease bit is never negotiated.

Ref: spec quic §5; RFC 9443
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from gw.wire.disco.envelope import is_disco

MIN_LONG_BYTES: Final = 7
MIN_SHORT_BYTES: Final = 21
CID_BYTES: Final = 8
MAX_CID_BYTES: Final = 20
FORBIDDEN_FIRST: Final = 0x53
STUN_COOKIE: Final = b"\x21\x12\xa4\x42"
VERSION_1: Final = b"\x00\x00\x00\x01"
_WIREGUARD_BYTES: Final = {1: 148, 2: 92, 3: 64}


class Kind(Enum):
    QUIC_LONG = "quic-long"
    QUIC_SHORT = "quic-short"
    DISCO = "disco"
    WIREGUARD = "wireguard"
    STUN = "stun"
    GENEVE = "geneve"
    NOTHING = "nothing"


def kind_of(datagram: bytes) -> Kind:
    """The protocol of a datagram; NOTHING is to be dropped."""
    size = len(datagram)
    if size < MIN_LONG_BYTES:
        return Kind.NOTHING
    first = datagram[0]
    if first >= 0xC0:
        return Kind.QUIC_LONG
    if first >= 0x80:
        return Kind.QUIC_LONG if datagram[1:5] == bytes(4) else Kind.NOTHING
    if first >= 0x40:
        if is_disco(datagram):
            return Kind.DISCO
        return Kind.QUIC_SHORT if size >= MIN_SHORT_BYTES else Kind.NOTHING
    if 1 <= first <= 4 and datagram[1:4] == bytes(3):
        good = size >= 32 if first == 4 else size == _WIREGUARD_BYTES[first]
        return Kind.WIREGUARD if good else Kind.NOTHING
    if first <= 3 and size >= 20 and datagram[4:8] == STUN_COOKIE and datagram[3] & 3 == 0:
        return Kind.STUN
    if size >= 8 and datagram[2] == 0x7A and datagram[3] in (0x11, 0x12):
        return Kind.GENEVE
    return Kind.NOTHING


def destination_of(datagram: bytes) -> bytes:
    """The destination connection id of a QUIC packet, empty where there is none of a legal length."""
    if datagram[0] & 0x80:
        length = datagram[5] if len(datagram) > 5 else MAX_CID_BYTES + 1
        if length > MAX_CID_BYTES or len(datagram) < 6 + length:
            return b""
        return datagram[6 : 6 + length]
    return datagram[1 : 1 + CID_BYTES] if len(datagram) >= 1 + CID_BYTES else b""


def is_initial(datagram: bytes) -> bool:
    """Whether it begins a QUIC version 1 connection and is as large as RFC 9000 §14.1 asks."""
    return len(datagram) >= 1200 and datagram[0] & 0xF0 == 0xC0 and datagram[1:5] == VERSION_1
