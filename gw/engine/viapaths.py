"""Ways to peers through a UDP relay between two nodes: asked for by DERP, bound, proven by a pong, kept by heartbeats.

Sans-I/O, a part of `PathFinder`, which wants a way while a peer with traffic has no direct one.

    want ──allocate by DERP──▶ endpoint ──`viahandshakes`──▶ ping through it ──pong──▶ Via, trusted for 6.5 s
                                  │ call-me-maybe-via, by DERP to the peer, which does the same from its side

Ref: spec relay-and-path §6; tailscale wgengine/magicsock/relaymanager.go
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, final

from gw.engine.peerpath import HEARTBEAT_S, NEVER, SESSION_ACTIVE_S, TRUST_S, Via, is_better
from gw.engine.viahandshakes import STEP_S, ViaHandshakes
from gw.engine.viamail import ViaMail
from gw.engine.viatable import Server, ViaPeer, ViaTable, Way
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.wire import geneve
from gw.wire.disco import envelope
from gw.wire.disco.envelope import Envelopes
from gw.wire.disco.messages import Ping, Pong, decode
from gw.wire.disco.udprelay import AllocateRequest, AllocateResponse, Bind, CallMeMaybeVia, pair_of
from gw.wire.geneve import HEADER_BYTES

ASK_GAP_S: Final = 30.0
ASK_AGAIN_S: Final = 3.0
ASK_LIMIT_S: Final = 10.0
CALL_GAP_S: Final = 0.5  # between endpoints that one peer has us try
LOST_S: Final = 12.0  # without a pong: the way is gone
KEPT_S: Final = 240.0  # the relay ends a pair that is silent for 5 min
MAX_ASKED: Final = 32  # at once; of more, others the next time


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
        self._envelopes, self._servers, self._peers_of = envelopes, servers, peers_of
        self._generations = itertools.count(1)
        self._may_use = True
        self._table = ViaTable()
        self._peers, self._legs = self._table.peers, self._table.legs
        self._mail = ViaMail(envelopes, node, random_bytes, peers_of)
        self._handshakes = ViaHandshakes(self._mail, self._table, self._generations)
        self.own_hosts: frozenset[str] = frozenset()  # addresses of this host, all of them
        self.out: Final = self._mail.out
        self.changed: list[NodeKey] = []  # whose `via` may be another now
        self.pongs: list[tuple[int, NodeKey, float, Via]] = []  # for who asked: who, peer, latency, way

    # Answers

    def via(self, key: NodeKey, now: float) -> tuple[Via, float] | None:
        """The trusted way and its latency in seconds, or None."""
        peer = self._peers.get(key)
        if peer is None or peer.way is None or now > peer.way.trust_until:
            return None
        return peer.way.via, peer.way.latency

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
        way = peer.way
        if way is not None:
            if now <= way.trust_until:
                if way.beat_at is None:
                    way.beat_at = now
                    self._table.look(now, peer)
                return
            if now - way.heard < KEPT_S and not any(now - at < STEP_S for at in way.pings.values()):
                self._ping(peer, way, now)
            if way.endpoint.server not in peer.handshakes and way.trust_until > NEVER:
                way.trust_until = NEVER
                self._handshakes.begin(peer, way.endpoint, now)  # our NAT may have moved us: bind again
        if now - peer.asked_at >= ASK_GAP_S:
            self._ask(peer, now)

    def ask(self, key: NodeKey, asked_by: int, now: float) -> bool:
        """Ping the peer through its trusted way for `gw ping`; False where there is none."""
        peer = self._peers.get(key)
        if peer is None or peer.way is None or now > peer.way.trust_until:
            return False
        self._mail.ping(peer.disco, peer.way.pings, peer.way.via, now, asked_by)
        return True

    def called(self, key: NodeKey, disco: DiscoKey, home: int, message: CallMeMaybeVia, now: float) -> None:
        """The peer has an endpoint for us both; it came by DERP and was the peer's."""
        if not self._may_use:
            return
        peer = self._of(key, disco, home)
        endpoint = message.endpoint
        if endpoint.clients == pair_of(self._envelopes.key, disco) and now - peer.called_at >= CALL_GAP_S:
            peer.called_at = now
            # a relay on this host is none that a peer calls us to: we ask it ourselves, where the relay map has it
            elsewhere = tuple(each for each in endpoint.addresses if each.host not in self.own_hosts)
            if elsewhere:
                self._handshakes.begin(peer, replace(endpoint, addresses=elsewhere), now)

    def feed_server(self, datagram: bytes, now: float) -> None:
        """A disco datagram that a relay sent us from its own key, by DERP."""
        try:
            sender = envelope.sender(datagram)
            if not self._mail.is_known(sender):
                return
            message = decode(self._envelopes.open(datagram))
        except WireError:
            return
        if isinstance(message, AllocateResponse) and message.endpoint.server == sender:
            self.answered(sender, message, now)

    def answered(self, sender: DiscoKey, message: AllocateResponse, now: float) -> None:
        """Whoever has this disco key has allocated an endpoint, and said so by DERP."""
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
            if self._handshakes.begin(peer, message.endpoint, now) and peer.home:
                self._mail.by_derp(peer.disco, CallMeMaybeVia(message.endpoint), peer.key, peer.home)

    def feed_udp(self, datagram: bytes, source: AddrPort, now: float) -> None:
        """A disco datagram behind a Geneve header. Nonsense and strangers are dropped."""
        try:
            header = geneve.decode(datagram)
            inner = datagram[HEADER_BYTES:]
            sender = envelope.sender(inner)
            if header.protocol != geneve.DISCO:
                return
            if header.control:
                key = self._handshakes.peer_of(sender, header.vni)
            else:
                key = self._legs.get((source, header.vni))
            peer = self._peers.get(key) if key is not None else None
            if peer is None or (not header.control and sender != peer.disco):
                return
            if header.control:
                self._mail.know(sender)
            message = decode(self._envelopes.open(inner))
        except WireError:
            return
        if header.control:
            if isinstance(message, Bind):
                self._handshakes.challenged(peer, sender, message, header.vni, source, now)
        elif isinstance(message, Ping):
            self._mail.send(peer.disco, Pong(message.tx_id, source), source, header.vni)
            self._handshakes.pinged(peer, source, header.vni, now)
        elif isinstance(message, Pong):
            self._on_pong(peer, message, now)

    def network_changed(self, now: float) -> None:
        """Our own addresses changed: relays have to hear us from the new ones."""
        for peer in self._peers.values():
            peer.asked_at = NEVER
            self._handshakes.end(peer)
            if peer.way is not None:
                peer.way.trust_until = NEVER
                self.changed.append(peer.key)
                if now - peer.wanted_at <= SESSION_ACTIVE_S:
                    self._handshakes.begin(peer, peer.way.endpoint, now)

    def forget(self, key: NodeKey) -> None:
        """The peer is gone, or another one now."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._handshakes.end(peer)
            self._drop(peer)

    # Time

    def deadline(self) -> float | None:
        return self._table.deadline()

    def poll(self, now: float) -> None:
        """Do what is due. What there is to send is in `out`, whose way may be another in `changed`."""
        while (peer := self._table.due(now)) is not None:
            self._tick(peer, now)

    def _tick(self, peer: ViaPeer, now: float) -> None:
        if peer.ask_again_at is not None and peer.ask_again_at <= now:
            peer.ask_again_at = None
            if peer.asked:
                self._send_requests(peer)
        self._handshakes.tick(peer, now)
        way = peer.way
        if way is None:
            return
        if now > way.trust_until:
            self.changed.append(peer.key)
            if now - way.heard > KEPT_S or (way.pings and now - way.heard > LOST_S):
                self._drop(peer)
                peer.asked_at = NEVER
                return
        if way.beat_at is not None and way.beat_at <= now:
            way.beat_at = None
            if now - peer.wanted_at <= SESSION_ACTIVE_S:
                self._ping(peer, way, now)
                way.beat_at = now + HEARTBEAT_S
                self._table.look(way.beat_at, peer)

    # Inside

    def _of(self, key: NodeKey, disco: DiscoKey, home: int) -> ViaPeer:
        peer = self._peers.get(key)
        if peer is not None and peer.disco != disco:
            self.forget(key)
            peer = None
        if peer is None:
            peer = self._peers[key] = ViaPeer(key, disco, home)
        peer.home = home
        return peer

    def _ask(self, peer: ViaPeer, now: float) -> None:
        servers = [server for server in self._servers(peer.home) if server.node != peer.key]
        if not servers:
            return
        peer.asked_at = now
        peer.generation = next(self._generations) & 0xFFFFFFFF
        if len(servers) > MAX_ASKED:
            at = peer.generation * MAX_ASKED % len(servers)
            servers = (servers[at:] + servers[:at])[:MAX_ASKED]
        peer.asked = {server.disco: server for server in servers}
        peer.ask_again_at = now + ASK_AGAIN_S
        self._table.look(peer.ask_again_at, peer)
        self._send_requests(peer)

    def _send_requests(self, peer: ViaPeer) -> None:
        for server in peer.asked.values():
            self._mail.to_server(server, AllocateRequest(pair_of(self._envelopes.key, peer.disco), peer.generation))

    def _on_pong(self, peer: ViaPeer, message: Pong, now: float) -> None:
        way = peer.way
        if way is not None and message.tx_id in way.pings:
            way.latency = max(now - way.pings.pop(message.tx_id), 0.0)
            asked_by = self._mail.answered(message.tx_id)
            if asked_by:
                self.pongs.append((asked_by, peer.key, way.latency, way.via))
            self._trust(peer, way, now)
            return
        found = self._handshakes.ponged(peer, message.tx_id, now)
        if found is None:
            return
        if (
            way is None
            or now > way.trust_until
            or is_better(found.via.address, found.latency, way.via.address, way.latency)
        ):
            if way is not None and way.via != found.via:
                self._drop(peer)
            self._handshakes.took(found)
            peer.way = found
            found.beat_at = now + HEARTBEAT_S
            self._table.look(found.beat_at, peer)
            self._trust(peer, found, now)
        else:
            self._handshakes.refused(peer, found)

    def _trust(self, peer: ViaPeer, way: Way, now: float) -> None:
        way.heard, way.trust_until = now, now + TRUST_S
        for tx_id in [tx_id for tx_id, at in way.pings.items() if now - at >= TRUST_S]:
            self._mail.lost(way.pings, tx_id)
        self.changed.append(peer.key)
        self._table.look(way.trust_until + 0.01, peer)
        self._table.look(now + LOST_S + 0.01, peer)

    def _ping(self, peer: ViaPeer, way: Way, now: float) -> None:
        self._mail.ping(peer.disco, way.pings, way.via, now)
        self._table.look(max(now, way.heard) + LOST_S, peer)

    def _drop(self, peer: ViaPeer) -> None:
        way, peer.way = peer.way, None
        if way is not None:
            for tx_id in tuple(way.pings):
                self._mail.lost(way.pings, tx_id)
            self._table.release(peer.key, way.via.address, way.via.vni)
            self.changed.append(peer.key)
