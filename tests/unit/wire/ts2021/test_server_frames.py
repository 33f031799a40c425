"""The server's HTTP/2, frame by frame: what RFC 9113 asks of it, and what a stranger may not do to it."""

from __future__ import annotations

import struct

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.errors import WireError
from gw.wire.ts2021 import server as s
from gw.wire.ts2021.noise import Session

KEYS = bytes(range(32)), bytes(range(32, 64))
REQUEST = [(":method", "POST"), (":scheme", "https"), (":authority", "x"), (":path", "/machine/map")]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class Client:
    """Writes frames by hand."""

    def __init__(self) -> None:
        self.session = Session(KEYS[0], KEYS[1], b"")
        self.server = s.ServerConnection(Session(KEYS[1], KEYS[0], b""), None)
        self.encoder = hpack.Encoder()
        self.seen: list[tuple[int, int, int, bytes]] = []
        self.buffer = b""
        self.send(s.PREFACE + frame(s.SETTINGS, 0, 0))

    def send(self, raw: bytes) -> list[s.Event]:
        events = self.server.feed(self.session.seal(raw))
        self.read()
        return events

    def read(self) -> None:
        self.buffer += self.session.feed(self.server.data_to_send())
        while len(self.buffer) >= 9:
            size = int.from_bytes(self.buffer[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
            self.seen.append((kind, flags, stream, self.buffer[9 : 9 + size]))
            self.buffer = self.buffer[9 + size :]

    def block(self, fields: list[tuple[str, str]] = REQUEST) -> bytes:
        return self.encoder.encode(fields)


def test_a_header_block_may_come_in_pieces_padded_and_with_a_priority() -> None:
    client = Client()
    block = client.block()
    first = bytes([3]) + bytes(5) + block[:4] + bytes(3)
    flags = s.PADDED | s.WITH_PRIORITY | s.END_STREAM
    assert client.send(frame(s.HEADERS, flags, 1, first)) == []
    assert client.send(frame(s.CONTINUATION, 0, 1, block[4:9])) == []
    events = client.send(frame(s.CONTINUATION, s.END_HEADERS, 1, block[9:]))
    assert events == [s.Request(1, "POST", "/machine/map", b"")]


def test_bodies_may_be_padded_and_end_with_trailers() -> None:
    client = Client()
    assert client.send(frame(s.HEADERS, s.END_HEADERS, 1, client.block())) == []
    assert client.send(frame(s.DATA, s.PADDED, 1, bytes([2]) + b"body" + bytes(2))) == []
    trailers = client.block([("x-done", "1")])
    events = client.send(frame(s.HEADERS, s.END_HEADERS | s.END_STREAM, 1, trailers))
    assert events == [s.Request(1, "POST", "/machine/map", b"body")]


def test_pings_and_settings_are_answered() -> None:
    client = Client()
    client.send(frame(s.PING, 0, 0, b"12345678") + frame(s.PING, s.ACK, 0, b"87654321"))
    assert (s.PING, s.ACK, 0, b"12345678") in client.seen
    assert (s.SETTINGS, s.ACK, 0, b"") in client.seen
    assert sum(kind == s.PING for kind, *_ in client.seen) == 1


def test_a_smaller_window_holds_what_was_to_be_sent() -> None:
    client = Client()
    client.send(frame(s.HEADERS, s.END_HEADERS | s.END_STREAM, 1, client.block()))
    client.send(frame(s.SETTINGS, 0, 0, struct.pack(">HI", s.SETTING_WINDOW, 3)))
    client.server.start(1, 200)
    assert not client.server.send(1, b"abcdefgh", end=True)
    client.read()
    assert client.seen[-1] == (s.DATA, 0, 1, b"abc")
    assert client.send(frame(s.WINDOW_UPDATE, 0, 1, struct.pack(">I", 100))) == [s.Drained(1)]
    assert client.seen[-1] == (s.DATA, s.END_STREAM, 1, b"defgh")
    assert not client.server.send(1, b"more")


def test_streams_over_the_limit_are_refused_and_the_others_go_on() -> None:
    client = Client()
    for number in range(s.MAX_STREAMS + 1):
        client.send(frame(s.HEADERS, s.END_HEADERS, 2 * number + 1, client.block()))
    assert client.seen[-1] == (s.RST_STREAM, 0, 2 * s.MAX_STREAMS + 1, struct.pack(">I", s.REFUSED_STREAM))
    assert client.send(frame(s.DATA, s.END_STREAM, 1, b"x")) == [s.Request(1, "POST", "/machine/map", b"x")]


def test_requests_that_are_begun_and_given_up_without_end_are_stopped() -> None:
    client = Client()
    with pytest.raises(WireError):
        for number in range(s.MAX_CANCELLED + 2):
            stream = 2 * number + 1
            client.send(frame(s.HEADERS, s.END_HEADERS, stream, client.block()))
            client.send(frame(s.RST_STREAM, 0, stream, struct.pack(">I", s.CANCEL)))


@pytest.mark.parametrize(
    "raw",
    [
        frame(s.DATA, 0, 1, b"x"),
        frame(s.HEADERS, s.END_HEADERS, 2, b"\x83"),
        frame(s.HEADERS, s.END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        frame(s.HEADERS, 0, 1, b"\x83") + frame(s.PING, 0, 0, bytes(8)),
        frame(s.CONTINUATION, s.END_HEADERS, 1, b"\x83"),
        frame(s.HEADERS, 0, 1) + frame(s.CONTINUATION, 0, 1, bytes(16000)) * 3,
        frame(s.SETTINGS, 0, 0, b"12345"),
        frame(s.SETTINGS, 0, 0, struct.pack(">HI", s.SETTING_WINDOW, 1 << 31)),
        frame(s.WINDOW_UPDATE, 0, 0, struct.pack(">I", 0)),
        frame(s.WINDOW_UPDATE, 0, 0, struct.pack(">I", s.MAX_WINDOW)),
        frame(s.PING, 0, 0, b"short"),
        frame(s.PUSH_PROMISE, 0, 1, bytes(4)),
        frame(s.RST_STREAM, 0, 0, bytes(4)),
        frame(s.HEADERS, s.END_HEADERS | s.PADDED, 1, b"\xff\x83"),
        struct.pack(">IBI", (s.MAX_FRAME_BYTES + 1) << 8 | s.DATA, 0, 1),
    ],
)
def test_what_the_protocol_forbids_ends_the_connection(raw: bytes) -> None:
    with pytest.raises(WireError):
        Client().send(raw)


def test_what_is_no_http2_is_refused_at_once() -> None:
    server = s.ServerConnection(Session(KEYS[1], KEYS[0], b""), None)
    with pytest.raises(WireError):
        server.feed(Session(KEYS[0], KEYS[1], b"").seal(b"GET / HTTP/1.1\r\n\r\n"))


FRAMES = st.lists(
    st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)), max_size=20
)


@given(FRAMES)
@settings(max_examples=300, deadline=None)
def test_any_frames_are_events_or_one_error(frames: list[bytes]) -> None:
    client = Client()
    try:
        for event in client.send(b"".join(frames)):
            if isinstance(event, s.Request) and client.server.start(event.stream, 200):
                client.server.send(event.stream, b"y" * 100_000, end=True)
        client.read()
    except WireError:
        return
    assert client.server._unfinished == sum(len(each.body or b"") for each in client.server._streams.values())
