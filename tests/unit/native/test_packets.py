"""Cutting what the kernel hands over, and putting it together again: one is the inverse of the other."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.native.checksum import add, fold
from gw.native.coalesce import Coalescer
from gw.native.segment import GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CSUM, packets

V4 = (bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2]))
V6 = (bytes(range(16)), bytes(range(16, 32)))


def plain_sum(data: bytes) -> int:
    """The textbook's checksum, for comparison."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return source + destination + struct.pack(">HH", protocol, length)


def super_packet(v6: bool, udp: bool, payload: bytes, step: int, *, flags: int = 0x18, options: bytes = b"") -> bytes:
    """One read of the TUN, as Linux writes it: partial checksum, whole lengths."""
    source, destination = V6 if v6 else V4
    protocol = 17 if udp else 6
    if udp:
        transport = struct.pack(">HHHH", 1000, 2000, 8 + len(payload), 0)
    else:
        offset = (20 + len(options)) // 4 << 4
        transport = struct.pack(">HHIIBBHHH", 1000, 2000, 0xFFFFFF00, 7, offset, flags, 512, 0, 0) + options
    inner = len(transport) + len(payload)
    partial = plain_sum(pseudo(source, destination, protocol, inner)).to_bytes(2, "big")
    at = 6 if udp else 16
    transport = transport[:at] + partial + transport[at + 2 :]
    if v6:
        header = struct.pack(">IHBB", 6 << 28, inner, protocol, 64) + source + destination
    else:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + inner, 0xFFFE, 0x4000, 64, protocol, 0) + source + destination
        header = header[:10] + (0xFFFF ^ plain_sum(header)).to_bytes(2, "big") + header[12:]
    gso = GSO_NONE if len(payload) <= step else GSO_UDP if udp else GSO_TCP6 if v6 else GSO_TCP4
    vnet = struct.pack("<BBHHHH", NEEDS_CSUM, gso, 0, step if gso else 0, len(header), at)
    return vnet + header + transport + payload


def check(packet: bytes) -> None:
    """Lengths and checksums hold."""
    v6 = packet[0] >> 4 == 6
    if v6:
        header, protocol, addresses = 40, packet[6], packet[8:40]
        assert struct.unpack_from(">H", packet, 4)[0] == len(packet) - 40
    else:
        header, protocol, addresses = 20, packet[9], packet[12:20]
        assert struct.unpack_from(">H", packet, 2)[0] == len(packet)
        assert plain_sum(packet[:20]) == 0xFFFF
    inner = packet[header:]
    assert plain_sum(addresses + struct.pack(">HH", protocol, len(inner)) + inner) == 0xFFFF
    if protocol == 17:
        assert struct.unpack_from(">H", inner, 4)[0] == len(inner)


def payload_of(packet: bytes) -> bytes:
    header = 40 if packet[0] >> 4 == 6 else 20
    if packet[6 if header == 40 else 9] == 17:
        return packet[header + 8 :]
    return packet[header + (packet[header + 12] >> 4) * 4 :]


class Tun:
    """A seqpacket socket in place of the device: one write, one message."""

    def __init__(self) -> None:
        import socket

        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        for end in (self.ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def writes(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.theirs.recv(1 << 17))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def tun() -> Iterator[Tun]:
    tun = Tun()
    yield tun
    tun.close()


@given(st.binary(max_size=4000), st.integers(0, 8))
def test_the_sum_is_the_textbooks(data: bytes, start: int) -> None:
    start = min(start, len(data)) & ~1
    expected = plain_sum(data[start:])
    assert fold(add(data, start, len(data))) == int.from_bytes(expected.to_bytes(2, "big"), "little")


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [1, 99, 100, 101, 1000, 1001])
def test_every_packet_of_a_super_packet_is_whole(v6: bool, udp: bool, size: int) -> None:
    payload = os.urandom(size)
    found = packets(super_packet(v6, udp, payload, 100))
    for packet in found:
        check(packet)
    assert b"".join(payload_of(packet) for packet in found) == payload
    assert [len(payload_of(packet)) for packet in found[:-1]] == [100] * (len(found) - 1)


def test_push_stands_only_on_the_last_packet_and_sequence_numbers_wrap() -> None:
    found = packets(super_packet(False, False, bytes(1000), 400))
    assert [packet[33] for packet in found] == [0x10, 0x10, 0x18]
    assert [struct.unpack_from(">I", packet, 24)[0] for packet in found] == [0xFFFFFF00, 0x90, 0x220]
    assert [struct.unpack_from(">H", packet, 4)[0] for packet in found] == [0xFFFE, 0xFFFF, 0]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("options", [b"", b"\1\1\x08\x0a" + bytes(8)])
def test_coalescing_undoes_the_cutting(tun: Tun, v6: bool, udp: bool, options: bytes) -> None:
    payload = os.urandom(20_050)
    read = super_packet(v6, udp, payload, 1000, options=options)
    coalescer = Coalescer(tun.ours.fileno(), True, True)
    cut = packets(read)
    for packet in cut:
        coalescer.add(packet + bytes(7), len(packet))  # padded, as the cipher leaves it
    coalescer.flush()
    (written,) = tun.writes()
    vnet = struct.unpack_from("<BBHHHH", written)
    ip_length = 40 if v6 else 20
    header = ip_length + (8 if udp else 20 + len(options))
    kind = GSO_UDP if udp else GSO_TCP6 if v6 else GSO_TCP4
    assert vnet == (NEEDS_CSUM, kind, header, 1000, ip_length, 6 if udp else 16)
    # the kernel cuts it again: the same packets come out
    assert packets(written) == cut


def test_two_flows_side_by_side_are_kept_apart(tun: Tun) -> None:
    one = packets(super_packet(False, False, b"a" * 3000, 1000))
    other = [
        packet[:20] + b"\x12\x34" + packet[22:] for packet in packets(super_packet(False, False, b"b" * 3000, 1000))
    ]
    fixed = []
    for packet in other:  # another port needs another checksum
        inner = packet[20:36] + b"\0\0" + packet[38:]
        total = plain_sum(packet[12:20] + struct.pack(">HH", 6, len(inner)) + inner)
        fixed.append(packet[:36] + (0xFFFF ^ total).to_bytes(2, "big") + packet[38:])
    coalescer = Coalescer(tun.ours.fileno(), True, True)
    for a, b in zip(one, fixed, strict=True):
        coalescer.add(a, len(a))
        coalescer.add(b, len(b))
    coalescer.flush()
    writes = tun.writes()
    assert len(writes) == 2
    assert [packets(write) for write in writes] == [one, fixed]


def test_a_broken_checksum_is_never_merged(tun: Tun) -> None:
    cut = packets(super_packet(False, False, b"a" * 4000, 1000))
    broken = cut[2][:-1] + bytes([cut[2][-1] ^ 1])
    coalescer = Coalescer(tun.ours.fileno(), True, True)
    for packet in (cut[0], cut[1], broken, cut[3]):
        coalescer.add(packet, len(packet))
    coalescer.flush()
    writes = tun.writes()
    assert packets(writes[0]) == cut[:2]
    assert writes[1][10:] == broken


def test_order_within_a_flow_is_kept_over_a_packet_that_cannot_be_merged(tun: Tun) -> None:
    cut = packets(super_packet(False, False, b"a" * 3000, 1000))
    syn = packets(super_packet(False, False, b"x", 1000, flags=0x02))[0]
    coalescer = Coalescer(tun.ours.fileno(), True, True)
    for packet in (cut[0], syn, cut[1], cut[2]):
        coalescer.add(packet, len(packet))
    coalescer.flush()
    seen = [packet for write in tun.writes() for packet in packets(write)]
    assert seen == [cut[0], syn, cut[1], cut[2]]


def test_without_offload_every_packet_is_written_alone(tun: Tun) -> None:
    cut = packets(super_packet(False, False, b"a" * 3000, 1000))
    coalescer = Coalescer(tun.ours.fileno(), False, False)
    for packet in cut:
        coalescer.add(packet, len(packet))
    coalescer.flush()
    assert [write[10:] for write in tun.writes()] == cut


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_any_read_gives_packets_or_nothing(data: bytes, shaped: bool) -> None:
    if shaped and len(data) > 10:
        data = bytes([data[0] & 1, (0, 1, 4, 5)[data[1] & 3]]) + data[2:10] + bytes([0x45]) + data[11:]
    for packet in packets(data):
        assert isinstance(packet, bytes)


@settings(max_examples=300)
@given(st.lists(st.binary(min_size=20, max_size=120), max_size=8), st.sampled_from([0x45, 0x60, 0x4F, 0x00]))
def test_any_packets_are_written_whole_and_in_order_of_flow(found: list[bytes], first: int) -> None:
    tun = Tun()
    coalescer = Coalescer(tun.ours.fileno(), True, True)
    shaped = [bytes([first]) + packet[1:] for packet in found if first != 0x60 or len(packet) >= 40]
    for packet in shaped:
        coalescer.add(packet, len(packet))
    coalescer.flush()
    assert sum(len(write) for write in tun.writes()) >= sum(len(packet) for packet in shaped[:1])
    tun.close()
