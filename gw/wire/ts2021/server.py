"""The server's HTTP/2 inside a Noise session, made for many idle streams that all get the same bytes now and then.

`send` is the hot path: where the whole of `data` fits both windows and one frame, the DATA frame is built here and h2's
two windows are counted down by hand, because its own machinery costs more than sealing and sending together. What does
not fit waits per stream, bounded; `is_clogged` tells the caller to stop sending deltas and send one whole state later.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final, final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from gw.errors import WireError
from gw.model.keys import ChallengeKey
from gw.wire.ts2021.client import EARLY_MAGIC
from gw.wire.ts2021.noise import Session

MAX_BODY_BYTES: Final = 1 << 20
MAX_STREAMS: Final = 256
MAX_UNFINISHED_BYTES: Final = 4 << 20  # of all requests of a connection: machine keys cost a stranger nothing
MAX_PATH_CHARS: Final = 4096
CLOGGED_BYTES: Final = 1 << 20


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
class _Waiting:
    data: bytearray
    is_end: bool


@final
class ServerConnection:
    """One client connection after its handshake."""

    def __init__(self, session: Session, challenge: ChallengeKey | None) -> None:
        self._session = session
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._requests: dict[int, tuple[str, str, bytearray]] = {}
        self._unfinished = 0  # bytes of request bodies that are not whole yet
        self._waiting: dict[int, _Waiting] = {}
        self._out = b""
        if challenge is not None:
            raw = json.dumps({"nodeKeyChallenge": str(challenge)}).encode()
            self._out = session.seal(EARLY_MAGIC + struct.pack(">I", len(raw)) + raw)

    def data_to_send(self) -> bytes:
        """Sealed bytes for the connection. Call after every other method."""
        plain = self._h2.data_to_send()
        out, self._out = self._out, b""
        return out + self._session.seal(plain) if plain else out

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the connection. Raises WireError where the client breaks the protocol."""
        plain = self._session.feed(data)
        if not plain:
            return []
        events: list[Event] = []
        try:
            for event in self._h2.receive_data(plain):
                self._take(event, events)
        except (h2.exceptions.ProtocolError, ValueError) as error:
            raise WireError(f"HTTP/2: {error}") from None
        return events

    def start(self, stream: int, status: int, content_type: str = "application/json", **headers: str) -> bool:
        """Send the response's headers. False where the client has given the stream up."""
        extra = [(name.replace("_", "-"), value) for name, value in headers.items()]
        try:
            self._h2.send_headers(stream, [(":status", str(status)), ("content-type", content_type), *extra])
        except (h2.exceptions.ProtocolError, KeyError):
            return False
        return True

    def send(self, stream: int, data: bytes, *, end: bool = False) -> bool:
        """Send body bytes; True if they left now, False if they wait for the client's window or the stream is gone."""
        if stream in self._waiting:
            waiting = self._waiting[stream]
            waiting.data += data
            waiting.is_end |= end
            return False
        connection = self._h2
        state = connection.streams.get(stream)
        if state is None or state.closed:
            return False
        size = len(data)
        if (
            not end
            and size <= connection.max_outbound_frame_size
            and size <= state.outbound_flow_control_window
            and size <= connection.outbound_flow_control_window
        ):
            state.outbound_flow_control_window -= size
            connection.outbound_flow_control_window -= size
            head = struct.pack(">IBI", size << 8, 0, stream)  # u24 length, type 0 DATA, flags 0, u31 stream
            self._out = self.data_to_send() + self._session.seal(head[:3] + b"\0\0" + head[5:] + data)
            return True
        self._waiting[stream] = _Waiting(bytearray(data), end)
        self._pump(stream)
        return stream not in self._waiting

    def is_clogged(self, stream: int) -> bool:
        """True where so much waits for the client that more would only grow memory."""
        waiting = self._waiting.get(stream)
        return waiting is not None and len(waiting.data) > CLOGGED_BYTES

    def reset(self, stream: int) -> None:
        """Cut a stream off."""
        self._waiting.pop(stream, None)
        self._take_request(stream)
        try:
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        except (h2.exceptions.ProtocolError, KeyError):
            return

    def _take(self, event: h2.events.Event, events: list[Event]) -> None:
        stream = getattr(event, "stream_id", None) or 0
        if isinstance(event, h2.events.RequestReceived):
            headers = {str(name): str(value) for name, value in event.headers or []}
            path = headers.get(":path", "")
            if len(path) > MAX_PATH_CHARS:
                self.reset(stream)
                events.append(Cancelled(stream))
                return
            self._requests[stream] = (headers.get(":method", ""), path, bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            request = self._requests.get(stream)
            if request is not None:
                data = event.data or b""
                request[2].extend(data)
                self._unfinished += len(data)
                if len(request[2]) > MAX_BODY_BYTES or self._unfinished > MAX_UNFINISHED_BYTES:
                    self.reset(stream)
                    events.append(Cancelled(stream))
        elif isinstance(event, h2.events.StreamEnded):
            request = self._take_request(stream)
            if request is not None:
                events.append(Request(stream, request[0], request[1], bytes(request[2])))
        elif isinstance(event, h2.events.StreamReset):
            self._take_request(stream)
            self._waiting.pop(stream, None)
            events.append(Cancelled(stream))
        elif isinstance(event, h2.events.ConnectionTerminated):
            events.append(Closed())
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for waiting in list(self._waiting):
                self._pump(waiting)
                if waiting not in self._waiting:
                    events.append(Drained(waiting))

    def _take_request(self, stream: int) -> tuple[str, str, bytearray] | None:
        request = self._requests.pop(stream, None)
        if request is not None:
            self._unfinished -= len(request[2])
        return request

    def _pump(self, stream: int) -> None:
        waiting = self._waiting[stream]
        connection = self._h2
        try:
            while waiting.data or waiting.is_end:
                window = connection.local_flow_control_window(stream)
                room = min(window, connection.max_outbound_frame_size, len(waiting.data))
                if room <= 0 and waiting.data:
                    return
                chunk = bytes(waiting.data[:room])
                del waiting.data[:room]
                is_last = waiting.is_end and not waiting.data
                connection.send_data(stream, chunk, end_stream=is_last)
                if is_last:
                    break
        except (h2.exceptions.ProtocolError, KeyError):
            pass  # the client is gone from this stream: nobody waits for the rest
        self._waiting.pop(stream, None)
