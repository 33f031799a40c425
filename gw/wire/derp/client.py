"""The client's end of DERP, after the HTTP upgrade."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final, final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import StateError, WireError
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp import frames
from gw.wire.x25519 import public_key

NONCE_BYTES: Final = 24
_KNOWN: Final = frozenset(
    {frames.SERVER_KEY, frames.SERVER_INFO, frames.RECV_PACKET, frames.KEEP_ALIVE, frames.PEER_GONE,
     frames.PEER_PRESENT, frames.PING, frames.PONG, frames.HEALTH, frames.RESTARTING, frames.RELAY_UDP}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Connected:
    """The relay accepted us. bytes_per_second: its rate limit, 0 = none. peer_relay: the disco key of its UDP
    relay between nodes; empty where it has none, or this is about its limit alone."""

    bytes_per_second: int
    burst_bytes: int
    peer_relay: bytes = b""


@dataclass(frozen=True, slots=True)
class Received:
    source: NodeKey
    packet: bytes


@dataclass(frozen=True, slots=True)
class PeerGone:
    """reason: GONE_DISCONNECTED or GONE_NOT_HERE."""

    peer: NodeKey
    reason: int


@dataclass(frozen=True, slots=True)
class PeerPresent:
    """A watching relay hears that a key is there. flags: frames.PRESENT_*. age_s: since when, None if untold."""

    peer: NodeKey
    flags: int
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    data: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """problem: empty when it is over."""

    problem: str


@dataclass(frozen=True, slots=True)
class Restarting:
    reconnect_after_ms: int
    try_for_ms: int


@dataclass(frozen=True, slots=True)
class SpeaksQuic:
    """A relay of ours tells one that links with it at which UDP port it may be linked with over QUIC."""

    port: int


Event = Connected | Received | PeerGone | PeerPresent | Pong | Health | Restarting | SpeaksQuic


@final
class Client:
    """Feed it the bytes after the upgrade; send what `data_to_send` gives. Any frame proves that the relay lives."""

    def __init__(
        self, secret: NodeSecret, nonce: bytes, *, relay_key: bytes = b"", mesh_key: str = "", instance: bytes = b""
    ) -> None:
        """nonce: 24 random bytes. relay_key: known already from the TLS certificate (fast start), else learned here.

        mesh_key: 64 hex digits, by which another relay of the region may watch and forward.

        instance: INSTANCE_BYTES that all connections of this process say, so that a relay does not take them for those
        of another machine with the same node key.
        """
        self._secret = secret
        self._mesh_key = mesh_key
        self._instance = instance
        self._public = public_key(secret.raw)
        self._nonce = nonce
        self.relay_key = b""  # empty until it is known
        self._reader = frames.FrameReader(limit=frames.MAX_INCOMING_BYTES, known=_KNOWN)
        self._out: list[bytes] = []
        self._box: Box | None = None
        self.is_connected = False
        if relay_key:
            self._hello(relay_key)

    def data_to_send(self) -> bytes:
        """Bytes for the connection. Call after every other method."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def send(self, destination: NodeKey, packets: list[bytes]) -> None:
        """Packets of at most MAX_PACKET_BYTES for one node."""
        if self._box is None:
            raise StateError("relay key not known yet")
        self._out += [frames.encode_send(destination.raw, packet) for packet in packets]

    def note_preferred(self, is_home: bool) -> None:
        """Tell the relay whether it is this node's home."""
        self._out.append(frames.encode(frames.NOTE_PREFERRED, b"\x01" if is_home else b"\x00"))

    def ping(self, data: bytes) -> None:
        """data: 8 bytes that come back in a Pong."""
        self._out.append(frames.encode(frames.PING, data))

    def watch(self) -> None:
        """Ask to hear of every key that comes and goes; for relays only."""
        self._out.append(frames.encode(frames.WATCH_CONNS, b""))

    def feed(self, data: bytes) -> list[Event]:
        """Raises WireError where the relay breaks the protocol."""
        events: list[Event] = []
        for kind, payload in self._reader.feed(data):
            if kind == frames.RECV_PACKET:
                if len(payload) < frames.KEY_BYTES:
                    raise WireError("packet without a source")
                events.append(Received(NodeKey(payload[:32]), payload[32:]))
            elif kind == frames.SERVER_KEY:
                if payload[:8] != frames.MAGIC or len(payload) < 40:
                    raise WireError("not a relay")
                if not self.relay_key:
                    self._hello(payload[8:40])
            elif kind == frames.SERVER_INFO:
                events.append(self._server_info_untrusted(payload))
            elif kind == frames.PEER_GONE:
                if len(payload) < frames.KEY_BYTES:
                    raise WireError("peer gone without a key")
                events.append(PeerGone(NodeKey(payload[:32]), payload[32] if len(payload) > 32 else 0))
            elif kind == frames.PEER_PRESENT:
                key, flags, age_s = frames.decode_present(payload)
                events.append(PeerPresent(NodeKey(key), flags, age_s))
            elif kind == frames.PING and len(payload) >= 8:
                self._out.append(frames.encode(frames.PONG, payload[:8]))
            elif kind == frames.PONG and len(payload) >= 8:
                events.append(Pong(payload[:8]))
            elif kind == frames.HEALTH:
                events.append(Health(payload[:1024].decode(errors="replace")))
            elif kind == frames.RESTARTING and len(payload) >= 8:
                events.append(Restarting(*struct.unpack(">II", payload[:8])))
            elif kind == frames.RELAY_UDP and len(payload) >= 2:
                events.append(SpeaksQuic(int.from_bytes(payload[:2], "big")))
        return events

    def _hello(self, relay_key: bytes) -> None:
        self.relay_key = relay_key
        try:
            self._box = Box(PrivateKey(self._secret.raw), PublicKey(relay_key))
        except CryptoError as error:
            raise WireError(f"relay key: {error}") from None
        info: dict[str, object] = {"version": frames.PROTOCOL_VERSION, "CanAckPings": True}
        if self._mesh_key:
            info["meshKey"] = self._mesh_key
        if self._instance:
            info[frames.INSTANCE_FIELD] = self._instance.hex()
        sealed = self._box.encrypt(json.dumps(info).encode(), self._nonce)
        self._out.append(frames.encode(frames.CLIENT_INFO, self._public + sealed))

    def _server_info_untrusted(self, payload: bytes) -> Connected:
        if self._box is None or len(payload) < NONCE_BYTES + 16:
            raise WireError("server info too early or too short")
        try:
            info = json.loads(self._box.decrypt(payload))
            rate = int(info.get("TokenBucketBytesPerSecond") or 0)
            burst = int(info.get("TokenBucketBytesBurst") or 0)
            peer_relay = peer_relay_key(info.get(frames.PEER_RELAY_FIELD))
        except (CryptoError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            raise WireError("server info makes no sense") from None
        self.is_connected = True
        return Connected(max(0, rate), max(0, burst), peer_relay)


def peer_relay_key(told: object) -> bytes:
    """The disco key that a relay tells as hex; empty where it makes no sense."""
    try:
        key = bytes.fromhex(told) if isinstance(told, str) else b""
    except ValueError:
        return b""
    return key if len(key) == frames.KEY_BYTES else b""
