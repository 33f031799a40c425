"""Put consecutive segments of a flow together again, so that the TUN takes up to 64 KiB in one write.

Items are kept in the order in which their first packet came, so the order within a flow is kept. A candidate is
merged only when its own checksum is right: a broken packet goes to the kernel alone, which drops it.

Ref: spec dataplane §2.5
"""

from __future__ import annotations

import os
from typing import Final, final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_le, write_i16_le
from mypy_extensions import i16, i64, mypyc_attr, u8

from gw.native.checksum import add, fold, put_be, put_le, swap
from gw.native.segment import GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CSUM, TCP, UDP

PLAIN: Final = bytes(10)  # virtio_net_hdr of a packet that needs nothing
MAX_ITEM: Final = 65535  # the largest IP packet: what the sender's kernel gave in one read fits
ACK: Final = 0x10
PSH: Final = 0x08


@final
@mypyc_attr(native_class=True)
class Item:
    """A super-packet being built: the first packet's headers and the payloads so far."""

    def __init__(self, packet: bytes, header: i64, ip_length: i64, length: i64, protocol: i64) -> None:
        self.packet: bytes = packet
        self.header: i64 = header  # bytes of IP and transport header; 0: not to be merged with
        self.ip_length: i64 = ip_length
        self.protocol: i64 = protocol
        self.step: i64 = length - header  # payload of each segment but the last
        self.total: i64 = length - header
        self.parts: list[bytes] = []
        self.sequence: i64 = 0  # the next one expected
        self.closed: bool = False
        self.push: i64 = 0
        self.verified: bool = False


@final
@mypyc_attr(native_class=True)
class Coalescer:
    """Packets of one batch, in; writes to the TUN, out."""

    def __init__(self, tun: int, merge_tcp: bool, merge_udp: bool) -> None:
        self.tun: int = tun
        self.merge_tcp: bool = merge_tcp
        self.merge_udp: bool = merge_udp
        self.items: list[Item] = []
        self.flows: dict[bytes, Item] = {}
        self.last: Item | None = None
        self.refused: int = 0  # writes that the kernel did not take

    def add(self, packet: bytes, length: i64) -> None:
        """packet: an IP packet of `length` bytes, perhaps padded behind."""
        version: i64 = i64(packet[0]) >> 4
        ip_length: i64 = 20
        protocol: i64 = 0
        if version == 4:
            # no options, no fragment
            if i64(packet[0]) == 0x45 and i64(read_i16_be(packet, 6)) & 0x3FFF == 0:
                protocol = i64(packet[9])
        else:
            ip_length = 40
            protocol = i64(packet[6])
        if protocol == TCP and self.merge_tcp and length > ip_length + 20:
            self._tcp(packet, length, ip_length)
        elif protocol == UDP and self.merge_udp and length > ip_length + 8:
            self._udp(packet, length, ip_length)
        else:
            self.items.append(Item(packet, 0, ip_length, length, protocol))

    def flush(self) -> None:
        """Write what is there."""
        items = self.items
        if not items:
            return
        for item in items:
            try:
                os.writev(self.tun, _pieces(item))
            except OSError:
                self.refused += 1
        self.items = []
        self.last = None
        if self.flows:
            self.flows = {}

    def _tcp(self, packet: bytes, length: i64, ip_length: i64) -> None:
        header: i64 = ip_length + (i64(packet[ip_length + 12]) >> 4) * 4
        flags: i64 = i64(packet[ip_length + 13])
        if header < ip_length + 20 or length <= header or flags & ~PSH != ACK:
            # what cannot be merged ends the merging of its flow, or it would be overtaken
            item = Item(packet, 0, ip_length, length, TCP)
            self.items.append(item)
            self.flows[_flow(packet, ip_length)] = item
            self.last = None
            return
        sequence: i64 = i64(read_i32_be(packet, ip_length + 4)) & 0xFFFFFFFF
        payload: i64 = length - header
        last = self.last
        found: Item | None = None
        if last is not None and _same_flow(last.packet, packet, ip_length, last.ip_length):
            found = last
        else:
            found = self.flows.get(_flow(packet, ip_length))
        if (
            found is not None
            and found.header == header
            and not found.closed
            and found.sequence == sequence
            and payload <= found.step
            and found.header + found.total + payload <= MAX_ITEM
            and _same_headers(found.packet, packet, ip_length)
            and read_i32_be(found.packet, ip_length + 8) == read_i32_be(packet, ip_length + 8)
            and _same_options(found.packet, packet, ip_length + 20, header)
            and _is_right(packet, length, ip_length, TCP)
            and self._head_is_right(found)
        ):
            found.parts.append(packet[header:length])
            found.total += payload
            found.sequence = (sequence + payload) & 0xFFFFFFFF
            if flags & PSH != 0 or payload < found.step:
                found.closed = True
                found.push = flags & PSH
            self.last = found
            return
        item = Item(packet, header, ip_length, length, TCP)
        item.sequence = (sequence + payload) & 0xFFFFFFFF
        item.closed = flags & PSH != 0
        self.items.append(item)
        self.flows[_flow(packet, ip_length)] = item
        self.last = item

    def _udp(self, packet: bytes, length: i64, ip_length: i64) -> None:
        header: i64 = ip_length + 8
        payload: i64 = length - header
        key = _flow(packet, ip_length)
        found = self.flows.get(key)
        if (
            found is not None
            and found.header == header
            and found.protocol == UDP
            and not found.closed
            and payload <= found.step
            and len(found.parts) < 63
            and found.header + found.total + payload <= MAX_ITEM
            and i64(read_i16_be(packet, ip_length + 6)) != 0
            and _same_headers(found.packet, packet, ip_length)
            and _is_right(packet, length, ip_length, UDP)
            and self._head_is_right(found)
        ):
            found.parts.append(packet[header:length])
            found.total += payload
            if payload < found.step:
                found.closed = True
            return
        item = Item(packet, header, ip_length, length, UDP)
        item.closed = i64(read_i16_be(packet, ip_length + 6)) == 0
        self.items.append(item)
        self.flows[key] = item

    def _head_is_right(self, item: Item) -> bool:
        if not item.verified:
            if not _is_right(item.packet, item.header + item.step, item.ip_length, item.protocol):
                item.closed = True
                return False
            item.verified = True
        return True


def _flow(packet: bytes, ip_length: i64) -> bytes:
    """Addresses and ports."""
    return packet[12:24] if ip_length == 20 else packet[8:44]


def _same_flow(a: bytes, b: bytes, ip_length: i64, other: i64) -> bool:
    if ip_length != other:
        return False
    if ip_length == 20:
        return read_i64_le(a, 12) == read_i64_le(b, 12) and read_i32_be(a, 20) == read_i32_be(b, 20)
    return (
        read_i64_le(a, 8) == read_i64_le(b, 8)
        and read_i64_le(a, 16) == read_i64_le(b, 16)
        and read_i64_le(a, 24) == read_i64_le(b, 24)
        and read_i64_le(a, 32) == read_i64_le(b, 32)
        and read_i32_be(a, 40) == read_i32_be(b, 40)
    )


def _same_options(a: bytes, b: bytes, at: i64, end: i64) -> bool:
    """TCP options agree; mostly there are none, or timestamps in twelve bytes."""
    if end - at == 12:
        return read_i64_le(a, at) == read_i64_le(b, at) and read_i32_be(a, at + 8) == read_i32_be(b, at + 8)
    return at == end or a[at:end] == b[at:end]


def _same_headers(a: bytes, b: bytes, ip_length: i64) -> bool:
    """TOS, TTL and DF agree (IPv6: traffic class, flow label, hop limit)."""
    if ip_length == 20:
        return read_i16_be(a, 0) == read_i16_be(b, 0) and read_i32_be(a, 6) == read_i32_be(b, 6)
    return read_i32_be(a, 0) == read_i32_be(b, 0) and read_i16_be(a, 6) == read_i16_be(b, 6)


def _is_right(packet: bytes, length: i64, ip_length: i64, protocol: i64) -> bool:
    """True where the transport checksum is right."""
    pseudo: i64 = add(packet, 12, 20) if ip_length == 20 else add(packet, 8, 40)
    return fold(add(packet, ip_length, length) + pseudo + (protocol << 8) + swap(length - ip_length)) == 0xFFFF


def _pieces(item: Item) -> list[bytes]:
    """What one item writes: virtio_net_hdr, headers, payloads."""
    if not item.parts:
        whole: i64 = item.header + item.total
        return [PLAIN, item.packet if len(item.packet) == whole else item.packet[:whole]]
    ip_length: i64 = item.ip_length
    length: i64 = item.header + item.total
    udp = item.protocol == UDP
    checksum_at: i64 = 6 if udp else 16
    kind: i64 = GSO_UDP
    if not udp:
        kind = GSO_TCP4 if ip_length == 20 else GSO_TCP6
    writer = BytesWriter()
    writer.append(u8(NEEDS_CSUM))
    writer.append(u8(kind))
    write_i16_le(writer, i16(item.header))
    write_i16_le(writer, i16(item.step))
    write_i16_le(writer, i16(ip_length))
    write_i16_le(writer, i16(checksum_at))
    writer.write(item.packet[: item.header])
    inner: i64 = length - ip_length
    pseudo: i64 = add(item.packet, 12, 20) if ip_length == 20 else add(item.packet, 8, 40)
    if ip_length == 20:
        put_be(writer, 12, length)
        put_le(writer, 20, 0)
        so_far = writer.getvalue()
        put_le(writer, 20, (~fold(add(so_far, 10, 30))) & 0xFFFF)
    else:
        put_be(writer, 14, length - 40)
    if udp:
        put_be(writer, 10 + ip_length + 4, inner)
    elif item.push != 0:
        writer[10 + ip_length + 13] = u8((ACK | PSH) & 0xFF)
    put_le(writer, 10 + ip_length + checksum_at, fold(pseudo + (item.protocol << 8) + swap(inner)))
    return [writer.getvalue(), item.packet[item.header : item.header + item.step], *item.parts]
