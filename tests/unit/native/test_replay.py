"""The replay window against a set that remembers everything."""

from __future__ import annotations

import random

from gw.native.replay import WINDOW, ReplayWindow


def test_replayed_counter_is_dropped() -> None:
    window = ReplayWindow()
    assert window.accept(5)
    assert not window.accept(5)
    assert window.accept(4)
    assert not window.accept(4)
    assert not window.accept(-1)


def test_a_counter_behind_the_window_is_dropped() -> None:
    window = ReplayWindow()
    assert window.accept(WINDOW + 100)
    assert window.accept(100)
    assert not window.accept(99)


def test_a_leap_forgets_nothing_that_it_should_know() -> None:
    window = ReplayWindow()
    assert window.accept(1 << 40)
    assert not window.accept(1 << 40)
    assert window.accept((1 << 40) - WINDOW)
    assert not window.accept((1 << 40) - WINDOW - 1)


def test_random_runs_agree_with_a_set() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        window, seen, newest = ReplayWindow(), set(), -1
        base = 0
        for _ in range(3000):
            base += rng.choice((0, 1, 1, 2, 40, rng.randrange(1, 9000) if rng.random() < 0.01 else 1))
            counter = max(0, base - rng.choice((0, 0, 1, 3, 100, 5000, 8160, 8161, 9000)))
            expected = counter not in seen and newest - counter <= WINDOW
            assert window.accept(counter) == expected, (seed, counter, newest)
            if expected:
                seen.add(counter)
                newest = max(newest, counter)
