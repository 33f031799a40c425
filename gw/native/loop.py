"""A packet worker's loop: wait, move what is there, wait. It is left only where the engine has word or is to hear some.

What runs between two waits is all that a single packet must pass, and the memory it touches is cold by then: on an idle
machine most of a packet's way is that. So the loop is compiled, short, asks the kernel nothing twice, and turns once a
millisecond for a while after the last packet: what comes next finds it warm.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final, final

from mypy_extensions import i64, mypyc_attr

from gw.native.inbound import Inbound
from gw.native.outbound import Outbound
from gw.native.turn import Turn

READS_OUT: Final = 16  # of the TUN before the engine is listened to again
READS_IN: Final = 8  # of a socket
IDLE_S: Final = 0.001
WINDOW_NS: Final = 100_000_000
BUSY: Final = 50  # reads in a window
CALM: Final = 20
TURN_MS: Final = 1
TURNS: Final = 100  # after the last packet


@final
@mypyc_attr(native_class=True)
class Home:
    """How much a worker has to do, and the core that it keeps to while that is much, so that two busy ones are not put
    on one.

    At other times the system may place it: best beside whoever wakes it. To wake a core that sleeps takes longer than
    all that is done to one packet.
    """

    def __init__(self, core: int) -> None:
        """core: -1 for any."""
        self.core: int = core
        self.anywhere: set[int] = os.sched_getaffinity(0)
        self.is_busy: bool = False  # until it is calm
        self.is_calm: bool = False  # the last window was
        self.reads: i64 = 0
        self.since_ns: i64 = 0  # when the window began
        self.turns: i64 = 0  # of the loop that are left before it sleeps
        self.is_owed: bool = False  # packets waited for the engine the last time

    def begin(self, now_ns: i64) -> None:
        """Look at what comes from now on."""
        self.reads = 0
        self.since_ns = now_ns

    def moved(self, reads: i64, now_ns: i64) -> bool:
        """A round is over that brought so much. True when a window ends with it, as it does once it is busy."""
        self.reads += reads
        passed: i64 = now_ns - self.since_ns
        if passed < WINDOW_NS:
            if self.is_busy or self.reads < BUSY:
                return False
            passed = WINDOW_NS
        rate: i64 = self.reads * WINDOW_NS // passed
        self.reads = 0
        self.since_ns = now_ns
        self.is_calm = rate < CALM
        if self.is_calm and self.is_busy:
            self.is_busy = False
            if self.core >= 0:
                _keep_to(self.anywhere)
        elif rate >= BUSY and not self.is_busy:
            self.is_busy = True
            if self.core >= 0:
                _keep_to({self.core})
        return True


def _keep_to(cores: set[int]) -> None:
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        pass  # cores that were taken from us since


def carry(
    poll: Any,
    wait_ms: int | None,
    links: list[int],
    outbound: Outbound | None,
    inbound: Inbound | None,
    home: Home,
    turn: Turn | None,
) -> list[int]:
    """Move packets until something else is to be done; returns the links that can be read.

    poll: of a `select.poll` that has all descriptors; wait_ms: None to stay here, else the longest wait, after which
    this returns; turn: where another worker may have the TUN. The engine goes first, for a packet may be waiting for
    what it has to say; where it has more to say than is heard at a time, packets go between.
    """
    while True:
        heard: list[int] = []
        outside = False
        inside: list[int] = []
        for descriptor, _ in poll(
            wait_ms if wait_ms is not None else TURN_MS if home.turns > 0 or home.is_busy else None
        ):
            if descriptor in links:
                heard.append(descriptor)
            elif outbound is not None and descriptor == outbound.tun:
                outside = True
            elif turn is not None and descriptor == turn.bell:
                turn.answer()
                home.begin(time.monotonic_ns())
            else:
                inside.append(descriptor)
        if heard and not (home.is_owed and (outside or inside)):
            home.is_owed = True
            return heard
        home.is_owed = False
        reads: i64 = 0
        had_data = False
        if inbound is not None and inside:
            for descriptor in inside:
                reads += inbound.pump(inbound.sockets[descriptor], READS_IN)
            inbound.flush()
            had_data = inbound.had_data
            inbound.had_data = False
        if outbound is not None:
            if outside:
                found: i64 = outbound.pump(READS_OUT)
                if found == 0:
                    time.sleep(IDLE_S)  # an interface that is down reports ready: do not spin on it
                reads += found
                had_data = True
            elif inside and not home.is_busy and (turn is None or turn.holds):
                reads += outbound.pump(READS_OUT)  # the answer to what was just written is mostly there
        if home.moved(reads, time.monotonic_ns()) and turn is not None:
            turn.settle(home.is_busy, home.is_calm)
        home.turns = TURNS if had_data else home.turns - 1
        if heard or wait_ms is not None:
            return heard
        if (inbound is not None and inbound.has_word()) or (outbound is not None and outbound.has_word()):
            return heard
