"""The body of a map response: `u32 little-endian length | payload`, for ever. A payload is JSON or a zstd frame of it.

Ref: control protocol §5.3; tailscale control/controlclient/direct.go
"""

from __future__ import annotations

import struct
from typing import Final, final

import zstandard

from gw.errors import WireError

MAX_FRAME_BYTES: Final = 64 << 20
MAX_MESSAGE_BYTES: Final = 512 << 20
ZSTD_LEVEL: Final = 1
_compressor: Final = zstandard.ZstdCompressor(level=ZSTD_LEVEL)  # for one thread
SLICE_BYTES: Final = 1024  # of a frame that does not tell its size: opens to 32 MiB at the very most


def frame(message: bytes, *, compress: bool) -> bytes:
    """One message as it travels. The same message always gives the same bytes."""
    payload = _compressor.compress(message) if compress else message
    return struct.pack("<I", len(payload)) + payload


@final
class MapFrames:
    """Cuts a body into messages."""

    def __init__(self, *, compressed: bool, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._compressed = compressed
        self._max = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The JSON of all messages that `data` completes. Raises WireError on sizes or bytes that make no sense."""
        buffer = self._buffer
        buffer += data
        messages = []
        offset = 0
        while len(buffer) - offset >= 4:
            (size,) = struct.unpack_from("<I", buffer, offset)
            if size == 0 or size > self._max:
                raise WireError(f"map frame of {size} bytes")
            if len(buffer) - offset - 4 < size:
                break
            payload = bytes(buffer[offset + 4 : offset + 4 + size])
            offset += 4 + size
            messages.append(self._open_untrusted(payload) if self._compressed else payload)
        del buffer[:offset]
        return messages

    def _open_untrusted(self, payload: bytes) -> bytes:
        try:
            size = zstandard.frame_content_size(payload)
            if size > MAX_MESSAGE_BYTES:
                raise WireError(f"map message of {size} bytes")
            opener = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            if size >= 0:
                return opener.decompress(payload, max_output_size=max(size, 1))
            stream = opener.decompressobj()
            parts: list[bytes] = []
            room = MAX_MESSAGE_BYTES
            for at in range(0, len(payload), SLICE_BYTES):
                if stream.eof:
                    break
                parts.append(stream.decompress(payload[at : at + SLICE_BYTES]))
                room -= len(parts[-1])
                if room < 0:
                    raise WireError("map message without end")
        except zstandard.ZstdError as error:
            raise WireError(f"map frame does not decompress: {error}") from None
        if not stream.eof:
            raise WireError("map frame is cut off")
        return b"".join(parts)
