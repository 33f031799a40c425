"""What the lanes of both planes wrote, summed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from mmap import mmap

from gw.engine.tallies import Tallies, Traffic
from gw.native.counters import DROP_ACL, DROP_SEND, INBOUND, OUTBOUND, SHARED_BYTES, Drops, Tally, block_at, region_at


def test_lanes_are_summed_and_a_slot_is_cleared() -> None:
    descriptor = os.memfd_create("counters")
    os.ftruncate(descriptor, SHARED_BYTES)
    shared = mmap(descriptor, SHARED_BYTES)
    tallies = Tallies(descriptor, 2)
    for plane, lane, packets in ((OUTBOUND, 0, 3), (OUTBOUND, 1, 4), (INBOUND, 1, 5)):
        tally = Tally(shared, block_at(region_at(plane, lane), 9))
        tally.packets, tally.size, tally.data_ns, tally.any_ns = packets, 10 * packets, packets, packets + 1
        tally.store()
        reason = DROP_SEND if plane == OUTBOUND else DROP_ACL
        tally.drop(reason, packets)
        Drops(shared, region_at(plane, lane)).add(reason, packets + 1)
    assert tallies.sent(9) == Traffic(7, 70, 4, 5)
    assert tallies.received(9) == Traffic(5, 50, 5, 6)
    assert tallies.peer_drops(9) == {"send": 7, "acl": 5}
    assert tallies.drops() == {"send": 9, "acl": 6}
    assert tallies.sent(8) == Traffic(0, 0, 0, 0)
    tallies.clear(9)
    assert tallies.sent(9) == tallies.received(9) == Traffic(0, 0, 0, 0)
    assert tallies.peer_drops(9) == {}
    assert tallies.drops() == {"send": 9, "acl": 6}
    tallies.close()
    shared.close()
    os.close(descriptor)


WRITER = """
import sys
from mmap import mmap
from gw.native.counters import SHARED_BYTES, OUTBOUND, Tally, block_at, region_at
tally = Tally(mmap(int(sys.argv[1]), SHARED_BYTES), block_at(region_at(OUTBOUND, 0), 9))
print('ready', flush=True)
while True:
    tally.packets += 1
    tally.size += 10
    tally.store()
"""


def test_a_reader_never_sees_a_counter_go_back() -> None:
    """`pack_into` clears what it is about to write; a reader that sees the zero books everything a second time."""
    descriptor = os.memfd_create("counters")
    os.ftruncate(descriptor, SHARED_BYTES)
    tallies = Tallies(descriptor, 1)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(descriptor)], stdout=subprocess.PIPE, pass_fds=[descriptor]
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        last, end = Traffic(0, 0, 0, 0), time.monotonic() + 0.5
        while time.monotonic() < end:
            now = tallies.sent(9)
            assert now.packets >= last.packets, (last, now)
            assert now.size >= last.size, (last, now)
            last = now
        writer.kill()
    assert last.packets > 0
    tallies.close()
    os.close(descriptor)
