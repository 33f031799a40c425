"""The client's end of gw-relay/1: what a relay may say before it has proven its node key. Spec quic §9."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp import frames as derp
from gw.wire.quic import auth, datagrams, frames
from gw.wire.quic.client import Connected, Observed, Received, RelayClient
from gw.wire.quic.flows import MAX_FLOWS
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


TO_CLIENT = [*sorted(frames._TO_CLIENT), 0x7F]
word = st.one_of(
    st.builds(derp.encode, st.sampled_from(TO_CLIENT), st.binary(max_size=90)),
    st.builds(
        lambda kind, number, rest: derp.encode(kind, number.to_bytes(3, "big") + rest),
        st.sampled_from([frames.FLOW_OPEN, frames.FLOW_OK, frames.FLOW_CLOSE]),
        st.integers(0, 4),
        st.sampled_from([bytes(32), PEER.raw, b"\0", b"\1", b""]),
    ),
    st.binary(max_size=20),
)


@settings(deadline=None)
@given(st.lists(word, max_size=30), st.integers(1, 200), st.booleans())
def test_any_words_of_a_relay_are_events_or_the_one_error(words: list[bytes], size: int, is_proven: bool) -> None:
    end = client()
    if is_proven:
        end.feed(HELLO + proof(), NOW_MS)
    data = b"".join(words)
    try:
        for at in range(0, len(data), size):
            end.feed(data[at : at + size], NOW_MS)
            end.wrap(PEER, b"\x04data", 1200)
    except WireError:
        pass
    assert len(end.data_to_send()) < frames.MAX_UNSENT_BYTES + 200
    assert is_proven or not end.is_connected


@given(st.lists(st.one_of(st.binary(max_size=60), st.tuples(st.integers(0, 8), st.binary(max_size=60))), max_size=30))
def test_any_datagrams_of_a_relay_are_packets_or_nothing(batch: list[bytes | tuple[int, bytes]]) -> None:
    end = client()
    made = [each if isinstance(each, bytes) else bytes([each[0]]) + each[1] for each in batch]
    assert end.feed_datagrams([b"0" + each for each in made], 1.0) == []
    end.feed(HELLO + proof(), NOW_MS)
    for event in end.feed_datagrams([b"0" + each for each in made], 1.0):
        assert isinstance(event, Received)


def test_what_a_relay_has_a_client_keep_is_bounded() -> None:
    """Numbers for keys that nobody has, first halves of packets, frames that never end."""
    end = client()
    end.feed(HELLO + proof(), NOW_MS)
    for number in range(1, 5000):
        key = number.to_bytes(32, "big")
        end.feed(derp.encode(frames.FLOW_OPEN, number.to_bytes(3, "big") + key), NOW_MS)
        half = datagrams.encode_packet(key, bytes(1500), 1200, number)[0]
        end.feed_datagrams([b"0" + half], number / 1e4)
        end.data_to_send()
    assert len(end._keys) <= MAX_FLOWS
    assert len(pickle.dumps(end._joiner.__dict__)) < 1 << 20
    end.feed(b"\x7f\xff\xff\xff\xff" + bytes(1 << 20), NOW_MS)
    assert len(end._reader._rest) < 100
    other = client()
    with pytest.raises(WireError):
        other.feed(HELLO + proof() + bytes([derp.PING]) + b"\xff\xff\xff\xff", NOW_MS)
