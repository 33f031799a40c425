"""Disco messages to UDP relays, by DERP and at their port, and through them to peers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final, final

from gw.engine.peerpath import Outgoing, ToRelay, ToUdp, Via
from gw.engine.viatable import Server
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.wire import geneve
from gw.wire.disco.envelope import NONCE_BYTES, Envelopes
from gw.wire.disco.messages import TX_ID_BYTES, Message, Ping, encode
from gw.wire.geneve import Header

PINGS: Final = 10  # under way on one way
MAX_SERVERS: Final = 256


@final
class ViaMail:
    """Of one node. What there is to send is in `out`."""

    def __init__(
        self,
        envelopes: Envelopes,
        node: Callable[[], NodeKey],
        random_bytes: Callable[[int], bytes],
        peers_of: Callable[[DiscoKey], Collection[NodeKey]],
    ) -> None:
        """node: our key. peers_of: who has a disco key."""
        self.envelopes: Final = envelopes
        self._node, self._random, self._peers_of = node, random_bytes, peers_of
        self._servers: OrderedDict[DiscoKey, None] = OrderedDict()  # whose boxes are kept
        self._asked_by: dict[bytes, int] = {}  # pings that somebody wants to hear of, by transaction
        self.out: list[Outgoing] = []

    # Relays

    def is_known(self, server: DiscoKey) -> bool:
        return server in self._servers

    def know(self, server: DiscoKey) -> None:
        """Its datagrams may be opened. Of too many the one that was used longest ago is forgotten."""
        self._servers[server] = None
        self._servers.move_to_end(server)
        if len(self._servers) > MAX_SERVERS:
            oldest, _ = self._servers.popitem(last=False)
            if not self._peers_of(oldest):
                self.envelopes.forget(oldest)

    def to_server(self, server: Server, message: Message) -> None:
        self.know(server.disco)
        self.by_derp(server.disco, message, server.node, server.region)

    # Peers

    def by_derp(self, to: DiscoKey, message: Message, node: NodeKey, region: int) -> None:
        sealed = self._seal(to, message)
        if sealed:
            self.out.append(ToRelay(sealed, node, region))

    def send(self, to: DiscoKey, message: Message, address: AddrPort, vni: int, *, control: bool = False) -> None:
        """To the relay at this address if it is `control`, else through it."""
        sealed = self._seal(to, message)
        if sealed:
            self.out.append(ToUdp(geneve.encode(Header(geneve.DISCO, vni, control=control)) + sealed, address))

    def ping(self, to: DiscoKey, pings: dict[bytes, float], via: Via, now: float, asked_by: int = 0) -> None:
        """pings: those under way there; asked_by: who wants to hear of the pong."""
        tx_id = self._random(TX_ID_BYTES)
        pings[tx_id] = now
        if len(pings) > PINGS:
            self.lost(pings, next(iter(pings)))
        if asked_by:
            self._asked_by[tx_id] = asked_by
        self.send(to, Ping(tx_id, self._node()), via.address, via.vni)

    def answered(self, tx_id: bytes) -> int:
        """Who wanted to hear of it; 0 for nobody."""
        return self._asked_by.pop(tx_id, 0)

    def lost(self, pings: dict[bytes, float], tx_id: bytes) -> None:
        del pings[tx_id]
        self._asked_by.pop(tx_id, None)

    def _seal(self, to: DiscoKey, message: Message) -> bytes:
        try:
            return self.envelopes.seal(to, self._random(NONCE_BYTES), encode(message))
        except WireError:
            return b""  # a disco key of small order
