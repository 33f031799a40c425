"""Two workers hand the TUN to each other: never both, never neither."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

import pytest

from gw.native.counters import SHARED_BYTES, put
from gw.native.turn import BUSY_READER, CALM_READER, Turn


@dataclass
class Lane:
    """The memory, the TUN and the bells of one lane, and its two workers."""

    shared: mmap
    tun: int
    bells: tuple[int, int]
    calm: Turn
    busy: Turn

    def worker(self, me: int) -> Turn:
        """One that was started anew."""
        return Turn(self.shared, 0, me, self.tun, self.bells[me], self.bells[1 - me], select.poll())

    def readers(self) -> list[bool]:
        """Who has the TUN, which can always be read here, in its poller."""
        return [self.tun in dict(turn.poller.poll(0)) for turn in (self.calm, self.busy)]

    def ring(self) -> None:
        """Whoever hears a bell answers it."""
        for turn in (self.calm, self.busy):
            if turn.bell in dict(turn.poller.poll(0)):
                turn.answer()


@pytest.fixture
def lane() -> Iterator[Lane]:
    shared = mmap(-1, SHARED_BYTES)
    tun, end = os.pipe()
    os.write(end, b"packet")
    bells = (os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK))
    lane = Lane.__new__(Lane)
    lane.shared, lane.tun, lane.bells = shared, tun, bells
    lane.calm, lane.busy = lane.worker(CALM_READER), lane.worker(BUSY_READER)
    yield lane
    for descriptor in (tun, end, *bells):
        os.close(descriptor)
    shared.close()


def test_the_inbound_worker_reads_until_there_is_much_to_do(lane: Lane) -> None:
    assert lane.readers() == [True, False]
    lane.calm.settle(False, True)
    lane.calm.settle(False, False)
    assert lane.readers() == [True, False]
    lane.calm.settle(True, False)
    assert lane.readers() == [False, False]  # until the other has heard the bell
    lane.ring()
    assert lane.readers() == [False, True]


def test_the_outbound_worker_gives_it_back_when_both_have_little_to_do(lane: Lane) -> None:
    lane.calm.settle(True, False)
    lane.ring()
    lane.busy.settle(True, False)
    lane.busy.settle(False, True)
    assert lane.readers() == [False, True]  # the inbound one is still busy
    lane.busy.settle(False, False)
    lane.calm.settle(False, True)
    lane.ring()
    assert lane.readers() == [False, True]
    lane.busy.settle(False, True)
    lane.ring()
    assert lane.readers() == [True, False]


def test_an_outbound_worker_that_sleeps_hears_that_the_inbound_one_is_no_longer_busy(lane: Lane) -> None:
    lane.calm.settle(True, False)
    lane.ring()
    lane.busy.settle(False, True)
    assert lane.readers() == [False, True]
    lane.calm.settle(False, True)
    lane.ring()
    lane.ring()
    assert lane.readers() == [True, False]


@pytest.mark.parametrize("giver", [CALM_READER, BUSY_READER])
def test_a_worker_that_dies_before_it_rings_leaves_no_lane_without_a_reader(lane: Lane, giver: int) -> None:
    other = 1 - giver
    if giver == BUSY_READER:
        lane.calm.settle(True, False)
        lane.ring()
    put(lane.shared, lane.calm.reader_at, other)  # as the last thing that it did
    if giver == CALM_READER:
        lane.calm = lane.worker(CALM_READER)
    else:
        lane.busy = lane.worker(BUSY_READER)
    lane.ring()
    assert lane.readers() == [other == CALM_READER, other == BUSY_READER]


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_worker_that_was_restarted_knows_whether_it_reads(lane: Lane, is_busy: bool) -> None:
    if is_busy:
        lane.calm.settle(True, False)
        lane.ring()
    before = lane.readers()
    lane.calm, lane.busy = lane.worker(CALM_READER), lane.worker(BUSY_READER)
    lane.ring()
    assert lane.readers() == before
    assert sum(before) == 1


def test_a_bell_that_its_worker_did_not_live_to_hear_is_heard_by_the_next(lane: Lane) -> None:
    lane.calm.settle(True, False)
    lane.busy = lane.worker(BUSY_READER)
    assert lane.readers() == [False, True]
    lane.ring()
    assert lane.readers() == [False, True]


def test_a_false_bell_changes_nothing(lane: Lane) -> None:
    for bell in lane.bells:
        os.write(bell, b"\1\0\0\0\0\0\0\0")
    lane.ring()
    lane.calm.answer()
    assert lane.readers() == [True, False]
