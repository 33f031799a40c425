"""STUN as Tailscale uses it: one request of 40 bytes, one answer with the address it came from.

    request   00 01 | 00 14 | 21 12 a4 42 | 12 transaction id | 80 22 00 08 "tailnode" | 80 28 00 04 crc32 ^ 5354554e
    answer    01 01 | length | 21 12 a4 42 | 12 transaction id | 00 20 length | 00 family port^ address^

Ref: RFC 8489; tailscale net/stun/stun.go
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from typing import Final

from gw.errors import WireError
from gw.model.addresses import AddrPort

COOKIE: Final = b"\x21\x12\xa4\x42"
TX_ID_BYTES: Final = 12
HEADER_BYTES: Final = 20
BINDING_REQUEST: Final = 0x0001
BINDING_RESPONSE: Final = 0x0101
MAPPED_ADDRESS: Final = 0x0001
XOR_MAPPED_ADDRESS: Final = 0x0020
XOR_MAPPED_ADDRESS_ALT: Final = 0x8020
_SOFTWARE: Final = b"\x80\x22\x00\x08tailnode"
_FINGERPRINT: Final = b"\x80\x28\x00\x04"
_FINGERPRINT_XOR: Final = 0x5354554E


def is_stun(datagram: bytes) -> bool:
    """True for anything that looks like STUN, request or answer."""
    return len(datagram) >= HEADER_BYTES and datagram[0] & 0xC0 == 0 and datagram[4:8] == COOKIE


def encode_request(tx_id: bytes) -> bytes:
    """A binding request. tx_id: 12 random bytes, the caller's."""
    head = b"\x00\x01\x00\x14" + COOKIE + tx_id + _SOFTWARE
    return head + _FINGERPRINT + struct.pack(">I", zlib.crc32(head) ^ _FINGERPRINT_XOR)


def decode_request(datagram: bytes) -> bytes:
    """The transaction id of a request that a mesh node sent. Raises WireError for any other STUN speaker."""
    if len(datagram) != 40 or datagram[:4] != b"\x00\x01\x00\x14" or datagram[4:8] != COOKIE:
        raise WireError("not a binding request")
    if datagram[20:32] != _SOFTWARE or datagram[32:36] != _FINGERPRINT:
        raise WireError("not a mesh node's request")
    if datagram[36:40] != struct.pack(">I", zlib.crc32(datagram[:32]) ^ _FINGERPRINT_XOR):
        raise WireError("wrong fingerprint")
    return datagram[8:20]


def encode_answer(tx_id: bytes, source: AddrPort) -> bytes:
    """The answer to a request that came from `source`: 32 bytes for IPv4, 44 for IPv6."""
    address = ipaddress.ip_address(source.host).packed
    mask = COOKIE + tx_id
    value = struct.pack(">BBH", 0, 1 if len(address) == 4 else 2, source.port ^ 0x2112)
    value += bytes(left ^ right for left, right in zip(address, mask, strict=False))
    attribute = struct.pack(">HH", XOR_MAPPED_ADDRESS, len(value)) + value
    return struct.pack(">HH", BINDING_RESPONSE, len(attribute)) + COOKIE + tx_id + attribute


def decode_answer(datagram: bytes) -> tuple[bytes, AddrPort]:
    """(transaction id, our address as the server saw it). Raises WireError.

    Dual-stack servers answer IPv4 clients with an IPv4-mapped IPv6 address: it comes out as IPv4.
    """
    if not is_stun(datagram) or datagram[:2] != b"\x01\x01":
        raise WireError("not a binding response")
    tx_id = datagram[8:20]
    end = HEADER_BYTES + int.from_bytes(datagram[2:4], "big")
    if end > len(datagram):
        raise WireError("cut off")
    fallback: AddrPort | None = None
    offset = HEADER_BYTES
    while offset + 4 <= end:
        kind, size = struct.unpack_from(">HH", datagram, offset)
        value = datagram[offset + 4 : offset + 4 + size]
        if len(value) != size or offset + 4 + size > end:
            raise WireError("attribute cut off")
        if kind in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_ALT):
            return tx_id, _address(value, COOKIE + tx_id)
        if kind == MAPPED_ADDRESS:
            fallback = _address(value, bytes(16))
        offset += 4 + (size + 3 & ~3)
    if fallback is None:
        raise WireError("no mapped address")
    return tx_id, fallback


def _address(value: bytes, mask: bytes) -> AddrPort:
    if len(value) not in (8, 20) or value[1] != (1 if len(value) == 8 else 2):
        raise WireError("mapped address of a strange size")
    address = bytes(left ^ right for left, right in zip(value[4:], mask, strict=False))
    port = int.from_bytes(value[2:4], "big") ^ int.from_bytes(mask[:2], "big")
    return AddrPort.of(str(ipaddress.ip_address(address)), port)
