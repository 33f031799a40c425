"""What is known of ways through UDP relays: of each peer, whose datagrams come from where, and when to look again."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Final, final

from gw.engine.peerpath import NEVER, Via
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.wire.disco.udprelay import RelayEndpoint


@dataclass(frozen=True, slots=True)
class Server:
    """Who can be asked. node: its key on DERP. disco: of a relay that of its UDP relay, of a peer that relays its own;
    the endpoint that such a peer allocates has another."""

    region: int
    node: NodeKey
    disco: DiscoKey


@dataclass(slots=True, eq=False)
class Handshake:
    """With one relay for one peer. relay: the address whose challenge was the first, None before."""

    endpoint: RelayEndpoint
    generation: int
    until: float
    next_at: float
    binds_left: int
    pings_left: int
    relay: AddrPort | None = None
    challenge: bytes = b""
    pings: dict[bytes, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Way:
    """It has carried a pong."""

    endpoint: RelayEndpoint
    via: Via
    latency: float
    heard: float
    beat_at: float | None
    trust_until: float
    pings: dict[bytes, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ViaPeer:
    """A peer to which a way was wanted, or which called us to one. asked: the relays that have not answered."""

    key: NodeKey
    disco: DiscoKey
    home: int
    wanted_at: float = NEVER
    asked_at: float = NEVER
    ask_again_at: float | None = None
    asked: dict[DiscoKey, Server] = field(default_factory=dict)
    generation: int = 0  # of what is asked
    called_at: float = NEVER
    handshakes: dict[DiscoKey, Handshake] = field(default_factory=dict)
    way: Way | None = None

    def is_at(self, address: AddrPort, vni: int, now: float) -> bool:
        """Whether its way, trusted, or a handshake of it is there."""
        way = self.way
        if way is not None and way.via == Via(address, vni) and now <= way.trust_until:
            return True
        return any((each.relay, each.endpoint.vni) == (address, vni) for each in self.handshakes.values())


@final
class ViaTable:
    """All peers of one node. legs: whose handshake or way is at a relay's address, with this VNI."""

    def __init__(self) -> None:
        self.peers: Final[dict[NodeKey, ViaPeer]] = {}
        self.legs: Final[dict[tuple[AddrPort, int], NodeKey]] = {}
        self._due: list[tuple[float, int, NodeKey]] = []
        self._serial = itertools.count(1)

    def claim(self, peer: ViaPeer, address: AddrPort, vni: int, now: float) -> bool:
        """The leg is this peer's from now on; False where another peer's way or handshake is there.

        Numbers are the relay's, and whoever calls us to one of their own may name any.
        """
        key = self.legs.get((address, vni))
        holder = self.peers.get(key) if key is not None else None
        if holder is not None and holder is not peer and holder.is_at(address, vni, now):
            return False
        self.legs[address, vni] = peer.key
        return True

    def release(self, key: NodeKey, address: AddrPort, vni: int) -> None:
        """A handshake or a way of this peer there has ended; the leg stays where a way of the same name goes on."""
        if self.legs.get((address, vni)) == key:
            peer = self.peers.get(key)
            if peer is None or peer.way is None or peer.way.via != Via(address, vni):
                del self.legs[address, vni]

    def look(self, when: float, peer: ViaPeer) -> None:
        """Have the peer among those that are due then."""
        heapq.heappush(self._due, (when, next(self._serial), peer.key))

    def deadline(self) -> float | None:
        return self._due[0][0] if self._due else None

    def due(self, now: float) -> ViaPeer | None:
        """The next one to look at, None where there is no more."""
        while self._due and self._due[0][0] <= now:
            peer = self.peers.get(heapq.heappop(self._due)[2])
            if peer is not None:
                return peer
        return None
