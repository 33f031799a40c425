"""A packet worker's loop: wait, move what is there, wait. It is left only where the engine has word or is to hear some.

What runs between two waits is all that a single packet must pass, and the memory it touches is cold by then: on an idle
machine most of a packet's way is that. So the loop is compiled, short, and asks the kernel nothing twice.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final, final

from mypy_extensions import i64, mypyc_attr

from gw.native.inbound import Inbound
from gw.native.outbound import Outbound

READS_OUT: Final = 16  # of the TUN before the engine is listened to again
READS_IN: Final = 8  # of a socket
IDLE_S: Final = 0.001
WINDOW_NS: Final = 100_000_000
BUSY: Final = 50  # reads in a window
CALM: Final = 20


@final
@mypyc_attr(native_class=True)
class Home:
    """The core that a worker keeps to while it is busy, so that two busy ones are not put on one.

    At other times the system may place it: best beside whoever wakes it. To wake a core that sleeps takes longer than
    all that is done to one packet.
    """

    def __init__(self, core: int) -> None:
        """core: -1 for any."""
        self.core: int = core
        self.anywhere: set[int] = os.sched_getaffinity(0)
        self.is_kept: bool = False
        self.reads: i64 = 0
        self.since_ns: i64 = 0  # when the window began

    def moved(self, reads: i64, now_ns: i64) -> None:
        """A round is over that brought so much."""
        self.reads += reads
        passed: i64 = now_ns - self.since_ns
        if passed < WINDOW_NS:
            return
        rate: i64 = self.reads * WINDOW_NS // passed
        self.reads = 0
        self.since_ns = now_ns
        if rate < CALM and self.is_kept:
            self.is_kept = False
            _keep_to(self.anywhere)
        elif rate >= BUSY and not self.is_kept and self.core >= 0:
            self.is_kept = True
            _keep_to({self.core})


def _keep_to(cores: set[int]) -> None:
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        pass  # cores that were taken from us since


def carry(
    poll: Any, wait_ms: Any, links: list[int], outbound: Outbound | None, inbound: Inbound | None, home: Home
) -> list[int]:
    """Move packets until something else is to be done; returns the links that can be read.

    poll: of a `select.poll` that has all descriptors; wait_ms: None to stay here, else the longest wait, after which
    this returns. The engine goes first: a packet may be waiting for what it has to say.
    """
    while True:
        heard: list[int] = []
        outside = False
        inside: list[int] = []
        for descriptor, _ in poll(wait_ms):
            if descriptor in links:
                heard.append(descriptor)
            elif outbound is not None and descriptor == outbound.tun:
                outside = True
            else:
                inside.append(descriptor)
        if heard:
            return heard
        reads: i64 = 0
        if outside and outbound is not None:
            reads = outbound.pump(READS_OUT)
            if reads == 0:
                time.sleep(IDLE_S)  # an interface that is down reports ready: do not spin on it
        if inbound is not None and inside:
            for descriptor in inside:
                reads += inbound.pump(inbound.sockets[descriptor], READS_IN)
            inbound.flush()
        home.moved(reads, time.monotonic_ns())
        if inbound is not None and inbound.has_word():
            return heard
        if wait_ms is not None or (outbound is not None and outbound.has_word()):
            return heard
