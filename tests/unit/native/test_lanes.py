"""Several outbound workers seal with one keypair: no counter twice, none too old for the receiver's window."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap

import pytest

from gw.native.counters import SHARED_BYTES
from gw.native.flows import SHARED_BYTES as FLOW_BYTES
from gw.native.flows import FlowTable
from gw.native.outbound import BLOCK, MAX_LAG, Outbound
from gw.native.replay import ReplayWindow

FOR_EVER = 1 << 62


class Wire:
    """A socket that notes the counters that leave, in their order."""

    def __init__(self) -> None:
        self.counters: list[int] = []

    def sendmsg(self, pieces: list[bytes], ancillary: object, flags: int, to: object) -> None:
        self.counters += [struct.unpack_from("<q", head, 8)[0] for head in pieces[::2]]


@contextmanager
def lanes(count: int, wire: Wire, *, both: bool = False) -> Iterator[list[Outbound]]:
    """The outbound workers of so many lanes; both: then the inbound ones, which may seal as well."""
    sealers = 2 * count if both else count
    shared, flows = mmap(-1, SHARED_BYTES), mmap(-1, FLOW_BYTES)
    cores = [Outbound(-1, shared, FlowTable(flows), 1280, True, count, n, sealers) for n in range(sealers)]
    for core in cores:
        core.add_peer(0)
        core.set_plan(0, wire, ("192.0.2.1", 1), False, False)
        core.set_session(0, 77, lambda nonce, packet, more: packet + bytes(16), 5, FOR_EVER)
    yield cores
    shared.close()
    flows.close()


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_no_counter_leaves_twice_and_none_is_too_old(count: int, seed: int, both: bool) -> None:
    """One worker is much busier than the others, and each sends trains of different length."""
    chance = random.Random(seed)
    wire, window = Wire(), ReplayWindow()
    with lanes(count, wire, both=both) as cores:
        for _ in range(3000):
            core = cores[min(int(chance.expovariate(1.5)), len(cores) - 1)]
            if chance.random() < 0.05:
                core.keepalive(0)
            else:
                for _ in range(chance.randrange(1, 12)):
                    core.inject(0, b"\x45" + bytes(chance.randrange(19, 60)))
        assert len(set(wire.counters)) == len(wire.counters)
        assert all(window.accept(counter) for counter in wire.counters)


def test_a_lane_that_slept_jumps_to_the_newest() -> None:
    wire = Wire()
    with lanes(2, wire) as (busy, idle):
        for _ in range(5 * MAX_LAG):
            busy.keepalive(0)
        newest = max(wire.counters)
        idle.keepalive(0)
        assert newest < wire.counters[-1] < newest + 4 * BLOCK
        assert wire.counters[-1] // BLOCK % 2 == 1


def test_a_lane_does_not_follow_the_counters_of_another_keypair() -> None:
    wire = Wire()
    with lanes(2, wire) as (one, other):
        for _ in range(5 * MAX_LAG):
            one.keepalive(0)
        other.set_session(0, 78, lambda nonce, packet, more: packet + bytes(16), 6, FOR_EVER)
        other.keepalive(0)
        assert wire.counters[-1] == BLOCK


def test_one_lane_counts_one_by_one() -> None:
    wire = Wire()
    with lanes(1, wire) as (core,):
        for _ in range(3 * BLOCK):
            core.keepalive(0)
    assert wire.counters == list(range(3 * BLOCK))


def test_an_inbound_worker_that_may_seal_takes_little_of_the_window() -> None:
    """What the outbound one sealed, and was late to send, is still taken after thousands of packets of another lane."""
    wire, window = Wire(), ReplayWindow()
    with lanes(1, wire, both=True) as (busy, calm):
        for _ in range(1000):
            busy.keepalive(0)
        late = wire.counters.pop()
        calm.keepalive(0)
        for _ in range(7000):
            busy.keepalive(0)
        assert all(window.accept(counter) for counter in wire.counters)
        assert window.accept(late)


def test_workers_that_take_turns_are_never_too_old_for_each_other() -> None:
    wire, window = Wire(), ReplayWindow()
    with lanes(1, wire, both=True) as cores:
        for turn in range(40):
            for _ in range(3 * MAX_LAG):
                cores[turn % 2].keepalive(0)
        assert len(set(wire.counters)) == len(wire.counters)
        assert all(window.accept(counter) for counter in wire.counters)
