"""Flow numbers in place of keys. Spec quic §8.2, §8.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import WireError
from gw.model.keys import NodeKey, NodeSecret, RelaySecret
from gw.wire.derp.frames import PEER_GONE, FrameReader, encode
from gw.wire.derp.handshake import RelayIdentity
from gw.wire.quic import datagrams, flows, frames
from gw.wire.quic.client import RelayClient
from gw.wire.quic.flows import OPEN_AFTER, Counter, Flows
from gw.wire.x25519 import clamp


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def cut(said: bytes) -> list[tuple[int, bytes]]:
    return FrameReader(limit=1000).feed(said)


def pair(limit: int = 8) -> tuple[Flows, dict[bytes, bytes], Flows, dict[bytes, bytes]]:
    """A sender with its numbers, a receiver with its keys."""
    numbers: dict[bytes, bytes] = {}
    keys: dict[bytes, bytes] = {}
    return Flows(numbers, {}, limit), numbers, Flows({}, keys, limit), keys


def tell(one: Flows, other: Flows, said: bytes) -> None:
    """What one said, what the other answers, and so on."""
    while said:
        said = b"".join(other.frame_untrusted(kind, body) for kind, body in cut(said))
        one, other = other, one


def test_a_number_is_used_once_it_is_confirmed() -> None:
    sender, numbers, receiver, keys = pair()
    said = sender.want(key(7))
    assert numbers == {}
    tell(sender, receiver, said)
    assert keys[numbers[key(7)]] == key(7)
    assert sender.want(key(7)) == b""


def test_a_repeated_opening_changes_nothing() -> None:
    """As of a replayed first flight."""
    sender, numbers, receiver, keys = pair()
    said = sender.want(key(7))
    tell(sender, receiver, said)
    before = dict(keys)
    tell(sender, receiver, said + said)
    assert keys == before
    assert len(numbers) == 1


def test_a_number_never_names_a_second_key() -> None:
    sender, _, receiver, _ = pair(limit=2)
    used = set()
    for number in range(50):
        for kind, body in cut(sender.want(key(number))):
            if kind == frames.FLOW_OPEN:
                assert body[:3] not in used
                used.add(body[:3])
            receiver.frame_untrusted(kind, body)
    with pytest.raises(WireError, match="second key"):
        receiver.frame_untrusted(frames.FLOW_OPEN, body[:3] + key(99))


def test_the_oldest_makes_room_on_both_sides() -> None:
    sender, numbers, receiver, keys = pair(limit=4)
    for number in range(20):
        tell(sender, receiver, sender.want(key(number)))
    assert sorted(numbers) == sorted(keys.values()) == [key(number) for number in range(16, 20)]


def test_a_receiver_that_takes_no_more_is_asked_no_more() -> None:
    sender, numbers, _, _ = pair(limit=8)
    receiver = Flows({}, {}, 2)
    for number in range(5):
        tell(sender, receiver, sender.want(key(number)))
    assert len(numbers) == 2
    assert sender.want(key(50)) == b""


def test_a_peer_that_is_gone_needs_no_number() -> None:
    sender, numbers, receiver, keys = pair()
    tell(sender, receiver, sender.want(key(1)))
    tell(sender, receiver, sender.forget(key(1)))
    assert numbers == keys == {}
    assert sender.forget(key(1)) == b""


def test_a_key_that_comes_back_gets_a_number_again() -> None:
    """A peer that restarted had its packets carry the key for as long as the connection lived."""
    sender, numbers, receiver, _ = pair()
    counter = Counter()
    for _ in range(3):
        for _ in range(OPEN_AFTER):
            assert key(1) not in numbers
            if counter.is_due(key(1)):
                tell(sender, receiver, sender.want(key(1)))
        assert key(1) in numbers
        tell(sender, receiver, sender.forget(key(1)))


def test_a_key_whose_number_made_room_gets_another() -> None:
    sender, numbers, receiver, _ = pair(limit=2)
    counter = Counter()
    for _ in range(20):
        for number in range(3):
            for _ in range(OPEN_AFTER):
                if key(number) not in numbers and counter.is_due(key(number)):
                    tell(sender, receiver, sender.want(key(number)))
            assert key(number) in numbers


def test_a_peer_of_a_client_that_comes_back_gets_a_number_again() -> None:
    relay = RelayIdentity(RelaySecret(clamp(b"\x42" * 32)))
    client = RelayClient(NodeSecret(clamp(b"\x21" * 32)), lambda: bytes(24), relay_key=relay.key)
    client.is_connected = True
    peer = NodeKey(b"p" * 32)
    used = set()
    for _ in range(3):
        for _ in range(OPEN_AFTER):
            (datagram,) = client.wrap(peer, b"\x04" + bytes(100), 1200)
            assert datagram[0] == datagrams.DATA_KEY
        ((kind, body),) = cut(client.data_to_send())
        assert (kind, body[3:]) == (frames.FLOW_OPEN, peer.raw)
        assert body[:3] not in used
        used.add(body[:3])
        client.feed(encode(frames.FLOW_OK, body[:3]), 0)
        (datagram,) = client.wrap(peer, b"\x04" + bytes(100), 1200)
        assert datagram[:4] == b"\0" + body[:3]
        client.feed(encode(PEER_GONE, peer.raw + b"\0"), 0)
        assert cut(client.data_to_send()) == [(frames.FLOW_CLOSE, body[:3] + bytes([flows.UNUSED]))]


def test_numbers_end_some_day() -> None:
    sender, _, _, _ = pair()
    sender._next = flows.MAX_NUMBER
    assert sender.want(key(1))
    assert sender.want(key(2)) == b""


@given(st.lists(st.tuples(st.sampled_from(frames.FLOW_FRAMES), st.binary(max_size=40)), max_size=60))
def test_whatever_the_other_end_says_is_taken_or_one_error(said: list[tuple[int, bytes]]) -> None:
    """And keeps no more than the limit."""
    numbers: dict[bytes, bytes] = {}
    keys: dict[bytes, bytes] = {}
    end = Flows(numbers, keys, 4)
    end.want(key(1))
    for kind, body in said:
        try:
            answer = end.frame_untrusted(kind, body)
        except WireError:
            continue
        assert len(answer) <= 9
        end.want(body.ljust(32)[:32])
    assert len(keys) <= 4
    assert len(numbers) <= 4
    assert len(end._opened) == len(end._named) <= 4
