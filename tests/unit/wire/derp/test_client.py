"""DERP frames and the client's end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp import client as c
from gw.wire.derp import frames
from gw.wire.x25519 import clamp, public_key

CLIENT = clamp(b"\x21" * 32)
RELAY = clamp(b"\x42" * 32)
PEER = NodeKey(b"\x09" * 32)


def connected(*, fast: bool = False) -> c.Client:
    client = c.Client(NodeSecret(CLIENT), bytes(24), relay_key=public_key(RELAY) if fast else b"")
    client.feed(frames.encode(frames.SERVER_KEY, frames.MAGIC + public_key(RELAY)))
    box = Box(PrivateKey(RELAY), PublicKey(public_key(CLIENT)))
    info = bytes(box.encrypt(b'{"version":2,"TokenBucketBytesPerSecond":5}', bytes(24)))
    assert client.feed(frames.encode(frames.SERVER_INFO, info)) == [c.Connected(5, 0)]
    return client


@pytest.mark.parametrize("fast", [False, True])
def test_the_client_introduces_itself_once(fast: bool) -> None:
    client = connected(fast=fast)
    ((kind, payload),) = frames.FrameReader(limit=1 << 20).feed(client.data_to_send())
    assert kind == frames.CLIENT_INFO
    assert payload[:32] == public_key(CLIENT)
    info = json.loads(Box(PrivateKey(RELAY), PublicKey(payload[:32])).decrypt(payload[32:]))
    assert info == {"version": 2, "CanAckPings": True}


def test_packets_go_out_and_come_in() -> None:
    client = connected()
    client.data_to_send()
    client.send(PEER, [b"one", b"two"])
    client.note_preferred(True)
    sent = frames.FrameReader(limit=1 << 20).feed(client.data_to_send())
    assert sent == [(4, PEER.raw + b"one"), (4, PEER.raw + b"two"), (7, b"\x01")]
    assert client.feed(frames.encode(frames.RECV_PACKET, PEER.raw + b"hi")) == [c.Received(PEER, b"hi")]


def test_events_of_the_relay() -> None:
    client = connected()
    client.data_to_send()
    wire = b"".join(
        [
            frames.encode(frames.PEER_GONE, PEER.raw),
            frames.encode(frames.PEER_GONE, PEER.raw + b"\x01"),
            frames.encode(0x77, b"x" * 5000),
            frames.encode(frames.PING, b"12345678"),
            frames.encode(frames.RESTARTING, bytes([0, 0, 0, 9, 0, 0, 1, 0])),
            frames.encode(frames.HEALTH, b"bad"),
            frames.KEEP_ALIVE_FRAME,
        ]
    )
    assert client.feed(wire) == [c.PeerGone(PEER, 0), c.PeerGone(PEER, 1), c.Restarting(9, 256), c.Health("bad")]
    assert client.data_to_send() == frames.encode(frames.PONG, b"12345678")


@given(st.lists(st.tuples(st.sampled_from([4, 5, 6, 0x77]), st.binary(max_size=200)), max_size=10), st.integers(1, 30))
def test_frames_survive_any_cut_and_unknown_ones_are_skipped(sent: list[tuple[int, bytes]], cut: int) -> None:
    wire = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    reader = frames.FrameReader(limit=1000, known=frozenset({4, 5, 6}))
    got = [frame for at in range(0, len(wire), cut) for frame in reader.feed(wire[at : at + cut])]
    assert got == [(kind, payload) for kind, payload in sent if kind != 0x77]


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_are_events_or_one_error(pieces: list[bytes]) -> None:
    client = connected()
    try:
        for piece in pieces:
            client.feed(piece)
    except WireError:
        return


@given(st.sampled_from([1, 3, 5, 8, 0x12, 0x13, 0x14, 0x15]), st.binary(max_size=90))
def test_any_payload_is_an_event_or_one_error(kind: int, payload: bytes) -> None:
    try:
        connected().feed(frames.encode(kind, payload))
    except WireError:
        return
