"""The relay as a receiver of its own: nodes ask it by DERP, at its own key, for a UDP relay endpoint, and get answers.

Every transport's packets come here by the Switch, as to any client; so the asker is whom its connection has proven.

Ref: spec relay-and-path §6.3
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from typing import Final, final

from gw.model.addresses import AddrPort
from gw.native.relaying import DISCO_QUEUE_PACKETS, FairQueue, Port
from gw.relay.forwarding import Plane
from gw.relay.peerrelay import SWEEP_S, PeerRelay
from gw.relay.session import Reception
from gw.wire.derp.frames import KEY_BYTES, MAX_INCOMING_BYTES, RECV_PACKET, FrameReader

logger = logging.getLogger(__name__)

RESOLVE_S: Final = 300.0
RETRY_S: Final = 10.0
OUT_BYTES: Final = 16 << 10  # of requests in one turn; above it they wait in queues that are fair by source


@final
class Desk:
    """Implements `Owner` for the port that has the relay's key. What else is sent there may be dropped."""

    def __init__(self, plane: Plane, reception: Reception, relay: PeerRelay) -> None:
        self._plane, self._reception, self._relay = plane, reception, relay
        self._port = Port(self)
        self._port.key = reception.identity.key
        self._port.is_active = True
        self._port.out_limit = OUT_BYTES
        self._port.disco = FairQueue(DISCO_QUEUE_PACKETS)
        self._port.queue = FairQueue(1)  # nobody has anything but requests to say here
        self.drained = 0
        self._reader = FrameReader(limit=MAX_INCOMING_BYTES, known=frozenset({RECV_PACKET}))
        reception.switch.local[self._port.key] = self._port
        reception.peers = relay
        plane.arm_call(plane.now + SWEEP_S, self._sweep)

    def flush(self) -> None:
        """Answer what came in this turn."""
        switch, now = self._reception.switch, self._plane.now
        data = switch.take(self._port)
        self.drained += len(data)
        for _, payload in self._reader.feed(data):
            source = payload[:KEY_BYTES]
            if not self._reception.presence.is_here(source):  # with one of our workers, which has let it in
                continue
            try:
                answer = self._relay.request(source, payload[KEY_BYTES:], now)
            except Exception:  # a defect of ours ends this request, not the loop
                logger.exception("a request for a UDP relay endpoint is dropped: a defect, please report it")
                continue
            if answer is not None:
                switch.forward(self._port, source, answer)
        # nobody has to be told when the relay itself is gone
        switch.reached.pop(self._port.key, None)
        self._port.last_destination = b""
        switch.taken(self._port)

    def close(self) -> None:
        """The relay's own key is never disconnected."""

    def _sweep(self) -> None:
        self._plane.arm_call(self._plane.now + SWEEP_S, self._sweep)
        self._relay.sweep(self._plane.now)


@final
class OwnAddresses:
    """Where clients reach the relay's UDP port: the addresses of its host name, followed."""

    def __init__(self, hostname: str, port: int) -> None:
        self._hostname, self._port = hostname, port
        self._is_literal = True
        try:
            self.known: tuple[AddrPort, ...] = (AddrPort(str(ipaddress.ip_address(hostname)), port),)
        except ValueError:
            self.known, self._is_literal = (), False

    async def follow(self) -> None:
        """Until cancelled. While the name has no address, what was known stays."""
        loop = asyncio.get_running_loop()
        while not self._is_literal:
            try:
                found = await loop.getaddrinfo(self._hostname, self._port, type=socket.SOCK_DGRAM)
            except OSError as error:
                logger.warning("`%s` has no address, nodes cannot be told where to relay: %s", self._hostname, error)
            else:
                hosts = dict.fromkeys(str(each[4][0]) for each in found)
                self.known = tuple(AddrPort.of(host, self._port) for host in hosts if "%" not in host)
            await asyncio.sleep(RESOLVE_S if self.known else RETRY_S)
