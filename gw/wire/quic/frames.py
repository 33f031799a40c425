"""Control frames on stream 0. Types that DERP has too mean the same here; unknown ones are skipped.

Ref: spec quic §8.1, §8.2
"""

from __future__ import annotations

import struct
from typing import Final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.wire.derp import frames as derp
from gw.wire.derp.frames import FrameReader, encode

RELAY_ALPN: Final = "gw-relay/1"
PEER_ALPN: Final = "gw-peer/1"
MAX_BODY_BYTES: Final = 64 << 10
KEY_BYTES: Final = 32
MAX_UNSENT_BYTES: Final = 16 << 10  # of stream 0, not taken by the other side: above it nothing is answered
AUTH_S: Final = 5.0  # from the handshake until the node key is proven

HELLO: Final = 0x40  # relay → client: u8 version, 32 relay key, u32 features
AUTH: Final = 0x41  # client → relay: 32 node key, 24 nonce, box
AUTH_OK: Final = 0x42  # relay → client: 24 nonce, box
FLOW_OPEN: Final = 0x43  # sender of datagrams: 3 number, 32 key
FLOW_OK: Final = 0x44  # receiver: 3 number
FLOW_CLOSE: Final = 0x45  # either: 3 number, 1 reason
FLOW_STATE: Final = 0x46  # relay → sender: u8 state, u32 kB/s, u32 packets dropped, 32 key of the receiver
LIMITS: Final = 0x47  # relay → client: u32 kB/s, u32 burst kB, u32 packets/s; 0 = none
OBSERVED_ADDR: Final = 0x48  # relay → client: 16 address, 2 port
MTU_INFO: Final = 0x49  # either: u16; passed over, for probes tell each direction what passes (docs/internals/relay.md)
INSTANCE: Final = 0x4A  # client → relay: 16 bytes that all connections of one process say
PEER_HELLO: Final = 0x50  # peer ↔ peer
ROUTES: Final = 0x51
ROUTES_ACK: Final = 0x52
WINDOW: Final = 0x55
PATH_NOTE: Final = 0x53
CLOSE_REASON: Final = 0x54

FLOW_STATE_BYTES: Final = 41
FLOW_OK_STATE: Final = 0  # the receiver keeps up again
FLOW_CONGESTED: Final = 1
FLOW_GONE: Final = 2

# QUIC application error codes
CLOSED: Final = 0x100
NO_AUTH: Final = 0x101
NOT_ALLOWED: Final = 0x102
BROKEN: Final = 0x103  # the other side broke the protocol
RESTARTING: Final = 0x104
FLOODING: Final = 0x105  # far more than the rate limit allows

_TO_CLIENT: Final = frozenset(
    {HELLO, AUTH_OK, FLOW_OPEN, FLOW_OK, FLOW_CLOSE, FLOW_STATE, LIMITS, OBSERVED_ADDR, derp.KEEP_ALIVE,
     derp.PEER_GONE, derp.PING, derp.PONG, derp.HEALTH, derp.RESTARTING}
)  # fmt: skip
_TO_RELAY: Final = frozenset(
    {AUTH, INSTANCE, FLOW_OPEN, FLOW_OK, FLOW_CLOSE, derp.NOTE_PREFERRED, derp.PING, derp.PONG}
)
_BETWEEN_RELAYS: Final = frozenset(
    {HELLO, AUTH_OK, FLOW_OPEN, FLOW_OK, FLOW_CLOSE, FLOW_STATE, derp.PEER_PRESENT, derp.PEER_GONE, derp.WATCH_CONNS,
     derp.CLOSE_PEER}
)  # fmt: skip
FLOW_FRAMES: Final = (FLOW_OPEN, FLOW_OK, FLOW_CLOSE)


def client_reader() -> FrameReader:
    """Cuts what a relay sends. A frame above the limit raises WireError."""
    return FrameReader(limit=MAX_BODY_BYTES, known=_TO_CLIENT)


def relay_reader() -> FrameReader:
    """Cuts what a client sends."""
    return FrameReader(limit=MAX_BODY_BYTES, known=_TO_RELAY)


def mesh_reader() -> FrameReader:
    """Cuts what another relay of the region sends."""
    return FrameReader(limit=MAX_BODY_BYTES, known=_BETWEEN_RELAYS)


def encode_hello(relay_key: bytes, features: int = 0) -> bytes:
    return encode(HELLO, struct.pack(">B32sI", 1, relay_key, features))


def decode_hello(body: bytes) -> bytes:
    """The relay's key. Raises WireError."""
    if len(body) < 37 or body[0] < 1:
        raise WireError("hello of a strange form")
    return body[1:33]


def encode_auth(node: bytes, sealed: bytes) -> bytes:
    return encode(AUTH, node + sealed)


def decode_auth(body: bytes) -> tuple[bytes, bytes]:
    """Node key and sealed claim. Raises WireError."""
    if len(body) < KEY_BYTES + 40:
        raise WireError("auth too short")
    return body[:KEY_BYTES], body[KEY_BYTES:]


def encode_flow_state(receiver: bytes, state: int, bytes_per_second: int, dropped: int) -> bytes:
    """The body of a FLOW_STATE. bytes_per_second: what the receiver takes of this sender, rounded down to kB."""
    rate = min(bytes_per_second // 1000, 0xFFFFFFFF)
    return struct.pack(">BII32s", state, rate, min(dropped, 0xFFFFFFFF), receiver)


def decode_flow_state(body: bytes) -> tuple[bytes, int, int, int]:
    """Receiver, state, bytes a second, packets dropped. Raises WireError."""
    if len(body) < FLOW_STATE_BYTES:
        raise WireError("flow state too short")
    state, rate, dropped, receiver = struct.unpack_from(">BII32s", body)
    return receiver, state, rate * 1000, dropped


def encode_limits(bytes_per_second: int, burst_bytes: int) -> bytes:
    """Rounded up to whole kB; 0 = no limit."""
    return encode(LIMITS, struct.pack(">III", -(-bytes_per_second // 1000), -(-burst_bytes // 1000), 0))


def decode_limits(body: bytes) -> tuple[int, int]:
    """Bytes a second and bytes of a burst. Raises WireError."""
    if len(body) < 12:
        raise WireError("limits too short")
    rate, burst, _ = struct.unpack_from(">III", body)
    return rate * 1000, burst * 1000


def encode_observed(address: AddrPort) -> bytes:
    return encode(OBSERVED_ADDR, address.pack())


def decode_observed(body: bytes) -> AddrPort:
    """Where the relay sees us. Raises WireError."""
    if len(body) < 18:
        raise WireError("observed address too short")
    return AddrPort.unpack(body[:18])
