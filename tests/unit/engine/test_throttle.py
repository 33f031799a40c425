"""Packets for peers that do not keep up at a relay, on a clock of the test's own. Spec quic §11."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.engine.throttle import MAX_QUEUE_BYTES, MAX_SLOW, MIN_RATE, Throttle
from gw.model.keys import NodeKey
from gw.wire.quic.client import FlowState
from gw.wire.quic.frames import FLOW_CONGESTED, FLOW_GONE, FLOW_OK_STATE

BOB = NodeKey(b"b" * 32)
CAT = NodeKey(b"c" * 32)


def congested(peer: NodeKey = BOB, rate: int = 100_000) -> FlowState:
    return FlowState(peer, FLOW_CONGESTED, rate, 1)


def flow(throttle: Throttle, begin: float, end: float, rate: float = 1e6, size: int = 1000) -> list[bytes]:
    """Packets offered at `rate`, and those that may go."""
    gone: list[bytes] = []
    now, number = begin, 0
    while now < end:
        if BOB in throttle:
            throttle.put(BOB, number.to_bytes(4, "big") + bytes(size - 4), now)
        gone += [packet for _, packet in throttle.take(now)]
        now += size / rate
        number += 1
    return gone


def test_a_slow_peer_gets_what_it_takes_and_the_oldest_give_way() -> None:
    throttle = Throttle()
    throttle.hear(congested(), 1.0)
    gone = flow(throttle, 1.0, 1.9)
    assert 85_000 <= sum(map(len, gone)) <= 95_000
    assert int.from_bytes(gone[-1][:4], "big") > 850  # it waited a tenth of a second, no more
    assert throttle.dropped > 700


def test_a_word_holds_for_a_second_then_the_rate_grows_until_the_peer_is_free() -> None:
    throttle = Throttle()
    throttle.hear(congested(), 0.0)
    first, later = len(flow(throttle, 0.0, 1.0)), len(flow(throttle, 1.0, 2.0))
    assert 3 * first < later < 10 * first
    flow(throttle, 2.0, 3.1)
    assert BOB not in throttle
    assert throttle.take(9.0) == []


def test_ok_lets_the_rate_grow_at_once() -> None:
    throttle = Throttle()
    throttle.hear(congested(), 0.0)
    throttle.hear(FlowState(BOB, FLOW_OK_STATE, 0, 1), 0.1)
    flow(throttle, 0.1, 2.2)
    assert BOB not in throttle
    throttle.hear(FlowState(BOB, FLOW_OK_STATE, 0, 1), 3.0)
    assert BOB not in throttle


def test_a_peer_that_is_gone_keeps_nothing_here() -> None:
    throttle = Throttle()
    throttle.hear(congested(), 0.0)
    for _ in range(5):
        throttle.put(BOB, bytes(1000), 0.0)
    throttle.hear(FlowState(BOB, FLOW_GONE, 0, 1), 0.1)
    assert BOB not in throttle
    assert throttle.take(5.0) == []


def test_peers_do_not_wait_for_one_another() -> None:
    throttle = Throttle()
    throttle.hear(congested(BOB, 10_000), 0.0)
    throttle.hear(congested(CAT, 1_000_000), 0.0)
    for _ in range(50):
        throttle.put(BOB, bytes(1000), 0.0)
        throttle.put(CAT, bytes(1000), 0.0)
    gone = [peer for peer, _ in throttle.take(0.0)] + [peer for peer, _ in throttle.take(0.05)]
    assert gone.count(CAT) >= 5
    assert gone.count(BOB) == 3


@pytest.mark.parametrize("rate", [0, 1, 2**42])
def test_nobody_is_silenced_whatever_the_relay_says(rate: int) -> None:
    throttle = Throttle()
    throttle.hear(congested(rate=rate), 0.0)
    assert sum(map(len, flow(throttle, 0.0, 1.0, rate=50_000))) >= MIN_RATE


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 9000))))
def test_a_relay_that_speaks_of_everybody_fills_nothing(words: list[tuple[int, int, int, int]]) -> None:
    """Memory is bounded, time is finite, and `deadline` tells when there is something to take."""
    throttle = Throttle()
    now = 1.0
    for peer, state, rate, size in words:
        key = NodeKey(peer.to_bytes(32, "big"))
        throttle.hear(FlowState(key, state, rate, 0), now)
        if key in throttle:
            for _ in range(20):
                throttle.put(key, bytes(size), now)
        now += 0.01
    assert len(throttle) <= MAX_SLOW
    assert all(slow.waiting <= MAX_QUEUE_BYTES for slow in throttle._slow.values())
    for _ in range(10_000):
        due = throttle.deadline()
        if due == float("inf"):
            break
        now = max(now, due) + 1e-3
        assert throttle.take(now)
    assert throttle.deadline() == float("inf")
