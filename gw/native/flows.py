"""Which UDP and SCTP flows we began, so that their answers may come in. Shared memory: the outbound worker writes a
flow before its packet leaves, the inbound worker looks it up.

A table of two-way buckets of 16 bytes: a keyed 64-bit hash of the answer's addresses, ports and protocol, and when it
was last used. A full bucket forgets the flow unused for longer. The hash is CPython's own of a bytes object (SipHash);
both workers are started with the same PYTHONHASHSEED, random for each pair of workers.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final, final

from mypy_extensions import i64, mypyc_attr

BUCKETS: Final = 32768  # power of two
ENTRY_BYTES: Final = 16
SHARED_BYTES: Final = BUCKETS * 2 * ENTRY_BYTES
LIFE_NS: Final = 300_000_000_000
FRESH_NS: Final = 1_000_000_000  # a flow noted this recently is not written again
_PAIR: Final = struct.Struct("<qq")
_TWO: Final = struct.Struct("<qqqq")


@final
@mypyc_attr(native_class=True)
class FlowTable:
    """Flows by the key that their answers have: see `key` and `answer_key`."""

    def __init__(self, shared: mmap) -> None:
        self.shared: mmap = shared
        self.last_key: bytes = b""
        self.last_ns: i64 = 0

    def note(self, key: bytes, now_ns: i64) -> None:
        if key == self.last_key and now_ns - self.last_ns < FRESH_NS:
            return
        self.last_key = key
        self.last_ns = now_ns
        mark = hash(key) or 1
        at = (mark & (BUCKETS - 1)) * 2 * ENTRY_BYTES
        first, first_ns, second, second_ns = _TWO.unpack_from(self.shared, at)
        if first != mark and (second == mark or first_ns > second_ns):
            at += ENTRY_BYTES
        self.shared[at : at + ENTRY_BYTES] = _PAIR.pack(mark, now_ns)  # whole: others are looking

    def knows(self, key: bytes, now_ns: i64) -> bool:
        mark = hash(key) or 1
        first, first_ns, second, second_ns = _TWO.unpack_from(self.shared, (mark & (BUCKETS - 1)) * 2 * ENTRY_BYTES)
        if first == mark:
            return bool(now_ns - first_ns < LIFE_NS)
        return bool(second == mark and now_ns - second_ns < LIFE_NS)


def key(packet: bytes, ip_length: i64, protocol: i64) -> bytes:
    """Of a packet that comes in: source, destination, ports, protocol. The packet reaches past its ports."""
    addresses = packet[12:20] if i64(packet[0]) >> 4 == 4 else packet[8:40]
    return addresses + packet[ip_length : ip_length + 4] + bytes([int(protocol)])


def answer_key(packet: bytes, ip_length: i64, protocol: i64) -> bytes:
    """Of a packet that goes out: the key its answer will have."""
    ports = packet[ip_length + 2 : ip_length + 4] + packet[ip_length : ip_length + 2]
    if i64(packet[0]) >> 4 == 4:
        return packet[16:20] + packet[12:16] + ports + bytes([int(protocol)])
    return packet[24:40] + packet[8:24] + ports + bytes([int(protocol)])
