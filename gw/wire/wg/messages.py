"""The four messages as bytes: sizes, types, and where each field lies.

    Initiation, 148                       Response, 92
      0  u32 type 1                         0  u32 type 2
      4  u32 sender                         4  u32 sender
      8  32  ephemeral                      8  u32 receiver
     40  48  sealed static                 12  32  ephemeral
     88  28  sealed timestamp              44  16  sealed nothing
    116  16  mac1, 16 mac2                 60  16  mac1, 16 mac2
    Cookie reply, 64                      Transport, 32 + padded packet
      0  u32 type 3                         0  u32 type 4
      4  u32 receiver                       4  u32 receiver
      8  24  nonce                          8  u64 counter
     32  32  sealed cookie                 16  sealed packet

Numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from gw.errors import WireError

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE: Final = 3
TRANSPORT: Final = 4

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
COOKIE_BYTES: Final = 64
TRANSPORT_HEADER_BYTES: Final = 16
TRANSPORT_OVERHEAD_BYTES: Final = 32
MACS_BYTES: Final = 32

_TYPE: Final = struct.Struct("<I")
_INITIATION: Final = struct.Struct("<II32s48s28s")
_RESPONSE: Final = struct.Struct("<III32s16s")
_COOKIE: Final = struct.Struct("<II24s32s")
_TRANSPORT: Final = struct.Struct("<IIQ")
_SIZES: Final = {INITIATION: INITIATION_BYTES, RESPONSE: RESPONSE_BYTES, COOKIE: COOKIE_BYTES}


class Initiation(NamedTuple):
    sender: int
    ephemeral: bytes
    static: bytes
    timestamp: bytes


class Response(NamedTuple):
    sender: int
    receiver: int
    ephemeral: bytes
    empty: bytes


class CookieReply(NamedTuple):
    receiver: int
    nonce: bytes
    sealed: bytes


class TransportHeader(NamedTuple):
    receiver: int
    counter: int


def kind_of(datagram: bytes) -> int:
    """The type of a datagram whose type word and size fit together, or 0 for what is not WireGuard."""
    if len(datagram) < 4:
        return 0
    kind: int = _TYPE.unpack_from(datagram)[0]
    if kind == TRANSPORT:
        return TRANSPORT if len(datagram) >= TRANSPORT_OVERHEAD_BYTES else 0
    return kind if _SIZES.get(kind) == len(datagram) else 0


def parse_initiation(datagram: bytes) -> Initiation:
    """Raises WireError."""
    _expect(datagram, INITIATION)
    return Initiation(*_INITIATION.unpack_from(datagram)[1:])


def parse_response(datagram: bytes) -> Response:
    """Raises WireError."""
    _expect(datagram, RESPONSE)
    return Response(*_RESPONSE.unpack_from(datagram)[1:])


def parse_cookie(datagram: bytes) -> CookieReply:
    """Raises WireError."""
    _expect(datagram, COOKIE)
    return CookieReply(*_COOKIE.unpack_from(datagram)[1:])


def parse_transport(datagram: bytes) -> TransportHeader:
    """Raises WireError."""
    _expect(datagram, TRANSPORT)
    return TransportHeader(*_TRANSPORT.unpack_from(datagram)[1:])


def initiation_body(message: Initiation) -> bytes:
    """The 116 bytes before the two macs."""
    return _INITIATION.pack(INITIATION, *message)


def response_body(message: Response) -> bytes:
    """The 60 bytes before the two macs."""
    return _RESPONSE.pack(RESPONSE, *message)


def cookie_reply(message: CookieReply) -> bytes:
    """The whole 64 bytes."""
    return _COOKIE.pack(COOKIE, *message)


def transport_header(receiver: int, counter: int) -> bytes:
    """The 16 bytes before the sealed packet."""
    return _TRANSPORT.pack(TRANSPORT, receiver, counter)


def _expect(datagram: bytes, kind: int) -> None:
    if kind_of(datagram) != kind:
        raise WireError(f"not a WireGuard message of type {kind}")
