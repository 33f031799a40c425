"""The dialling end of a link: to another relay of the region, or to another worker of this relay. No I/O.

    upgrade ─▶ handshake with the mesh key ─▶ WatchConns ─▶ PeerPresent, PeerGone: keys that can be reached this way
                                                        └▶ ForwardPacket frames out, whenever packets are for such a key

Ref: tailscale derp/derphttp/mesh_client.go
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from gw.errors import WireError
from gw.model.keys import NodeSecret
from gw.native.relaying import Owner, Port
from gw.relay.presence import Presence
from gw.wire.derp.client import Client, Connected, PeerGone, PeerPresent, Restarting, SpeaksQuic
from gw.wire.derp.http import MAX_HEAD_BYTES


@final
class LinkSession:
    """Feed it decrypted bytes; write what `take` gives whenever its port is in `Switch.dirty`."""

    is_waiting = False  # for nobody's admission

    def __init__(
        self,
        presence: Presence,
        owner: Owner,
        secret: NodeSecret,
        nonce: bytes,
        mesh_key: str,
        host: str,
        *,
        own_key: bytes,
        connected: Callable[[], None],
        failed: Callable[[str], None],
        speaks_quic: Callable[[bytes, int], None] = lambda relay, port: None,
        ended: Callable[[bytes], None] = lambda relay: None,
    ) -> None:
        """host: for the HTTP request. own_key: this relay's, to recognise itself; empty for links between workers.

        Called in the plane's thread: connected; failed, with why; speaks_quic, with the other relay's key and UDP port;
        ended after that, with the key.
        """
        self.owner: Final = owner
        self.is_self = False
        self._failed = failed
        self._presence = presence
        self.port: Final = Port(owner)
        self.port.become_link(not own_key)
        self._own_key = own_key
        self._client = Client(secret, nonce, mesh_key=mesh_key)
        self._connected = connected
        self._speaks_quic, self._ended = speaks_quic, ended
        self._udp_port = 0  # of the other relay
        self._head: bytes | None = b""
        self.is_up = False
        self.pause_s = 0.0  # how long the other end asked us to stay away
        request = f"GET /derp HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
        presence.switch.push(self.port, request.encode())

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes. Raises WireError."""
        try:
            self._feed(data)
        except WireError as error:
            self._failed(str(error))
            raise

    def _feed(self, data: bytes) -> None:
        if self._head is not None:
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                if len(head) > MAX_HEAD_BYTES:
                    raise WireError("answer too large")
                self._head = head
                return
            if head.split(b" ", 2)[1:2] != [b"101"]:
                raise WireError(f"no upgrade: {head.splitlines()[0][:80].decode(errors='replace')}")
            self._head = None
        for event in self._client.feed(data):
            match event:
                case Connected():
                    self.is_up = True
                    self.port.relay = self._client.relay_key
                    self._client.watch()
                    self._connected()
                case SpeaksQuic(port) if self.is_up and self._own_key and port and not self._udp_port:
                    self._udp_port = port
                    self._speaks_quic(self.port.relay, port)
                case PeerPresent(peer, _, age_s):
                    self._presence.learn(self.port, peer.raw, age_s)
                case PeerGone(peer, _):
                    self._presence.unlearn(self.port, peer.raw)
                case Restarting(after_ms, _):
                    self.pause_s = after_ms / 1000
                case _:
                    pass
        if self._own_key and self._client.relay_key == self._own_key:
            self.is_self = True
            raise WireError("this is the relay itself")
        up = self._client.data_to_send()
        if up:
            self._presence.switch.push(self.port, up)

    def take(self) -> bytes:
        """What is to be written now."""
        return self._presence.switch.take(self.port)

    def leave(self) -> None:
        """The connection is gone, and the keys that were reached by it."""
        self._presence.leave(self.port)
        if self._udp_port:
            self._udp_port = 0
            self._ended(self.port.relay)
