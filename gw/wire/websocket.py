"""WebSocket as a byte stream: binary messages whose boundaries mean nothing, as DERP uses them.

    b0  FIN | opcode      b1  MASK | length (126: u16, 127: u64 follow)      [4 mask]  payload

The server's end: what comes in is masked, what goes out is not. Compression is never offered.

Ref: RFC 6455 §4.2.2, §5.2, §5.5
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Final, final

from gw.errors import WireError

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
FIN: Final = 0x80
MASK: Final = 0x80
MAX_CONTROL_BYTES: Final = 125
MAX_FRAME_BYTES: Final = 1 << 20
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept to a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def encode(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """One final frame. mask: 4 bytes where a client sends it."""
    size = len(payload)
    bit = MASK if mask else 0
    if size < 126:
        head = bytes([FIN | opcode, bit | size])
    elif size <= 0xFFFF:
        head = struct.pack(">BBH", FIN | opcode, bit | 126, size)
    else:
        head = struct.pack(">BBQ", FIN | opcode, bit | 127, size)
    return head + mask + (_masked(payload, mask) if mask else payload)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


@final
class Stream:
    """Feed it what comes after the upgrade. `replies` must be sent; `is_closed` says that the peer said goodbye."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_open_message = False
        self.replies: list[bytes] = []  # whole frames
        self.is_closed = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that the frames in `data` carry. Raises WireError."""
        data = self._rest + data if self._rest else data
        carried: list[bytes] = []
        at, size = 0, len(data)
        while size - at >= 2 and not self.is_closed:
            first, second = data[at], data[at + 1]
            opcode, length, start = first & 0x0F, second & 0x7F, at + 2
            if first & 0x70:
                raise WireError("WebSocket extension that was not offered")
            if not second & MASK:
                raise WireError("WebSocket frame without a mask")
            if length >= 126:
                wide = 2 if length == 126 else 8
                if size - start < wide:
                    break
                length = int.from_bytes(data[start : start + wide], "big")
                start += wide
            if length > MAX_FRAME_BYTES:
                raise WireError(f"WebSocket frame of {length} bytes")
            mask, start = data[start : start + 4], start + 4
            end = start + length
            if size < end:
                break
            self._take(opcode, bool(first & FIN), _masked(data[start:end], mask), carried)
            at = end
        self._rest = data[at:]
        return carried[0] if len(carried) == 1 else b"".join(carried)

    def _take(self, opcode: int, is_final: bool, payload: bytes, carried: list[bytes]) -> None:
        if opcode in (BINARY, CONTINUATION):
            if (opcode == CONTINUATION) != self._is_open_message:
                raise WireError("WebSocket message out of order")
            self._is_open_message = not is_final
            carried.append(payload)
            return
        if opcode not in (CLOSE, PING, PONG) or not is_final or len(payload) > MAX_CONTROL_BYTES:
            raise WireError(f"WebSocket frame of type {opcode}")
        if opcode == CLOSE:
            self.is_closed = True
            self.replies.append(encode(CLOSE, payload[:2]))
        elif opcode == PING and not self.replies:  # at most one answer until it was sent
            self.replies.append(encode(PONG, payload))
