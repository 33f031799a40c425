"""Datagrams of `gw-relay/1` and `gw-peer/1`: packets by key, in two parts where the path is narrow, and probes.

    0x00 DATA        3 flow number | packet                    once the number is confirmed (`flows`)
    0x05 FWD         3 number of the source | 3 number of the destination | packet
    0x01 DATA_KEY    32 key | packet                           to the relay the destination's, from it the source's
    0x06 FRAG_KEY    32 key | u16 id | u8 index << 4 | count | part
    0x07 FWD_KEY     32 source | 32 destination | packet       between relays
    0x08 FWD_PART    32 source | 32 destination | u16 id | u8 index << 4 | count | part
    0x03 PROBE       u32 sequence | u64 sender's µs | padding   comes back as 0x04 ECHO, without the padding
    0x10 WIREGUARD   a message     0x11 DISCO   a message        between peers

Ref: spec quic §8.3, §13
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Final, final

from gw.errors import WireError

DATA: Final = 0x00
DATA_KEY: Final = 0x01
FRAG_KEY: Final = 0x06
FWD_KEY: Final = 0x07
FWD_PART: Final = 0x08
PROBE: Final = 0x03
ECHO: Final = 0x04
WIREGUARD: Final = 0x10
DISCO: Final = 0x11
HEARTBEAT: Final = 0x12

KEY_BYTES: Final = 32
DATA_HEAD_BYTES: Final = 33
FLOW_HEAD_BYTES: Final = 4
FRAG_HEAD_BYTES: Final = 36
PROBE_BYTES: Final = 13
MAX_PARTS: Final = 2
PART_LIFE_S: Final = 0.25
MAX_OPEN: Final = 64  # packets whose other half is awaited
MAX_OPEN_BYTES: Final = 96 << 10


def encode_packet(key: bytes, packet: bytes, limit: int, fragment: int) -> list[bytes]:
    """A packet for or from `key` in one datagram of at most `limit` bytes, or in two; none where even two are too few.

    key: 64 bytes, source and destination, between relays. fragment: a number that the next packet of this sender does
    not have.
    """
    is_forward = len(key) != KEY_BYTES
    if 1 + len(key) + len(packet) <= limit:
        return [(b"\x07" if is_forward else b"\x01") + key + packet]
    half = (len(packet) + 1) // 2
    if FRAG_HEAD_BYTES - KEY_BYTES + len(key) + half > limit:
        return []
    head = (b"\x08" if is_forward else b"\x06") + key + (fragment & 0xFFFF).to_bytes(2, "big")
    return [
        head + bytes([index << 4 | MAX_PARTS]) + packet[index * half : (index + 1) * half] for index in range(MAX_PARTS)
    ]


def encode_probe(sequence: int, now_us: int, size: int) -> bytes:
    """A probe of `size` bytes in all."""
    head = struct.pack(">BIQ", PROBE, sequence & 0xFFFFFFFF, now_us & 0xFFFFFFFFFFFFFFFF)
    return head + bytes(max(0, size - len(head)))


def echo_of(probe: bytes) -> bytes:
    """The answer to a probe. Raises WireError."""
    if len(probe) < PROBE_BYTES or probe[0] != PROBE:
        raise WireError("probe too short")
    return bytes([ECHO]) + probe[1:PROBE_BYTES]


def decode_echo(datagram: bytes) -> tuple[int, int]:
    """Sequence and the µs that stood in the probe. Raises WireError."""
    if len(datagram) < PROBE_BYTES or datagram[0] != ECHO:
        raise WireError("echo too short")
    sequence, sent_us = struct.unpack_from(">IQ", datagram, 1)
    return int(sequence), int(sent_us)


def decode_packet(datagram: bytes) -> tuple[bytes, bytes]:
    """Key and packet of a DATA_KEY. Raises WireError."""
    if len(datagram) < DATA_HEAD_BYTES or datagram[0] != DATA_KEY:
        raise WireError("datagram without a key")
    return datagram[1:DATA_HEAD_BYTES], datagram[DATA_HEAD_BYTES:]


@final
class Joiner:
    """Puts packets in two parts together again. Parts whose other half does not come are forgotten soon."""

    def __init__(self, *, between_relays: bool = False) -> None:
        self._kind = FWD_PART if between_relays else FRAG_KEY
        self._key_bytes = 2 * KEY_BYTES if between_relays else KEY_BYTES
        self._head_bytes = FRAG_HEAD_BYTES - KEY_BYTES + self._key_bytes
        self._open: OrderedDict[bytes, tuple[int, bytes, float]] = OrderedDict()  # by key and id, oldest first
        self._bytes = 0

    def feed(self, datagram: bytes, now: float) -> tuple[bytes, bytes] | None:
        """Key and packet when a part completes one. Raises WireError."""
        head = self._head_bytes
        if len(datagram) <= head or datagram[0] != self._kind:
            raise WireError("part too short")
        name, place = datagram[1 : head - 1], datagram[head - 1]
        index, count = place >> 4, place & 15
        if count != MAX_PARTS or index >= count:
            raise WireError(f"part {index} of {count}")
        part = datagram[head:]
        waiting = self._open
        other = waiting.pop(name, None)
        if other is not None:
            self._bytes -= len(other[1])
            if other[0] != index and now - other[2] <= PART_LIFE_S:
                return name[: self._key_bytes], other[1] + part if index else part + other[1]
        waiting[name] = index, part, now
        self._bytes += len(part)
        while True:
            _, oldest, since = next(iter(waiting.values()))
            if len(waiting) <= MAX_OPEN and self._bytes <= MAX_OPEN_BYTES and now - since <= PART_LIFE_S:
                return None
            waiting.popitem(last=False)
            self._bytes -= len(oldest)
