"""Where a worker runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gw.native.loop import BUSY, CALM, WINDOW_NS, Home


@pytest.fixture
def cores() -> Iterator[set[int]]:
    cores = os.sched_getaffinity(0)
    yield cores
    os.sched_setaffinity(0, cores)


def window(home: Home, reads: int, now_ns: int) -> int:
    """So many reads in a window, the last of which ends it."""
    for n in range(reads):
        home.moved(1, now_ns + WINDOW_NS * (n + 1) // reads)
    return now_ns + WINDOW_NS


def test_a_worker_keeps_to_its_core_while_it_is_busy(cores: set[int]) -> None:
    mine = max(cores)
    home = Home(mine)
    now = window(home, 1, 10**12)
    now = window(home, BUSY - 1, now)
    assert os.sched_getaffinity(0) == cores
    now = window(home, BUSY, now)
    assert os.sched_getaffinity(0) == {mine}
    now = window(home, CALM, now)
    assert os.sched_getaffinity(0) == {mine}
    home.moved(1, now + 60 * WINDOW_NS)  # after a long pause
    assert os.sched_getaffinity(0) == cores


def test_without_a_core_a_busy_worker_may_be_moved_anywhere(cores: set[int]) -> None:
    home = Home(-1)
    window(home, 10 * BUSY, window(home, 1, 10**12))
    assert os.sched_getaffinity(0) == cores
