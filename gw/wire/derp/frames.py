"""DERP frames: their types, limits, and the reader that cuts a byte stream into them.

Ref: tailscale derp/derp.go
"""

from __future__ import annotations

import struct
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort

MAGIC: Final = b"DERP\xf0\x9f\x94\x91"
PEER_RELAY_FIELD: Final = "ghostwirePeerRelay"  # of ServerInfo: 64 hex digits
INSTANCE_FIELD: Final = "ghostwireInstance"  # of ClientInfo: 32 hex digits
INSTANCE_BYTES: Final = 16
PROTOCOL_VERSION: Final = 2
KEY_BYTES: Final = 32
HEADER_BYTES: Final = 5
MAX_PACKET_BYTES: Final = 65536
MAX_CLIENT_INFO_BYTES: Final = 256 << 10
MAX_INCOMING_BYTES: Final = 1 << 20
KEEPALIVE_S: Final = 60.0
KEEPALIVE_JITTER_S: Final = 5.0
RECEIVE_TIMEOUT_S: Final = 120.0

SERVER_KEY: Final = 0x01  # relay → client: 8 magic, 32 relay key
CLIENT_INFO: Final = 0x02  # client → relay: 32 node key, 24 nonce, box(JSON)
SERVER_INFO: Final = 0x03  # relay → client: 24 nonce, box(JSON)
SEND_PACKET: Final = 0x04  # client → relay: 32 destination key, packet
RECV_PACKET: Final = 0x05  # relay → client: 32 source key, packet
KEEP_ALIVE: Final = 0x06  # relay → client: empty
NOTE_PREFERRED: Final = 0x07  # client → relay: 1 byte, 1 = this is my home
PEER_GONE: Final = 0x08  # relay → client: 32 key, 1 reason (absent = 0)
PEER_PRESENT: Final = 0x09  # relay → mesh: 32 key, 16 address, 2 port, 1 flags, of ours 4 age in ms
FORWARD_PACKET: Final = 0x0A  # mesh → relay: 32 source, 32 destination, packet
WATCH_CONNS: Final = 0x10  # mesh → relay: empty
CLOSE_PEER: Final = 0x11  # mesh → relay: 32 key
PING: Final = 0x12  # both: 8 bytes
PONG: Final = 0x13  # both: the 8 bytes of the ping
HEALTH: Final = 0x14  # relay → client: text, empty = well again
RESTARTING: Final = 0x15  # relay → client: u32 reconnect after ms, u32 try for ms
RELAY_UDP: Final = 0x4A  # relay → relay that links with it, ours alone: u16 port where it speaks QUIC

GONE_DISCONNECTED: Final = 0x00
GONE_NOT_HERE: Final = 0x01

PRESENT_REGULAR: Final = 0x01
PRESENT_MESH: Final = 0x02
PRESENT_PROBER: Final = 0x04
PRESENT_NOT_IDEAL: Final = 0x08

KEEP_ALIVE_FRAME: Final = b"\x06\x00\x00\x00\x00"


def encode(kind: int, payload: bytes) -> bytes:
    """One frame."""
    return struct.pack(">BI", kind, len(payload)) + payload


def encode_send(destination: bytes, packet: bytes) -> bytes:
    """A SendPacket frame; destination: 32 bytes."""
    return struct.pack(">BI", SEND_PACKET, KEY_BYTES + len(packet)) + destination + packet


def encode_present(key: bytes, address: AddrPort, flags: int, age_s: float) -> bytes:
    """A PeerPresent frame; flags: PRESENT_*. age_s: since when the client is there, which stock relays pass over."""
    age_ms = min(max(int(age_s * 1000), 0), 0xFFFFFFFF)
    return encode(PEER_PRESENT, key + address.pack() + bytes([flags]) + age_ms.to_bytes(4, "big"))


def decode_present(payload: bytes) -> tuple[bytes, int, float | None]:
    """Key, flags and age in seconds of a PeerPresent. Stock relays tell no age, older ones the key alone.

    Raises WireError.
    """
    if len(payload) < KEY_BYTES:
        raise WireError("peer present without a key")
    age_s = int.from_bytes(payload[51:55], "big") / 1000 if len(payload) >= 55 else None
    return payload[:KEY_BYTES], payload[50] if len(payload) > 50 else PRESENT_REGULAR, age_s


@final
class FrameReader:
    """Cuts a stream into (type, payload). A known frame larger than `limit` raises WireError."""

    def __init__(self, *, limit: int, known: frozenset[int] | None = None) -> None:
        """known: types that are returned; payloads of others are discarded as they stream in. None = all."""
        self._limit = limit
        self._known = known
        self._rest = b""
        self._skip = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that `data` completes."""
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
        if self._rest:
            data = self._rest + data
        frames: list[tuple[int, bytes]] = []
        offset, size = 0, len(data)
        while size - offset >= HEADER_BYTES:
            kind, length = struct.unpack_from(">BI", data, offset)
            end = offset + HEADER_BYTES + length
            if self._known is not None and kind not in self._known:
                if end > size:
                    self._skip = end - size
                    offset = size
                    break
                offset = end
                continue
            if length > self._limit:
                raise WireError(f"frame {kind:#x} of {length} bytes")
            if end > size:
                break
            frames.append((kind, data[offset + HEADER_BYTES : end]))
            offset = end
        self._rest = data[offset:]
        return frames
