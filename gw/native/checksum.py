"""The Internet checksum, eight bytes at a time.

Sums are kept in the byte order of memory (little-endian words), so a result is stored little-endian too; the
ones' complement sum does not mind. Every summed region begins at an even offset of what it covers.

Ref: RFC 1071
"""

from __future__ import annotations

from librt.strings import BytesWriter, read_i64_le
from mypy_extensions import i64, u8


def add(data: bytes, start: i64, end: i64) -> i64:
    """The unfolded sum of data[start:end]; sums may be added to one another."""
    total: i64 = 0
    at: i64 = start
    last: i64 = end - 32
    while at <= last:  # four at a time: twice as fast on a packet
        a: i64 = read_i64_le(data, at)
        b: i64 = read_i64_le(data, at + 8)
        c: i64 = read_i64_le(data, at + 16)
        d: i64 = read_i64_le(data, at + 24)
        total += (a & 0xFFFFFFFF) + ((a >> 32) & 0xFFFFFFFF) + (b & 0xFFFFFFFF) + ((b >> 32) & 0xFFFFFFFF)
        total += (c & 0xFFFFFFFF) + ((c >> 32) & 0xFFFFFFFF) + (d & 0xFFFFFFFF) + ((d >> 32) & 0xFFFFFFFF)
        at += 32
    last = end - 8
    while at <= last:
        word: i64 = read_i64_le(data, at)
        total += (word & 0xFFFFFFFF) + ((word >> 32) & 0xFFFFFFFF)
        at += 8
    shift: i64 = 0
    while at < end:
        byte: i64 = data[at]
        total += byte << shift
        shift = 8 - shift
        at += 1
    return total


def fold(total: i64) -> i64:
    """16 bits. A region that holds its own right checksum folds to 0xFFFF."""
    while total >> 16 != 0:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def swap(value: i64) -> i64:
    """A 16-bit number as it counts in a sum."""
    return ((value & 0xFF) << 8) | ((value >> 8) & 0xFF)


def put_be(writer: BytesWriter, at: i64, value: i64) -> None:
    """Store 16 bits, big-endian: a length, an id."""
    writer[at] = u8((value >> 8) & 0xFF)
    writer[at + 1] = u8(value & 0xFF)


def put_le(writer: BytesWriter, at: i64, value: i64) -> None:
    """Store 16 bits, little-endian: a folded sum."""
    writer[at + 1] = u8((value >> 8) & 0xFF)
    writer[at] = u8(value & 0xFF)
