"""The client's end of `gw-relay/1`: what it says on the control stream, and what the relay's bytes mean.

Ref: spec quic §8, §9
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp import frames as derp
from gw.wire.derp.client import Connected, Event, Health, PeerGone, Pong, Received, Restarting, peer_relay_key
from gw.wire.quic import auth, frames
from gw.wire.quic.datagrams import (
    DATA,
    DATA_KEY,
    FLOW_HEAD_BYTES,
    FRAG_KEY,
    Joiner,
    decode_packet,
    encode_packet,
)
from gw.wire.quic.flows import Counter, Flows
from gw.wire.x25519 import public_key

__all__ = ["Connected", "FlowState", "Health", "Observed", "PeerGone", "Pong", "Received", "RelayClient", "Restarting"]


@dataclass(frozen=True, slots=True)
class Observed:
    """Where the relay sees us."""

    address: AddrPort


@dataclass(frozen=True, slots=True)
class FlowState:
    """How a receiver of ours fares. state: FLOW_*. bytes_per_second: what it takes of us. dropped: packets of ours."""

    peer: NodeKey
    state: int
    bytes_per_second: int
    dropped: int


@final
class RelayClient:
    """Send what `data_to_send` gives on the control stream after every other method."""

    def __init__(
        self, secret: NodeSecret, new_nonce: Callable[[], bytes], *, relay_key: bytes = b"", instance: bytes = b""
    ) -> None:
        """new_nonce: 24 fresh random bytes a call. relay_key: of the relay map; empty: believe the one it names, which
        its certificate vouches for. instance: as of `gw.wire.derp.client.Client`.
        """
        self._secret = secret
        self._public = public_key(secret.raw)
        self._new_nonce = new_nonce
        self.relay_key = relay_key
        self._instance = instance
        self._reader = frames.client_reader()
        self._joiner = Joiner()
        self._out: list[bytes] = []
        self._answered = 0  # bytes of `_out` that the relay had us say
        self.unsent = 0  # bytes of the control stream that the relay has not taken: the owner says so before `feed`
        self._parts = 0
        self._numbers: dict[bytes, bytes] = {}  # by key, for packets to it
        self._keys: dict[bytes, bytes] = {}  # by number, of packets from it
        self._flows = Flows(self._numbers, self._keys)
        self._by_key = Counter()
        self._bind = b""
        self._at_ms = 0
        self._has_said_who = False
        self.is_connected = False

    def data_to_send(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        self._answered = 0
        return out

    @property
    def _has_room(self) -> bool:
        """Whether the relay takes what is said: one that does not is told nothing that may be left out."""
        return self.unsent + self._answered <= frames.MAX_UNSENT_BYTES

    def _answer(self, said: bytes) -> None:
        if self._has_room:
            self._out.append(said)
            self._answered += len(said)

    def begin(self, bind: bytes, now_ms: int, *, is_resumed: bool) -> None:
        """The handshake is over. is_resumed: the ticket says who we are."""
        self._bind, self._at_ms = bind, now_ms
        self._has_said_who = is_resumed
        if self._instance:
            self._out.append(derp.encode(frames.INSTANCE, self._instance))
        if not is_resumed and self.relay_key:
            self._say_who()
        elif not self._instance:
            self._out.append(derp.KEEP_ALIVE_FRAME)  # opens the stream, so that the relay may speak

    def _say_who(self) -> None:
        self._has_said_who = True
        claim = auth.Claim(role=auth.CLIENT, bind=self._bind.hex(), at=self._at_ms)
        sealed = auth.seal_claim(self._secret.raw, self.relay_key, self._new_nonce(), claim)
        self._out.append(frames.encode_auth(self._public, sealed))

    def note_preferred(self, is_home: bool) -> None:
        """Tell the relay whether it is this node's home."""
        self._out.append(derp.encode(derp.NOTE_PREFERRED, b"\x01" if is_home else b"\x00"))

    def ping(self, data: bytes) -> None:
        """data: 8 bytes that come back in a Pong."""
        self._out.append(derp.encode(derp.PING, data))

    def wrap(self, destination: NodeKey, packet: bytes, limit: int) -> list[bytes]:
        """The datagrams of a packet; none where it does not fit."""
        number = self._numbers.get(destination.raw)
        if number is not None and FLOW_HEAD_BYTES + len(packet) <= limit:
            return [b"\0" + number + packet]
        if self.is_connected and self._has_room and self._by_key.is_due(destination.raw):
            self._answer(self._flows.want(destination.raw))
        self._parts += 1
        return encode_packet(destination.raw, packet, limit, self._parts)

    def feed_datagrams(self, batch: list[bytes], now: float) -> list[Received]:
        """Packets of datagrams with 0x30 before each; what makes no sense is dropped, and all before the proof."""
        received: list[Received] = []
        if not self.is_connected:
            return received
        for frame in batch:
            kind = frame[1] if len(frame) > 1 else -1
            try:
                if kind == DATA and len(frame) > FLOW_HEAD_BYTES:
                    source = self._keys.get(frame[2 : 1 + FLOW_HEAD_BYTES])
                    if source is not None:
                        received.append(Received(NodeKey(source), frame[1 + FLOW_HEAD_BYTES :]))
                elif kind == DATA_KEY:
                    key, packet = decode_packet(frame[1:])
                    received.append(Received(NodeKey(key), packet))
                elif kind == FRAG_KEY:
                    whole = self._joiner.feed(frame[1:], now)
                    if whole is not None:
                        received.append(Received(NodeKey(whole[0]), whole[1]))
            except WireError:
                continue
        return received

    def feed(self, data: bytes, now_ms: int) -> list[Event | Observed | FlowState]:
        """Bytes of the control stream. Raises WireError where the relay breaks the protocol.

        Nothing but `HELLO` is taken from a relay that has not proven its node key.
        """
        events: list[Event | Observed | FlowState] = []
        for kind, body in self._reader.feed(data):
            if kind == frames.HELLO:
                self._hello_untrusted(body)
            elif kind == frames.AUTH_OK:
                events.append(self._auth_ok_untrusted(body, now_ms))
            elif kind == derp.KEEP_ALIVE:
                continue
            elif not self.is_connected:
                raise WireError("a word before the proof of the relay's key")
            elif kind in frames.FLOW_FRAMES:
                self._answer(self._flows.frame_untrusted(kind, body))
            elif kind == frames.FLOW_STATE:
                receiver, *rest = frames.decode_flow_state(body)
                events.append(FlowState(NodeKey(receiver), *rest))
            elif kind == frames.LIMITS:
                events.append(Connected(*frames.decode_limits(body)))
            elif kind == frames.OBSERVED_ADDR:
                events.append(Observed(frames.decode_observed(body)))
            elif kind == derp.PEER_GONE:
                if len(body) < derp.KEY_BYTES:
                    raise WireError("peer gone without a key")
                self._answer(self._flows.forget(body[:32]))
                events.append(PeerGone(NodeKey(body[:32]), body[32] if len(body) > 32 else 0))
            elif kind == derp.PING and len(body) >= 8:
                self._answer(derp.encode(derp.PONG, body[:8]))
            elif kind == derp.PONG and len(body) >= 8:
                events.append(Pong(body[:8]))
            elif kind == derp.HEALTH:
                events.append(Health(body[:1024].decode(errors="replace")))
            elif kind == derp.RESTARTING and len(body) >= 8:
                events.append(Restarting(*struct.unpack(">II", body[:8])))
        return events

    def _hello_untrusted(self, body: bytes) -> None:
        key = frames.decode_hello(body)
        if self.relay_key and not hmac.compare_digest(key, self.relay_key):
            raise WireError("another relay key than the relay map has")
        self.relay_key = key
        if not self._has_said_who:
            self._say_who()

    def _auth_ok_untrusted(self, body: bytes, now_ms: int) -> Connected:
        if not self.relay_key:
            raise WireError("auth before hello")
        claim = auth.open_claim(self._secret.raw, self.relay_key, body, role=auth.RELAY, bind=self._bind, now_ms=now_ms)
        self.is_connected = True
        return Connected(claim.rate, claim.burst, peer_relay_key(claim.peer_relay))
