"""Finding the way to each peer: disco pings on all its endpoints, call-me-maybe through the relay, and the verdict.

Sans-I/O: datagrams, events and the time come in; datagrams and plans go out. Only peers with traffic cost anything:
each has its own deadline in one heap.

    idle ──wake──> seeking ──pong──> direct (trusted 6.5 s per pong, heartbeat every 3 s)
     ^               │  ^                │
     └─45 s quiet────┘  └──no pong───────┘      while seeking, datagrams go by relay (and by the last direct path);
                                                after 2 s through a UDP relay between nodes, if one is found: `viapaths`

Ref: spec relay-and-path §3; tailscale wgengine/magicsock/endpoint.go
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, final

from gw.engine.peerpath import (
    HEARTBEAT_S,
    NEVER,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
    TRUST_S,
    Outgoing,
    PeerPath,
    SentPing,
    Source,
    ToRelay,
    ToUdp,
    Via,
    is_better,
)
from gw.engine.viapaths import ViaFinder
from gw.engine.viatable import Server
from gw.errors import WireError
from gw.model.addresses import DERP_MAGIC_V4, AddrPort
from gw.model.keys import DiscoKey, DiscoSecret, NodeKey
from gw.model.sendplan import SendPlan
from gw.wire.disco import envelope
from gw.wire.disco.envelope import NONCE_BYTES, Envelopes
from gw.wire.disco.messages import TX_ID_BYTES, CallMeMaybe, Message, Ping, Pong, decode, encode
from gw.wire.disco.udprelay import AllocateResponse, CallMeMaybeVia

FRESH_ENDPOINTS_S: Final = 27.0
CALL_INTERVAL_S: Final = 1.0  # no two calls to a peer within this
ENDPOINT_WAIT_S: Final = 1.5  # a call waits this long for fresh endpoints of our own
FOUND_S: Final = 30.0  # a round trip proves for this long that a peer is at an endpoint
MAX_FOUND: Final = 4096
FOLLOW_S: Final = 3.0  # a peer that has moved has to answer from there within this
FOLLOW_GAP_S: Final = 0.2
VIA_AFTER_S: Final = 2.0  # without a direct path


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """The peer's datagrams go this way from now on."""

    peer: NodeKey
    plan: SendPlan


@dataclass(frozen=True, slots=True)
class PathChanged:
    """direct: the trusted path, None for a relay. latency_s: of its last pong. via: through a UDP relay."""

    peer: NodeKey
    direct: AddrPort | None
    latency_s: float
    via: Via | None = None


@dataclass(frozen=True, slots=True)
class PingResult:
    """A pong for `PathFinder.ping`. endpoint: None where it came by relay; via: by which UDP relay."""

    id: int
    peer: NodeKey
    latency_s: float
    endpoint: AddrPort | None
    region: int
    via: Via | None = None


@dataclass(frozen=True, slots=True)
class NeedEndpoints:
    """Our own endpoints are old: find them out, then call `set_own_endpoints`."""


@dataclass(frozen=True, slots=True)
class SessionStale:
    """The peer has another disco key than before: it was restarted, its WireGuard session is gone."""

    peer: NodeKey


@dataclass(frozen=True, slots=True)
class Delivered:
    """Of `sent` data packets to the peer's best endpoint so far it had got `received` when our ping came."""

    peer: NodeKey
    sent: int
    received: int


Event = PlanChanged | PathChanged | PingResult | NeedEndpoints | SessionStale | Delivered
Counts = Callable[[NodeKey], tuple[int, int, int]]


@final
class PathFinder:
    """All peers of one node. Times are monotonic seconds."""

    def __init__(
        self,
        disco: DiscoSecret,
        node: NodeKey,
        random_bytes: Callable[[int], bytes],
        counts: Counts = lambda peer: (0, 0, 0),
        servers: Callable[[int], Sequence[Server]] = lambda home: (),
    ) -> None:
        """counts: data packets sent to a peer, and received from it, without a relay; bytes sent so.
        servers: those that may relay UDP to peers with this home region."""
        self._counts = counts
        self._found: OrderedDict[AddrPort, tuple[NodeKey, float]] = OrderedDict()
        self._node = node
        self._random = random_bytes
        self._envelopes = Envelopes(disco)
        self._peers: dict[NodeKey, PeerPath] = {}
        self._by_disco: dict[DiscoKey, set[NodeKey]] = {}
        self._vias = ViaFinder(
            self._envelopes, lambda: self._node, random_bytes, servers, lambda disco: self._by_disco.get(disco, ())
        )
        self._own: list[AddrPort] = []
        self._own_at = NEVER
        self._calls: dict[NodeKey, float] = {}  # calls that wait for fresh endpoints -> not longer than
        self._due: list[tuple[float, int, NodeKey]] = []
        self._serial = itertools.count(1)
        self._ping_ids = itertools.count(1)
        self._out: list[Outgoing] = []
        self._events: list[Event] = []

    @property
    def disco_key(self) -> DiscoKey:
        return self._envelopes.key

    # Peers

    def set_node(self, node: NodeKey) -> None:
        """Our node key was rotated."""
        self._node = node

    def set_peer(self, key: NodeKey, disco: DiscoKey | None, home: int, endpoints: list[AddrPort], now: float) -> None:
        """A peer of the map, new or changed. disco: None for one that has none (plain WireGuard)."""
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = PeerPath(key, disco, home)
            self._index(peer, None)
            self._events.append(PlanChanged(key, peer.plan))
        elif peer.disco != disco:
            old, peer.disco = peer.disco, disco
            self._index(peer, old)
            self._vias.forget(key)
            self._forget_path(peer)
            self._events.append(SessionStale(key))
        peer.home = home
        peer.replace(endpoints, Source.NETMAP)
        if peer.is_active(now):
            self._seek(peer, now, call=False)
        self._plan(peer, now)

    def remove_peer(self, key: NodeKey) -> None:
        peer = self._peers.pop(key, None)
        if peer is not None:
            disco, peer.disco = peer.disco, None
            self._index(peer, disco)
            self._vias.forget(key)
            self._calls.pop(key, None)

    def set_own_endpoints(self, endpoints: list[AddrPort], now: float) -> None:
        """What call-me-maybe tells; calls that waited for it go out."""
        self._own, self._own_at = list(endpoints), now
        for key in list(self._calls):
            del self._calls[key]
            peer = self._peers.get(key)
            if peer is not None:
                self._call(peer, now)

    def set_own_hosts(self, hosts: Collection[str]) -> None:
        """All addresses of this host's interfaces: no peer has us look for a relay there."""
        self._vias.own_hosts = frozenset(hosts)

    def direct_path(self, key: NodeKey, now: float) -> tuple[AddrPort, float] | None:
        """The trusted direct path and its latency in seconds, or None."""
        peer = self._peers.get(key)
        if peer is None or peer.best is None or not peer.is_trusted(now):
            return None
        return peer.best, peer.best_latency

    def via(self, key: NodeKey, now: float) -> tuple[Via, float] | None:
        """The trusted way through a UDP relay and its latency in seconds; None where there is none, or a direct one."""
        peer = self._peers.get(key)
        return None if peer is None or peer.is_trusted(now) else self._vias.via(key, now)

    def via_at(self, source: AddrPort, vni: int) -> NodeKey | None:
        """Whose datagrams come through the UDP relay at this address with this VNI."""
        return self._vias.peer_at(source, vni)

    def best(self, key: NodeKey) -> AddrPort | None:
        """The best endpoint of the peer, trusted or not."""
        peer = self._peers.get(key)
        return None if peer is None else peer.best

    def found_at(self, source: AddrPort, now: float) -> NodeKey | None:
        """The peer that answered a ping from there lately."""
        key, at = self._found.get(source, (None, NEVER))
        return key if now - at <= FOUND_S and key in self._peers else None

    def allow_vias(self, may_use: bool) -> None:
        """Whether UDP relays between nodes may be used; where not, peers that are reached so go by DERP at once."""
        self._vias.allow(may_use)

    def set_counts(self, key: NodeKey, counts: bool) -> None:
        """Whether heartbeats tell the peer what is sent, and it what it has received."""
        peer = self._peers.get(key)
        if peer is not None:
            peer.counts = counts

    # What happens

    def measure(self, key: NodeKey, now: float) -> None:
        """Have a pong tell what arrives at the best endpoint."""
        peer = self._peers.get(key)
        if peer is not None and peer.best is not None and peer.disco is not None:
            self._ping(peer, peer.best, now)

    def moved(self, key: NodeKey, source: AddrPort, now: float) -> None:
        """Proven packets of the peer come from here now: try it, and go there as soon as it answers from there."""
        peer = self._peers.get(key)
        if peer is None or peer.disco is None or source == peer.best:
            return
        candidate = peer.learn(source, Source.PING)
        candidate.last_heard = now
        peer.follow = source, now + FOLLOW_S
        if now - candidate.last_ping >= FOLLOW_GAP_S:
            self._ping(peer, source, now)
        peer.prune(now)

    def wake(self, key: NodeKey, now: float) -> None:
        """A packet for an idle peer: find a way."""
        peer = self._peers.get(key)
        if peer is not None:
            self._note_sending(peer, now)

    def active(self, key: NodeKey, now: float) -> None:
        """Data was sent to the peer within the last moments."""
        peer = self._peers.get(key)
        if peer is not None:
            self._note_sending(peer, now)

    def heard(self, key: NodeKey, source: AddrPort | None, now: float) -> None:
        """An authentic WireGuard datagram of the peer came from here (None: by relay)."""
        peer = self._peers.get(key)
        if peer is None or source is None:
            return
        if peer.disco is None:  # plain WireGuard: where it was heard is where it is
            peer.best, peer.trust_until = source, float("inf")
            self._plan(peer, now)
            return
        candidate = peer.candidates.get(source)
        is_new = candidate is None
        candidate = peer.learn(source, Source.PING)
        candidate.last_heard = now
        if is_new and not peer.is_trusted(now):
            self._ping(peer, source, now)
        peer.prune(now)

    def send_failed(self, key: NodeKey, now: float) -> None:
        """The system refused to send to the direct path: it is none."""
        peer = self._peers.get(key)
        if peer is not None and peer.best is not None:
            self._forget_path(peer)
            if peer.is_active(now):
                self._seek(peer, now, call=True)
            self._plan(peer, now)

    def network_changed(self, now: float) -> None:
        """Our own addresses changed: trust nothing, try everything."""
        self._own_at = NEVER
        self._vias.network_changed(now)
        for peer in self._peers.values():
            if peer.best is not None:
                peer.trust_until = NEVER
                for candidate in peer.candidates.values():
                    candidate.last_ping = NEVER
                if peer.is_active(now):
                    self._seek(peer, now, call=True)
                self._plan(peer, now)

    def ping(self, key: NodeKey, now: float) -> int:
        """Ping the peer on every way there is; a PingResult with the returned id tells of each pong."""
        id_ = next(self._ping_ids)
        peer = self._peers.get(key)
        if peer is None or peer.disco is None:
            return id_
        self._note_sending(peer, now)
        if peer.best is not None and peer.is_trusted(now):
            self._ping(peer, peer.best, now, asked_by=id_)
        elif not self._vias.ask(key, id_, now):
            for endpoint in list(peer.candidates):
                self._ping(peer, endpoint, now, asked_by=id_)
            self._ping(peer, None, now, asked_by=id_)
        return id_

    def feed_udp(self, datagram: bytes, source: AddrPort, now: float) -> bool:
        """Take a datagram of the UDP socket; False where it is not disco. Nonsense and strangers are dropped."""
        if not envelope.is_disco(datagram):
            return False
        for peer, message in self._open(datagram):
            if isinstance(message, Ping):
                self._on_ping(peer, message, source, now)
            elif isinstance(message, Pong):
                self._on_pong(peer, message, source, now)
        return True

    def feed_via(self, datagram: bytes, source: AddrPort, now: float) -> None:
        """Take a datagram of the UDP socket with disco behind a Geneve header. Nonsense and strangers are dropped."""
        self._vias.feed_udp(datagram, source, now)

    def feed_server(self, datagram: bytes, now: float) -> None:
        """Take a datagram that a relay sent by DERP from its own key."""
        self._vias.feed_server(datagram, now)

    def feed_relay(self, datagram: bytes, region: int, source: NodeKey, now: float) -> bool:
        """Take a datagram that a relay brought from `source`; False where it is not disco."""
        if not envelope.is_disco(datagram):
            return False
        for peer, message in self._open(datagram):
            if peer.key != source:
                continue  # the relay knows who sent it
            if isinstance(message, Ping):
                self._send_relay(peer, Pong(message.tx_id, AddrPort(DERP_MAGIC_V4, region)), region)
            elif isinstance(message, Pong):
                self._on_pong(peer, message, None, now)
            elif isinstance(message, CallMeMaybe):
                self._on_call(peer, message, now)
            elif isinstance(message, CallMeMaybeVia) and peer.disco is not None:
                self._vias.called(peer.key, peer.disco, peer.home, message, now)
            elif isinstance(message, AllocateResponse) and peer.disco is not None:
                self._vias.answered(peer.disco, message, now)
        return True

    # Time and results

    def deadline(self) -> float | None:
        """When `poll` has something to do."""
        due = [self._due[0][0]] if self._due else []
        via = self._vias.deadline()
        if via is not None:
            due.append(via)
        return min((*due, *self._calls.values()), default=None)

    def poll(self, now: float) -> tuple[list[Outgoing], list[Event]]:
        """Do what is due; take what there is to send and to tell, in order."""
        while self._due and self._due[0][0] <= now:
            _, _, key = heapq.heappop(self._due)
            peer = self._peers.get(key)
            if peer is not None:
                self._beat(peer, now)
        for key, until in list(self._calls.items()):
            if until <= now:  # our endpoints did not come: call with what we have
                del self._calls[key]
                peer = self._peers.get(key)
                if peer is not None:
                    self._call(peer, now)
        self._vias.poll(now)
        changed, self._vias.changed = self._vias.changed, []
        for key in changed:
            peer = self._peers.get(key)
            if peer is not None:
                self._plan(peer, now)
        for asked_by, key, latency, way in self._vias.pongs:
            self._events.append(PingResult(asked_by, key, latency, None, 0, way))
        self._vias.pongs.clear()
        out, self._out = [*self._out, *self._vias.out], []
        self._vias.out.clear()
        events, self._events = self._events, []
        return out, events

    # Inside: seeking

    def _note_sending(self, peer: PeerPath, now: float) -> None:
        peer.last_send = now
        if peer.disco is None:
            return
        if peer.is_trusted(now):
            peer.seeking_since = NEVER
        else:
            self._seek(peer, now, call=True)
            if peer.seeking_since == NEVER:
                peer.seeking_since = now
            if now - peer.seeking_since >= VIA_AFTER_S:
                self._vias.want(peer.key, peer.disco, peer.home, now)
        if peer.heartbeat_at is None:
            peer.heartbeat_at = now + HEARTBEAT_S
            self._at(peer.heartbeat_at, peer)
        self._plan(peer, now)

    def _seek(self, peer: PeerPath, now: float, *, call: bool) -> None:
        """Ping all candidates that are due, and ask the peer to do the same."""
        if peer.disco is None:
            return
        peer.last_full_ping = now
        for endpoint, candidate in list(peer.candidates.items()):
            if now - candidate.last_ping >= PING_INTERVAL_S:
                self._ping(peer, endpoint, now)
        if call and now - peer.call_me_maybe_at >= PING_INTERVAL_S:
            self._call(peer, now)

    def _call(self, peer: PeerPath, now: float) -> None:
        """Tell the peer by relay where we may be found, so that it pings us: that opens its firewall for us."""
        if not peer.home or now - peer.call_me_maybe_at < CALL_INTERVAL_S:
            return
        if now - self._own_at > FRESH_ENDPOINTS_S:
            if peer.key not in self._calls:
                self._calls[peer.key] = now + ENDPOINT_WAIT_S
                self._events.append(NeedEndpoints())
                return
            if self._calls[peer.key] > now:
                return
        peer.call_me_maybe_at = now
        self._send_relay(peer, CallMeMaybe(self._own[:100]), peer.home)

    def _beat(self, peer: PeerPath, now: float) -> None:
        """A peer's own deadline: heartbeat, lost pings, the end of trust."""
        for tx_id, sent in list(peer.sent.items()):
            if now - sent.at >= PING_TIMEOUT_S:
                del peer.sent[tx_id]
        if peer.best is not None and not peer.is_trusted(now) and peer.disco is not None:
            heard = peer.learn(peer.best, Source.PING).last_heard
            if now - heard > TRUST_S + PING_TIMEOUT_S:
                self._forget_path(peer)
        if peer.heartbeat_at is not None and peer.heartbeat_at <= now:
            peer.heartbeat_at = None
            if peer.is_active(now) and peer.disco is not None:
                if peer.wants_full_ping(now):
                    self._seek(peer, now, call=not peer.is_trusted(now))
                if peer.best is not None:
                    self._ping(peer, peer.best, now)
                peer.heartbeat_at = now + HEARTBEAT_S
                self._at(peer.heartbeat_at, peer)
        self._plan(peer, now)

    def _ping(self, peer: PeerPath, to: AddrPort | None, now: float, *, asked_by: int = 0) -> None:
        tx_id = self._random(TX_ID_BYTES)
        sent = self._counts(peer.key)[0] if peer.counts and to is not None and to == peer.best else None
        peer.sent[tx_id] = SentPing(to, now, asked_by, sent)
        message = Ping(tx_id, self._node, sent=sent)
        if to is None:
            self._send_relay(peer, message, peer.home)
        else:
            candidate = peer.candidates.get(to)
            if candidate is not None:
                candidate.last_ping = now
            self._send_udp(peer, message, to)
        self._at(now + PING_TIMEOUT_S, peer)

    # Inside: messages

    def _open(self, datagram: bytes) -> list[tuple[PeerPath, Message]]:
        """The message for each peer that it may be from: several nodes may share a disco key."""
        try:
            sender = envelope.sender(datagram)
            keys = self._by_disco.get(sender)
            if not keys:
                return []
            message = decode(self._envelopes.open(datagram))
        except WireError:
            return []
        if message is None:
            return []
        if isinstance(message, Ping) and message.node is not None and message.node in keys:
            keys = {message.node}
        return [(self._peers[key], message) for key in keys]

    def _on_ping(self, peer: PeerPath, message: Ping, source: AddrPort, now: float) -> None:
        candidate = peer.learn(source, Source.PING)
        if candidate.last_ping_tx == message.tx_id:
            return
        candidate.last_ping_tx = message.tx_id
        candidate.last_heard = now
        received = self._counts(peer.key)[1] if peer.counts and message.sent is not None else None
        self._send_udp(peer, Pong(message.tx_id, source, received), source)
        # Its ping came through: ours may now too. Stock clients wait for their next round.
        if not peer.is_trusted(now) and now - candidate.last_ping >= 0.5:
            self._ping(peer, source, now)
        peer.prune(now)

    def _on_pong(self, peer: PeerPath, message: Pong, source: AddrPort | None, now: float) -> None:
        sent = peer.sent.pop(message.tx_id, None)
        if sent is None:
            return
        latency = max(now - sent.at, 0.0)
        if sent.asked_by:
            self._events.append(PingResult(sent.asked_by, peer.key, latency, sent.to, 0 if sent.to else peer.home))
        if sent.to is None or source is None:
            return
        self._found[source] = peer.key, now
        self._found.move_to_end(source)
        if len(self._found) > MAX_FOUND:
            self._found.popitem(last=False)
        if sent.sent is not None and message.received is not None and sent.to == peer.best:
            self._events.append(Delivered(peer.key, sent.sent, message.received))
        candidate = peer.learn(sent.to, Source.PING)
        candidate.last_heard = now
        candidate.latency = latency
        if sent.to == peer.best:
            peer.best_latency, peer.trust_until = latency, now + TRUST_S
        elif (
            self._follows(peer, sent.to, now)
            or not peer.is_trusted(now)
            or is_better(sent.to, latency, peer.best, peer.best_latency)
        ):
            peer.best, peer.best_latency, peer.trust_until = sent.to, latency, now + TRUST_S
        if sent.to == peer.best:
            self._at(peer.trust_until + 0.01, peer)
        self._plan(peer, now)

    @staticmethod
    def _follows(peer: PeerPath, to: AddrPort, now: float) -> bool:
        """Whether the peer has moved to where this pong was asked for."""
        if peer.follow is None or peer.follow[0] != to:
            return False
        until, peer.follow = peer.follow[1], None
        return now <= until

    def _on_call(self, peer: PeerPath, message: CallMeMaybe, now: float) -> None:
        """The peer looks for us: ping all it names, at once, and do not call back."""
        named = [each for each in message.endpoints if not each.host.startswith("fe80:") and each.port]
        peer.replace(named, Source.CALL_ME_MAYBE)
        for endpoint in named:
            candidate = peer.candidates.get(endpoint)
            if candidate is not None:
                candidate.last_ping = NEVER
        self._seek(peer, now, call=False)

    # Inside: results

    def _plan(self, peer: PeerPath, now: float) -> None:
        """Tell of a plan or path that is different now."""
        trusted = peer.is_trusted(now)
        found = None if trusted else self._vias.via(peer.key, now)
        via = found[0] if found is not None else None
        if peer.disco is None:
            plan = SendPlan(udp=peer.best or next(iter(peer.candidates), None))
        elif trusted:
            plan = SendPlan(udp=peer.best, wake=not peer.is_active(now))
        elif via is not None:
            plan = SendPlan(udp=via.address, vni=via.vni, wake=not peer.is_active(now))
        else:
            plan = SendPlan(udp=peer.best, relay=bool(peer.home), wake=not peer.is_active(now))
        if plan != peer.plan:
            peer.plan = plan
            self._events.append(PlanChanged(peer.key, plan))
        direct = peer.best if trusted else None
        changed_much = abs(peer.best_latency - peer.shown_latency) > 0.2 * peer.shown_latency
        if direct != peer.shown or via != peer.shown_via or (direct is not None and changed_much):
            peer.shown, peer.shown_latency, peer.shown_via = direct, peer.best_latency, via
            latency = peer.best_latency if direct else found[1] if found is not None else 0.0
            self._events.append(PathChanged(peer.key, direct, latency, via))

    def _forget_path(self, peer: PeerPath) -> None:
        peer.best, peer.best_latency, peer.trust_until = None, 0.0, NEVER
        for candidate in peer.candidates.values():
            candidate.last_ping = NEVER

    def _send_udp(self, peer: PeerPath, message: Ping | Pong, to: AddrPort) -> None:
        sealed = self._seal(peer, message)
        if sealed:
            self._out.append(ToUdp(sealed, to))

    def _send_relay(self, peer: PeerPath, message: Ping | Pong | CallMeMaybe, region: int) -> None:
        sealed = self._seal(peer, message) if region else b""
        if sealed:
            self._out.append(ToRelay(sealed, peer.key, region))

    def _seal(self, peer: PeerPath, message: Ping | Pong | CallMeMaybe) -> bytes:
        if peer.disco is None:
            return b""
        try:
            return self._envelopes.seal(peer.disco, self._random(NONCE_BYTES), encode(message))
        except WireError:
            return b""  # a disco key of small order: nothing can be said to it

    def _at(self, when: float, peer: PeerPath) -> None:
        heapq.heappush(self._due, (when, next(self._serial), peer.key))

    def _index(self, peer: PeerPath, old: DiscoKey | None) -> None:
        if old is not None:
            keys = self._by_disco.get(old, set())
            keys.discard(peer.key)
            if not keys:
                self._by_disco.pop(old, None)
                self._envelopes.forget(old)
        if peer.disco is not None:
            self._by_disco.setdefault(peer.disco, set()).add(peer.key)
