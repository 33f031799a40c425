"""What the kernel hands over in one read of the TUN: a packet, or up to 64 KiB of one flow to be cut into packets.

A read begins with a virtio_net_hdr of ten bytes: flags, gso type, header length (not to be trusted), segment size,
and where a checksum is still to be completed.

Ref: Linux include/uapi/linux/virtio_net.h; spec dataplane §2.3, §2.4
"""

from __future__ import annotations

from typing import Final

from librt.strings import BytesWriter, read_i16_be, read_i16_le, read_i32_be
from mypy_extensions import i64, u8

from gw.native.checksum import add, fold, put_be, put_le, swap

VNET_BYTES: Final = 10
NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCP4: Final = 1
GSO_TCP6: Final = 4
GSO_UDP: Final = 5
GSO_ECN: Final = 0x80
TCP: Final = 6
UDP: Final = 17
FIN_PSH: Final = 0x09
CWR: Final = 0x80


def packets(read: bytes) -> list[bytes]:
    """The IP packets of one read, checksums complete. Empty for what makes no sense."""
    size: i64 = len(read)
    if size < VNET_BYTES + 20:
        return []
    first: i64 = read[0]
    kind: i64 = read[1]
    if kind == GSO_NONE:
        packet = read[VNET_BYTES:]
        if first & NEEDS_CSUM == 0:
            return [packet]
        start: i64 = i64(read_i16_le(read, 6)) & 0xFFFF
        field: i64 = start + (i64(read_i16_le(read, 8)) & 0xFFFF)
        if field + 2 > size - VNET_BYTES:
            return []
        value: i64 = (~fold(add(read, VNET_BYTES + start, size))) & 0xFFFF
        if value == 0:
            value = 0xFFFF  # for UDP zero means "none"; for TCP the two are the same number
        writer = BytesWriter()
        writer.write(packet)
        put_le(writer, field, value)
        return [writer.getvalue()]
    return _cut(read, kind & ~GSO_ECN)


def _cut(read: bytes, kind: i64) -> list[bytes]:
    size: i64 = len(read)
    step: i64 = i64(read_i16_le(read, 4)) & 0xFFFF
    version: i64 = i64(read[VNET_BYTES]) >> 4
    ip_length: i64 = 40
    is_v4 = version == 4
    if is_v4:
        ip_length = (i64(read[VNET_BYTES]) & 15) * 4
    udp = kind == GSO_UDP
    if step == 0 or ip_length < 20 or VNET_BYTES + ip_length + 20 > size:
        return []
    if not udp and kind != GSO_TCP4 and kind != GSO_TCP6:
        return []
    transport: i64 = VNET_BYTES + ip_length
    header: i64 = ip_length + 8
    if not udp:
        header = ip_length + (i64(read[transport + 12]) >> 4) * 4
        if header < ip_length + 20:
            return []
    at: i64 = VNET_BYTES + header
    if at > size:
        return []
    # One header is written once, with every changing field zero, and summed once.
    writer = BytesWriter()
    writer.write(read[VNET_BYTES:at])
    checksum_at: i64 = ip_length + 6 if udp else ip_length + 16
    put_le(writer, checksum_at, 0)
    flags: i64 = 0
    sequence: i64 = 0
    if udp:
        put_le(writer, ip_length + 4, 0)
    else:
        flags = i64(read[transport + 13])
        sequence = i64(read_i32_be(read, transport + 4)) & 0xFFFFFFFF
        put_le(writer, ip_length + 4, 0)
        put_le(writer, ip_length + 6, 0)
        writer[ip_length + 13] = u8(0)
    identity: i64 = 0
    if is_v4:
        identity = i64(read_i16_be(read, VNET_BYTES + 4)) & 0xFFFF
        put_le(writer, 2, 0)
        put_le(writer, 4, 0)
        put_le(writer, 10, 0)
    else:
        put_le(writer, 4, 0)
    blank = writer.getvalue()
    ip_sum: i64 = add(blank, 0, ip_length) if is_v4 else 0
    protocol: i64 = UDP if udp else TCP
    pseudo: i64 = add(blank, 12, 20) if is_v4 else add(blank, 8, 40)
    base: i64 = add(blank, ip_length, header) + pseudo + (protocol << 8)

    result: list[bytes] = []
    first = True
    while at < size:
        end: i64 = at + step
        if end > size:
            end = size
        length: i64 = header + end - at
        if is_v4:
            put_be(writer, 2, length)
            put_be(writer, 4, identity)
            put_le(writer, 10, (~fold(ip_sum + swap(length) + swap(identity))) & 0xFFFF)
            identity = (identity + 1) & 0xFFFF
        else:
            put_be(writer, 4, length - 40)
        inner: i64 = length - ip_length
        total: i64 = base + swap(inner) + add(read, at, end)
        if udp:
            put_be(writer, ip_length + 4, inner)
            total += swap(inner)
        else:
            high: i64 = (sequence >> 16) & 0xFFFF
            low: i64 = sequence & 0xFFFF
            put_be(writer, ip_length + 4, high)
            put_be(writer, ip_length + 6, low)
            now: i64 = flags
            if end < size:
                now = now & ~FIN_PSH
            if not first:
                now = now & ~CWR
            writer[ip_length + 13] = u8(now & 0xFF)
            total += swap(high) + swap(low) + (now << 8)
            sequence = (sequence + step) & 0xFFFFFFFF
        value: i64 = (~fold(total)) & 0xFFFF
        if value == 0 and udp:
            value = 0xFFFF
        put_le(writer, checksum_at, value)
        result.append(writer.getvalue() + read[at:end])
        first = False
        at = end
    return result
