"""The two cores as wholes: any bytes from either side get a verdict, and what one seals the other opens."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from mmap import mmap

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.native import counters, flows, outbound
from gw.native.coalesce import Coalescer
from gw.native.filter import Filter
from gw.native.flows import FlowTable
from gw.native.inbound import MAX_REJECTED, Inbound
from gw.native.outbound import Outbound
from gw.native.prefixes import PrefixMap
from gw.native.quicpackets import encode_ack, seal_train
from gw.native.quicsealing import OpeningLine, SealingLine
from gw.native.rules import RuleSet
from gw.quic.protection import Secrets, keys_of
from gw.wire import cipher

KEY = bytes(range(32))
ONE, TWO = bytes([100, 64, 0, 1]), bytes([100, 64, 0, 2])
FOR_EVER = 1 << 62
SOURCE = ("192.0.2.1", 41641)


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.trains: list[int] = []  # datagrams in each send

    def sendmsg(self, pieces: list[bytes], ancillary: object, flags: int, to: object) -> None:
        self.trains.append(len(pieces) // 2)
        self.sent += [pieces[at] + pieces[at + 1] for at in range(0, len(pieces), 2)]


class Planes:
    """An outbound and an inbound core that share a keypair, a TUN that packets are put into, one they come out of."""

    def __init__(self, lane: int = 0, lanes: int = 1, kind: str = cipher.OPENSSL) -> None:
        made = cipher.named(kind)
        self.tun, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inside.setblocking(False)
        self._inside = inside
        self._memory = [mmap(-1, counters.SHARED_BYTES), mmap(-1, flows.SHARED_BYTES)]
        self.out_read, self._written = os.pipe2(os.O_NONBLOCK)
        table = FlowTable(self._memory[1])
        self.outbound = Outbound(inside.fileno(), self._memory[0], table, 1280, True)
        self.wire = Wire()
        rules, local = RuleSet(), PrefixMap()
        rules.add([1, 6, 17], [(False, bytes(4), b"\xff" * 4)], [(False, bytes(4), b"\xff" * 4, 0, 65535)])
        local.put(TWO, 32, 1)
        coalescer = Coalescer(self._written, True, True)
        self.inbound = Inbound(self._memory[0], Filter(rules, local, table), coalescer, lane, lanes)
        self.inbound.invalid_tag = made.refused
        self.outbound.numbered = self.inbound.numbered = made.numbered
        for core, address in ((self.outbound, TWO), (self.inbound, ONE)):
            core.add_peer(0)
            core.routes.put(address, 32, 0)
        self.outbound.set_plan(0, self.wire, SOURCE, False, False)
        self.outbound.set_session(0, 1, made.seal(KEY), 6, FOR_EVER)
        self.inbound.add_session(0, 6, made.unseal(KEY), FOR_EVER, False)

    def dropped(self, plane: int) -> tuple[int, ...]:
        """Packets dropped by a plane, by reason."""
        return struct.unpack_from(f"<{counters.REASONS}q", self._memory[0], counters.region_at(plane, 0))

    def close(self) -> None:
        for end in (self.tun, self._inside):
            end.close()
        for descriptor in (self.out_read, self._written):
            os.close(descriptor)
        for memory in self._memory:
            memory.close()


KINDS = sorted({cipher.OPENSSL, cipher.choose().name})


@pytest.fixture(scope="module", params=KINDS)
def planes(request: pytest.FixtureRequest) -> Iterator[Planes]:
    planes = Planes(kind=request.param)
    yield planes
    planes.close()


def datagram() -> st.SearchStrategy[bytes]:
    """Anything, or what begins as transport data of a session that is there."""
    head = st.tuples(
        st.sampled_from([b"\x04\0\0\0\x06\0\0\0", b"\x04\0\0\0", b"\x01\0\0\0", b"\0\0\x7a\x12\0\0\1\0\x04\0\0\0"]),
        st.binary(max_size=200),
    )
    return st.binary(max_size=300) | head.map(lambda each: each[0] + each[1])


@given(datagram(), st.integers(1, 400))
@settings(max_examples=300)
def test_any_datagram_is_handed_over_or_dropped(planes: Planes, data: bytes, step: int) -> None:
    planes.inbound.receive(data, step, SOURCE, time.monotonic_ns())
    planes.inbound.retry()
    planes.inbound.flush()
    assert planes.inbound.sessions[6].window.newest < 1 << 60
    planes.inbound.foreign.clear()
    planes.inbound.early.clear()


@given(st.binary(max_size=200), st.integers(0, 1 << 59))
@settings(max_examples=300)
def test_any_inner_packet_of_a_peer_gets_a_verdict(planes: Planes, packet: bytes, counter: int) -> None:
    """A peer may be hostile: what is sealed rightly can hold anything."""
    nonce = bytes(4) + counter.to_bytes(8, "little")
    sealed = ChaCha20Poly1305(KEY).encrypt(nonce, packet, None)
    data = b"\x04\0\0\0\x06\0\0\0" + nonce[4:] + sealed
    planes.inbound.receive(data, len(data), SOURCE, time.monotonic_ns())
    planes.inbound.flush()
    planes.inbound.tsmp.clear()


@given(st.binary(min_size=1, max_size=300), st.sampled_from([b"", b"\0" * 10, b"\1\1\x28\0\x10\0\x14\0\x10\0"]))
@settings(max_examples=300)
def test_any_read_of_the_tun_is_sealed_or_dropped(planes: Planes, data: bytes, head: bytes) -> None:
    planes.tun.send(head + data)
    planes.outbound.pump(1)
    planes.wire.sent.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_seals_the_other_delivers_once(kind: str) -> None:
    planes = Planes(kind=kind)
    try:
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        planes.tun.send(bytes(10) + packet)
        assert planes.outbound.pump(4) == 1
        assert len(planes.wire.sent) == 1
        for _ in range(2):
            planes.inbound.receive(planes.wire.sent[0], 1 << 16, SOURCE, time.monotonic_ns())
            planes.inbound.flush()
        assert os.read(planes.out_read, 4096) == bytes(10) + packet
        with pytest.raises(BlockingIOError):
            os.read(planes.out_read, 1)
        assert planes.inbound.peers[0].tally.packets == 1
    finally:
        planes.close()


@pytest.mark.parametrize("kind", KINDS)
def test_each_cipher_seals_as_wireguard_does(kind: str) -> None:
    """Counters past 2^63 as a reversed number too: 128 is one."""
    planes = Planes(kind=kind)
    try:
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        for counter in range(260):
            planes.tun.send(bytes(10) + packet)
            planes.outbound.pump(1)
            assert planes.wire.sent.pop() == sealed(packet + bytes(4), counter)
            planes.inbound.receive(sealed(packet, counter), 1 << 16, SOURCE, time.monotonic_ns())
        planes.inbound.flush()
        assert planes.inbound.peers[0].tally.packets == 260
        broken = bytearray(sealed(packet, 260))
        broken[-1] ^= 1
        planes.inbound.receive(bytes(broken), 1 << 16, SOURCE, time.monotonic_ns())
        assert planes.inbound.peers[0].tally.packets == 260
    finally:
        planes.close()


def sealed(packet: bytes, counter: int) -> bytes:
    nonce = bytes(4) + counter.to_bytes(8, "little")
    return b"\x04\0\0\0\x06\0\0\0" + nonce[4:] + ChaCha20Poly1305(KEY).encrypt(nonce, packet, None)


def tcp(flags: int, port: int = 22) -> bytes:
    body = (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(8) + b"\x50" + bytes([flags]) + bytes(6)
    return b"\x45\0\0\x28" + bytes(5) + b"\x06" + bytes(2) + ONE + TWO + body


def test_a_jailed_peer_may_answer_and_nothing_else() -> None:
    planes = Planes()
    try:
        packets = planes.inbound.peers[0].tally

        def arrives(flags: int, counter: int) -> bool:
            data = sealed(tcp(flags), counter)
            planes.inbound.receive(data, len(data), SOURCE, time.monotonic_ns())
            planes.inbound.flush()
            try:
                return bool(os.read(planes.out_read, 4096))
            except BlockingIOError:
                return False

        assert arrives(0x02, 1)
        planes.inbound.set_jailed(0, True)
        assert not arrives(0x02, 2)
        assert arrives(0x12, 3)
        planes.inbound.set_jailed(0, False)
        assert arrives(0x02, 4)
        assert packets.packets == 4
    finally:
        planes.close()


def test_who_is_refused_a_connection_is_told() -> None:
    planes = Planes()
    try:
        rules, local = RuleSet(), PrefixMap()
        local.put(TWO, 32, 1)
        planes.inbound.set_filter(Filter(rules, local, planes.inbound.filter.flows))
        for counter in range(40):
            data = sealed(tcp(0x02, 443), counter)
            planes.inbound.receive(data, len(data), SOURCE, time.monotonic_ns())
        assert planes.inbound.rejected == [(0, tcp(0x02, 443)[:24])] * MAX_REJECTED
    finally:
        planes.close()


def test_quic_goes_to_the_engine_by_the_train_and_all_else_one_by_one() -> None:
    """RFC 9443: told by the first byte; disco's first lies among QUIC's."""
    planes = Planes()
    try:
        disco = b"TS\xf0\x9f\x92\xac" + bytes(66)
        short, odd, long = b"\x43" + bytes(71), b"\x54\x11" + bytes(70), b"\xc3" + bytes(71)
        stun = b"\x01\x01\0\0" + bytes(68)
        planes.inbound.receive(short + odd + disco + long + stun + short[:30], 72, SOURCE, time.monotonic_ns())
        assert planes.inbound.quic == [(short + odd, 72, SOURCE), (long, 72, SOURCE), (short[:30], 72, SOURCE)]
        assert planes.inbound.foreign == [(disco, SOURCE), (stun, SOURCE)]
        planes.inbound.foreign.clear()
        assert planes.inbound.has_word()
    finally:
        planes.close()


def test_packets_that_came_without_a_relay_are_counted_copies_too() -> None:
    """What heartbeats tell the other side of: a probe sends each packet both ways."""
    planes = Planes()
    try:
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        for source in (None, SOURCE, SOURCE):
            data = sealed(packet, 5)
            planes.inbound.receive(data, len(data), source, time.monotonic_ns())
        planes.inbound.receive(sealed(b"", 6), 32, SOURCE, time.monotonic_ns())  # a keepalive says nothing
        assert planes.inbound.peers[0].tally.counter == 2
    finally:
        planes.close()


def test_what_a_udp_relay_carries_has_a_head_and_is_no_direct_path() -> None:
    planes = Planes()
    lead = b"\0\0\x7a\x12\0\0\5\0"
    try:
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        planes.outbound.set_plan(0, planes.wire, SOURCE, True, False, lead)
        for _ in range(3):
            planes.tun.send(bytes(10) + packet)
        planes.outbound.last_ns = time.monotonic_ns()  # busy: none leaves alone
        planes.outbound.pump(4)
        assert planes.wire.trains == [3]  # one train, and every datagram with its head
        sent = planes.wire.sent
        assert [each[:12] for each in sent] == [lead + b"\4\0\0\0"] * 3
        assert planes.outbound.relayed[0] == [each[8:] for each in sent]  # by DERP without it
        other = lead + b"\1\0\0\0" + bytes(len(sent[0]) - 12)  # a handshake message, which the engine looks at
        planes.inbound.receive(b"".join([*sent[:2], other, sent[2]]), len(sent[0]), SOURCE, time.monotonic_ns())
        planes.inbound.flush()
        assert planes.inbound.peers[0].tally.packets == 3
        assert planes.inbound.heard == [(0, None)]
        assert planes.inbound.foreign == [(other, SOURCE)]
        assert planes.inbound.peers[0].tally.counter == 0  # of those that came directly
        for bad in (b"\0\x80" + lead[2:], lead[:7] + b"\1", b"\0\0\x7a\x11\0\0\5\0"):
            planes.inbound.receive(bad + sent[0][8:], 1 << 16, SOURCE, time.monotonic_ns())
        assert len(planes.inbound.foreign) == 4
        assert planes.inbound.peers[0].tally.packets == 3
    finally:
        planes.close()


def test_a_session_of_another_lane_is_handed_over() -> None:
    """The kernel steers a whole train by its first datagram."""
    planes = Planes(lane=0, lanes=2)
    try:
        ours = b"\x04\0\0\0\x08\0\0\0" + bytes(40)
        other = b"\x04\0\0\0\x09\0\0\0" + bytes(40)
        planes.inbound.receive(ours + other, 48, SOURCE, time.monotonic_ns())
        assert planes.inbound.early == [(ours, SOURCE)]
        assert planes.inbound.foreign == [(other, SOURCE)]
    finally:
        planes.close()


def echo(size: int = 28) -> bytes:
    return b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(size - 22)


def super_packet(segments: int) -> bytes:
    """What a read of the TUN brings of a TCP flow: so many segments of 1,240 bytes."""
    size = 40 + 1240 * segments
    ip = b"\x45\0" + size.to_bytes(2, "big") + b"\0\0\x40\0\x40\x06\0\0" + ONE + TWO
    tcp = b"\x13\x89\x14\x51" + bytes(8) + b"\x50\x10\x02\0" + bytes(4)
    return b"\1\1\x28\0\xd8\x04\x14\0\x10\0" + ip + tcp + bytes(1240 * segments)


@pytest.fixture
def busy() -> Iterator[Planes]:
    """Planes whose TUN was read just now: more may be there."""
    planes = Planes()
    planes.outbound.last_ns = planes.inbound.last_ns = time.monotonic_ns() + 10**12
    yield planes
    planes.close()


def test_bulk_of_several_reads_leaves_in_full_trains(busy: Planes) -> None:
    """52 segments a read, 49 in a train: what is left goes with the next read's."""
    for _ in range(3):
        busy.tun.send(super_packet(52))
    assert busy.outbound.pump(16) == 3
    assert busy.wire.trains == [49, 49, 49, 9]
    counters_ = [int.from_bytes(each[8:16], "little") for each in busy.wire.sent]
    assert counters_ == list(range(156))


def test_small_packets_leave_together_and_before_bulk(busy: Planes) -> None:
    for packet in (echo(), echo(), echo()):
        busy.tun.send(bytes(10) + packet)
    busy.tun.send(super_packet(10))
    busy.tun.send(bytes(10) + echo())
    assert busy.outbound.pump(16) == 5
    assert busy.wire.trains == [3, 11]  # a train may end with a shorter datagram
    assert [len(each) for each in busy.wire.sent] == [64] * 3 + [1312] * 10 + [64]


def test_without_gso_nothing_waits(busy: Planes) -> None:
    busy.outbound.gso = False
    busy.tun.send(bytes(10) + echo())
    busy.tun.send(super_packet(3))
    assert busy.outbound.pump(16) == 2
    assert busy.wire.trains == [1] * 4


def test_a_lone_packet_leaves_before_the_tun_is_read_again() -> None:
    planes = Planes()
    try:
        for _ in range(2):
            planes.tun.send(bytes(10) + echo())
        assert planes.outbound.pump(16) == 1
        assert planes.wire.trains == [1]
        assert planes.outbound.pump(16) == 1  # there was one right before: this looks for more
    finally:
        planes.close()


def test_a_packet_without_a_way_is_counted_as_dropped_not_as_sent(busy: Planes) -> None:
    busy.outbound.set_plan(0, None, None, False, True)
    busy.tun.send(bytes(10) + echo())
    busy.outbound.pump(16)
    assert busy.outbound.peers[0].tally.packets == 0
    assert busy.dropped(counters.OUTBOUND)[counters.DROP_UNREACHABLE] == 1
    assert busy.outbound.notes[0][0] == outbound.WAKE


class QuicWire(Wire):
    def sendmsg(self, pieces: list[bytes], ancillary: object, flags: int, to: object) -> None:
        self.trains.append(len(pieces))
        self.sent += pieces


def quic_lines(wire: Wire, limit: int = 1315) -> tuple[SealingLine, OpeningLine]:
    """Both ends of a QUIC connection, number 7, with one worker each."""
    cid = b"\x99" * 8
    secrets = Secrets(0x1301, bytes(range(16)), bytes(12), bytes(range(16, 32)), 0)
    sealing = SealingLine(7, keys_of(secrets, sealing=True), cid, wire, ("192.0.2.2", 41641), limit)
    return sealing, OpeningLine(0, 7, keys_of(secrets, sealing=False), [cid], 0)


def test_bulk_goes_inside_quic_by_numbers_that_were_given_and_waits_for_more() -> None:
    planes = Planes()
    try:
        wire = QuicWire()
        sealing, opening = quic_lines(wire)
        told: list[tuple[int, int, list[int]]] = []
        before_leaving: list[int] = []

        def report(line: int, first: int, sizes: list[int], now_ns: int) -> bool:
            told.append((line, first, sizes))
            before_leaving.append(len(wire.sent))
            return True

        planes.outbound.report = report
        planes.outbound.set_plan(0, None, None, True, False, quic=True)
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        planes.tun.send(bytes(10) + packet)
        planes.outbound.pump(1)
        assert [len(each) for each in planes.outbound.relayed[0]] == [64]  # the engine's, as long as there is no line
        planes.outbound.relayed.clear()
        planes.outbound.set_line(0, 7, sealing)
        for _ in range(5):
            planes.tun.send(bytes(10) + packet)
        while planes.outbound.pump(8):
            pass
        assert told[-1] == (7, 0, [])  # there are no numbers
        assert not wire.sent
        planes.outbound.give_numbers(0, 7, 40, 43, True, 1 << 20)
        assert told[1] == (7, 40, [95] * 3)
        assert before_leaving[1] == 0
        assert len(sealing.waiting) == 2
        planes.outbound.give_numbers(0, 8, 50, 60, True, 1 << 20)  # of another connection
        assert len(sealing.waiting) == 2
        planes.outbound.give_numbers(0, 7, 50, 60, True, 1 << 20)
        assert sealing.ranges == [52, 60]
        assert not planes.outbound.relayed
        planes.inbound.set_line(0, 7, opening)
        for data in wire.sent:
            planes.inbound.receive(data, 95, SOURCE, time.monotonic_ns())
            planes.inbound.receive(data, 95, SOURCE, time.monotonic_ns())  # once more: it is dropped
        planes.inbound.flush()
        assert os.read(planes.out_read, 4096).count(packet) == 5
        assert planes.inbound.opened == [opening]
        assert opening.count == 5
        assert opening.runs == [40, 43, 50, 52]
        assert not opening.frames
        assert not planes.inbound.quic
    finally:
        planes.close()


def test_what_waits_for_numbers_is_bounded_and_goes_to_the_engine_when_the_connection_ends() -> None:
    planes = Planes()
    try:
        sealing, _ = quic_lines(QuicWire())
        planes.outbound.report = lambda line, first, sizes, now_ns: True
        planes.outbound.set_plan(0, None, None, True, False, quic=True)
        planes.outbound.set_line(0, 7, sealing)
        sealing.give(0, 0, True, 1000)
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        for _ in range(40):
            planes.tun.send(bytes(10) + packet)
        while planes.outbound.pump(64):
            pass
        assert sum(map(len, sealing.waiting)) <= 1000
        assert planes.dropped(counters.OUTBOUND)[counters.DROP_QUEUE_FULL] == 40 - len(sealing.waiting)
        waiting = [frame[2:] for frame in sealing.waiting]
        planes.outbound.set_line(0, 7, None)
        assert planes.outbound.relayed == {0: waiting}
    finally:
        planes.close()


def test_what_is_not_told_does_not_leave_and_its_numbers_are_gone() -> None:
    """The congestion window would not know of it."""
    planes = Planes()
    try:
        wire = QuicWire()
        sealing, _ = quic_lines(wire)
        planes.outbound.report = lambda line, first, sizes, now_ns: False
        planes.outbound.set_plan(0, None, None, True, False, quic=True)
        planes.outbound.set_line(0, 7, sealing)
        planes.outbound.give_numbers(0, 7, 0, 10, True, 1 << 20)
        packet = b"\x45\0\0\x1c\0\0\0\0\x40\x01\0\0" + ONE + TWO + b"\x08\0" + bytes(6)
        planes.tun.send(bytes(10) + packet)
        planes.outbound.pump(1)
        assert not wire.sent
        assert sealing.ranges == [1, 10]
    finally:
        planes.close()


@given(st.binary(min_size=1, max_size=300), st.integers(1, 400))
@settings(max_examples=200)
def test_any_packet_of_a_connection_is_opened_or_the_engines(planes: Planes, data: bytes, step: int) -> None:
    _, opening = quic_lines(QuicWire())
    planes.inbound.set_line(0, 7, opening)
    train = b"\x40" + b"\x99" * 8 + data
    planes.inbound.receive(train, step, SOURCE, time.monotonic_ns())
    planes.inbound.flush()
    assert opening.count == 0
    planes.inbound.quic.clear()
    planes.inbound.foreign.clear()
    planes.inbound.early.clear()
    planes.inbound.set_line(0, 7, None)
    assert not planes.inbound.lines


def test_what_is_no_bulk_goes_to_the_engine_opened() -> None:
    planes = Planes()
    try:
        sealing, opening = quic_lines(QuicWire())
        planes.inbound.set_line(0, 7, opening)
        frames = [b"0\x12" + bytes(16), b"0\x10\x01\0\0\0" + bytes(144), encode_ack([3, 9], 100)]
        for number, frame in enumerate(frames):
            ((data, size),), _ = seal_train(sealing.keys, sealing.cid, number, [frame])
            planes.inbound.receive(data, size, SOURCE, time.monotonic_ns())
        assert planes.inbound.has_word()
        assert opening.frames == frames[:2]
        assert opening.acks == [[100, 3, 9]]
        assert opening.source == SOURCE
    finally:
        planes.close()


def test_what_may_have_come_before_is_left_to_the_engine_which_knows() -> None:
    """A worker that was started anew would open old packets again."""
    planes = Planes()
    try:
        sealing, _ = quic_lines(QuicWire())
        _, fresh = quic_lines(QuicWire())
        opening = OpeningLine(0, 7, fresh.keys, list(fresh.cids), 100)
        planes.inbound.set_line(0, 7, opening)
        for number in (50, 99, 100):
            ((data, size),), _ = seal_train(sealing.keys, sealing.cid, number, [b"0\x12" + bytes(16)])
            planes.inbound.receive(data, size, SOURCE, time.monotonic_ns())
        assert opening.runs == [100, 101]
        assert len(planes.inbound.quic) == 2
    finally:
        planes.close()


def test_a_peer_that_goes_takes_its_connection_along() -> None:
    planes = Planes()
    try:
        _, opening = quic_lines(QuicWire())
        planes.inbound.set_line(0, 7, opening)
        planes.inbound.opened.append(opening)
        planes.inbound.remove_peer(0)
        assert not planes.inbound.lines
        assert not planes.inbound.opened
    finally:
        planes.close()


def test_the_end_of_a_connection_does_not_end_the_next() -> None:
    planes = Planes()
    try:
        sealing, _ = quic_lines(QuicWire())
        planes.outbound.set_line(0, 7, sealing)
        planes.outbound.set_line(0, 6, None)
        assert planes.outbound.peers[0].line is sealing
        planes.outbound.set_line(0, 7, None)
        assert planes.outbound.peers[0].line is None
    finally:
        planes.close()
