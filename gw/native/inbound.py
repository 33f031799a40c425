"""The inbound packet worker's core: UDP -> open -> whose is it, may it -> TUN.

What is not WireGuard transport data is left in `foreign` for the engine, QUIC by the train in `quic`, as are `notes`
and the inner packets that are for the engine itself (`tsmp`).
"""

from __future__ import annotations

import time
from mmap import mmap
from typing import Any, Final, final

from librt.strings import (
    BytesWriter,
    read_i16_be,
    read_i32_be,
    read_i32_le,
    read_i64_be,
    read_i64_le,
    write_i32_le,
    write_i64_le,
)
from mypy_extensions import i64, mypyc_attr

from gw.native.coalesce import Coalescer
from gw.native.counters import (
    DROP_ACL,
    DROP_MALFORMED,
    DROP_REPLAY,
    DROP_SPOOFED,
    DROP_TAG,
    DROP_TUN,
    DROP_UNKNOWN_SESSION,
    INBOUND,
    Drops,
    Tally,
    block_at,
    region_at,
)
from gw.native.filter import ACCEPT, TCP, TSMP_PACKET, Filter
from gw.native.outbound import ACTIVE, ACTIVE_NOTE_NS, CONFIRMED, LARGE, MAX_COUNTER, QUIET_NS, TWO_64
from gw.native.prefixes import PrefixMap
from gw.native.quicpackets import CID_BYTES, open_train
from gw.native.quicsealing import OpeningLine
from gw.native.replay import ReplayWindow
from gw.native.rules import RuleSet

RECEIVE_BYTES: Final = 65535
ANCILLARY_BYTES: Final = 64
SOL_UDP: Final = 17
UDP_GRO: Final = 104
MSG_TRUNC: Final = 0x20
TRANSPORT: Final = 4
FIRST_QUIC: Final = 0x40  # QUIC's first byte is never lower
DISCO_FIRST: Final = 0x54
DISCO_SECOND: Final = 0x53  # a connection id of ours never begins with it
GENEVE_BYTES: Final = 8
RELAYED_BYTES: Final = GENEVE_BYTES + 32
RELAYED_HEAD: Final = 0x00007A12  # no options, no control, WireGuard follows
MAX_EARLY: Final = 64
TELL_AFTER: Final = 64  # QUIC packets: the engine acknowledges so many at once
TELL_NS: Final = 1_000_000  # fewer
QUIC_MESSAGE: Final = 0x10  # a WireGuard message, in a DATAGRAM frame
BOTH_WAYS_NS: Final = 2_000_000_000  # a peer that tries a path sends both ways: the direct one counts
MAX_FOREIGN: Final = 512  # datagrams for the engine in one round; more are dropped
MAX_REJECTED: Final = 16  # SYNs in one round whose senders are told


@final
@mypyc_attr(native_class=True)
class InPeer:
    """One peer as a source of packets. `source` is where the last authentic datagram came from, None for a relay."""

    def __init__(self, slot: int, tally: Tally) -> None:
        self.slot: int = slot
        self.tally: Tally = tally
        self.source: Any = None
        self.jailed: bool = False  # it may answer us, and nothing else
        self.heard: bool = False
        self.direct_ns: i64 = 0  # when a datagram last came without a relay
        self.noted_ns: i64 = 0


@final
@mypyc_attr(native_class=True)
class InSession:
    """One keypair to receive with. `unseal` is the bound `decrypt` of its key."""

    def __init__(self, peer: InPeer, unseal: Any, expires_ns: int, confirm: bool) -> None:
        self.peer: InPeer = peer
        self.unseal: Any = unseal
        self.expires_ns: i64 = expires_ns
        self.confirm: bool = confirm  # the engine wants to know of the first packet
        self.window: ReplayWindow = ReplayWindow()


@final
@mypyc_attr(native_class=True)
class Inbound:
    """All peers of the tunnel, seen from the network."""

    def __init__(self, shared: mmap, filter_: Filter, coalescer: Coalescer, lane: int = 0, lanes: int = 1) -> None:
        """lane: which of the `lanes` inbound workers this is. A session is the lane's whose number its index has."""
        self.lane: i64 = lane
        self.lanes: i64 = lanes
        self.region: int = region_at(INBOUND, lane)
        self.shared: mmap = shared
        self.filter: Filter = filter_
        self.shield: Filter = Filter(RuleSet(), filter_.local, filter_.flows)  # without rules: for jailed peers
        self.rejected: list[tuple[int, bytes]] = []  # slot and first bytes of an IPv4 SYN that no rule allows
        self.coalescer: Coalescer = coalescer
        self.drops: Drops = Drops(shared, self.region)
        self.routes: PrefixMap = PrefixMap()
        self.peers: dict[int, InPeer] = {}
        self.sessions: dict[int, InSession] = {}
        self.sockets: dict[int, Any] = {}  # by descriptor
        self.last_ns: i64 = 0  # when a socket last brought something
        self.had_data: bool = False  # a packet was delivered since the loop has looked
        self.bulk: bool = False  # that was a train, or as many datagrams as it might
        self.notes: list[tuple[int, int, int]] = []
        self.heard: list[tuple[int, Any]] = []  # slot, source: the peer's datagrams now come from there
        self.foreign: list[tuple[bytes, Any]] = []  # datagram, source
        self.quic: list[tuple[bytes, int, Any]] = []  # datagrams of one size in a row, that size, source
        self.lines: dict[bytes, OpeningLine] = {}  # QUIC connections that are opened here, by connection id
        self.opened: list[OpeningLine] = []  # those that the engine is to be told of
        self.opened_ns: i64 = 0  # when the first of them came
        self.early: list[tuple[bytes, Any]] = []  # of sessions that the engine may be telling of right now
        self.retrying: bool = False
        self.tsmp: list[tuple[int, bytes]] = []
        self.numbered: bool = False  # `unseal` takes the counter, its bytes reversed, instead of a nonce
        self.invalid_tag: Any = None  # the exception class of a wrong tag

    # What the engine says

    def add_peer(self, slot: int) -> None:
        if slot not in self.peers:
            self.peers[slot] = InPeer(slot, Tally(self.shared, block_at(self.region, slot)))

    def remove_peer(self, slot: int) -> None:
        """Its sessions were ended before."""
        peer = self.peers.pop(slot, None)
        if peer is not None:
            peer.tally.clear()
        for cid, line in list(self.lines.items()):
            if line.slot == slot:
                del self.lines[cid]
        self.opened = [line for line in self.opened if line.slot != slot]

    def set_filter(self, filter_: Filter) -> None:
        """Replace the rules and our own addresses as a whole."""
        self.filter = filter_
        self.shield = Filter(RuleSet(), filter_.local, filter_.flows)

    def set_jailed(self, slot: int, jailed: bool) -> None:
        peer = self.peers.get(slot)
        if peer is not None:
            peer.jailed = jailed

    def add_session(self, slot: int, index: int, unseal: Any, expires_ns: int, confirm: bool) -> None:
        peer = self.peers.get(slot)
        if peer is not None:
            self.sessions[index] = InSession(peer, unseal, expires_ns, confirm)

    def end_session(self, index: int) -> None:
        self.sessions.pop(index, None)

    def set_line(self, slot: int, number: int, line: OpeningLine | None) -> None:
        """Open the packets of this QUIC connection from now on; None: of this number's no more."""
        for cid, known in list(self.lines.items()):
            if known.number == number:
                if line is not None:
                    line.follow(known, time.monotonic_ns())
                del self.lines[cid]
                if known in self.opened:
                    self.opened.remove(known)
                    if line is not None:
                        self.opened.append(line)
        if line is not None:
            for cid in line.cids:
                self.lines[cid] = line

    # Packets

    def pump(self, sock: Any, rounds: int) -> int:
        """Read a socket until it is empty, at most `rounds` times; returns how many reads brought something. A datagram
        that comes alone is not followed by a look for the next."""
        done = 0
        self.bulk = False
        while done < rounds:
            try:
                data, ancillary, flags, source = sock.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                return done
            except OSError:
                done += 1  # an ICMP error of an earlier send; the next read is another matter
                continue
            done += 1
            if flags & MSG_TRUNC != 0:
                self.drops.add(DROP_MALFORMED)
                continue
            size: i64 = len(data)
            for level, kind, value in ancillary:
                if level == SOL_UDP and kind == UDP_GRO:
                    size = int.from_bytes(value[:4], "little")
            now_ns: i64 = time.monotonic_ns()
            if size > 0:
                self.receive(data, int(size), source, now_ns)
            if len(data) > LARGE:
                self.bulk = True
            is_alone = done == 1 and now_ns - self.last_ns > QUIET_NS and not self.bulk
            self.last_ns = now_ns
            if is_alone:
                return done
        self.bulk = True
        return done

    def has_word(self) -> bool:
        """True where the engine is to be told something, or asked about early datagrams."""
        return (
            len(self.notes) > 0
            or len(self.foreign) > 0
            or len(self.quic) > 0
            or (len(self.opened) > 0 and self._is_due())
            or len(self.early) > 0
            or len(self.heard) > 0
            or len(self.tsmp) > 0
            or len(self.rejected) > 0
        )

    def _is_due(self) -> bool:
        """Whether enough of QUIC packets was opened to tell, or it has waited; what wants an answer does not."""
        for line in self.opened:
            if line.count >= TELL_AFTER or len(line.frames) > 0 or len(line.acks) > 0:
                return True
        return i64(time.monotonic_ns()) - self.opened_ns > TELL_NS

    def receive(self, data: bytes, step: int, source: Any, now_ns: i64) -> None:
        """Datagrams of `step` bytes each (the last may be shorter) from one source; None: a relay brought them."""
        size: i64 = len(data)
        at: i64 = 0
        touched: InPeer | None = None
        session: InSession | None = None
        last_index: i64 = -1
        while at < size:
            end: i64 = at + i64(step)
            if end > size:
                end = size
            start: i64 = at
            came_from = source
            if end - at >= RELAYED_BYTES and data[at] == 0 and _is_relayed(data, at):
                at += GENEVE_BYTES
                came_from = None  # a relay's address is not the peer's
            if end - at < 32 or read_i32_le(data, at) != TRANSPORT:
                if at == start and _is_quic(data, at):
                    while end < size and _is_quic(data, end):
                        end += i64(step)
                    if end > size:
                        end = size
                    if source is not None:
                        line = self.lines.get(data[at + 1 : at + 1 + CID_BYTES]) if self.lines else None
                        if line is not None and i64(data[at]) & 0x80 == 0:
                            self._open(line, data[at:end], step, source, now_ns)
                        elif len(self.quic) < MAX_FOREIGN:
                            self.quic.append((data[at:end], step, source))
                    at = end
                    continue
                if source is not None and len(self.foreign) < MAX_FOREIGN:
                    self.foreign.append((data[start:end], source))
                at = end
                continue
            index: i64 = i64(read_i32_le(data, at + 4)) & 0xFFFFFFFF
            counter: i64 = read_i64_le(data, at + 8)
            if index != last_index or session is None:
                session = self.sessions.get(int(index))
                last_index = index
            body: i64 = at + 16
            at = end
            if session is None:
                if index & (self.lanes - 1) != self.lane:
                    # another lane's: the system steers by the first datagram of a train
                    if source is not None and len(self.foreign) < MAX_FOREIGN:
                        self.foreign.append((data[start:end], source))
                    continue
                if len(self.early) < MAX_EARLY and not self.retrying:
                    self.early.append((data[body - 16 : end], came_from))
                else:
                    self.drops.add(DROP_UNKNOWN_SESSION)
                continue
            if now_ns >= session.expires_ns:
                self.drops.add(DROP_UNKNOWN_SESSION)
                continue
            if counter < 0 or counter >= MAX_COUNTER:
                self.drops.add(DROP_REPLAY)
                continue
            try:
                if self.numbered:
                    number: i64 = read_i64_be(data, body - 8)
                    packet: bytes = session.unseal(number if number >= 0 else int(number) + TWO_64, data[body:end], b"")
                else:
                    nonce = BytesWriter()
                    write_i32_le(nonce, 0)
                    write_i64_le(nonce, counter)
                    packet = session.unseal(nonce.getvalue(), data[body:end], None)
            except self.invalid_tag:
                self._drop(session.peer.tally, DROP_TAG)
                continue
            if came_from is not None and len(packet) != 0:
                session.peer.tally.counter += 1
            if not session.window.accept(counter):
                self._drop(session.peer.tally, DROP_REPLAY)
                continue
            peer = session.peer
            if session.confirm:
                session.confirm = False
                self.notes.append((CONFIRMED, peer.slot, int(index)))
            if peer is not touched:
                if touched is not None:
                    touched.tally.store()
                touched = peer
                if came_from is not None:
                    peer.direct_ns = now_ns
                if (not peer.heard or peer.source != came_from) and (
                    came_from is not None or now_ns - peer.direct_ns > BOTH_WAYS_NS
                ):
                    peer.heard = True
                    peer.source = came_from
                    self.heard.append((peer.slot, came_from))
            tally = peer.tally
            tally.any_ns = now_ns
            if len(packet) == 0:
                continue
            tally.data_ns = now_ns
            if now_ns - peer.noted_ns > ACTIVE_NOTE_NS:
                peer.noted_ns = now_ns
                self.notes.append((ACTIVE, peer.slot, 0))
            self._deliver(packet, peer, tally, now_ns)
        if touched is not None:
            touched.tally.store()

    def _open(self, line: OpeningLine, train: bytes, step: int, source: Any, now_ns: i64) -> None:
        """QUIC packets. WireGuard's bulk is delivered, the rest is the engine's; so are packets that do not open."""
        if line.older is not None and now_ns > line.older_until_ns:
            line.older = None
        newest = line.window.newest
        frames, runs, acks, others = open_train(
            line.keys, line.older, line.window, line.cids, train, step, newest + 1, line.floor
        )
        if runs:
            if line not in self.opened:
                if not self.opened:
                    self.opened_ns = now_ns
                self.opened.append(line)
            line.count += len(frames)
            line.runs.extend(runs)
            line.acks.extend(acks)
            if line.window.newest > newest:
                line.source = source
            for frame in frames:
                if len(frame) >= 34 and read_i32_le(frame, 2) == TRANSPORT and i64(frame[1]) == QUIC_MESSAGE:
                    index: i64 = i64(read_i32_le(frame, 6))
                    if index & (self.lanes - 1) == self.lane:
                        self.receive(frame[2:], len(frame), None, now_ns)
                        continue
                line.frames.append(frame)
        for packet in others:
            if len(self.quic) < MAX_FOREIGN:
                self.quic.append((packet, len(packet), source))

    def retry(self) -> None:
        """Look at early datagrams again, after what the engine had to say was heard."""
        early = self.early
        self.early = []
        self.retrying = True
        now_ns: i64 = time.monotonic_ns()
        for data, source in early:
            self.receive(data, len(data), source, now_ns)
        self.retrying = False

    def flush(self) -> None:
        """Write to the TUN what a round has brought."""
        self.coalescer.flush()
        if self.coalescer.refused != 0:
            self.drops.add(DROP_TUN, self.coalescer.refused)
            self.coalescer.refused = 0

    def _deliver(self, packet: bytes, peer: InPeer, tally: Tally, now_ns: i64) -> None:
        size: i64 = len(packet)
        version: i64 = i64(packet[0]) >> 4
        length: i64 = 0
        owner: i64 = 0
        if version == 4 and size >= 20:
            length = i64(read_i16_be(packet, 2)) & 0xFFFF
            owner = self.routes.find4(packet, 12)
        elif version == 6 and size >= 40:
            length = 40 + (i64(read_i16_be(packet, 4)) & 0xFFFF)
            owner = self.routes.find6(packet, 8)
        if length < 20 or length > size:
            self._drop(tally, DROP_MALFORMED)
            return
        if owner != i64(peer.slot):
            self._drop(tally, DROP_SPOOFED)
            return
        self.had_data = True
        tally.packets += 1
        tally.size += length
        filter_ = self.shield if peer.jailed else self.filter
        verdict = filter_.decide(packet, length, now_ns)
        if verdict == ACCEPT:
            self.coalescer.add(packet, length)
        elif verdict == TSMP_PACKET:
            self.tsmp.append((peer.slot, packet[:length]))
        else:
            self._drop(tally, int(verdict))
            if verdict == DROP_ACL and version == 4 and i64(packet[9]) == TCP and len(self.rejected) < MAX_REJECTED:
                self.rejected.append((peer.slot, packet[: (i64(packet[0]) & 15) * 4 + 4]))

    def _drop(self, tally: Tally, reason: int) -> None:
        self.drops.add(reason)
        tally.drop(reason)


def _is_relayed(data: bytes, at: i64) -> bool:
    """Whether a UDP relay between nodes has brought this: a Geneve header with WireGuard behind it. The VNI says no
    more than the session's index does."""
    return read_i32_be(data, at) == RELAYED_HEAD and data[at + 7] == 0


def _is_quic(data: bytes, at: i64) -> bool:
    """Whether the datagram that begins here is QUIC's rather than disco's, WireGuard's or STUN's. Ref: RFC 9443"""
    first: i64 = data[at]
    if first != DISCO_FIRST or at + 1 >= len(data):
        return first >= FIRST_QUIC
    second: i64 = data[at + 1]
    return second != DISCO_SECOND
