"""Ways to peers through a UDP relay between two nodes: asked for by DERP, bound, proven by a pong, kept by heartbeats.

Sans-I/O, a part of `PathFinder`, which wants a way while a peer with traffic has no direct one.

    want ──allocate by DERP──▶ endpoint ──bind, challenge, answer──▶ ping through it ──pong──▶ Via, trusted for 6.5 s
                                  │ call-me-maybe-via, by DERP to the peer, which does the same from its side

Ref: spec relay-and-path §6; tailscale wgengine/magicsock/relaymanager.go
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from gw.engine.peerpath import (
    HEARTBEAT_S,
    NEVER,
    SESSION_ACTIVE_S,
    TRUST_S,
    Outgoing,
    ToRelay,
    ToUdp,
    Via,
    is_better,
)
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.wire import geneve
from gw.wire.disco import envelope
from gw.wire.disco.envelope import NONCE_BYTES, Envelopes
from gw.wire.disco.messages import TX_ID_BYTES, Message, Ping, Pong, decode, encode
from gw.wire.disco.udprelay import (
    ANSWER,
    BIND,
    CHALLENGE,
    AllocateRequest,
    AllocateResponse,
    Bind,
    CallMeMaybeVia,
    RelayEndpoint,
    pair_of,
)
from gw.wire.geneve import HEADER_BYTES, Header

ASK_GAP_S: Final = 30.0
ASK_AGAIN_S: Final = 3.0
ASK_LIMIT_S: Final = 10.0
WORK_S: Final = 30.0
STEP_S: Final = 1.0
BINDS: Final = 5
PINGS: Final = 10
CALL_GAP_S: Final = 0.5  # between endpoints that one peer has us try
LOST_S: Final = 12.0  # without a pong: the way is gone
KEPT_S: Final = 240.0  # the relay ends a pair that is silent for 5 min
MAX_ADDRESSES: Final = 8
MAX_WORKS: Final = 512
MAX_WORKS_A_PEER: Final = 4
MAX_SERVERS: Final = 256


@dataclass(frozen=True, slots=True)
class Server:
    """A relay that can be asked. node: its key on DERP; disco: that of its UDP relay."""

    region: int
    node: NodeKey
    disco: DiscoKey


@dataclass(slots=True, eq=False)
class _Work:
    """A handshake with one relay for one peer. relay: the address whose challenge was the first, None before."""

    endpoint: RelayEndpoint
    generation: int
    until: float
    next_at: float
    relay: AddrPort | None = None
    challenge: bytes = b""
    binds_left: int = BINDS
    pings_left: int = PINGS
    pings: dict[bytes, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Live:
    """A way that has carried a pong."""

    endpoint: RelayEndpoint
    via: Via
    latency: float
    heard: float
    beat_at: float | None
    trust_until: float
    pings: dict[bytes, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Peer:
    key: NodeKey
    disco: DiscoKey
    home: int
    wanted_at: float = NEVER
    asked_at: float = NEVER
    ask_again_at: float | None = None
    asked: dict[DiscoKey, Server] = field(default_factory=dict)
    generation: int = 0  # of what is asked
    called_at: float = NEVER
    works: dict[DiscoKey, _Work] = field(default_factory=dict)
    live: _Live | None = None


@final
class ViaFinder:
    """All peers of one node. Times are monotonic seconds."""

    def __init__(
        self,
        envelopes: Envelopes,
        node: Callable[[], NodeKey],
        random_bytes: Callable[[int], bytes],
        servers: Callable[[int], Sequence[Server]],
        peers_of: Callable[[DiscoKey], Collection[NodeKey]],
    ) -> None:
        """node: our key. servers: those to ask for a peer with this home region. peers_of: who has a disco key."""
        self._envelopes, self._node, self._random = envelopes, node, random_bytes
        self._servers, self._peers_of = servers, peers_of
        self._peers: dict[NodeKey, _Peer] = {}
        self._legs: dict[tuple[AddrPort, int], NodeKey] = {}  # relay's address and VNI of a work or a way
        self._works: dict[tuple[DiscoKey, int], NodeKey] = {}  # by relay and VNI
        self._server_keys: OrderedDict[DiscoKey, None] = OrderedDict()  # whose boxes are kept
        self._generations = itertools.count(1)
        self._may_use = True
        self._due: list[tuple[float, int, NodeKey]] = []
        self._serial = itertools.count(1)
        self.out: list[Outgoing] = []
        self.changed: list[NodeKey] = []  # whose `via` may be another now
        self._asked_by: dict[bytes, int] = {}  # pings that somebody wants to hear of, by transaction
        self.pongs: list[tuple[int, NodeKey, float, Via]] = []  # for them: who asked, peer, latency, way

    # Answers

    def via(self, key: NodeKey, now: float) -> tuple[Via, float] | None:
        """The trusted way and its latency in seconds, or None."""
        peer = self._peers.get(key)
        if peer is None or peer.live is None or now > peer.live.trust_until:
            return None
        return peer.live.via, peer.live.latency

    def peer_at(self, source: AddrPort, vni: int) -> NodeKey | None:
        """Whose datagrams come through the relay at this address with this VNI."""
        return self._legs.get((source, vni))

    # What happens

    def allow(self, may_use: bool) -> None:
        """Whether this node may use UDP relays; where not, the ways it has end here and now."""
        self._may_use = may_use
        if not may_use:
            for key in list(self._peers):
                self.forget(key)

    def want(self, key: NodeKey, disco: DiscoKey, home: int, now: float) -> None:
        """Data is sent to the peer and there is no direct way. Cheap: call it again and again."""
        if not self._may_use:
            return
        peer = self._of(key, disco, home)
        peer.wanted_at = now
        live = peer.live
        if live is not None:
            if now <= live.trust_until:
                if live.beat_at is None:
                    live.beat_at = now
                    self._at(now, peer)
                return
            if now - live.heard < KEPT_S and not any(now - at < STEP_S for at in live.pings.values()):
                self._ping_live(peer, live, now)
            if live.endpoint.server not in peer.works and live.trust_until > NEVER:
                live.trust_until = NEVER
                self._begin(peer, live.endpoint, now)  # our NAT may have moved us: bind again
        if now - peer.asked_at >= ASK_GAP_S:
            self._ask(peer, now)

    def ask(self, key: NodeKey, asked_by: int, now: float) -> bool:
        """Ping the peer through its trusted way for `gw ping`; False where there is none."""
        peer = self._peers.get(key)
        if peer is None or peer.live is None or now > peer.live.trust_until:
            return False
        self._asked_by[self._ping(peer, peer.live.pings, peer.live.via, now)] = asked_by
        return True

    def called(self, key: NodeKey, disco: DiscoKey, home: int, message: CallMeMaybeVia, now: float) -> None:
        """The peer has an endpoint for us both; it came by DERP and was the peer's."""
        if not self._may_use:
            return
        peer = self._of(key, disco, home)
        endpoint = message.endpoint
        if endpoint.clients == pair_of(self._envelopes.key, disco) and now - peer.called_at >= CALL_GAP_S:
            peer.called_at = now
            self._begin(peer, endpoint, now)

    def feed_server(self, datagram: bytes, now: float) -> None:
        """A disco datagram that a relay sent us from its own key, by DERP."""
        try:
            sender = envelope.sender(datagram)
            if sender not in self._server_keys:
                return
            message = decode(self._envelopes.open(datagram))
        except WireError:
            return
        if not isinstance(message, AllocateResponse) or message.endpoint.server != sender:
            return
        clients = message.endpoint.clients
        own = self._envelopes.key
        for key in tuple(self._peers_of(clients[0] if clients[1] == own else clients[1])):
            peer = self._peers.get(key)
            if (
                peer is None
                or clients != pair_of(own, peer.disco)
                or peer.generation != message.generation
                or peer.asked.pop(sender, None) is None
                or now - peer.asked_at > ASK_LIMIT_S
            ):
                continue
            if self._begin(peer, message.endpoint, now) and peer.home:
                call = self._seal(peer.disco, CallMeMaybeVia(message.endpoint))
                self.out.append(ToRelay(call, peer.key, peer.home))

    def feed_udp(self, datagram: bytes, source: AddrPort, now: float) -> None:
        """A disco datagram behind a Geneve header. Nonsense and strangers are dropped."""
        try:
            header = geneve.decode(datagram)
            inner = datagram[HEADER_BYTES:]
            sender = envelope.sender(inner)
            if header.protocol != geneve.DISCO:
                return
            if header.control:
                key = self._works.get((sender, header.vni))
            else:
                key = self._legs.get((source, header.vni))
            peer = self._peers.get(key) if key is not None else None
            if peer is None or (not header.control and sender != peer.disco):
                return
            if header.control:
                self._know(sender)
            message = decode(self._envelopes.open(inner))
        except WireError:
            return
        if header.control:
            if isinstance(message, Bind):
                self._on_challenge(peer, sender, message, header.vni, source, now)
        elif isinstance(message, Ping):
            self._on_ping(peer, message, source, header.vni, now)
        elif isinstance(message, Pong):
            self._on_pong(peer, message, now)

    def network_changed(self, now: float) -> None:
        """Our own addresses changed: relays have to hear us from the new ones."""
        for peer in self._peers.values():
            peer.asked_at = NEVER
            for work in peer.works.values():
                self._forget_work(work)
            peer.works.clear()
            if peer.live is not None:
                peer.live.trust_until = NEVER
                self.changed.append(peer.key)
                if now - peer.wanted_at <= SESSION_ACTIVE_S:
                    self._begin(peer, peer.live.endpoint, now)

    def forget(self, key: NodeKey) -> None:
        """The peer is gone, or another one now."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            for work in peer.works.values():
                self._forget_work(work)
            self._drop_live(peer)

    # Time

    def deadline(self) -> float | None:
        return self._due[0][0] if self._due else None

    def poll(self, now: float) -> None:
        """Do what is due. What there is to send is in `out`, whose way may be another in `changed`."""
        while self._due and self._due[0][0] <= now:
            peer = self._peers.get(heapq.heappop(self._due)[2])
            if peer is not None:
                self._tick(peer, now)

    def _tick(self, peer: _Peer, now: float) -> None:
        if peer.ask_again_at is not None and peer.ask_again_at <= now:
            peer.ask_again_at = None
            if peer.asked:
                self._send_requests(peer)
        for server, work in list(peer.works.items()):
            if work.until <= now:
                del peer.works[server]
                self._forget_work(work)
            elif work.next_at <= now:
                self._step(peer, work, now)
        live = peer.live
        if live is None:
            return
        if now > live.trust_until:
            self.changed.append(peer.key)
            if now - live.heard > KEPT_S or (live.pings and now - live.heard > LOST_S):
                self._drop_live(peer)
                peer.asked_at = NEVER
                return
        if live.beat_at is not None and live.beat_at <= now:
            live.beat_at = None
            if now - peer.wanted_at <= SESSION_ACTIVE_S:
                self._ping_live(peer, live, now)
                live.beat_at = now + HEARTBEAT_S
                self._at(live.beat_at, peer)

    # Inside

    def _of(self, key: NodeKey, disco: DiscoKey, home: int) -> _Peer:
        peer = self._peers.get(key)
        if peer is not None and peer.disco != disco:
            self.forget(key)
            peer = None
        if peer is None:
            peer = self._peers[key] = _Peer(key, disco, home)
        peer.home = home
        return peer

    def _ask(self, peer: _Peer, now: float) -> None:
        servers = self._servers(peer.home)
        if not servers:
            return
        peer.asked_at = now
        peer.generation = next(self._generations) & 0xFFFFFFFF
        peer.asked = {server.disco: server for server in servers}
        peer.ask_again_at = now + ASK_AGAIN_S
        self._at(peer.ask_again_at, peer)
        self._send_requests(peer)

    def _send_requests(self, peer: _Peer) -> None:
        for server in peer.asked.values():
            self._know(server.disco)
            request = AllocateRequest(pair_of(self._envelopes.key, peer.disco), peer.generation)
            sealed = self._seal(server.disco, request)
            if sealed:
                self.out.append(ToRelay(sealed, server.node, server.region))

    def _begin(self, peer: _Peer, endpoint: RelayEndpoint, now: float) -> bool:
        """Start a handshake with the relay; False where there is none to be had."""
        live, before = peer.live, peer.works.get(endpoint.server)
        is_live = live is not None and (live.endpoint.server, live.via.vni) == (endpoint.server, endpoint.vni)
        if is_live and live is not None and now <= live.trust_until:
            return True  # a new bind would move us there, and lose what is under way
        if before is not None and before.endpoint.lamport >= endpoint.lamport:
            return True
        if before is None and (len(self._works) >= MAX_WORKS or len(peer.works) >= MAX_WORKS_A_PEER):
            return False
        if (endpoint.server, endpoint.vni) in self._works:
            return False  # another peer's, or forged
        if before is not None:
            self._forget_work(before)
        generation = next(self._generations) & 0xFFFFFFFF or next(self._generations)
        work = _Work(endpoint, generation, now + min(endpoint.bind_s, WORK_S), now)
        peer.works[endpoint.server] = work
        self._works[endpoint.server, endpoint.vni] = peer.key
        self._know(endpoint.server)
        self._at(work.until, peer)
        self._step(peer, work, now)
        return True

    def _step(self, peer: _Peer, work: _Work, now: float) -> None:
        """Bind again, or answer and ping again: datagrams get lost."""
        work.next_at = now + STEP_S
        endpoint = work.endpoint
        if work.relay is None:
            if not work.binds_left:
                return
            work.binds_left -= 1
            bind = Bind(BIND, endpoint.vni, work.generation, peer.disco)
            for address in filter(_is_usable, endpoint.addresses[:MAX_ADDRESSES]):
                self._send(endpoint.server, bind, address, endpoint.vni, control=True)
        else:
            if not work.pings_left:
                return
            work.pings_left -= 1
            answer = Bind(ANSWER, endpoint.vni, work.generation, peer.disco, work.challenge)
            self._send(endpoint.server, answer, work.relay, endpoint.vni, control=True)
            self._ping(peer, work.pings, Via(work.relay, endpoint.vni), now)
        self._at(work.next_at, peer)

    def _on_challenge(
        self, peer: _Peer, server: DiscoKey, message: Bind, vni: int, source: AddrPort, now: float
    ) -> None:
        work = peer.works.get(server)
        if (
            work is None
            or work.relay is not None
            or (message.kind, message.vni, message.generation, message.remote)
            != (CHALLENGE, vni, work.generation, peer.disco)
            or vni != work.endpoint.vni
        ):
            return
        work.relay, work.challenge = source, message.challenge
        self._legs[source, vni] = peer.key
        self._step(peer, work, now)

    def _on_ping(self, peer: _Peer, message: Ping, source: AddrPort, vni: int, now: float) -> None:
        self._send(peer.disco, Pong(message.tx_id, source), source, vni)
        for work in peer.works.values():
            # its ping came through, so both are bound: ours will come through now
            is_here = (work.relay, work.endpoint.vni) == (source, vni)
            if is_here and work.pings_left and not any(now - at < STEP_S / 10 for at in work.pings.values()):
                work.pings_left -= 1
                self._ping(peer, work.pings, Via(source, vni), now)

    def _on_pong(self, peer: _Peer, message: Pong, now: float) -> None:
        live = peer.live
        if live is not None and message.tx_id in live.pings:
            live.latency = max(now - live.pings.pop(message.tx_id), 0.0)
            asked_by = self._asked_by.pop(message.tx_id, 0)
            if asked_by:
                self.pongs.append((asked_by, peer.key, live.latency, live.via))
            self._trust(peer, live, now)
            return
        for server, work in list(peer.works.items()):
            sent_at = work.pings.pop(message.tx_id, None)
            if sent_at is None or work.relay is None:
                continue
            del peer.works[server]
            via, latency = Via(work.relay, work.endpoint.vni), max(now - sent_at, 0.0)
            if (
                live is None
                or now > live.trust_until
                or is_better(via.address, latency, live.via.address, live.latency)
            ):
                if live is not None and live.via != via:
                    self._drop_live(peer)
                self._works.pop((server, via.vni), None)
                peer.live = _Live(work.endpoint, via, latency, now, now + HEARTBEAT_S, NEVER)
                self._at(now + HEARTBEAT_S, peer)
                self._trust(peer, peer.live, now)
            else:
                self._forget_work(work)

    def _trust(self, peer: _Peer, live: _Live, now: float) -> None:
        live.heard, live.trust_until = now, now + TRUST_S
        for tx_id in [tx_id for tx_id, at in live.pings.items() if now - at >= TRUST_S]:
            del live.pings[tx_id]
            self._asked_by.pop(tx_id, None)
        self.changed.append(peer.key)
        self._at(live.trust_until + 0.01, peer)
        self._at(now + LOST_S + 0.01, peer)

    def _ping_live(self, peer: _Peer, live: _Live, now: float) -> None:
        self._ping(peer, live.pings, live.via, now)
        self._at(max(now, live.heard) + LOST_S, peer)

    def _ping(self, peer: _Peer, pings: dict[bytes, float], via: Via, now: float) -> bytes:
        tx_id = self._random(TX_ID_BYTES)
        pings[tx_id] = now
        if len(pings) > PINGS:
            oldest = next(iter(pings))
            del pings[oldest]
            self._asked_by.pop(oldest, None)
        self._send(peer.disco, Ping(tx_id, self._node()), via.address, via.vni)
        return tx_id

    def _send(self, to: DiscoKey, message: Message, address: AddrPort, vni: int, *, control: bool = False) -> None:
        sealed = self._seal(to, message)
        if sealed:
            self.out.append(ToUdp(geneve.encode(Header(geneve.DISCO, vni, control=control)) + sealed, address))

    def _seal(self, to: DiscoKey, message: Message) -> bytes:
        try:
            return self._envelopes.seal(to, self._random(NONCE_BYTES), encode(message))
        except WireError:
            return b""  # a disco key of small order

    def _know(self, server: DiscoKey) -> None:
        """Its datagrams may be opened. Of too many the one that was used longest ago is forgotten."""
        self._server_keys[server] = None
        self._server_keys.move_to_end(server)
        if len(self._server_keys) > MAX_SERVERS:
            oldest, _ = self._server_keys.popitem(last=False)
            if not self._peers_of(oldest):
                self._envelopes.forget(oldest)

    def _forget_work(self, work: _Work) -> None:
        self._works.pop((work.endpoint.server, work.endpoint.vni), None)
        if work.relay is not None:
            self._unleg(work.relay, work.endpoint.vni)

    def _drop_live(self, peer: _Peer) -> None:
        live, peer.live = peer.live, None
        if live is not None:
            for tx_id in live.pings:
                self._asked_by.pop(tx_id, None)
            self._unleg(live.via.address, live.via.vni)
            self.changed.append(peer.key)

    def _unleg(self, address: AddrPort, vni: int) -> None:
        key = self._legs.get((address, vni))
        peer = self._peers.get(key) if key is not None else None
        if peer is None or peer.live is None or peer.live.via != Via(address, vni):
            self._legs.pop((address, vni), None)

    def _at(self, when: float, peer: _Peer) -> None:
        heapq.heappush(self._due, (when, next(self._serial), peer.key))


def _is_usable(address: AddrPort) -> bool:
    """Whether a relay may be there: a peer does not make us speak to this host's own services, or to many at once."""
    host = ipaddress.ip_address(address.host)
    return bool(address.port) and not (host.is_loopback or host.is_multicast or host.is_unspecified or host.is_reserved)
