"""The client's and the server's ends against each other, in memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.keys import ChallengeKey, MachineKey, MachineSecret
from gw.wire.ts2021 import client as c
from gw.wire.ts2021 import mapframes
from gw.wire.ts2021 import server as s
from gw.wire.ts2021.mapframes import MapFrames, frame
from gw.wire.ts2021.noise import ClientHandshake, accept
from gw.wire.x25519 import clamp, fresh_pair, public_key

SERVER = clamp(b"\x11" * 32)
CHALLENGE = ChallengeKey(b"\x07" * 32)


class Pair:
    """Both ends and the bytes between them."""

    def __init__(self, challenge: ChallengeKey | None = CHALLENGE, chunk: int = 1 << 20) -> None:
        server_key = MachineKey(public_key(SERVER))
        hello = ClientHandshake(MachineSecret(clamp(b"\x22" * 32)), server_key, fresh_pair(), 113)
        accepted = accept(MachineSecret(SERVER), hello.initiation(), fresh_pair())
        self.client = c.ControlConnection(hello.finish(accepted.response))
        self.server = s.ServerConnection(accepted.session, challenge)
        self.chunk = chunk
        self.at_client: list[c.Event] = []
        self.at_server: list[s.Event] = []

    def exchange(self) -> None:
        """Move bytes until both are silent."""
        while True:
            up, down = self.client.data_to_send(), self.server.data_to_send()
            if not up and not down:
                return
            for start in range(0, len(up), self.chunk):
                self.at_server += self.server.feed(up[start : start + self.chunk])
            for start in range(0, len(down), self.chunk):
                self.at_client += self.client.feed(down[start : start + self.chunk])

    def body(self, stream: int) -> bytes:
        return b"".join(e.data for e in self.at_client if isinstance(e, c.BodyData) and e.stream == stream)


def test_the_early_payload_comes_before_anything_else() -> None:
    for chunk in (1, 7, 1 << 20):
        pair = Pair(chunk=chunk)
        pair.exchange()
        assert pair.at_client == [c.Challenge(CHALLENGE)]


def test_a_server_without_early_payload_is_understood() -> None:
    pair = Pair(challenge=None)
    stream = pair.client.request("/machine/map", b"{}", authority="x")
    pair.exchange()
    assert pair.at_server == [s.Request(stream, "POST", "/machine/map", b"{}")]


@given(st.binary(max_size=300_000), st.binary(max_size=300_000), st.sampled_from(["GET", "POST"]))
@settings(max_examples=15, deadline=None)
def test_bodies_larger_than_every_window_arrive_both_ways(up: bytes, down: bytes, method: str) -> None:
    pair = Pair()
    stream = pair.client.request("/machine/x", up, authority="h:80", method=method)
    pair.exchange()
    assert pair.at_server[-1] == s.Request(stream, method, "/machine/x", up)
    assert pair.server.start(stream, 200)
    pair.server.send(stream, down, end=True)
    pair.exchange()
    assert pair.body(stream) == down
    assert c.ResponseStarted(stream, 200) in pair.at_client
    assert pair.at_client[-1] == c.StreamEnded(stream)


def test_many_streams_get_the_same_frames_without_ending() -> None:
    pair = Pair()
    streams = [pair.client.request("/machine/map", b"{}", authority="x") for _ in range(40)]
    pair.exchange()
    message = frame(b'{"KeepAlive":true}', compress=True)
    for stream in streams:
        pair.server.start(stream, 200)
    for _ in range(3):
        for stream in streams:
            assert pair.server.send(stream, message)
    pair.exchange()
    for stream in streams:
        assert MapFrames(compressed=True).feed(pair.body(stream)) == [b'{"KeepAlive":true}'] * 3
    assert not [event for event in pair.at_client if isinstance(event, c.StreamEnded)]


def test_a_reader_that_stops_reading_clogs_its_stream_and_is_told_when_it_drains() -> None:
    pair = Pair()
    stream = pair.client.request("/machine/map", b"{}", authority="x")
    pair.exchange()
    pair.server.start(stream, 200)
    sent = b""
    while not pair.server.is_clogged(stream):
        pair.server.send(stream, b"x" * 60_000)
        sent += b"x" * 60_000
        assert len(sent) < 64 << 20
    pair.exchange()
    assert len(pair.body(stream)) == len(sent)
    assert pair.body(stream) == sent
    assert s.Drained(stream) in pair.at_server


def test_a_cancelled_stream_takes_no_more_bytes() -> None:
    pair = Pair()
    stream = pair.client.request("/machine/map", b"{}", authority="x")
    pair.exchange()
    pair.server.start(stream, 200)
    pair.client.cancel(stream)
    pair.exchange()
    assert s.Cancelled(stream) in pair.at_server
    assert not pair.server.send(stream, b"late")
    assert not pair.server.start(stream, 200)


def test_a_body_over_the_limit_is_cut_off() -> None:
    pair = Pair()
    stream = pair.client.request("/machine/map", b"x" * (s.MAX_BODY_BYTES + 1), authority="x")
    pair.exchange()
    assert s.Cancelled(stream) in pair.at_server
    assert not [event for event in pair.at_server if isinstance(event, s.Request)]


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.integers(1, 50), st.booleans())
def test_map_frames_survive_any_cut(messages: list[bytes], cut: int, compress: bool) -> None:
    wire = b"".join(frame(message, compress=compress) for message in messages)
    reader = MapFrames(compressed=compress)
    got = [message for start in range(0, len(wire), cut) for message in reader.feed(wire[start : start + cut])]
    assert got == messages


@given(st.binary(max_size=300))
def test_any_map_bytes_are_messages_or_one_error(raw: bytes) -> None:
    for compressed in (True, False):
        try:
            MapFrames(compressed=compressed, max_frame_bytes=1000).feed(raw)
        except WireError:
            continue


@given(st.binary(max_size=400))
def test_any_http2_bytes_are_events_or_one_error(raw: bytes) -> None:
    pair = Pair()
    pair.exchange()
    with_session = pair.client._session.seal(raw)
    try:
        pair.server.feed(with_session)
    except WireError:
        return


def test_the_same_message_gives_the_same_frame() -> None:
    assert frame(b'{"KeepAlive":true}', compress=True) == frame(b'{"KeepAlive":true}', compress=True)
    with pytest.raises(WireError):
        MapFrames(compressed=True).feed(frame(b"not zstd", compress=False))


def test_unfinished_requests_of_one_connection_are_bounded_together() -> None:
    """A machine key costs a stranger nothing: each of 256 streams could hold a megabyte for ever."""
    pair = Pair()
    headers = [(":method", "POST"), (":scheme", "https"), (":authority", "x"), (":path", "/machine/map")]
    for _ in range(30):
        stream = pair.client._h2.get_next_available_stream_id()
        pair.client._h2.send_headers(stream, headers)
        for _ in range(15):
            if s.Cancelled(stream) not in pair.at_server:
                pair.client._h2.send_data(stream, bytes(16384))
                pair.exchange()
    assert pair.server._unfinished <= s.MAX_UNFINISHED_BYTES
    assert [event for event in pair.at_server if isinstance(event, s.Cancelled)]
    for stream in list(pair.server._streams):
        pair.client.cancel(stream)
    pair.exchange()
    assert pair.server._unfinished == 0
    stream = pair.client.request("/machine/map", b"{}", authority="x")
    pair.exchange()
    assert pair.at_server[-1] == s.Request(stream, "POST", "/machine/map", b"{}")


def test_a_path_without_end_is_cut_off() -> None:
    pair = Pair()
    stream = pair.client.request("/" + "x" * 10000, b"{}", authority="x")
    pair.exchange()
    assert pair.at_server == [s.Cancelled(stream)]


def test_a_frame_that_hides_its_size_opens_no_further_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few KiB of zstd can stand for gigabytes."""
    monkeypatch.setattr(mapframes, "MAX_MESSAGE_BYTES", 64 << 20)
    packer = zstandard.ZstdCompressor().compressobj()  # does not tell the size
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    tracemalloc.start()
    with pytest.raises(WireError, match="without end"):
        MapFrames(compressed=True).feed(struct.pack("<I", len(bomb)) + bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 << 20
    packer = zstandard.ZstdCompressor().compressobj()
    honest = packer.compress(b"{}") + packer.flush()
    assert MapFrames(compressed=True).feed(struct.pack("<I", len(honest)) + honest) == [b"{}"]
