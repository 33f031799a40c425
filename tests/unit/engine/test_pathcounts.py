"""What heartbeats tell of delivery, to whom, and where a peer that has moved is found."""

from __future__ import annotations

import random

import pytest

from gw.engine.paths import Delivered, Event, PathFinder
from gw.engine.peerpath import Outgoing, ToUdp
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoSecret, NodeKey
from gw.wire.disco import messages
from gw.wire.disco.envelope import Envelopes
from gw.wire.x25519 import clamp

ANN, BOB = AddrPort("192.0.2.1", 41641), AddrPort("192.0.2.2", 41641)
ANN_KEY, BOB_KEY = NodeKey(b"\x0a" * 32), NodeKey(b"\x0b" * 32)


class Pair:
    """Two path finders whose pings and pongs pass at once; what passes is kept in clear."""

    def __init__(self) -> None:
        dice = random.Random(3)
        secrets = [DiscoSecret(clamp(dice.randbytes(32))) for _ in range(2)]
        self.counts = {ANN_KEY: (70, 40, 0), BOB_KEY: (100, 60, 0)}  # as the other one has them of this peer
        self.ann = PathFinder(secrets[0], ANN_KEY, dice.randbytes, lambda peer: self.counts[peer])
        self.bob = PathFinder(secrets[1], BOB_KEY, dice.randbytes, lambda peer: self.counts[peer])
        self.now = 1000.0
        self.ann_at, self.bob_at = ANN, BOB
        self.events: list[Event] = []
        self.passed: list[messages.Message | None] = []
        self._open = {id(self.ann): Envelopes(secrets[0]), id(self.bob): Envelopes(secrets[1])}
        self.ann.set_peer(BOB_KEY, self.bob.disco_key, 1, [BOB], self.now)
        self.bob.set_peer(ANN_KEY, self.ann.disco_key, 1, [ANN], self.now)

    def pump(self) -> None:
        busy = True
        while busy:
            busy = False
            for sender, source, receiver in ((self.ann, self.ann_at, self.bob), (self.bob, self.bob_at, self.ann)):
                out, events = sender.poll(self.now)
                if sender is self.ann:
                    self.events += events
                busy = busy or bool(out)
                for outgoing in out:
                    self._pass(outgoing, source, receiver)

    def _pass(self, outgoing: Outgoing, source: AddrPort, receiver: PathFinder) -> None:
        here = self.ann_at if receiver is self.ann else self.bob_at
        if isinstance(outgoing, ToUdp) and outgoing.to == here:
            self.passed.append(messages.decode(self._open[id(receiver)].open(outgoing.datagram)))
            receiver.feed_udp(outgoing.datagram, source, self.now)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.ann.active(BOB_KEY, self.now)
            self.pump()


def test_a_pong_tells_what_arrived_of_what_the_ping_says_was_sent() -> None:
    pair = Pair()
    pair.ann.set_counts(BOB_KEY, counts=True)
    pair.bob.set_counts(ANN_KEY, counts=True)
    pair.run(10)
    found = [event for event in pair.events if isinstance(event, Delivered)]
    assert found
    assert found[-1] == Delivered(BOB_KEY, 100, 40)


def test_stock_peers_are_sent_no_counts() -> None:
    """Byte for byte what a stock client sends."""
    pair = Pair()
    pair.run(10)
    assert len(pair.passed) > 6
    for message in pair.passed:
        assert isinstance(message, messages.Ping | messages.Pong)
        assert (message.sent if isinstance(message, messages.Ping) else message.received) is None
    assert not any(isinstance(event, Delivered) for event in pair.events)


def test_where_a_round_trip_found_a_peer_is_known_for_a_while_and_nowhere_else() -> None:
    pair = Pair()
    pair.run(5)
    assert pair.ann.found_at(BOB, pair.now) == BOB_KEY
    assert pair.bob.found_at(ANN, pair.now) == ANN_KEY  # it has pinged back
    assert pair.ann.found_at(AddrPort("203.0.113.1", 41641), pair.now) is None
    assert pair.ann.found_at(BOB, pair.now + 31) is None
    pair.ann.remove_peer(BOB_KEY)
    assert pair.ann.found_at(BOB, pair.now) is None


@pytest.mark.parametrize("answers", [True, False])
def test_a_peer_that_has_moved_is_followed_when_it_answers_from_there(answers: bool) -> None:
    pair = Pair()
    pair.run(5)
    new = AddrPort("203.0.113.9", 41641)
    pair.bob_at = new if answers else BOB
    pair.ann.moved(BOB_KEY, new, pair.now)
    pair.pump()
    assert pair.ann.best(BOB_KEY) == (new if answers else BOB)
