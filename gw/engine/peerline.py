"""One QUIC connection with a peer: who it is, its queues, heartbeats, and what both sides tell each other.

    a send is queued          priority: WireGuard's handshakes       data: the oldest gives way
    a flush hands on          control stream, priority, data, then reports when nothing else waits

Ref: spec quic §9, §11, §13
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from gw.engine.peershare import NEEDED_WINDOW, PeerShare, Share
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.native.quicpackets import WINDOW
from gw.quic.link import Link
from gw.quic.patience import NEVER, Patience
from gw.wire.derp import frames as derp
from gw.wire.quic import frames, peering
from gw.wire.quic.auth import ANSWERER, DIALER, NONCE_BYTES, Claim, open_claim, seal_claim
from gw.wire.quic.datagrams import HEARTBEAT
from gw.wire.quic.frames import AUTH_S
from gw.wire.quic.peering import PING_BYTES, Heartbeat, Messages, Network, Report, Routes

QUEUE_S: Final = 0.05  # of data at the rate that the path delivers, within these
MIN_QUEUE_BYTES: Final = 128 << 10
MAX_QUEUE_BYTES: Final = 2 << 20
PRIORITY_PACKETS: Final = 32
HAND_OVER: Final = 96  # datagrams that may wait in the link; the rest waits here, where the oldest gives way
BEAT_S: Final = 1.0
IDLE_BEAT_S: Final = 15.0
ACTIVE_S: Final = 5.0  # after the last message beats are quick
REPORT_S: Final = 5.0
LATE_REPORT_S: Final = 30.0  # also beside data that waits
SILENT_S: Final = 3.0
IDLE_CLOSE_S: Final = 300.0  # without a message either way
TRANSPORT: Final = 4  # WireGuard's bulk; lower types are its handshakes
MAX_EARLY_BYTES: Final = 4096
MAX_STREAMS: Final = 8  # reports that are not whole yet
MAX_TICKETS: Final = 4  # that are taken of one connection
MAX_ASIDES: Final = 4  # reports of ours that the other side does not have yet; above it there are no newer ones


class Owner(Protocol):
    """What a connection needs of the whole."""

    secret: NodeSecret
    node: NodeKey
    new_nonce: Callable[[int], bytes]
    routes: Routes
    sealers: int

    def wall_ms(self) -> int:
        """UTC milliseconds since 1970."""

    def may(self, key: NodeKey) -> bool:
        """Whether this key may have a connection."""

    def proven(self, line: PeerLine, now: float) -> bool:
        """The other side is who it says. False where another connection with it stays instead."""

    def messages(self, line: PeerLine, batch: list[bytes]) -> None: ...

    def ponged(self, line: PeerLine, data: bytes) -> None: ...

    def told_routes(self, line: PeerLine) -> None: ...

    def ended(self, line: PeerLine, code: int, reason: str) -> None: ...


@final
class PeerLine:
    """key: whom a dialer wants, or who an answerer has found the other side to be."""

    link: Link

    def __init__(self, owner: Owner, key: NodeKey | None, address: AddrPort, now: float, *, is_dialer: bool) -> None:
        self._owner = owner
        self.key = key
        self.address = address  # where our packets go
        self.source: AddrPort | None = None  # where its newest packet came from
        self.knocked: NodeKey | None = None  # whose endpoint the first packet that we answer came from
        self.is_dialer: Final = is_dialer
        self.is_proven = False
        self.is_over = False
        self.number = 0  # by which packet workers know it, once they have a share
        self._share: PeerShare | None = None
        self._window = 0  # how far behind the newest number the peer takes packets, as far as it has told
        self._told_window = False
        self.cids: list[bytes] = []
        self.tickets: list[Any] = []  # of this connection, until we know whose they are
        self.routes: tuple[Network, ...] = ()  # what the peer serves
        self.report: Report | None = None  # what the peer counts
        self.sent = self.received = self.dropped = 0
        self.jitter_s = 0.0
        self.rtt_s = 0.0
        self.used_at = now
        self._now = now
        self.began = now
        self._reader = peering.peer_reader()
        self._inbox = Messages()
        self._priority: deque[bytes] = deque()
        self._data: deque[bytes] = deque()
        self._data_bytes = 0
        self._part = 0
        self._beat_at = float("inf")
        self._beat = 0
        self._beats: dict[int, float] = {}  # sequence -> when it was sent
        self._theirs: tuple[int, float] | None = None  # newest heartbeat of the peer, and when it came
        self._report_at = float("inf")
        self._told: Report | None = None
        self._told_at = now
        self._routes_seen = -1
        self._routes_told = -1
        self._streams: dict[int, bytes] = {}
        self._early = b""  # control that came before the handshake was over
        self._tickets_left = MAX_TICKETS
        self._patience = Patience()
        self._patient_until = NEVER

    def attach(self, link: Link) -> None:
        self.link = link
        link.aside = self._aside

    # What the owner asks

    @property
    def waiting(self) -> int:
        return len(self._priority) + len(self._data)

    @property
    def is_usable(self) -> bool:
        return self.is_proven and not self.is_over

    def is_silent(self, now: float) -> bool:
        """Nothing came although something should have."""
        return now - self.link.heard_at > SILENT_S and self._is_active(now)

    def _is_active(self, now: float) -> bool:
        return now - self.used_at < ACTIVE_S

    def deadline(self) -> float:
        due = min(self.link.deadline(), self._beat_at, self._report_at, self._patient_until)
        return due if self.is_proven else min(due, self.began + AUTH_S)

    # What the owner wants

    def send(self, datagrams: list[bytes], now: float) -> None:
        """Queue WireGuard messages."""
        self._used(now)
        for datagram in datagrams:
            if datagram[:1] != b"\x04":
                self._priority.append(datagram)
                if len(self._priority) > PRIORITY_PACKETS:
                    self._priority.popleft()
                    self.dropped += 1
                continue
            self._data.append(datagram)
            self._data_bytes += len(datagram)
        room = min(max(QUEUE_S * self.link.rate, MIN_QUEUE_BYTES), MAX_QUEUE_BYTES)
        while self._data_bytes > room:
            self._data_bytes -= len(self._data.popleft())
            self.dropped += 1

    def ping(self, data: bytes) -> None:
        """8 bytes that come back on the control stream."""
        self._say(peering.encode_ping(data))

    def tell_routes(self) -> None:
        """Tell what we serve, if the peer does not know it yet; later, where it has not taken what was said before."""
        routes = self._owner.routes
        if routes.version > self._routes_told and self.is_usable and self.link.is_up and self._is_heard():
            self._routes_told = routes.version
            self.link.send_stream(peering.encode_routes(routes))

    def close(self, code: int, reason: str) -> None:
        self.link.close(code, reason)

    def ticketed(self, ticket: Any) -> None:
        """The answerer gave a ticket. Each is written to a file: of very many the first count."""
        if self._tickets_left:
            self._tickets_left -= 1
            self.tickets.append(ticket)

    def give_up(self, reason: str) -> None:
        """It is over at once, whatever state it is in; the other side is not told."""
        self.link.is_closed = True
        self.closed(frames.BROKEN, reason)

    def poll(self, now: float) -> list[tuple[bytes, int]]:
        """Trains to send, with the size of their datagrams. Control first, then handshakes, data, reports when nothing
        waits."""
        self._now = now
        if not self.is_proven and now - self.began > AUTH_S:
            self.close(frames.NO_AUTH, "no proof of the node key in time")
        elif self._is_deaf(now):
            self.close(frames.CLOSED, "takes nothing of what waits for it")
        elif self.is_usable:
            self._keep_time(now)
        out = [train[:2] for train in self.link.poll(now)]
        if self.is_usable:
            while self.waiting and self.link.waiting < HAND_OVER:
                self._hand_over()
                out += [train[:2] for train in self.link.poll(now)]
        return out

    # What packet workers do for it

    def shares(self, now: float) -> list[Share]:
        """What they are to be told now."""
        if not self.is_usable or self.key is None or self._window < NEEDED_WINDOW:
            return self.unshare()
        if self._share is None:
            self._share = PeerShare(self.number, self.key, self.link, self._owner.sealers)
        return self._share.poll(self.address, now)

    def unshare(self) -> list[Share]:
        """They have nothing to do with it any more."""
        return self._share.end() if self._share is not None else []

    def share_again(self) -> None:
        """They were started anew."""
        if self._share is not None:
            self._share.forget()

    def sent_by(self, sealer: int, first: int, sizes: list[int], sent_at: float) -> bool:
        """One of them is about to send these packets; whether to look after it soon."""
        if self._share is None:
            return False
        self.sent += len(sizes)
        self._used(sent_at)
        return self._share.sent(sealer, first, sizes, sent_at)

    def opened(self, count: int, frames: list[bytes], runs: list[int], acks: list[list[int]], now: float) -> None:
        """One of them has opened so many datagrams, and delivered all but these."""
        delivered = count - len(frames)
        if delivered > 0 and self.is_usable:
            self.received += delivered
            self._used(now)
        self.link.take(count, frames, runs, acks, now)

    def _used(self, now: float) -> None:
        was_active, self.used_at = self._is_active(now), now
        if not was_active and self.is_proven:
            self._beat_at = min(self._beat_at, now)

    # Inside

    def _hand_over(self) -> None:
        limit = self.link.limit
        batch: list[bytes] = []
        room = HAND_OVER - self.link.waiting
        while len(batch) < room:
            if self._priority:
                datagram = self._priority.popleft()
            elif self._data:
                datagram = self._data.popleft()
                self._data_bytes -= len(datagram)
            else:
                break
            if len(datagram) < limit:
                batch.append(b"0\x10" + datagram)
            else:
                self._part += 1
                parts = peering.encode_message(datagram, limit, self._part)
                if not parts:
                    self.dropped += 1
                batch += [b"0" + part for part in parts]
            self.sent += 1
        self.link.send_frames(batch)

    def _keep_time(self, now: float) -> None:
        if now - self.used_at > IDLE_CLOSE_S:
            self.close(frames.CLOSED, "idle")
            return
        self.tell_routes()
        if not self._told_window and self.link.is_fast:
            self._told_window = True
            self.link.send_stream(peering.encode_window(WINDOW))
        if now >= self._beat_at:
            self._beat += 1
            echo, since = self._theirs or (0, now)
            beat = Heartbeat(self._beat, int(now * 1e6), echo, int((now - since) * 1e6))
            self.link.send(peering.encode_heartbeat(beat))
            self._beats[self._beat & 0xFFFFFFFF] = now
            while len(self._beats) > 32:
                del self._beats[next(iter(self._beats))]
            self._beat_at = now + (BEAT_S if self._is_active(now) else IDLE_BEAT_S)
        if now >= self._report_at:
            self._report_at = now + REPORT_S
            report = Report(
                sent=self.sent, received=self.received, dropped=self.dropped,
                rtt_ms=round(self.rtt_s * 1e3, 3), jitter_ms=round(self.jitter_s * 1e3, 3),
            )  # fmt: skip
            is_free = not self.waiting or now - self._told_at > LATE_REPORT_S
            if report != self._told and is_free and self.link.is_up and self.link.asides < MAX_ASIDES:
                self._told, self._told_at = report, now
                self.link.send_aside(peering.encode_report(report))

    # LinkHandler

    def up(self) -> None:
        try:
            self._up()
        except WireError as error:
            self.close(frames.BROKEN, str(error))

    def _up(self) -> None:
        early, self._early = self._early, b""
        if self.link.is_resumed and self.key is not None:
            self._prove()
            self.stream(early, self._now)
            return
        self.is_proven = False  # a ticket that was not taken proves nothing
        if not self.is_dialer:
            self.key = None
        elif self.key is not None:
            self.link.send_stream(frames.encode_auth(self._owner.node.raw, self._claim(DIALER)))

    def datagrams(self, batch: list[bytes], now: float) -> None:
        """Messages only of who has proven itself; a resumed one has, by its ticket."""
        if not self.is_usable:
            return
        found: list[bytes] = []
        for frame in batch:
            if frame[1:2] == b"\x10":
                found.append(frame[2:])
                continue
            try:
                if frame[1:2] == bytes([HEARTBEAT]):
                    self._on_heartbeat(peering.decode_heartbeat(frame[1:]), now)
                else:
                    message = self._inbox.feed(frame[1:], now)
                    if message is not None:
                        found.append(message)
            except WireError:
                continue
        found = [message for message in found if message]
        if found:
            self.received += len(found)
            self._used(now)
            self._owner.messages(self, found)

    def stream(self, data: bytes, now: float) -> None:
        if not self.link.is_up:  # early data: it may be a repetition, and waits for the proof that it is none
            self._early += data
            if len(self._early) > MAX_EARLY_BYTES:
                raise WireError("too much control before the handshake")
            return
        for kind, body in self._reader.feed(data):
            if kind == frames.AUTH:
                self._on_auth(body)
            elif kind == frames.AUTH_OK:
                self._on_auth_ok(body)
            elif not self.is_usable:
                raise WireError("a word before the proof of the node key")
            elif kind == derp.PING:
                self._say(peering.answer_to(body))
            elif kind == derp.PONG:
                self._owner.ponged(self, body[:PING_BYTES])
            elif kind == frames.ROUTES:
                self._on_routes(peering.decode_routes(body))
            elif kind == frames.ROUTES_ACK:
                peering.decode_routes_ack(body)
            elif kind == frames.WINDOW:
                self._window = peering.decode_window(body)

    def moved(self, address: object) -> None:
        """Never: to aioquic the peer is always at the same place. Where it is, disco finds out."""

    def closed(self, code: int, reason: str) -> None:
        if not self.is_over:
            self.is_over = True
            self._owner.ended(self, code, reason)

    # Inside

    def _is_heard(self) -> bool:
        """Whether the other side takes what is said on the control stream: who does not is told nothing more."""
        return self.link.unsent <= frames.MAX_UNSENT_BYTES

    def _is_deaf(self, now: float) -> bool:
        self._patient_until = self._patience.look_at_control(self.link, now)
        if self._patient_until > now:
            return False
        self._patient_until = NEVER
        return True

    def _say(self, control: bytes) -> None:
        """A word that may be left out."""
        if self._is_heard():
            self.link.send_stream(control)

    def _claim(self, role: str) -> bytes:
        assert self.key is not None
        owner = self._owner
        claim = Claim(role=role, bind=self.link.bind.hex(), at=owner.wall_ms())
        return seal_claim(owner.secret.raw, self.key.raw, owner.new_nonce(NONCE_BYTES), claim)

    def _on_auth(self, body: bytes) -> None:
        if self.is_dialer or self.is_proven:
            raise WireError("a proof that nobody asked for")
        raw, sealed = frames.decode_auth(body)
        key = NodeKey(raw)
        owner = self._owner
        if not owner.may(key):
            self.close(frames.NOT_ALLOWED, "not a peer of this node")
            return
        open_claim(owner.secret.raw, raw, sealed, role=DIALER, bind=self.link.bind, now_ms=owner.wall_ms())
        self.key = key
        self.link.send_stream(derp.encode(frames.AUTH_OK, self._claim(ANSWERER)))
        self._prove()

    def _on_auth_ok(self, body: bytes) -> None:
        if not self.is_dialer or self.key is None:
            raise WireError("an answer to nothing")
        if self.is_proven:
            return
        owner = self._owner
        open_claim(owner.secret.raw, self.key.raw, body, role=ANSWERER, bind=self.link.bind, now_ms=owner.wall_ms())
        self._prove()

    def prove_early(self) -> None:
        """A ticket stands for the proof: messages may pass before the handshake is over."""
        self.is_proven = True

    def _prove(self) -> None:
        self.is_proven = True
        self._beat_at = self._now
        self._report_at = self._now + REPORT_S
        if self._owner.proven(self, self._now):
            self.tell_routes()
        else:
            self.close(frames.CLOSED, "another connection stays")

    def _on_heartbeat(self, beat: Heartbeat, now: float) -> None:
        if self._theirs is None or (beat.sequence - self._theirs[0]) & 0xFFFFFFFF < 1 << 31:
            self._theirs = beat.sequence, now
        sent = self._beats.pop(beat.echo, None)
        if sent is not None:
            rtt = max(now - sent - beat.held_us / 1e6, 0.0)
            if self.rtt_s:
                self.jitter_s += (abs(rtt - self.rtt_s) - self.jitter_s) / 8
                self.rtt_s += (rtt - self.rtt_s) / 8
            else:
                self.rtt_s = rtt

    def _on_routes(self, routes: Routes) -> None:
        self._say(peering.encode_routes_ack(routes.version))
        if routes.version > self._routes_seen:
            self._routes_seen, self.routes = routes.version, routes.prefixes
            self._owner.told_routes(self)

    def _aside(self, stream: int, data: bytes, is_end: bool) -> None:
        """Part of a report; the newest whole one counts."""
        whole = self._streams.pop(stream, b"") + data
        if len(whole) > peering.MAX_REPORT_BYTES or not self.is_usable:
            return
        if not is_end:
            self._streams[stream] = whole
            while len(self._streams) > MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            return
        try:
            self.report = peering.decode_report(whole)
        except WireError:
            return
