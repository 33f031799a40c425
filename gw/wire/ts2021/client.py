"""The client's HTTP/2 inside a Noise session: requests out, events in. The caller moves bytes and keeps time."""

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

from gw.errors import StateError, WireError
from gw.model.keys import ChallengeKey
from gw.wire.ts2021.noise import Session

EARLY_MAGIC: Final = b"\xff\xff\xffTS"
EARLY_HEADER_BYTES: Final = 9  # as long as an HTTP/2 frame header, so that one read tells them apart
MAX_EARLY_BYTES: Final = 64 << 10
CONNECTION_WINDOW_BYTES: Final = 16 << 20
STREAM_WINDOW_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Challenge:
    """The early payload's key, sent before anything else by servers that have one."""

    key: ChallengeKey


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class BodyData:
    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The stream is over. is_reset: cut off by the server, not finished."""

    stream: int
    is_reset: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    reason: str


Event = Challenge | ResponseStarted | BodyData | StreamEnded | ConnectionClosed


@final
class ControlConnection:
    """One control connection after its handshake. After ConnectionClosed nothing more comes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._early: bytearray | None = bytearray()
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES})
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._unsent: dict[int, bytes] = {}
        self._closed = False

    def request(self, path: str, body: bytes, *, authority: str, method: str = "POST") -> int:
        """Start a request and return its stream. The body is sent as the server's windows allow.

        Raises WireError where the server allows no more streams.
        """
        if self._closed:
            raise StateError("connection is closed")
        headers = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
        try:
            stream = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream, [*headers, ("content-length", str(len(body)))], end_stream=not body)
        except h2.exceptions.ProtocolError as error:
            raise WireError(f"HTTP/2: {error}") from None
        if body:
            self._unsent[stream] = body
            self._pump(stream)
        return stream

    def cancel(self, stream: int) -> None:
        """Give a stream up; its events stop."""
        self._unsent.pop(stream, None)
        try:
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError:
            return  # it ended meanwhile

    def data_to_send(self) -> bytes:
        """Sealed bytes for the connection. Call after `request`, `cancel` and `feed`."""
        return self._session.seal(self._h2.data_to_send())

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the connection. Raises WireError where the peer breaks the protocol."""
        plain = self._session.feed(data)
        events: list[Event] = []
        if self._early is not None:
            self._early += plain
            rest = self._take_early(events)
            if rest is None:
                return events
            plain = rest
        if not plain or self._closed:
            return events
        try:
            received = self._h2.receive_data(plain)
        except (h2.exceptions.ProtocolError, ValueError) as error:
            self._closed = True
            raise WireError(f"HTTP/2: {error}") from None
        for event in received:
            self._take(event, events)
        return events

    def _take_early(self, events: list[Event]) -> bytes | None:
        """What follows the early payload, or None while it is incomplete."""
        early = self._early
        if early is None or len(early) < EARLY_HEADER_BYTES:
            return None
        if early[:5] == EARLY_MAGIC:
            (size,) = struct.unpack_from(">I", early, 5)
            if size > MAX_EARLY_BYTES:
                raise WireError(f"early payload of {size} bytes")
            if len(early) < EARLY_HEADER_BYTES + size:
                return None
            raw = bytes(early[EARLY_HEADER_BYTES : EARLY_HEADER_BYTES + size])
            del early[: EARLY_HEADER_BYTES + size]
            try:
                events.append(Challenge(ChallengeKey.parse(str(json.loads(raw)["nodeKeyChallenge"]))))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise WireError("early payload makes no sense") from None
        rest, self._early = bytes(early), None
        return rest

    def _take(self, event: h2.events.Event, events: list[Event]) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            status = {str(name): str(value) for name, value in event.headers or []}.get(":status", "")
            events.append(ResponseStarted(event.stream_id or 0, int(status) if status.isdigit() else 0))
        elif isinstance(event, h2.events.DataReceived):
            stream = event.stream_id or 0
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            if event.data:
                events.append(BodyData(stream, bytes(event.data)))
        elif isinstance(event, h2.events.StreamEnded):
            events.append(StreamEnded(event.stream_id or 0))
        elif isinstance(event, h2.events.StreamReset):
            self._unsent.pop(event.stream_id or 0, None)
            events.append(StreamEnded(event.stream_id or 0, is_reset=True))
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._closed = True
            events.append(ConnectionClosed(f"GOAWAY {event.error_code}"))
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for stream in list(self._unsent):
                self._pump(stream)

    def _pump(self, stream: int) -> None:
        body = self._unsent.get(stream, b"")
        try:
            while body:
                room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body))
                if room <= 0:
                    break
                chunk, body = body[:room], body[room:]
                self._h2.send_data(stream, chunk, end_stream=not body)
        except h2.exceptions.ProtocolError:
            body = b""  # the server ended the stream before it had the whole body: its answer tells why
        if body:
            self._unsent[stream] = body
        else:
            self._unsent.pop(stream, None)
