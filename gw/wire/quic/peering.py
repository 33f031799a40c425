"""What peers say to each other in `gw-peer/1`.

    dialer                                            answerer
      │  QUIC handshake, ALPN gw-peer/1                 │   only from an address that disco has proven
      │ ◀─────────────────────────────────────────────▶ │
      │  AUTH: node key, box over the TLS exporter      │
      │ ──────────────────────────────────────────────▶ │
      │  AUTH_OK: box over the same                     │
      │ ◀────────────────────────────────────────────── │
      │  datagrams, control frames, reports             │
      │ ◀─────────────────────────────────────────────▶ │

    datagrams    0x10 WIREGUARD   a message
                 0x02 PART        u16 id | u8 index << 4 | count | part          of one that the path is too narrow for
                 0x12 HEARTBEAT   u32 sequence | u64 µs | u32 echoed sequence | u32 µs that the echo was held
    control      0x12 PING, 0x13 PONG   8 bytes, the same back
                 0x51 ROUTES      u64 version | u8 prefixes, each: u8 length | u8 bytes | address
                 0x52 ROUTES_ACK  u64 version
                 0x55 WINDOW      u32 how far behind the newest a packet number may be that is taken
    unidirectional streams of either side, one report each, of the lowest priority
                 REPORT           JSON: what its sender counts

Either side may dial. Where both did, the connection of the smaller node key stays.

Ref: spec quic §13
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, NamedTuple, final

import msgspec

from gw.errors import WireError
from gw.wire.derp import frames as derp
from gw.wire.derp.frames import FrameReader, encode
from gw.wire.quic import frames
from gw.wire.quic.datagrams import FRAG_KEY, HEARTBEAT, MAX_PARTS, Joiner

PART: Final = 0x02
PART_HEAD_BYTES: Final = 4
PING_BYTES: Final = 8
MAX_ROUTES: Final = 255
MAX_REPORT_BYTES: Final = 4096
_HEARTBEAT: Final = struct.Struct(">BIQII")
_NOBODY: Final = bytes(32)
_KNOWN: Final = frozenset(
    {frames.AUTH, frames.AUTH_OK, derp.PING, derp.PONG, frames.ROUTES, frames.ROUTES_ACK, frames.WINDOW}
)  # fmt: skip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def peer_reader() -> FrameReader:
    """Cuts what a peer sends on stream 0. A frame above the limit raises WireError; unknown ones are skipped."""
    return FrameReader(limit=frames.MAX_BODY_BYTES, known=_KNOWN)


def encode_message(datagram: bytes, limit: int, part_id: int) -> list[bytes]:
    """A WireGuard message as one datagram of at most `limit` bytes, or as two; none where even two are too few."""
    if len(datagram) < limit:
        return [b"\x10" + datagram]
    half = (len(datagram) + 1) // 2
    if PART_HEAD_BYTES + half > limit:
        return []
    number = part_id & 0xFFFF
    return [
        struct.pack(">BHB", PART, number, index << 4 | MAX_PARTS) + datagram[index * half : (index + 1) * half]
        for index in range(MAX_PARTS)
    ]


@final
class Messages:
    """WireGuard messages out of datagrams, those in parts put together."""

    def __init__(self) -> None:
        self._joiner = Joiner()

    def feed(self, datagram: bytes, now: float) -> bytes | None:
        """The message that the datagram is or completes. Raises WireError for a part that makes no sense."""
        if datagram[:1] == b"\x10":
            return datagram[1:]
        if datagram[:1] != b"\x02" or len(datagram) <= PART_HEAD_BYTES:
            raise WireError("not a message")
        joined = self._joiner.feed(bytes([FRAG_KEY]) + _NOBODY + datagram[1:], now)
        return None if joined is None else joined[1]


class Heartbeat(NamedTuple):
    """sent_us: the sender's clock. echo, held_us: the newest heartbeat it has got, and for how long by then."""

    sequence: int
    sent_us: int
    echo: int
    held_us: int


def encode_heartbeat(beat: Heartbeat) -> bytes:
    return _HEARTBEAT.pack(
        HEARTBEAT,
        beat.sequence & 0xFFFFFFFF,
        beat.sent_us & 0xFFFFFFFFFFFFFFFF,
        beat.echo & 0xFFFFFFFF,
        min(max(beat.held_us, 0), 0xFFFFFFFF),
    )


def decode_heartbeat(datagram: bytes) -> Heartbeat:
    """Raises WireError."""
    if len(datagram) < _HEARTBEAT.size or datagram[0] != HEARTBEAT:
        raise WireError("heartbeat too short")
    return Heartbeat(*_HEARTBEAT.unpack_from(datagram)[1:])


def encode_ping(data: bytes) -> bytes:
    return encode(derp.PING, data)


def answer_to(body: bytes) -> bytes:
    """The pong for a ping. Raises WireError."""
    if len(body) < PING_BYTES:
        raise WireError("ping too short")
    return encode(derp.PONG, body[:PING_BYTES])


class Routes(NamedTuple):
    """All prefixes that its sender serves now. A lower version than one seen before is old news."""

    version: int
    prefixes: tuple[Network, ...]


def encode_routes(routes: Routes) -> bytes:
    """Those beyond MAX_ROUTES are left out."""
    prefixes = routes.prefixes[:MAX_ROUTES]
    body = struct.pack(">QB", routes.version, len(prefixes))
    for network in prefixes:
        packed = network.network_address.packed
        body += struct.pack(">BB", network.prefixlen, len(packed)) + packed
    return encode(frames.ROUTES, body)


def decode_routes(body: bytes) -> Routes:
    """Raises WireError."""
    if len(body) < 9:
        raise WireError("routes too short")
    version, count = struct.unpack_from(">QB", body)
    at = 9
    prefixes: list[Network] = []
    for _ in range(count):
        if len(body) < at + 2:
            raise WireError("routes cut off")
        length, size = body[at], body[at + 1]
        packed = body[at + 2 : at + 2 + size]
        at += 2 + size
        if size not in (4, 16) or len(packed) != size:
            raise WireError("a route that is no prefix")
        try:
            prefixes.append(ipaddress.ip_network((packed, length)))
        except ValueError:
            raise WireError("a route that is no prefix") from None
    return Routes(version, tuple(prefixes))


def encode_routes_ack(version: int) -> bytes:
    return encode(frames.ROUTES_ACK, struct.pack(">Q", version))


def decode_routes_ack(body: bytes) -> int:
    """The version that the peer has taken. Raises WireError."""
    if len(body) < 8:
        raise WireError("routes ack too short")
    return int.from_bytes(body[:8], "big")


def encode_window(numbers: int) -> bytes:
    return encode(frames.WINDOW, struct.pack(">I", numbers))


def decode_window(body: bytes) -> int:
    """How far behind the newest number the peer takes a packet. Raises WireError."""
    if len(body) < 4:
        raise WireError("window too short")
    return int.from_bytes(body[:4], "big")


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one side counts of the connection since it began; the other shows it. Packets; times in milliseconds."""

    sent: int = 0  # WireGuard messages
    received: int = 0
    dropped: int = 0  # for want of room in the queue
    rtt_ms: float = 0.0
    jitter_ms: float = 0.0


_report_encoder: Final = msgspec.json.Encoder()
_report_decoder: Final = msgspec.json.Decoder(Report)


def encode_report(report: Report) -> bytes:
    return _report_encoder.encode(report)


def decode_report(raw: bytes) -> Report:
    """Raises WireError."""
    if len(raw) > MAX_REPORT_BYTES:
        raise WireError(f"report of {len(raw)} bytes")
    try:
        return _report_decoder.decode(raw)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise WireError("report of a strange form") from None
