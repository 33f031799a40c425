"""The client's end of gw-relay/1: what a relay may say before it has proven its node key. Spec quic §9."""

from __future__ import annotations

import os

import pytest

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp import frames as derp
from gw.wire.quic import auth, datagrams, frames
from gw.wire.quic.client import Connected, Observed, Received, RelayClient
from gw.wire.x25519 import clamp, public_key

NODE = clamp(b"\x21" * 32)
RELAY = clamp(b"\x42" * 32)
BIND = b"\x07" * 32
PEER = NodeKey(b"p" * 32)
NOW_MS = 1_800_000_000_000
HELLO = frames.encode_hello(public_key(RELAY))
WORDS = {
    "limits": frames.encode_limits(0, 0),
    "observed": frames.encode_observed(AddrPort("192.0.2.1", 1)),
    "peer gone": derp.encode(derp.PEER_GONE, bytes(33)),
    "ping": derp.encode(derp.PING, bytes(8)),
    "pong": derp.encode(derp.PONG, bytes(8)),
    "health": derp.encode(derp.HEALTH, b"all is lost"),
    "restarting": derp.encode(derp.RESTARTING, b"\xff" * 8),
}


def client(*, is_resumed: bool = False) -> RelayClient:
    made = RelayClient(NodeSecret(NODE), lambda: os.urandom(24), relay_key=public_key(RELAY))
    made.begin(BIND, NOW_MS, is_resumed=is_resumed)
    return made


def proof() -> bytes:
    claim = auth.Claim(role=auth.RELAY, bind=BIND.hex(), at=NOW_MS, rate=7)
    return derp.encode(frames.AUTH_OK, auth.seal_claim(RELAY, public_key(NODE), bytes(24), claim))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("before", [b"", HELLO], ids=["first", "after hello"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_word_before_the_relays_proof_breaks_the_protocol(word: str, before: bytes, is_resumed: bool) -> None:
    """Limits alone once counted as being let in: traffic went to a relay that had proven nothing."""
    end = client(is_resumed=is_resumed)
    with pytest.raises(WireError):
        end.feed(before + WORDS[word], NOW_MS)
    assert not end.is_connected


def test_after_the_proof_limits_and_the_rest_are_heard() -> None:
    end = client()
    events = end.feed(HELLO + derp.KEEP_ALIVE_FRAME + proof() + b"".join(WORDS.values()), NOW_MS)
    assert events[:3] == [Connected(7, 0), Connected(0, 0), Observed(AddrPort("192.0.2.1", 1))]
    assert len(events) == len(WORDS)  # a ping is answered, no event


def test_packets_before_the_relays_proof_are_dropped() -> None:
    end = client()
    batch = [b"0" + part for part in datagrams.encode_packet(b"k" * 32, b"packet", 1200, 1)]
    assert end.feed_datagrams(batch, 1.0) == []
    end.feed(HELLO + proof(), NOW_MS)
    (received,) = end.feed_datagrams(batch, 1.0)
    assert isinstance(received, Received)
    assert received.packet == b"packet"


@pytest.mark.parametrize(
    "word",
    [WORDS["ping"], WORDS["peer gone"], derp.encode(frames.FLOW_OPEN, b"\0\0\1" + bytes(32))],
    ids=["ping", "peer gone", "flow open"],
)
def test_a_relay_that_takes_no_answers_gets_no_more(word: bytes) -> None:
    end = client()
    end.feed(HELLO + proof(), NOW_MS)
    end.data_to_send()
    end.feed(word * 5000, NOW_MS)
    assert len(end.data_to_send()) < frames.MAX_UNSENT_BYTES + len(word)
    end.unsent = frames.MAX_UNSENT_BYTES + 1
    end.feed(word * 5000, NOW_MS)
    assert end.data_to_send() == b""
    end.unsent = 0
    end.feed(WORDS["ping"], NOW_MS)
    assert end.data_to_send() == derp.encode(derp.PONG, bytes(8))


def test_numbers_are_asked_for_once_the_relay_takes_what_was_said() -> None:
    end = client()
    end.feed(HELLO + proof(), NOW_MS)
    end.data_to_send()
    end.unsent = frames.MAX_UNSENT_BYTES + 1
    for _ in range(20):
        end.wrap(PEER, b"\x04data", 1200)
    assert end.data_to_send() == b""
    end.unsent = 0
    for _ in range(20):
        end.wrap(PEER, b"\x04data", 1200)
    assert end.data_to_send() == derp.encode(frames.FLOW_OPEN, b"\0\0\1" + PEER.raw)
