"""Where a worker runs."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from mmap import mmap

import pytest

from gw.native.counters import SHARED_BYTES
from gw.native.flows import SHARED_BYTES as FLOW_BYTES
from gw.native.flows import FlowTable
from gw.native.loop import BUSY, CALM, TURNS, WINDOW_NS, Home, carry
from gw.native.outbound import Outbound


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
    home.begin(now)
    for _ in range(BUSY):  # well before the window ends
        home.moved(1, now + 1)
    assert os.sched_getaffinity(0) == {mine}
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


class Poller:
    """A `select.poll` that notes how long each wait may be, and ends one that is endless as the engine would."""

    def __init__(self, *descriptors: int) -> None:
        self.waits: list[int | None] = []
        self._poll = select.poll()
        self._link = descriptors[0]
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)

    def poll(self, wait_ms: int | None) -> list[tuple[int, int]]:
        self.waits.append(wait_ms)
        return self._poll.poll(0 if wait_ms else None) if wait_ms else self._poll.poll(0) or [(self._link, 1)]


@pytest.fixture
def plane() -> Iterator[tuple[Outbound, socket.socket, socket.socket, socket.socket]]:
    """An outbound core, the far end of its TUN, and both ends of a link."""
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shared, flows = mmap(-1, SHARED_BYTES), mmap(-1, FLOW_BYTES)
    inside.setblocking(False)
    yield Outbound(inside.fileno(), shared, FlowTable(flows), 1280, True), outside, link, engine
    for each in (inside, outside, link, engine):
        each.close()


def test_the_loop_stays_warm_after_a_packet_and_then_sleeps(
    plane: tuple[Outbound, socket.socket, socket.socket, socket.socket],
) -> None:
    core, tun, link, _ = plane
    poller, home = Poller(link.fileno(), core.tun), Home(-1)
    assert carry(poller.poll, None, [link.fileno()], core, None, home, None) == [link.fileno()]
    assert poller.waits == [None]  # word of the engine, and no packet: nothing to stay warm for
    tun.send(bytes(10) + b"\x45" + bytes(19))
    poller.waits.clear()
    carry(poller.poll, None, [link.fileno()], core, None, home, None)
    assert poller.waits[0] is None
    assert poller.waits[1 : TURNS + 1] == [1] * TURNS
    assert poller.waits[TURNS + 1 :] == [None]


def test_packets_do_not_wait_for_an_engine_that_has_much_to_say(
    plane: tuple[Outbound, socket.socket, socket.socket, socket.socket],
) -> None:
    core, tun, link, engine = plane
    poller, home = Poller(link.fileno(), core.tun), Home(-1)
    engine.send(b"word")
    for _ in range(3):
        tun.send(bytes(10) + b"\x45" + bytes(19))
        for is_left in (True, False):  # the engine first, and then not again
            assert carry(poller.poll, None, [link.fileno()], core, None, home, None) == [link.fileno()]
            assert bool(select.select([core.tun], [], [], 0)[0]) == is_left
