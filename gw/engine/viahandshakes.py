"""Handshakes with UDP relays between two nodes: from an endpoint for the pair to the pong that came through it.

    bind ──▶ challenge ──▶ answer, ping ──▶ pong        each again after a second: datagrams get lost

A peer may call us to any relay, so there are few handshakes at a time, each ends, and none leads to this host itself:
not to its loopback, see below, nor to its other addresses, which `ViaFinder.called` takes out.

Ref: spec relay-and-path §6; tailscale wgengine/magicsock/relaymanager.go
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final, final

from gw.engine.peerpath import NEVER, Via
from gw.engine.viamail import PINGS, ViaMail
from gw.engine.viatable import Handshake, ViaPeer, ViaTable, Way
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.wire.disco.udprelay import ANSWER, BIND, CHALLENGE, Bind, RelayEndpoint

HANDSHAKE_S: Final = 30.0
STEP_S: Final = 1.0
BINDS: Final = 5
MAX_ADDRESSES: Final = 8
MAX_HANDSHAKES: Final = 512
MAX_HANDSHAKES_A_PEER: Final = 4


@final
class ViaHandshakes:
    """All of one node."""

    def __init__(self, mail: ViaMail, table: ViaTable, generations: Iterator[int]) -> None:
        self._mail, self._table, self._generations = mail, table, generations
        self._peers: dict[tuple[DiscoKey, int], NodeKey] = {}  # by relay and VNI

    def __len__(self) -> int:
        return len(self._peers)

    def peer_of(self, server: DiscoKey, vni: int) -> NodeKey | None:
        """For whom there is a handshake with this relay."""
        return self._peers.get((server, vni))

    def begin(self, peer: ViaPeer, endpoint: RelayEndpoint, now: float) -> bool:
        """False where there is none to be had."""
        way, before = peer.way, peer.handshakes.get(endpoint.server)
        is_there = way is not None and (way.endpoint.server, way.via.vni) == (endpoint.server, endpoint.vni)
        if is_there and way is not None and now <= way.trust_until:
            return True  # a new bind would move us there, and lose what is under way
        if before is not None and before.endpoint.lamport >= endpoint.lamport:
            return True
        if before is None and (len(self._peers) >= MAX_HANDSHAKES or len(peer.handshakes) >= MAX_HANDSHAKES_A_PEER):
            return False
        if (endpoint.server, endpoint.vni) in self._peers:
            return False  # another peer's, or forged
        if before is not None:
            self._ended(peer, before)
        generation = next(self._generations) & 0xFFFFFFFF or next(self._generations)
        handshake = Handshake(endpoint, generation, now + min(endpoint.bind_s, HANDSHAKE_S), now, BINDS, PINGS)
        peer.handshakes[endpoint.server] = handshake
        self._peers[endpoint.server, endpoint.vni] = peer.key
        self._mail.know(endpoint.server)
        self._table.look(handshake.until, peer)
        self._step(peer, handshake, now)
        return True

    def tick(self, peer: ViaPeer, now: float) -> None:
        for server, handshake in list(peer.handshakes.items()):
            if handshake.until <= now:
                del peer.handshakes[server]
                self._ended(peer, handshake)
            elif handshake.next_at <= now:
                self._step(peer, handshake, now)

    def challenged(
        self, peer: ViaPeer, server: DiscoKey, message: Bind, vni: int, source: AddrPort, now: float
    ) -> None:
        """The relay has heard our bind, and answers from `source`."""
        handshake = peer.handshakes.get(server)
        if (
            handshake is None
            or handshake.relay is not None
            or (message.kind, message.vni, message.generation, message.remote)
            != (CHALLENGE, vni, handshake.generation, peer.disco)
            or vni != handshake.endpoint.vni
            or not self._table.claim(peer, source, vni, now)
        ):
            return
        handshake.relay, handshake.challenge = source, message.challenge
        self._step(peer, handshake, now)

    def pinged(self, peer: ViaPeer, source: AddrPort, vni: int, now: float) -> None:
        """The peer's ping came through, so both are bound: ours will come through now."""
        for each in peer.handshakes.values():
            is_here = (each.relay, each.endpoint.vni) == (source, vni)
            if is_here and each.pings_left and not any(now - at < STEP_S / 10 for at in each.pings.values()):
                each.pings_left -= 1
                self._mail.ping(peer.disco, each.pings, Via(source, vni), now)

    def ponged(self, peer: ViaPeer, tx_id: bytes, now: float) -> Way | None:
        """The way that a handshake ends in with this pong: give it to `took` or `refused`."""
        for server, handshake in peer.handshakes.items():
            sent_at = handshake.pings.pop(tx_id, None)
            if sent_at is not None and handshake.relay is not None:
                del peer.handshakes[server]
                via = Via(handshake.relay, handshake.endpoint.vni)
                return Way(handshake.endpoint, via, max(now - sent_at, 0.0), now, None, NEVER)
        return None

    def took(self, way: Way) -> None:
        """It is the peer's way now, and its leg too."""
        self._peers.pop((way.endpoint.server, way.via.vni), None)

    def refused(self, peer: ViaPeer, way: Way) -> None:
        """The peer has a better one."""
        self.took(way)
        self._table.release(peer.key, way.via.address, way.via.vni)

    def end(self, peer: ViaPeer) -> None:
        """All of the peer's."""
        for handshake in peer.handshakes.values():
            self._ended(peer, handshake)
        peer.handshakes.clear()

    def _step(self, peer: ViaPeer, handshake: Handshake, now: float) -> None:
        """Bind again, or answer and ping again."""
        handshake.next_at = now + STEP_S
        endpoint = handshake.endpoint
        if handshake.relay is None:
            if not handshake.binds_left:
                return
            handshake.binds_left -= 1
            bind = Bind(BIND, endpoint.vni, handshake.generation, peer.disco)
            for address in filter(_is_usable, endpoint.addresses[:MAX_ADDRESSES]):
                self._mail.send(endpoint.server, bind, address, endpoint.vni, control=True)
        else:
            if not handshake.pings_left:
                return
            handshake.pings_left -= 1
            answer = Bind(ANSWER, endpoint.vni, handshake.generation, peer.disco, handshake.challenge)
            self._mail.send(endpoint.server, answer, handshake.relay, endpoint.vni, control=True)
            self._mail.ping(peer.disco, handshake.pings, Via(handshake.relay, endpoint.vni), now)
        self._table.look(handshake.next_at, peer)

    def _ended(self, peer: ViaPeer, handshake: Handshake) -> None:
        self._peers.pop((handshake.endpoint.server, handshake.endpoint.vni), None)
        if handshake.relay is not None:
            self._table.release(peer.key, handshake.relay, handshake.endpoint.vni)


def _is_usable(address: AddrPort) -> bool:
    """Whether a relay may be there at all: not on a loopback, where our own services are, nor at many hosts at once."""
    host = ipaddress.ip_address(address.host)
    return bool(address.port) and not (host.is_loopback or host.is_multicast or host.is_unspecified or host.is_reserved)
