"""The server's HTTP/2 inside a Noise session, made for very many idle connections that get the same bytes now and then.

    frame        u24 length | u8 type | u8 flags | u31 stream | payload                                  big-endian
    client       preface, SETTINGS, then a stream a request: HEADERS [CONTINUATION…] [DATA…], the last with END_STREAM
    server       SETTINGS, then on each stream HEADERS, DATA…; map streams never end by themselves

Only what a server of few paths needs, in 3 KB a connection where a general library holds 20 to 30 and takes four times
the time a request: no priorities, no push, response headers never indexed. hpack decodes request headers. What does not
fit a client's window waits per stream; `is_clogged` tells the caller to stop sending deltas and send one whole state
later. What a client can make the server hold is bounded: bodies, header blocks, streams, and cancellations in a row.

Ref: RFC 9113, RFC 7541
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

import hpack

from gw.errors import WireError
from gw.model.keys import ChallengeKey
from gw.wire.ts2021.client import EARLY_MAGIC
from gw.wire.ts2021.noise import MAX_PLAINTEXT_BYTES, Session

MAX_BODY_BYTES: Final = 1 << 20
MAX_UNFINISHED_BYTES: Final = 4 << 20  # of all requests of a connection: machine keys cost a stranger nothing
MAX_PATH_CHARS: Final = 4096
MAX_HEADER_BYTES: Final = 32 << 10
MAX_STREAMS: Final = 256
MAX_CANCELLED: Final = 200  # more than were answered
CLOGGED_BYTES: Final = 1 << 20

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20
NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0x0, 0x7, 0x8, 0xB
SETTING_MAX_STREAMS, SETTING_WINDOW, SETTING_FRAME = 3, 4, 5
HEAD_BYTES: Final = 9
DEFAULT_WINDOW: Final = 65535
MAX_WINDOW: Final = (1 << 31) - 1
MAX_FRAME_BYTES: Final = 16384
STREAM_WINDOW: Final = MAX_BODY_BYTES + DEFAULT_WINDOW  # one step past the limit, so that a body over it shows
ONE_RECORD_BYTES: Final = MAX_PLAINTEXT_BYTES - 9
_HEAD: Final = struct.Struct(">IBI")
CONNECTION_CREDIT: Final = 32 << 10  # opened again when so much was taken
_STATUS: Final = {200: b"\x88", 204: b"\x89", 206: b"\x8a", 304: b"\x8b", 400: b"\x8c", 404: b"\x8d", 500: b"\x8e"}
_blocks: dict[tuple[int, str], bytes] = {}


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. body: at most MAX_BODY_BYTES."""

    stream: int
    method: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client gave the stream up, or it was refused; nothing more may be sent on it."""

    stream: int


@dataclass(frozen=True, slots=True)
class Drained:
    """All that waited for this stream has been sent."""

    stream: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The client said goodbye."""


Event = Request | Cancelled | Drained | Closed


@dataclass(slots=True)
class _Stream:
    """A stream until both sides ended it. window: what we may still send; waiting: what did not fit."""

    window: int
    method: str = ""
    path: str = ""
    body: bytearray | None = None  # None once the request is whole
    is_started: bool = False
    waiting: bytearray | None = None
    is_ending: bool = False
    room: int = CLOGGED_BYTES


@final
class ServerConnection:
    """One client connection after its handshake."""

    __slots__ = (
        "_block", "_block_flags", "_block_stream", "_cancelled", "_decoder", "_frame_bytes", "_initial_window", "_last",
        "_out", "_plain", "_plain_out", "_preface", "_session", "_streams", "_uncredited", "_unfinished", "_window",
    )  # fmt: skip

    def __init__(self, session: Session, challenge: ChallengeKey | None) -> None:
        self._session = session
        self._plain = b""  # received, not yet a whole frame
        self._preface = False
        self._streams: dict[int, _Stream] = {}
        self._decoder: hpack.Decoder | None = None
        self._block: bytearray | None = None  # a header block that goes on
        self._block_stream = self._block_flags = 0
        self._last = 0  # highest stream the client opened
        self._window = self._initial_window = DEFAULT_WINDOW
        self._frame_bytes = MAX_FRAME_BYTES
        self._unfinished = 0  # bytes of bodies held
        self._uncredited = 0  # bytes taken since the connection's window was opened
        self._cancelled = 0
        self._out = b""
        self._plain_out = _settings()
        if challenge is not None:
            raw = b'{"nodeKeyChallenge":"%b"}' % str(challenge).encode()
            self._out = session.seal(EARLY_MAGIC + struct.pack(">I", len(raw)) + raw)

    def data_to_send(self) -> bytes:
        """Sealed bytes for the connection. Call after every other method."""
        out = self._out
        if self._plain_out:
            out += self._session.seal(self._plain_out)
            self._plain_out = b""
        self._out = b""
        return out

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the connection. Raises WireError where the client breaks the protocol."""
        plain = self._session.feed(data)
        if not plain:
            return []
        if self._plain:
            plain = self._plain + plain
        start = 0
        if not self._preface:
            if not PREFACE.startswith(plain[: len(PREFACE)]):
                raise WireError("HTTP/2: no preface")
            if len(plain) < len(PREFACE):
                self._plain = plain
                return []
            self._preface, start = True, len(PREFACE)
        events: list[Event] = []
        end = len(plain)
        while end - start >= HEAD_BYTES:
            size = plain[start] << 16 | plain[start + 1] << 8 | plain[start + 2]
            if size > MAX_FRAME_BYTES:
                raise WireError(f"HTTP/2: frame of {size} bytes")
            body = start + HEAD_BYTES
            if end - body < size:
                break
            stream = int.from_bytes(plain[start + 5 : body], "big") & 0x7FFFFFFF
            self._take(plain[start + 3], plain[start + 4], stream, plain[body : body + size], events)
            start = body + size
        self._plain = plain[start:] if start < end else b""
        return events

    # Sending

    def start(self, stream: int, status: int, content_type: str = "application/json", **headers: str) -> bool:
        """Send the response's headers. False where the client has given the stream up."""
        found = self._streams.get(stream)
        if found is None or found.is_started:
            return False
        found.is_started = True
        self._cancelled = max(0, self._cancelled - 1)
        block = _blocks.get((status, content_type))
        if block is None:
            block = _STATUS.get(status) or b"\x08" + _text(str(status))
            block += b"\x0f\x10" + _text(content_type)  # literal, never indexed by us; name 31: content-type
            _blocks[status, content_type] = block
        for name, value in headers.items():
            block += b"\x00" + _text(name.replace("_", "-").lower()) + _text(value)
        self._plain_out += _frame(HEADERS, END_HEADERS, stream, block)
        return True

    def send(self, stream: int, data: bytes, *, end: bool = False) -> bool:
        """Send body bytes; True if they left now, False if they wait for the client's window or the stream is gone."""
        found = self._streams.get(stream)
        if found is None or found.is_ending:
            return False
        if found.waiting is not None:
            found.waiting += data
            found.is_ending = end
            return False
        size = len(data)
        if size > self._frame_bytes or size > found.window or size > self._window:
            found.waiting, found.is_ending = bytearray(data), end
            self._pump(stream, found)
            return found.waiting is None
        found.window -= size
        self._window -= size
        self._plain_out += struct.pack(">IBI", size << 8, end, stream) + data  # type 0: DATA; flag 1: END_STREAM
        if end:
            self._ended(stream, found)
        return True

    def send_now(self, stream: int, data: bytes) -> bytes | None:
        """`send` and `data_to_send` in one: what can leave at once, sealed; None where the stream is clogged.

        The hot path of a change told to many, who mostly have it on streams of one number.
        """
        found = self._streams.get(stream)
        if found is None:
            return b""
        size = len(data)
        if (
            found.waiting is not None
            or found.is_ending
            or size > ONE_RECORD_BYTES
            or size > found.window
            or size > self._window
            or self._plain_out
            or self._out
        ):
            if self.is_clogged(stream):
                return None
            self.send(stream, data)
            return self.data_to_send()
        found.window -= size
        self._window -= size
        return self._session.seal_one(_framed(stream, data))

    def is_clogged(self, stream: int) -> bool:
        """True where so much waits for the client that more would only grow memory."""
        found = self._streams.get(stream)
        return found is not None and found.waiting is not None and len(found.waiting) > found.room

    def make_room(self, stream: int, size: int) -> None:
        """Let a message of this size wait, and as much again behind it, before the stream counts as clogged."""
        found = self._streams.get(stream)
        if found is not None:
            found.room = max(CLOGGED_BYTES, 2 * size)

    def reset(self, stream: int) -> None:
        """Cut a stream off."""
        if self._drop(stream):
            self._reset(stream, ENHANCE_YOUR_CALM)

    def _reset(self, stream: int, code: int) -> None:
        self._plain_out += _frame(RST_STREAM, 0, stream, struct.pack(">I", code))

    def _pump(self, stream: int, found: _Stream) -> None:
        """Send of what waits as much as the windows let through."""
        waiting = found.waiting
        assert waiting is not None
        start, parts = 0, []
        while start < len(waiting):
            room = min(found.window, self._window, self._frame_bytes, len(waiting) - start)
            if room <= 0:
                break
            is_last = found.is_ending and start + room == len(waiting)
            parts.append(struct.pack(">IBI", room << 8, is_last, stream))
            parts.append(bytes(waiting[start : start + room]))
            start += room
            found.window -= room
            self._window -= room
        if start == len(waiting):
            if found.is_ending and not start:
                parts.append(_frame(DATA, END_STREAM, stream, b""))
            found.waiting = None
            if found.is_ending:
                self._ended(stream, found)
        else:
            del waiting[:start]
        self._plain_out += b"".join(parts)

    def _ended(self, stream: int, found: _Stream) -> None:
        """We said all. A client that has not is told not to go on."""
        if found.body is not None:
            self._reset(stream, NO_ERROR)
        self._drop(stream)

    def _drop(self, stream: int) -> bool:
        found = self._streams.pop(stream, None)
        if found is not None and found.body is not None:
            self._unfinished -= len(found.body)
        return found is not None

    # Receiving

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if self._block is not None and (kind != CONTINUATION or stream != self._block_stream):
            raise WireError("HTTP/2: a header block was interrupted")
        if kind == DATA:
            self._take_data(flags, stream, payload, events)
        elif kind == HEADERS:
            block = _unpadded(flags, payload)
            self._block = bytearray(block[5:] if flags & WITH_PRIORITY else block)
            self._block_stream, self._block_flags = stream, flags
            if flags & END_HEADERS:
                self._take_headers(events)
        elif kind == CONTINUATION:
            if self._block is None:
                raise WireError("HTTP/2: continuation of nothing")
            self._block += payload
            if len(self._block) > MAX_HEADER_BYTES:
                raise WireError("HTTP/2: header block too large")
            if flags & END_HEADERS:
                self._take_headers(events)
        elif kind == WINDOW_UPDATE:
            self._take_window(stream, payload, events)
        elif kind == SETTINGS:
            self._take_settings(flags, stream, payload, events)
        elif kind == RST_STREAM:
            if not stream or len(payload) != 4:
                raise WireError("HTTP/2: bad RST_STREAM")
            if self._drop(stream):
                self._cancelled += 1
                if self._cancelled > MAX_CANCELLED:
                    raise WireError("HTTP/2: too many cancelled streams")
                events.append(Cancelled(stream))
        elif kind == PING:
            if stream or len(payload) != 8:
                raise WireError("HTTP/2: bad PING")
            if not flags & ACK:
                self._plain_out += _frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            events.append(Closed())
        elif kind == PUSH_PROMISE:
            raise WireError("HTTP/2: a client cannot push")

    def _take_headers(self, events: list[Event]) -> None:
        assert self._block is not None
        stream, flags, block = self._block_stream, self._block_flags, bytes(self._block)
        self._block = None
        if self._decoder is None:
            self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.HPACKError as error:
            raise WireError(f"HTTP/2: {error}") from None
        found = self._streams.get(stream)
        if found is not None:  # trailers
            if not flags & END_STREAM or found.body is None:
                raise WireError("HTTP/2: headers within a request")
            self._whole(stream, found, events)
            return
        if not stream % 2 or stream <= self._last:
            raise WireError(f"HTTP/2: stream {stream} cannot begin")
        self._last = stream
        if len(self._streams) >= MAX_STREAMS:
            self._reset(stream, REFUSED_STREAM)
            return
        found = self._streams[stream] = _Stream(self._initial_window, body=bytearray())
        for field in fields:
            if field[0] == b":method":
                found.method = bytes(field[1]).decode("latin-1")
            elif field[0] == b":path":
                found.path = bytes(field[1]).decode("latin-1")
        if not found.method or not found.path:
            raise WireError("HTTP/2: a request without method or path")
        if len(found.path) > MAX_PATH_CHARS:
            self.reset(stream)
            events.append(Cancelled(stream))
            return
        if flags & END_STREAM:
            self._whole(stream, found, events)

    def _take_data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._uncredited += len(payload)
        if self._uncredited >= CONNECTION_CREDIT:
            self._plain_out += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._uncredited))
            self._uncredited = 0
        if not stream or stream > self._last:
            raise WireError("HTTP/2: data without a request")
        data = _unpadded(flags, payload)
        found = self._streams.get(stream)
        if found is None:
            return  # it was cut off while this was on its way
        if found.body is None:
            raise WireError("HTTP/2: data after the end of a request")
        found.body += data
        self._unfinished += len(data)
        if len(found.body) > MAX_BODY_BYTES or self._unfinished > MAX_UNFINISHED_BYTES:
            self.reset(stream)
            events.append(Cancelled(stream))
        elif flags & END_STREAM:
            self._whole(stream, found, events)

    def _whole(self, stream: int, found: _Stream, events: list[Event]) -> None:
        assert found.body is not None
        self._unfinished -= len(found.body)
        body, found.body = bytes(found.body), None
        events.append(Request(stream, found.method, found.path, body))

    def _take_settings(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        if stream or len(payload) % 6 or (flags & ACK and payload):
            raise WireError("HTTP/2: bad SETTINGS")
        if flags & ACK:
            return
        for name, value in struct.iter_unpack(">HI", payload):
            if name == SETTING_WINDOW:
                if value > MAX_WINDOW:
                    raise WireError("HTTP/2: window too large")
                change, self._initial_window = value - self._initial_window, value
                for each in self._streams.values():
                    each.window += change
            elif name == SETTING_FRAME:
                if not MAX_FRAME_BYTES <= value < 1 << 24:
                    raise WireError("HTTP/2: bad frame size")
                self._frame_bytes = min(value, MAX_FRAME_BYTES * 4)
        self._plain_out += _frame(SETTINGS, ACK, 0, b"")
        self._pump_all(events)

    def _take_window(self, stream: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise WireError("HTTP/2: bad WINDOW_UPDATE")
        step = int.from_bytes(payload, "big") & MAX_WINDOW
        if not stream:
            self._window += step
            if not step or self._window > MAX_WINDOW:
                raise WireError("HTTP/2: window too large")
            self._pump_all(events)
            return
        found = self._streams.get(stream)
        if found is None:
            return
        found.window += step
        if not step or found.window > MAX_WINDOW:
            raise WireError("HTTP/2: window too large")
        if found.waiting is not None:
            self._pump_one(stream, found, events)

    def _pump_all(self, events: list[Event]) -> None:
        for stream, found in list(self._streams.items()):
            if found.waiting is not None:
                self._pump_one(stream, found, events)

    def _pump_one(self, stream: int, found: _Stream, events: list[Event]) -> None:
        self._pump(stream, found)
        if found.waiting is None:
            events.append(Drained(stream))


@lru_cache(maxsize=4)
def _framed(stream: int, data: bytes) -> bytes:
    """One DATA frame. The last ones are kept: a body sent to many is the same object, whose hash is made once."""
    return _HEAD.pack(len(data) << 8, 0, stream) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _settings() -> bytes:
    return _frame(SETTINGS, 0, 0, struct.pack(">HIHI", SETTING_MAX_STREAMS, MAX_STREAMS, SETTING_WINDOW, STREAM_WINDOW))


def _text(text: str) -> bytes:
    """A string of a header block, without Huffman coding; at most 126 bytes."""
    raw = text.encode("latin-1")[:126]
    return bytes([len(raw)]) + raw


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise WireError("HTTP/2: padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
