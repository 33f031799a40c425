"""All QUIC connections with peers, one a pair: dialled, answered, found by connection id. No I/O, no clock.

    receive(train, …) ─▶ line by connection id, or a new one for an Initial from where disco has heard a peer
    send(peer, …)     ─▶ its line's queue           poll(now) gives trains with their addresses, and events

To aioquic every peer is at one constant address: which endpoint is meant is the path finder's business, and it proves
endpoints by a round trip of sealed pings. So nobody else's packet begins a handshake here, and none is answered. What
has a peer's address but is forged costs that peer alone: handshakes are counted by peer, and of each one is under way.

This module imports aioquic: the engine loads it when a connection is first wanted.

Ref: spec quic §5, §9 to §13
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from gw.engine import defects
from gw.engine.agenda import NEVER, Agenda
from gw.engine.handshakes import Handshakes
from gw.engine.peerline import PeerLine
from gw.engine.peershare import Share
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.quic.configuration import client_settings, ephemeral_certificate, server_settings
from gw.quic.connection import Connection, stateless_reset
from gw.quic.link import Link
from gw.quic.selftest import fast_path_works
from gw.quic.tickets import TicketStore, decode_ticket, encode_ticket
from gw.wire.quic import frames
from gw.wire.quic.demux import destination_of, is_initial
from gw.wire.quic.peering import Network, Report, Routes

SERVER_NAME: Final = "peer.ghostwire"  # in clear in every first packet: says nothing of who is meant
PLACE: Final = ("peer", 0)  # where every peer is, to aioquic
RESETS_PER_S: Final = 10.0
STALE_S: Final = 2.0  # a connection that was silent for this long gives way to a new one
FRESH_S: Final = 1.0  # one that is being dialled, or waits for a proof, for longer does


@dataclass(frozen=True, slots=True)
class Up:
    """A connection with the peer can be used. early: messages went in the first flight."""

    peer: NodeKey
    is_resumed: bool
    early: bool


@dataclass(frozen=True, slots=True)
class Down:
    """There is none any more, or dialling failed."""

    peer: NodeKey
    reason: str


@dataclass(frozen=True, slots=True)
class Bulk:
    """WireGuard messages of the peer."""

    peer: NodeKey
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class Ponged:
    peer: NodeKey
    data: bytes


@dataclass(frozen=True, slots=True)
class Moved:
    """The peer's newest packet came from another endpoint than the one before."""

    peer: NodeKey
    source: AddrPort


@dataclass(frozen=True, slots=True)
class RoutesTold:
    """What the peer says that it serves now. It is no more than a word: the map says what it may."""

    peer: NodeKey
    prefixes: tuple[Network, ...]


Event = Up | Down | Bulk | Ponged | Moved | RoutesTold | Share


@dataclass(frozen=True, slots=True)
class LineView:
    """Numbers of one connection, for people. report: what the other side counts."""

    rtt_s: float
    jitter_s: float
    sent: int
    received: int
    dropped: int
    udp_bytes: int
    is_fast: bool
    is_resumed: bool
    is_dialer: bool
    report: Report | None
    routes: tuple[Network, ...]


class Tickets(Protocol):
    """Where a dialer keeps its tickets over restarts, as bytes that nobody else may read."""

    def take(self, peer: NodeKey) -> bytes | None:
        """The peer's ticket, which is gone from there now."""

    def keep(self, peer: NodeKey, ticket: bytes) -> None: ...


@final
class PeerLines:
    """After every call but `view`, call `poll`."""

    def __init__(
        self,
        secret: NodeSecret,
        node: NodeKey,
        may: Callable[[NodeKey], bool],
        tickets: Tickets,
        *,
        random_bytes: Callable[[int], bytes],
        wall: Callable[[], float],
        fast: bool,
        certificate: tuple[bytes, bytes],
        sealers: int = 0,
    ) -> None:
        """may: whether a key is of a peer that may connect. wall: unix seconds. certificate: PEM, and its key's.
        sealers: packet workers that may seal for a connection; with none of them all packets are sealed here."""
        self.secret, self.node = secret, node
        self.new_nonce: Callable[[int], bytes] = random_bytes
        self.routes = Routes(0, ())
        self.sealers = sealers
        self._by_number: dict[int, PeerLine] = {}
        self._numbers = 0
        self._may = may
        self._kept = tickets
        self._wall = wall
        self._fast = fast
        self._certificate = certificate
        self._store = TicketStore()
        self._lines: dict[NodeKey, PeerLine] = {}  # proven, or being dialled
        self._by_cid: dict[bytes, PeerLine] = {}
        self._all: set[PeerLine] = set()
        self._half: dict[NodeKey, PeerLine] = {}  # answered and not proven yet, one for each peer's endpoints
        self._dirty: dict[PeerLine, None] = {}  # in the order in which they were touched
        self._agenda: Agenda[PeerLine] = Agenda()
        self._events: list[Event] = []
        self._now = 0.0
        self._handshakes = Handshakes()
        self._resets = RESETS_PER_S
        self._filled_at = 0.0
        self._out: list[tuple[bytes, int, AddrPort]] = []

    # What the engine wants

    def dial(self, peer: NodeKey, address: AddrPort, now: float) -> None:
        """Begin a connection, with early data where a ticket allows. One that is there or under way stays."""
        if peer in self._lines:
            return
        settings = client_settings(frames.PEER_ALPN, SERVER_NAME, verify=False)
        raw = self._kept.take(peer)
        if raw is not None:
            try:
                settings.session_ticket, _ = decode_ticket(raw, self._label(peer), SERVER_NAME, self._wall())
            except WireError:
                pass  # of an older key, or too old: a full handshake then
        line = PeerLine(self, peer, address, now, is_dialer=True)
        connection = Connection(
            configuration=settings, session_ticket_handler=line.ticketed, reset_key=self._reset_key()
        )
        line.attach(Link(connection, line, fast=self._fast))
        if settings.session_ticket is not None:
            line.prove_early()
        self._lines[peer] = line
        self._enter(line)
        with self._only(line):
            line.link.connect(PLACE, now)
            self._dirty[line] = None

    def drop(self, peer: NodeKey, reason: str, code: int = frames.CLOSED) -> None:
        """End the connection with the peer."""
        line = self._lines.get(peer)
        if line is not None:
            self._close(line, code, reason)

    def restarted(self, peer: NodeKey, now: float) -> None:
        """The peer is another process than before. What was heard just now is of the new one."""
        line = self._lines.get(peer)
        if line is not None and line.link.is_up and now - line.link.heard_at > FRESH_S:
            self._close(line, frames.CLOSED, "the peer was restarted")

    def set_secret(self, secret: NodeSecret, node: NodeKey) -> None:
        """Our node key was rotated: whom we are was proven with the old one."""
        self.secret, self.node = secret, node
        for line in list(self._all):
            self._close(line, frames.CLOSED, "the node key was rotated")

    def set_address(self, peer: NodeKey, address: AddrPort, now: float) -> None:
        """The path finder's best endpoint of the peer."""
        line = self._lines.get(peer)
        if line is not None and line.address != address:
            before, line.address = line.address, address
            if before.host != address.host and line.link.is_up:
                with self._only(line):
                    line.link.restart_path(now)
                    self._dirty[line] = None

    def network_changed(self, now: float) -> None:
        """Our own address is another now: tell every peer at once."""
        for line in list(self._all):
            if line.link.is_up and not line.is_over:
                with self._only(line):
                    line.link.move(now)
                    self._dirty[line] = None

    def set_routes(self, prefixes: tuple[Network, ...]) -> None:
        """What this node serves, told to every peer."""
        if prefixes != self.routes.prefixes:
            version = max(self.routes.version + 1, int(self._wall() * 1e3))  # grows over restarts too
            self.routes = Routes(version, prefixes)
            for line in list(self._all):
                with self._only(line):
                    line.tell_routes()
                    self._dirty[line] = None

    def send(self, peer: NodeKey, datagrams: list[bytes], now: float) -> bool:
        """Queue WireGuard messages; False where no connection takes them."""
        line = self._lines.get(peer)
        if line is None or not line.is_usable:
            return False
        with self._only(line):
            line.send(datagrams, now)
            self._dirty[line] = None
        return True

    def ping(self, peer: NodeKey, data: bytes) -> bool:
        line = self._lines.get(peer)
        if line is None or not line.is_usable:
            return False
        with self._only(line):
            line.ping(data)
            self._dirty[line] = None
        return True

    # What packet workers tell

    def sent(self, number: int, sealer: int, first: int, sizes: list[int], sent_at: float) -> bool:
        """Packets of a connection leave now; whether to poll soon."""
        line = self._by_number.get(number)
        if line is None:
            return False
        self._dirty[line] = None
        is_short = [False]  # a defect leaves it so
        with self._only(line):
            is_short[0] = line.sent_by(sealer, first, sizes, sent_at)
        return is_short[0]

    def opened(
        self, number: int, count: int, frames: list[bytes], runs: list[int], acks: list[list[int]],
        source: AddrPort | None, now: float,
    ) -> None:  # fmt: skip
        """What was opened of a connection's packets, as `gw.engine.link.QuicOpened` has it."""
        line = self._by_number.get(number)
        if line is None:
            return
        self._now = now
        self._dirty[line] = None
        with self._only(line):
            newest = line.link.newest
            line.opened(count, frames, runs, acks, now)
            self._came(line, newest, source)

    def share_again(self) -> None:
        """Packet workers were started anew: they know no connection."""
        for line in self._by_number.values():
            line.share_again()
            self._dirty[line] = None

    # What the engine asks

    def is_usable(self, peer: NodeKey) -> bool:
        """Whether messages can go: the other side is proven, by its key or by a ticket."""
        line = self._lines.get(peer)
        return line is not None and line.is_usable and line.link.is_up

    def is_dialling(self, peer: NodeKey) -> bool:
        line = self._lines.get(peer)
        return line is not None and not line.link.is_up

    def is_silent(self, peer: NodeKey, now: float) -> bool:
        line = self._lines.get(peer)
        return line is not None and line.link.is_up and line.is_silent(now)

    def delivered(self, peer: NodeKey) -> int:
        """Bytes of its packets that the peer has acknowledged, since the path is what it is; 0 without a connection."""
        line = self._lines.get(peer)
        return line.link.delivered if line is not None else 0

    def view(self, peer: NodeKey) -> LineView | None:
        line = self._lines.get(peer)
        if line is None or not line.is_usable:
            return None
        link = line.link
        return LineView(
            line.rtt_s or link.rtt_s, line.jitter_s, line.sent, line.received, line.dropped, link.udp_bytes,
            link.is_fast, link.is_resumed, line.is_dialer, line.report, line.routes,
        )  # fmt: skip

    # Packets

    def receive(self, train: bytes, segment: int, source: AddrPort, peer: NodeKey | None, now: float) -> None:
        """QUIC packets of one size (the last may be shorter) that came from `source`.

        peer: whom disco has found there by a round trip, lately; only such a one may begin a connection.
        """
        self._now = now
        at = 0
        while at < len(train):
            packet = train[at : at + segment]
            cid = destination_of(packet)
            line = self._by_cid.get(cid)
            end = at + segment
            if line is not None:
                known = set(line.cids)
                while end < len(train) and destination_of(train[end : end + segment]) in known:
                    end += segment
                self._feed(line, train[at:end], segment, source, now)
            elif is_initial(packet):
                if peer is not None and self._may(peer) and self._has_room(peer, now):
                    line = self._answer(cid, source, peer, now)
                    self._feed(line, packet, segment, source, now)
                    if line.link.connection._state.name == "FIRSTFLIGHT":
                        line.closed(frames.BROKEN, "the first packet does not open")
            elif peer is not None and not packet[0] & 0x80:
                line = self._lines.get(peer)
                if line is not None and line.link.connection.is_reset(packet):
                    self._feed(line, packet, segment, source, now)
                else:
                    self._reset(packet, cid, source, now)
            at = end

    def poll(self, now: float) -> tuple[list[tuple[bytes, int, AddrPort]], list[Event]]:
        """Trains to send and what happened, in order."""
        self._now = now
        out, self._out = self._out, []
        for line in self._agenda.take(now):
            self._dirty[line] = None
        full: list[PeerLine] = []
        while self._dirty:
            work, self._dirty = self._dirty, {}
            for line in work:
                if line.is_over:
                    continue
                with self._only(line):
                    out += [(train, segment, line.address) for train, segment in line.poll(now)]
                    self._follow(line)
                    if self.sealers and not line.is_over:
                        self._events += line.shares(now)
                    self._agenda.put(line, line.deadline() if line in self._all else NEVER)
                    if line.waiting or line.link.is_dirty:
                        full.append(line)
        self._dirty.update((line, None) for line in full if not line.is_over)
        events, self._events = self._events, []
        return out, events

    def deadline(self) -> float:
        """When to call `poll` if nothing happens before."""
        return self._agenda.next()

    # Owner of the lines

    def may(self, key: NodeKey) -> bool:
        return self._may(key)

    def wall_ms(self) -> int:
        return int(self._wall() * 1e3)

    def proven(self, line: PeerLine, now: float) -> bool:
        """Where both sides dialled, the connection of the smaller key stays; a silent one never does."""
        assert line.key is not None
        other = self._lines.get(line.key)
        if other is not None and other is not line:
            is_alive = now - max(other.link.heard_at, other.began) < (STALE_S if other.link.is_up else FRESH_S)
            ours_stays = self.node.raw < line.key.raw
            if is_alive and other.is_dialer != line.is_dialer and other.is_dialer == ours_stays:
                return False
            other.key = None  # its end is not the end of what we have with the peer
            self._close(other, frames.CLOSED, "another connection stays")
        self._lines[line.key] = line
        self._settle(line)
        for ticket in line.tickets:
            self._keep_ticket(line, ticket)
        line.tickets.clear()
        link = line.link
        self._events.append(Up(line.key, link.is_resumed, link.is_early_accepted))
        return True

    def messages(self, line: PeerLine, batch: list[bytes]) -> None:
        if line.key is not None:
            self._events.append(Bulk(line.key, batch))

    def ponged(self, line: PeerLine, data: bytes) -> None:
        if line.key is not None:
            self._events.append(Ponged(line.key, data))

    def told_routes(self, line: PeerLine) -> None:
        if line.key is not None:
            self._events.append(RoutesTold(line.key, line.routes))

    def ended(self, line: PeerLine, code: int, reason: str) -> None:
        self._events += line.unshare()
        self._by_number.pop(line.number, None)
        self._all.discard(line)
        self._dirty.pop(line, None)
        self._agenda.discard(line)
        self._settle(line)
        for cid in line.cids:
            if self._by_cid.get(cid) is line:
                del self._by_cid[cid]
        if line.key is not None and self._lines.get(line.key) is line:
            del self._lines[line.key]
            self._events.append(Down(line.key, reason or f"closed with {code:#x}"))

    # Inside

    def _has_room(self, peer: NodeKey, now: float) -> bool:
        """Whether what came from the peer's endpoint may begin a handshake."""
        other = self._half.get(peer)
        if (other is not None and now - other.began < FRESH_S) or not self._handshakes.afford(peer, now):
            return False
        if other is not None:
            self._close(other, frames.CLOSED, "another connection is under way")
            self._settle(other)
        return True

    def _settle(self, line: PeerLine) -> None:
        """The line waits for its proof no longer."""
        if line.knocked is not None and self._half.get(line.knocked) is line:
            del self._half[line.knocked]

    def _close(self, line: PeerLine, code: int, reason: str) -> None:
        with self._only(line):
            line.close(code, reason)
            self._dirty[line] = None

    @contextmanager
    def _only(self, line: PeerLine) -> Iterator[None]:
        """A defect of ours that is met inside ends this connection; the work for all others goes on."""
        try:
            yield
        except Exception:
            whose = (line.key or line.knocked or self.node).short()
            defects.of_node.tell(f"{whose}: the QUIC connection ends")
            line.give_up("a defect")

    def _answer(self, cid: bytes, source: AddrPort, peer: NodeKey, now: float) -> PeerLine:
        line = PeerLine(self, None, source, now, is_dialer=False)
        line.knocked = peer
        self._half[peer] = line

        def fetch(name: bytes) -> Any:
            found = self._store.take(name, now)
            if found is None or not self._may(NodeKey(found.node)):
                return None
            line.key = NodeKey(found.node)
            line.prove_early()
            return found.ticket

        connection = Connection(
            configuration=server_settings(frames.PEER_ALPN, *self._certificate),
            original_destination_connection_id=cid,
            session_ticket_fetcher=fetch,
            session_ticket_handler=line.ticketed,
            reset_key=self._reset_key(),
        )
        line.attach(Link(connection, line, fast=self._fast))
        line.cids = [cid]
        self._by_cid[cid] = line
        self._enter(line)
        return line

    def _feed(self, line: PeerLine, train: bytes, segment: int, source: AddrPort, now: float) -> None:
        with self._only(line):
            self._feed_untrusted(line, train, segment, source, now)

    def _feed_untrusted(self, line: PeerLine, train: bytes, segment: int, source: AddrPort, now: float) -> None:
        link = line.link
        newest = link.newest
        link.receive(train, segment, PLACE, now)
        self._follow(line)
        self._came(line, newest, source)
        self._out += [(train, segment, line.address) for train, segment in line.poll(now)]
        self._dirty[line] = None
        if line.is_usable and line.tickets and line.key is not None and self._lines.get(line.key) is line:
            for ticket in line.tickets:
                self._keep_ticket(line, ticket)
            line.tickets.clear()

    def _came(self, line: PeerLine, newest: int, source: AddrPort | None) -> None:
        """Packets came from `source`; newest: the highest number before them."""
        if source is not None and (line.source is None or line.link.newest > newest):
            before, line.source = line.source, source
            if before is not None and before != source and line.key is not None and line.is_usable:
                self._events.append(Moved(line.key, source))

    def _enter(self, line: PeerLine) -> None:
        self._numbers += 1
        line.number = self._numbers
        self._by_number[line.number] = line
        self._all.add(line)
        self._follow(line)

    def _follow(self, line: PeerLine) -> None:
        """The ids by which the line is found are others now. The first id of a client counts until it has ours."""
        if line.is_over:
            return
        ids = line.link.connection.cids
        if not line.is_dialer and not line.link.is_up and line.cids:
            ids = [line.cids[0], *ids]
        if ids != line.cids:
            for cid in line.cids:
                if self._by_cid.get(cid) is line:
                    del self._by_cid[cid]
            for cid in ids:
                self._by_cid[cid] = line
            line.cids = ids

    def _keep_ticket(self, line: PeerLine, ticket: Any) -> None:
        assert line.key is not None
        if line.is_dialer:
            first = line.link.connection._peer_cid.cid
            self._kept.keep(line.key, encode_ticket(ticket, self._label(line.key), first, self._wall()))
        else:
            self._store.keep(ticket, line.key.raw, self._now)

    def _label(self, peer: NodeKey) -> bytes:
        """Whose a kept ticket is: ours, for this peer."""
        return self.node.raw + peer.raw

    def _reset_key(self) -> bytes:
        """The same after a restart, so that a peer learns at once that its connection is gone."""
        return hmac.new(self.secret.raw, b"ghostwire quic reset", hashlib.sha256).digest()

    def _reset(self, packet: bytes, cid: bytes, source: AddrPort, now: float) -> None:
        self._fill(now)
        if self._resets >= 1.0 and cid:
            self._resets -= 1.0
            made = stateless_reset(self._reset_key(), cid, len(packet))
            if made:
                self._out.append((made, len(made), source))

    def _fill(self, now: float) -> None:
        passed, self._filled_at = now - self._filled_at, now
        self._resets = min(RESETS_PER_S, self._resets + passed * RESETS_PER_S)


def prepare() -> tuple[bool, tuple[bytes, bytes]]:
    """Whether the fast path works, and a certificate. Takes a moment: not for the loop."""
    return fast_path_works(), ephemeral_certificate()
