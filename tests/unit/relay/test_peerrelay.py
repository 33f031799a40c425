"""The UDP relay between two nodes: who gets an endpoint, handshakes, forwarding, what strangers may not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, DiscoSecret
from gw.relay import peerrelay
from gw.relay.peerrelay import BIND_S, SECRET_S, STEADY_S, PeerRelay
from gw.wire import geneve
from gw.wire.disco.envelope import Envelopes
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import (
    ANSWER,
    BIND,
    CHALLENGE,
    AllocateRequest,
    AllocateResponse,
    Bind,
    RelayEndpoint,
    pair_of,
)
from gw.wire.geneve import Header

HERE = (AddrPort("192.0.2.9", 3478),)
A_AT, B_AT = ("198.51.100.1", 1001), ("198.51.100.2", 1002)
NODE = bytes([7]) * 32
MESSAGE = b"\x04\0\0\0" + bytes(60)


def randoms() -> Any:
    counter = itertools.count(1)
    return lambda size: next(counter).to_bytes(size, "big")


class Client:
    """One of a pair, as a node does it."""

    def __init__(self, number: int, relay: PeerRelay) -> None:
        self.envelopes = Envelopes(DiscoSecret(bytes([number]) * 32))
        self.relay = relay
        self.nonces = itertools.count(number << 32)

    @property
    def key(self) -> DiscoKey:
        return self.envelopes.key

    def seal(self, message: Any) -> bytes:
        return self.envelopes.seal(self.relay.key, next(self.nonces).to_bytes(24, "big"), encode(message))

    def allocate(self, other: Client, now: float, node: bytes = NODE) -> RelayEndpoint | None:
        answer = self.relay.request(node, self.seal(AllocateRequest(pair_of(self.key, other.key), 5)), now)
        if answer is None:
            return None
        message = decode(self.envelopes.open(answer))
        assert isinstance(message, AllocateResponse)
        assert message.generation == 5
        return message.endpoint

    def control(self, message: Bind) -> bytes:
        return geneve.encode(Header(geneve.DISCO, message.vni, control=True)) + self.seal(message)

    def bind(self, endpoint: RelayEndpoint, other: Client, at: Any, now: float, generation: int = 1) -> bytes | None:
        """Returns the challenge, None where there was none."""
        out = self.relay.feed(hello := self.control(Bind(BIND, endpoint.vni, generation, other.key)), 9000, at, now)
        if not out:
            return None
        ((reply, _, target),) = out
        assert target == at
        assert len(reply) == len(hello)  # nobody is sent more than came from there
        assert geneve.decode(reply) == Header(geneve.DISCO, endpoint.vni, control=True)
        message = decode(self.envelopes.open(reply[8:]))
        assert isinstance(message, Bind)
        assert (message.kind, message.generation, message.remote) == (CHALLENGE, generation, other.key)
        return message.challenge

    def answer(
        self, endpoint: RelayEndpoint, other: Client, at: Any, challenge: bytes, now: float, generation: int = 1
    ) -> bytes:
        """Returns the datagram that was sent."""
        datagram = self.control(Bind(ANSWER, endpoint.vni, generation, other.key, challenge))
        assert self.relay.feed(datagram, 9000, at, now) == []
        return datagram

    def join(self, endpoint: RelayEndpoint, other: Client, at: Any, now: float, generation: int = 1) -> None:
        challenge = self.bind(endpoint, other, at, now, generation)
        assert challenge is not None
        self.answer(endpoint, other, at, challenge, now, generation)


@pytest.fixture
def relay() -> PeerRelay:
    return PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(), lambda: HERE)


@pytest.fixture
def pair(relay: PeerRelay) -> tuple[Client, Client]:
    return Client(1, relay), Client(2, relay)


def data(vni: int, body: bytes = MESSAGE) -> bytes:
    return geneve.encode(Header(geneve.WIREGUARD, vni)) + body


def joined(pair: tuple[Client, Client], now: float = 0.0) -> RelayEndpoint:
    a, b = pair
    endpoint = a.allocate(b, now)
    assert endpoint is not None
    a.join(endpoint, b, A_AT, now)
    b.join(endpoint, a, B_AT, now)
    return endpoint


def test_a_pair_that_is_bound_is_forwarded_untouched_both_ways(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    endpoint = joined(pair)
    assert endpoint.addresses == HERE
    assert (endpoint.bind_s, endpoint.steady_s) == (BIND_S, STEADY_S)
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), A_AT, 1.0) == [(one, len(one), B_AT)]
    train = one * 3 + data(endpoint.vni, MESSAGE[:40])
    assert relay.feed(train, len(one), B_AT, 1.0) == [(train, len(one), A_AT)]
    disco = geneve.encode(Header(geneve.DISCO, endpoint.vni)) + bytes(100)
    assert relay.feed(disco, len(disco), A_AT, 1.0) == [(disco, len(disco), B_AT)]
    assert relay.counts.packets == 6


def test_both_ask_and_get_one_endpoint(pair: tuple[Client, Client]) -> None:
    a, b = pair
    first, second = a.allocate(b, 0.0), b.allocate(a, 1.0, bytes([8]) * 32)
    assert first == second


def test_nothing_is_forwarded_before_both_are_bound(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    a, b = pair
    endpoint = a.allocate(b, 0.0)
    assert endpoint is not None
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), A_AT, 0.0) == []
    a.join(endpoint, b, A_AT, 0.0)
    assert relay.feed(one, len(one), A_AT, 0.0) == []
    assert relay.feed(one, len(one), B_AT, 0.0) == []
    assert relay.counts.dropped == 3


def test_only_from_exactly_the_bound_address(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    endpoint = joined(pair)
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), ("198.51.100.1", 1003), 0.0) == []
    assert relay.feed(one, len(one), ("198.51.100.3", 1001), 0.0) == []
    other = data(endpoint.vni % (1 << 24) + 1)
    assert relay.feed(other, len(other), A_AT, 0.0) == []


def test_datagrams_of_several_pairs_in_one_train_go_their_own_ways(relay: PeerRelay) -> None:
    a, b, c = Client(1, relay), Client(2, relay), Client(3, relay)
    ab, ac = a.allocate(b, 0.0), a.allocate(c, 0.0)
    assert ab is not None and ac is not None and ab.vni != ac.vni
    a.join(ab, b, A_AT, 0.0)
    b.join(ab, a, B_AT, 0.0)
    a.join(ac, c, A_AT, 0.0)
    c.join(ac, a, ("198.51.100.3", 9), 0.0)
    first, second = data(ab.vni), data(ac.vni)
    assert relay.feed(first + second, len(first), A_AT, 0.0) == [
        (first, len(first), B_AT), (second, len(second), ("198.51.100.3", 9)),
    ]  # fmt: skip


def test_a_client_that_moves_binds_again_and_is_followed(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    endpoint = joined(pair)
    elsewhere = ("203.0.113.5", 77)
    pair[0].join(endpoint, pair[1], elsewhere, 5.0, generation=2)
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), B_AT, 5.0) == [(one, len(one), elsewhere)]
    assert relay.feed(one, len(one), A_AT, 5.0) == []


def test_a_handshake_that_was_seen_before_moves_nobody(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    """Somebody on the way has the old bind and answer, and may send from the old address."""
    a, b = pair
    endpoint = a.allocate(b, 0.0)
    assert endpoint is not None
    b.join(endpoint, a, B_AT, 0.0)
    hello = a.control(Bind(BIND, endpoint.vni, 1, b.key))
    ((reply, _, _),) = relay.feed(hello, 9000, A_AT, 0.0)
    message = decode(a.envelopes.open(reply[8:]))
    assert isinstance(message, Bind)
    answer = a.answer(endpoint, b, A_AT, message.challenge, 0.0)
    elsewhere = ("203.0.113.5", 77)
    a.join(endpoint, b, elsewhere, 5.0, generation=2)
    for replayed in (hello, answer, hello, answer):
        assert relay.feed(replayed, 9000, A_AT, 6.0) == []
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), B_AT, 7.0) == [(one, len(one), elsewhere)]


def test_a_challenge_is_for_one_address_one_generation_and_some_minutes(
    relay: PeerRelay, pair: tuple[Client, Client]
) -> None:
    a, b = pair
    endpoint = a.allocate(b, 0.0)
    assert endpoint is not None
    b.join(endpoint, a, B_AT, 0.0)
    challenge = a.bind(endpoint, b, A_AT, 0.0)
    assert challenge is not None
    a.answer(endpoint, b, ("203.0.113.5", 77), challenge, 0.0)  # spoofed: it never got the challenge there
    a.answer(endpoint, b, A_AT, bytes(32), 0.0)
    a.answer(endpoint, b, A_AT, challenge, 0.0, generation=2)
    assert relay.counts.bound == 1
    a.answer(endpoint, b, A_AT, challenge, 3 * SECRET_S)
    assert relay.counts.bound == 1
    challenge = a.bind(endpoint, b, A_AT, 3 * SECRET_S, generation=2)
    assert challenge is not None
    a.answer(endpoint, b, A_AT, challenge, 3.9 * SECRET_S, generation=2)
    assert relay.counts.bound == 2


def test_a_third_client_and_a_forger_bind_nothing(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    a, b = pair
    endpoint = a.allocate(b, 0.0)
    assert endpoint is not None
    third = Client(3, relay)
    assert third.bind(endpoint, b, A_AT, 0.0) is None
    assert a.bind(endpoint, third, A_AT, 0.0) is None
    assert a.bind(endpoint, a, A_AT, 0.0) is None
    good = a.control(Bind(BIND, endpoint.vni, 1, b.key))
    assert relay.feed(good[:-1] + bytes([good[-1] ^ 1]), 9000, A_AT, 0.0) == []
    plain = geneve.encode(Header(geneve.WIREGUARD, endpoint.vni, control=True)) + good[8:]
    assert relay.feed(plain, 9000, A_AT, 0.0) == []
    assert relay.counts.bound == 0


def test_who_is_not_of_the_pair_is_allocated_nothing(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    a, b = pair
    third = Client(3, relay)
    request = third.seal(AllocateRequest(pair_of(a.key, b.key), 1))
    assert relay.request(NODE, request, 0.0) is None
    assert relay.request(NODE, request[:-1] + b"x", 0.0) is None
    assert relay.request(NODE, b"nonsense", 0.0) is None
    assert relay.request(NODE, a.seal(Bind(BIND, 1, 1, b.key)), 0.0) is None
    assert len(relay) == 0
    assert len(relay._envelopes._boxes) == 0


def test_lifetimes(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    a, b = pair
    first = a.allocate(b, 0.0)
    assert first is not None
    a.join(first, b, A_AT, 1.0)
    again = a.allocate(b, BIND_S + 1)  # b never came
    assert again is not None
    assert again.vni != first.vni
    assert again.lamport > first.lamport
    a.join(again, b, A_AT, BIND_S + 1)
    b.join(again, a, B_AT, BIND_S + 2)
    one = data(again.vni)
    now = BIND_S + 2
    for _ in range(4):  # both have to be heard
        now += STEADY_S - 1
        assert relay.feed(one, len(one), A_AT, now)
        assert relay.feed(one, len(one), B_AT, now)
        for _ in range(40):
            relay.sweep(now)
        assert len(relay) == 1
    now += STEADY_S - 1
    assert relay.feed(one, len(one), A_AT, now)
    for _ in range(40):
        relay.sweep(now + 2)
    assert len(relay) == 0
    assert not relay._envelopes._boxes
    assert not relay._order
    assert relay.feed(one, len(one), A_AT, now + 3) == []


def test_a_node_has_its_share_of_pairs_and_of_requests() -> None:
    relay = PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(), lambda: HERE, max_pairs=5, max_pairs_a_node=3)
    clients = [Client(number, relay) for number in range(1, 9)]
    got = [clients[0].allocate(other, 0.0) for other in clients[1:]]
    assert [each is not None for each in got] == [True] * 3 + [False] * 4
    other_node = bytes([8]) * 32
    assert [clients[1].allocate(other, 0.0, other_node) is not None for other in clients[2:6]] == [
        True,
        True,
        False,
        False,
    ]
    assert relay.counts.refused == 6
    for _ in range(1000):
        clients[0].allocate(clients[1], 0.0)
    assert relay.counts.limited > 700


def test_nodes_that_ask_are_forgotten(relay: PeerRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peerrelay, "MAX_ASKING", 10)
    for number in range(100):
        relay.request(number.to_bytes(32, "big"), b"TS\xf0\x9f\x92\xac" + bytes(90), 0.0)
    assert len(relay._nodes) <= 11


def test_a_node_that_is_not_admitted_any_more_loses_its_pairs(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    endpoint = joined(pair)
    pair[1].allocate(pair[0], 0.0, bytes([8]) * 32)
    relay.drop(bytes([8]) * 32)
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), A_AT, 0.0) == []
    assert len(relay) == 0


@pytest.mark.parametrize("who", [7, 8])
def test_whoever_of_the_two_is_not_admitted_any_more_the_pair_ends(relay: PeerRelay, who: int) -> None:
    """The second asks for another pair only, with the same disco key."""
    a, b, c = (Client(number, relay) for number in (1, 2, 3))
    b.allocate(c, 0.0, bytes([8]) * 32)
    endpoint = joined((a, b))
    one = data(endpoint.vni)
    assert relay.feed(one, len(one), A_AT, 0.0)
    relay.drop(bytes([who]) * 32)
    assert relay.feed(one, len(one), A_AT, 0.0) == relay.feed(one, len(one), B_AT, 0.0) == []
    assert not any(endpoint.vni == pair.vni for pair in relay._order if relay._pairs.get(pair.vni) is pair)
    relay.drop(bytes([7]) * 32)
    relay.drop(bytes([8]) * 32)
    assert len(relay) == len(relay._uses) == 0
    assert not relay._envelopes._boxes


def test_each_of_the_two_spends_its_own_rate(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    relay.limit(1000, 70_000)
    endpoint = joined(pair)
    pair[1].allocate(pair[0], 0.0, bytes([8]) * 32)
    one = data(endpoint.vni, bytes(1392))
    for at in (A_AT, B_AT):
        assert sum(bool(relay.feed(one, len(one), at, 1.0)) for _ in range(100)) == 50
    relay.limit(2000, 140_000)
    for at in (A_AT, B_AT):
        assert sum(bool(relay.feed(one, len(one), at, 1.0)) for _ in range(200)) == 100


def test_a_pair_that_is_flooded_with_junk_takes_no_handshakes_from_others(relay: PeerRelay) -> None:
    """7,000 datagrams a second that open no box used up what all pairs have together."""
    x, y, a, b = (Client(number, relay) for number in (1, 2, 3, 4))
    flooded, other = x.allocate(y, 0.0), a.allocate(b, 0.0)
    assert flooded is not None and other is not None
    junk = bytearray(x.control(Bind(BIND, flooded.vni, 1, y.key)))
    junk[-1] ^= 1
    bound = 0
    for turn in range(3 * 7000):
        now = turn / 7000
        assert relay.feed(bytes(junk), len(junk), ("203.0.113.1", turn % 60_000 + 1), now) == []
        if turn % 1000 == 0:
            bound += a.bind(other, b, A_AT, now, generation=turn + 1) is not None
    assert bound == 21


def test_the_rate_of_a_node_holds_for_what_is_relayed(relay: PeerRelay, pair: tuple[Client, Client]) -> None:
    relay.limit(1000, 70_000)
    endpoint = joined(pair)
    one = data(endpoint.vni, bytes(1392))
    passed = sum(bool(relay.feed(one, len(one), A_AT, 1.0)) for _ in range(100))
    assert passed == 50
    assert relay.counts.limited == 50
    assert relay.feed(one, len(one), A_AT, 3.0)
    relay.limit(0, 0)
    assert all(relay.feed(one, len(one), A_AT, 3.0) for _ in range(100))


def test_without_an_address_to_tell_nothing_is_allocated() -> None:
    relay = PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(), lambda: ())
    assert Client(1, relay).allocate(Client(2, relay), 0.0) is None
    assert len(relay) == 0


def test_vnis_name_the_worker() -> None:
    for slot in range(3):
        relay = PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(), lambda: HERE, slot=slot, workers=3)
        clients = [Client(number, relay) for number in range(1, 40)]
        for other in clients[1:]:
            endpoint = clients[0].allocate(other, 0.0)
            assert endpoint is not None
            assert (endpoint.vni & 0xFF) % 3 == slot


@given(st.binary(min_size=8, max_size=400), st.integers(1, 500), st.booleans())
def test_any_bytes_are_forwarded_by_a_bound_pair_or_dropped(noise: bytes, segment: int, is_ours: bool) -> None:
    relay = PeerRelay(DiscoSecret(bytes([9]) * 32), randoms(), lambda: HERE)
    pair = Client(1, relay), Client(2, relay)
    endpoint = joined(pair)
    if is_ours:
        noise = noise[:4] + endpoint.vni.to_bytes(3, "big") + noise[7:]
    for train, size, target in relay.feed(noise, segment, A_AT, 1.0):
        assert target in (A_AT, B_AT)
        assert len(train) <= len(noise)
        assert size > 0
    relay.request(NODE, noise, 1.0)
