"""The outbound packet worker's core: TUN -> which peer -> seal -> UDP, or to the engine for the relay.

The core does only packets. What concerns the engine it leaves in `notes` and `relayed`, which the process around it
(`gw.engine.outbound`) sends on after each round.

Several workers ("sealers") may seal with one keypair, each with counters of its own: every lane has 64 in turn, of
which the last 4 are its inbound worker's where that may seal too.

    lane 0 of 2    0 .. 59         128 .. 187         outbound worker
                   60 .. 63        188 .. 191         inbound worker, which has little to send
    lane 1 of 2    64 .. 123       192 .. 251         outbound worker
                   124 .. 127      252 .. 255         inbound worker

So no two ever share a counter, without a word between them. A sealer that has fallen behind the others by more than
MAX_LAG jumps ahead to counters of its own near the newest: all stay within the receiver's replay window.
"""

from __future__ import annotations

import os
import select
import struct
import time
from mmap import mmap
from typing import Any, Final, final

from librt.strings import BytesWriter, read_i64_be, write_i32_le, write_i64_le
from mypy_extensions import i32, i64, mypyc_attr

from gw.native.counters import (
    DROP_LINK_LOCAL,
    DROP_MALFORMED,
    DROP_MULTICAST,
    DROP_NO_ROUTE,
    DROP_QUEUE_FULL,
    DROP_SEND,
    DROP_UNREACHABLE,
    OUTBOUND,
    PROGRESS_AT,
    Drops,
    Tally,
    block_at,
    region_at,
)
from gw.native.flows import FlowTable, answer_key
from gw.native.prefixes import NOBODY, PrefixMap
from gw.native.quicpackets import seal_train
from gw.native.quicsealing import MESSAGE, SealingLine
from gw.native.segment import packets

READ_BYTES: Final = 65546  # ten bytes of virtio_net_hdr and the largest IP packet
MAX_STAGED: Final = 128
MAX_SEGMENTS: Final = 64
MAX_TRAIN: Final = 65000
QUIC_BATCH: Final = 48  # packets sealed at a time
QUIET_NS: Final = 100_000  # a packet that comes this long after the one before is alone
LARGE: Final = 2048  # bytes of a read that takes so long to seal that what is small leaves before
MAX_COUNTER: Final = 1 << 60
BLOCK: Final = 64  # counters of a lane in turn
CALM_BLOCK: Final = 4  # of them its inbound worker's
MAX_LAG: Final = 1024  # of 8128 that a receiver's replay window has
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
SECOND_NS: Final = 1_000_000_000
ACTIVE_NOTE_NS: Final = 5_000_000_000
EIO: Final = 5
UDP: Final = 17
SCTP: Final = 132
TSMP: Final = 99
_SIZE: Final = struct.Struct("H")
_PROGRESS: Final = struct.Struct("<2q")

# Notes to the engine
NEED_SESSION: Final = 1
ACTIVE: Final = 2
WAKE: Final = 3
SEND_FAILED: Final = 4
CONFIRMED: Final = 5
NO_TRAINS: Final = 6  # the device does not cut trains

PAD: Final = [bytes(i) for i in range(16)]
TWO_64: Final = 1 << 64
HEAD: Final = 28  # a transport header of 16 bytes and a nonce of 12


@final
@mypyc_attr(native_class=True)
class OutPeer:
    """How to reach one peer. `seal` is the bound `encrypt` of its key, None without a session."""

    def __init__(self, slot: int, tally: Tally) -> None:
        self.slot: int = slot
        self.tally: Tally = tally
        self.seal: Any = None
        self.session: int = 0
        self.remote_index: i64 = 0
        self.counter: i64 = 0  # the next one
        self.block_end: i64 = MAX_COUNTER  # where this sealer's block of counters ends
        self.expires_ns: i64 = 0
        self.socket: Any = None
        self.address: Any = None
        self.trains: bool = True  # False where the path's MTU is too small for the kernel to cut trains
        self.lead: bytes = b""  # before each datagram to `address`
        self.relay: bool = False
        self.quic: bool = False  # inside QUIC and nowhere else
        self.line: SealingLine | None = None  # by which we do that; without it the engine does
        self.wake: bool = False
        self.staged: list[bytes] = []
        self.pieces: list[bytes] = []  # sealed in this round and not yet sent: header, body, header, body
        self.wanted_ns: i64 = 0
        self.noted_ns: i64 = 0
        self.failed_ns: i64 = 0


@final
@mypyc_attr(native_class=True)
class Outbound:
    """All peers of the tunnel, seen from the TUN."""

    def __init__(
        self,
        tun: int,
        shared: mmap,
        flows: FlowTable,
        mtu: int,
        gso: bool,
        lanes: int = 1,
        sealer: int = 0,
        sealers: int = 1,
    ) -> None:
        """sealer: which of the `sealers` workers that share keypairs this is: below `lanes` the outbound worker of that
        lane, else the inbound one of lane `sealer - lanes`."""
        self.sealers: i64 = sealers
        self.period: i64 = lanes * BLOCK
        self.first: i64 = (sealer % lanes) * BLOCK  # counter of this sealer in each period
        self.block: i64 = BLOCK  # how many there it has
        if sealers > lanes:
            self.block = CALM_BLOCK if sealer >= lanes else BLOCK - CALM_BLOCK
            if sealer >= lanes:
                self.first += BLOCK - CALM_BLOCK
        self.region: int = region_at(OUTBOUND, sealer)
        self.others: list[int] = [region_at(OUTBOUND, other) for other in range(sealers) if other != sealer]
        self.tun: int = tun
        self.shared: mmap = shared
        self.flows: FlowTable = flows
        self.mtu: i64 = mtu
        self.gso: bool = gso
        self.numbered: bool = False  # `seal` takes the counter, its bytes reversed, instead of a nonce
        self.drops: Drops = Drops(shared, self.region)
        self.routes: PrefixMap = PrefixMap()
        self.peers: dict[int, OutPeer] = {}
        self.notes: list[tuple[int, int, int]] = []  # what, slot, detail
        self.relayed: dict[int, list[bytes]] = {}
        self.departing: list[OutPeer] = []  # those with pieces
        self.boarding: list[OutPeer] = []  # those with frames for their line
        self.report: Any = None  # (line, first, sizes, now_ns) → whether the engine knows of these QUIC packets
        self.last_ns: i64 = 0  # when the TUN was last read
        self.bulk: bool = False  # that brought a super-packet, or as many packets as it might

    # What the engine says

    def add_peer(self, slot: int) -> None:
        if slot not in self.peers:
            self.peers[slot] = OutPeer(slot, Tally(self.shared, block_at(self.region, slot)))

    def remove_peer(self, slot: int) -> None:
        peer = self.peers.pop(slot, None)
        if peer is not None:
            peer.tally.clear()
        self.relayed.pop(slot, None)

    def set_plan(
        self, slot: int, sock: Any, address: Any, relay: bool, wake: bool, lead: bytes = b"", quic: bool = False
    ) -> None:
        """lead: stands before each datagram to `address`. quic: where `relay` means inside QUIC and nowhere else."""
        peer = self.peers.get(slot)
        if peer is not None:
            peer.socket = sock
            if address != peer.address:
                peer.trains = True
            peer.address = address
            peer.relay = relay
            peer.wake = wake
            peer.lead = lead
            peer.quic = quic

    def set_line(self, slot: int, number: int, line: SealingLine | None) -> None:
        """Seal for this QUIC connection from now on; None: for the one of this number no more. What waits goes on
        waiting, or goes to the engine."""
        peer = self.peers.get(slot)
        if peer is None:
            return
        before = peer.line
        if line is None and before is not None and before.number != number:
            return  # another has come since
        peer.line = line
        if before is None or not before.waiting:
            return
        frames = before.next(len(before.waiting))
        if line is not None:
            for frame in frames:
                line.put(frame)
        else:
            self._relay(peer, [frame[len(MESSAGE) :] for frame in frames])

    def give_numbers(self, slot: int, number: int, first: int, stop: int, fresh: bool, room: int) -> None:
        """Packet numbers for a connection: what waited for them goes out."""
        peer = self.peers.get(slot)
        line = peer.line if peer is not None else None
        if peer is not None and line is not None and line.number == number:
            line.give(first, stop, fresh, room)
            if line.waiting:
                self._board(peer, line, time.monotonic_ns())

    def set_session(self, slot: int, session: int, seal: Any, remote_index: int, expires_ns: int) -> None:
        """Send with this keypair from now on, from the sealer's first counter; what waited for it goes out."""
        peer = self.peers.get(slot)
        if peer is None:
            return
        peer.session = session
        peer.seal = seal
        peer.remote_index = remote_index
        peer.counter = self.first
        peer.block_end = peer.counter + self.block if self.sealers > 1 else MAX_COUNTER
        peer.expires_ns = expires_ns
        peer.wanted_ns = 0
        if peer.staged:
            waiting = peer.staged
            peer.staged = []
            now_ns: i64 = time.monotonic_ns()
            self._send(peer, waiting, True, now_ns)
            self._depart(now_ns)

    def end_session(self, slot: int, session: int) -> None:
        peer = self.peers.get(slot)
        if peer is not None and peer.session == session:
            peer.seal = None

    def drop_staged(self, slot: int) -> None:
        peer = self.peers.get(slot)
        if peer is not None and peer.staged:
            self._drop(peer, DROP_UNREACHABLE, len(peer.staged))
            peer.staged = []

    def keepalive(self, slot: int) -> None:
        peer = self.peers.get(slot)
        if peer is not None and peer.seal is not None:
            now_ns: i64 = time.monotonic_ns()
            self._send(peer, [b""], False, now_ns)
            self._depart(now_ns)

    def inject(self, slot: int, packet: bytes) -> None:
        """Send one inner packet of the engine's own (TSMP)."""
        peer = self.peers.get(slot)
        if peer is not None:
            now_ns: i64 = time.monotonic_ns()
            self._send(peer, [packet], True, now_ns)
            self._depart(now_ns)

    # Packets

    def pump(self, rounds: int) -> int:
        """Read the TUN until it is empty, at most `rounds` times; returns how many reads brought something.

        Packets of several reads leave as one train where they can. None waits for more than is there already, and
        small ones do not wait for large reads. One that comes alone leaves before there is a look for the next: the
        answer that there is none takes as long as all the rest.
        """
        done = 0
        now_ns: i64 = 0
        self.bulk = False
        while done < rounds:
            try:
                read: bytes = os.read(self.tun, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                break  # the interface is down
            done += 1
            now_ns = time.monotonic_ns()
            if len(read) > LARGE:
                self.bulk = True
                if self.departing:
                    self._depart_small(now_ns)
            found = packets(read)
            if not found:
                self.drops.add(DROP_MALFORMED)
                continue
            self._route(found, now_ns)
            if done == 1 and now_ns - self.last_ns > QUIET_NS and len(read) <= LARGE:
                break
        if done > 0:
            self.last_ns = now_ns
        if done == rounds:
            self.bulk = True
        if self.departing or self.boarding:
            self._depart(now_ns)
        return done

    def has_word(self) -> bool:
        """True where the engine is to be told something."""
        return len(self.notes) > 0 or len(self.relayed) > 0

    def _route(self, found: list[bytes], now_ns: i64) -> None:
        """Packets of one read: one flow, so one destination."""
        first = found[0]
        size: i64 = len(first)
        version: i64 = i64(first[0]) >> 4
        slot: i64 = NOBODY
        protocol: i64 = 0
        ip_length: i64 = 20
        if version == 4 and size >= 20:
            ip_length = (i64(first[0]) & 15) * 4
            protocol = i64(first[9])
            if i64(first[16]) & 0xF0 == 0xE0 or i64(first[16]) == 255:
                self.drops.add(DROP_MULTICAST)
                return
            slot = self.routes.find4(first, 16)
        elif version == 6 and size >= 40:
            ip_length = 40
            protocol = i64(first[6])
            if i64(first[24]) == 0xFF:
                self.drops.add(DROP_MULTICAST)
                return
            if i64(first[24]) == 0xFE and i64(first[25]) & 0xC0 == 0x80:
                self.drops.add(DROP_LINK_LOCAL)
                return
            slot = self.routes.find6(first, 24)
        else:
            self.drops.add(DROP_MALFORMED)
            return
        peer = self.peers.get(int(slot)) if slot != NOBODY else None
        if peer is None or protocol == TSMP:
            self.drops.add(DROP_NO_ROUTE, len(found))
            return
        if (protocol == UDP or protocol == SCTP) and size >= ip_length + 8:
            self.flows.note(answer_key(first, ip_length, protocol), now_ns)
        self._send(peer, found, True, now_ns)

    def _send(self, peer: OutPeer, found: list[bytes], data: bool, now_ns: i64) -> None:
        if data:
            if peer.wake:
                peer.wake = False
                self.notes.append((WAKE, peer.slot, 0))
            if now_ns - peer.noted_ns > ACTIVE_NOTE_NS:
                peer.noted_ns = now_ns
                self.notes.append((ACTIVE, peer.slot, 0))
        seal = peer.seal
        if seal is None or now_ns >= peer.expires_ns or peer.counter >= MAX_COUNTER:
            if data:
                self._stage(peer, found, now_ns)
            return
        if peer.address is None and not peer.relay:  # no way to it is known; the engine was woken to look for one
            if data:
                self._drop(peer, DROP_UNREACHABLE, len(found))
            return
        if self.sealers > 1:
            self._keep_up(peer)
        heads = self._heads(peer, len(found))
        pieces: list[bytes] = []
        size: i64 = 0
        at: i64 = 0
        for packet in found:
            length: i64 = len(packet)
            size += length
            pad: i64 = (-length) & 15
            if pad != 0 and length < self.mtu:
                if length + pad > self.mtu:
                    pad = self.mtu - length
                packet = packet + PAD[int(pad)]
            pieces.append(peer.lead + heads[at : at + 16] if peer.lead else heads[at : at + 16])
            if self.numbered:
                number: i64 = read_i64_be(heads, at + 8)
                pieces.append(seal(number if number >= 0 else int(number) + TWO_64, packet, b""))
            else:
                pieces.append(seal(heads[at + 16 : at + HEAD], packet, None))
            at += HEAD
        tally = peer.tally
        tally.session = peer.session
        tally.counter = peer.counter
        tally.any_ns = now_ns
        if data:
            tally.data_ns = now_ns
            tally.packets += len(found)
            tally.size += size
        tally.store()
        if peer.address is not None:
            if peer.pieces:
                peer.pieces.extend(pieces)
            else:
                peer.pieces = pieces
                self.departing.append(peer)
            if len(peer.pieces) >= 2 * MAX_SEGMENTS or size > LARGE:
                self._transmit(peer, True, now_ns)
        if peer.relay:
            line = peer.line if peer.quic else None
            sealed: list[bytes] = []
            at = 0
            if line is not None and len(pieces[1]) + 16 <= line.limit:
                if peer not in self.boarding:
                    self.boarding.append(peer)
                while at < len(pieces):
                    line.put(MESSAGE + pieces[at][-16:] + pieces[at + 1])
                    at += 2
                if len(line.waiting) >= QUIC_BATCH and line.ranges:
                    self._board(peer, line, now_ns)
                return
            while at < len(pieces):
                sealed.append(pieces[at][-16:] + pieces[at + 1])
                at += 2
            self._relay(peer, sealed)

    def _relay(self, peer: OutPeer, sealed: list[bytes]) -> None:
        """Leave these to the engine."""
        waiting = self.relayed.get(peer.slot)
        if waiting is None:
            self.relayed[peer.slot] = sealed
        else:
            waiting.extend(sealed)

    def _board(self, peer: OutPeer, line: SealingLine, now_ns: i64) -> None:
        """Seal what waits, as far as there are numbers, and send it."""
        while line.waiting:
            first, count = line.take(min(len(line.waiting), QUIC_BATCH))
            if count == 0:
                if not line.asked:
                    line.asked = bool(self.report(line.number, 0, [], int(now_ns)))
                dropped = line.trim()
                if dropped:
                    self._drop(peer, DROP_QUEUE_FULL, dropped)
                return
            trains, sizes = seal_train(line.keys, line.cid, first, line.next(count))
            if not self.report(line.number, first, sizes, int(now_ns)):
                self._drop(peer, DROP_SEND, count)  # the engine is too far behind to count them
                continue
            for data, segment in trains:
                self._send_train(peer, line, data, segment, now_ns)

    def _send_train(self, peer: OutPeer, line: SealingLine, data: bytes, segment: int, now_ns: i64) -> None:
        size = len(data)
        many = size > segment
        if not many or (self.gso and line.trains):
            ancillary = [(SOL_UDP, UDP_SEGMENT, _SIZE.pack(segment))] if many else []
            tries = 0
            while True:
                try:
                    line.socket.sendmsg([data], ancillary, 0, line.address)
                    return
                except BlockingIOError:
                    tries += 1
                    if tries > 4 or not _wait_writable(line.socket.fileno()):
                        self._drop(peer, DROP_SEND, (size + segment - 1) // segment)
                        return
                except OSError as error:
                    code = error.errno or 0
                    if not many or _is_unreachable(code):
                        self._drop(peer, DROP_SEND, (size + segment - 1) // segment)
                        if now_ns - peer.failed_ns > SECOND_NS:
                            peer.failed_ns = now_ns
                            self.notes.append((SEND_FAILED, peer.slot, code))
                        return
                    if code == EIO:
                        self.gso = False
                        self.notes.append((NO_TRAINS, peer.slot, code))
                    line.trains = False
                    break
        at = 0
        while at < size:
            self._send_train(peer, line, data[at : at + segment], segment, now_ns)
            at += segment

    def _heads(self, peer: OutPeer, count: i64) -> bytes:
        """For each of `count` packets the header and the nonce, and the counters are used up."""
        writer = BytesWriter()
        index = _signed(peer.remote_index)
        counter: i64 = peer.counter
        while count > 0:
            if counter == peer.block_end:
                counter += self.period - self.block
                peer.block_end = counter + self.block
            write_i32_le(writer, 4)
            write_i32_le(writer, index)
            write_i64_le(writer, counter)
            write_i32_le(writer, 0)
            write_i64_le(writer, counter)
            counter += 1
            count -= 1
        peer.counter = counter
        return writer.getvalue()

    def _keep_up(self, peer: OutPeer) -> None:
        """Skip counters where others are far ahead with this keypair."""
        newest: i64 = 0
        for region in self.others:
            session, counter = _PROGRESS.unpack_from(self.shared, block_at(region, peer.slot) + PROGRESS_AT)
            if session == peer.session and counter > newest:
                newest = counter
        if newest - peer.counter > MAX_LAG:
            peer.counter = (newest // self.period + 1) * self.period + self.first
            peer.block_end = peer.counter + self.block

    def _drop(self, peer: OutPeer, reason: int, count: int) -> None:
        self.drops.add(reason, count)
        peer.tally.drop(reason, count)

    def _stage(self, peer: OutPeer, found: list[bytes], now_ns: i64) -> None:
        peer.staged.extend(found)
        over = len(peer.staged) - MAX_STAGED
        if over > 0:
            del peer.staged[:over]
            self._drop(peer, DROP_QUEUE_FULL, over)
        if now_ns - peer.wanted_ns > SECOND_NS:
            peer.wanted_ns = now_ns
            self.notes.append((NEED_SESSION, peer.slot, 0))

    def _depart(self, now_ns: i64) -> None:
        """Send all that was sealed."""
        for peer in self.departing:
            if peer.pieces:
                self._transmit(peer, False, now_ns)
        self.departing = []
        for peer in self.boarding:
            line = peer.line
            if line is not None:
                self._board(peer, line, now_ns)
        self.boarding = []

    def _depart_small(self, now_ns: i64) -> None:
        """Send all but the ends of bulk, which the next read may go on with."""
        for peer in self.departing:
            if peer.pieces and len(peer.pieces[0]) + len(peer.pieces[1]) < LARGE // 2:
                self._transmit(peer, False, now_ns)

    def _transmit(self, peer: OutPeer, more: bool, now_ns: i64) -> None:
        """Send what was sealed, as trains of equal size where there are several; with `more`, keep a last train that
        is not full."""
        pieces = peer.pieces
        peer.pieces = []
        count = len(pieces)
        at = 0
        while at < count:
            size: i64 = len(pieces[at]) + len(pieces[at + 1])
            end = at + 2
            if self.gso and peer.trains:
                total: i64 = size
                is_open = True
                while is_open and end < count:
                    next_size: i64 = len(pieces[end]) + len(pieces[end + 1])
                    if next_size > size or end - at == 2 * MAX_SEGMENTS or total + next_size > MAX_TRAIN:
                        is_open = False
                    else:
                        total += next_size
                        end += 2
                        is_open = next_size == size
                if more and is_open and end - at < 2 * MAX_SEGMENTS and total + size <= MAX_TRAIN:
                    peer.pieces = pieces[at:]
                    return
            self._sendmsg(peer, pieces[at:end], end - at > 2, int(size), now_ns)
            at = end

    def _sendmsg(self, peer: OutPeer, train: list[bytes], many: bool, size: int, now_ns: i64) -> None:
        ancillary = [(SOL_UDP, UDP_SEGMENT, _SIZE.pack(size))] if many else []
        tries = 0
        while True:
            try:
                peer.socket.sendmsg(train, ancillary, 0, peer.address)
                return
            except BlockingIOError:
                tries += 1
                if tries > 4 or not _wait_writable(peer.socket.fileno()):
                    self._drop(peer, DROP_SEND, len(train) // 2)
                    return
            except OSError as error:
                code = error.errno or 0
                if many and not _is_unreachable(code):
                    # send one by one from now on: to anybody where the device cannot do better, else to this peer
                    if code == EIO:
                        self.gso = False
                        self.notes.append((NO_TRAINS, peer.slot, code))
                    peer.trains = False
                    at = 0
                    while at < len(train):
                        self._sendmsg(peer, train[at : at + 2], False, size, now_ns)
                        at += 2
                    return
                self._drop(peer, DROP_SEND, len(train) // 2)
                if now_ns - peer.failed_ns > SECOND_NS:
                    peer.failed_ns = now_ns
                    self.notes.append((SEND_FAILED, peer.slot, code))
                return


def _signed(value: i64) -> i32:
    """An unsigned 32-bit number as the signed one of the same bits."""
    return i32(value - 0x100000000) if value >= 0x80000000 else i32(value)


def _is_unreachable(code: int) -> bool:
    """EPERM, EACCES, ENETUNREACH, EHOSTUNREACH, ENETDOWN, EADDRNOTAVAIL, ECONNREFUSED"""
    return code in (1, 13, 101, 113, 100, 99, 111)


def _wait_writable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(10))
