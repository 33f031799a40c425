"""The messages inside the box, big-endian. Longer bodies than known are read and the rest ignored: newer peers append.

    01 ping            12 transaction id | [32 sender's node key] | [zero padding]
    02 pong            12 transaction id | 16 + 2 the ping's source as we saw it (by relay: 127.3.3.40 : region)
    03 call-me-maybe   n × (16 + 2) the sender's endpoints
    04 to 09           about a UDP relay between two nodes: `udprelay`

Between GhostWire nodes heartbeats measure what the path delivers of WireGuard: a ping's padding begins with `gwd1` and
the u64 number of data packets that its sender has sent to us without a relay; its pong ends with `gwd1` and how many
came. Stock peers are never sent either.

Ref: tailscale disco/disco.go
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gw.errors import WireError
from gw.model.addresses import ADDR_PORT_BYTES, AddrPort
from gw.model.keys import NodeKey
from gw.wire.disco.udprelay import KINDS, UdpRelayMessage, decode_body, encode_body

PING: Final = 0x01
PONG: Final = 0x02
CALL_ME_MAYBE: Final = 0x03
VERSION: Final = 0
TX_ID_BYTES: Final = 12
COUNT_MARK: Final = b"gwd1"
COUNT_BYTES: Final = 12
MAX_ENDPOINTS: Final = 100


@dataclass(frozen=True, slots=True)
class Ping:
    """node: the sender's node key, which older peers leave out. padding: zero bytes that make the datagram longer.
    sent: data packets sent to us without a relay so far, None where the sender does not tell."""

    tx_id: bytes
    node: NodeKey | None = None
    padding: int = 0
    sent: int | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    """received: data packets that came from us without a relay so far, None where the sender does not tell."""

    tx_id: bytes
    source: AddrPort
    received: int | None = None


@dataclass(frozen=True, slots=True)
class CallMeMaybe:
    endpoints: list[AddrPort] = field(default_factory=list)


Message = Ping | Pong | CallMeMaybe | UdpRelayMessage


def encode(message: Message) -> bytes:
    """The plaintext of one message."""
    if isinstance(message, Ping):
        node = message.node.raw if message.node is not None else b""
        count = _count(message.sent) if message.node is not None else b""
        return bytes([PING, VERSION]) + message.tx_id + node + count + bytes(message.padding)
    if isinstance(message, Pong):
        return bytes([PONG, VERSION]) + message.tx_id + message.source.pack() + _count(message.received)
    if not isinstance(message, CallMeMaybe):
        kind, body = encode_body(message)
        return bytes([kind, VERSION]) + body
    return bytes([CALL_ME_MAYBE, VERSION]) + b"".join(endpoint.pack() for endpoint in message.endpoints)


def decode(plain: bytes) -> Message | None:
    """The message, or None for a type that a newer peer may send. Raises WireError where a known one is too short."""
    if len(plain) < 2:
        raise WireError("disco message of no type")
    kind, version, body = plain[0], plain[1], plain[2:]
    if kind == PING:
        return _decode_ping(body)
    if kind == PONG:
        return _decode_pong(body)
    if kind == CALL_ME_MAYBE:
        return _decode_call_me_maybe(version, body)
    if kind in KINDS:
        return decode_body(kind, body)
    return None


def _decode_ping(body: bytes) -> Ping:
    if len(body) < TX_ID_BYTES:
        raise WireError("ping cut off")
    if len(body) < TX_ID_BYTES + 32:
        return Ping(body[:TX_ID_BYTES])
    rest = body[TX_ID_BYTES + 32 :]
    sent = _read_count(rest)
    padding = len(rest) - (COUNT_BYTES if sent is not None else 0)
    return Ping(body[:TX_ID_BYTES], NodeKey(body[TX_ID_BYTES : TX_ID_BYTES + 32]), padding, sent)


def _decode_pong(body: bytes) -> Pong:
    if len(body) < TX_ID_BYTES + ADDR_PORT_BYTES:
        raise WireError("pong cut off")
    end = TX_ID_BYTES + ADDR_PORT_BYTES
    return Pong(body[:TX_ID_BYTES], AddrPort.unpack(body[TX_ID_BYTES:end]), _read_count(body[end:]))


def _decode_call_me_maybe(version: int, body: bytes) -> CallMeMaybe:
    """Any strange length is an empty list, as the reference has it."""
    if version != VERSION or not body or len(body) % ADDR_PORT_BYTES:
        return CallMeMaybe()
    pieces = [body[at : at + ADDR_PORT_BYTES] for at in range(0, len(body), ADDR_PORT_BYTES)]
    return CallMeMaybe([AddrPort.unpack(piece) for piece in pieces[:MAX_ENDPOINTS]])


def _count(value: int | None) -> bytes:
    return b"" if value is None else COUNT_MARK + (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def _read_count(rest: bytes) -> int | None:
    if not rest.startswith(COUNT_MARK) or len(rest) < COUNT_BYTES:
        return None
    return int.from_bytes(rest[len(COUNT_MARK) : COUNT_BYTES], "big")
