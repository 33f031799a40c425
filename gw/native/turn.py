"""Which of a lane's two workers reads the TUN.

    calm   the inbound worker: when it has written a request, the answer is there to be read, and nobody is to be woken
    busy   the outbound worker: each plane has a core to itself

The reader's name stands in shared memory. Only the reader hands the turn on: it stops, writes the other's name, and
rings the other's bell, so two never read at once and a worker that was restarted knows whether it is to read. One that
begins rings too, in case the one before it died between the word and the bell. Both seal with every keypair, each with
counters of its own (`gw.native.outbound`).
"""

from __future__ import annotations

import os
import struct
from mmap import mmap
from typing import Any, Final, final

from mypy_extensions import mypyc_attr

from gw.native.counters import BUSY_AT, OUTBOUND, READER_AT, put, region_at

CALM_READER: Final = 0  # the inbound worker
BUSY_READER: Final = 1  # the outbound worker
POLLIN: Final = 1
_ONE: Final = struct.Struct("<q")


@final
@mypyc_attr(native_class=True)
class Turn:
    """One worker's view of it. Whoever holds the turn has the TUN in its poller, and nobody else has."""

    def __init__(self, shared: mmap, lane: int, me: int, tun: int, bell: int, other_bell: int, poller: Any) -> None:
        """me: CALM_READER or BUSY_READER; bell: the eventfd that rings for this worker; poller: its `select.poll`."""
        self.shared: mmap = shared
        self.reader_at: int = region_at(OUTBOUND, lane) + READER_AT
        self.busy_at: int = region_at(OUTBOUND, lane) + BUSY_AT
        self.me: int = me
        self.tun: int = tun
        self.bell: int = bell
        self.other_bell: int = other_bell
        self.poller: Any = poller
        self.holds: bool = False
        self.was_calm: bool = False  # when it last settled
        poller.register(bell, POLLIN)
        self.take()
        self._ring()

    def answer(self) -> None:
        """The bell rang."""
        try:
            os.read(self.bell, 8)
        except OSError:
            pass  # it was for somebody who died, and was heard by him
        self.take()
        if self.me == BUSY_READER and self.was_calm:
            self._give_back()

    def take(self) -> None:
        """Read from now on, if it is our turn."""
        if not self.holds and _ONE.unpack_from(self.shared, self.reader_at)[0] == self.me:
            self.holds = True
            self.was_calm = False
            self.poller.register(self.tun, POLLIN)

    def settle(self, is_busy: bool, is_calm: bool) -> None:
        """A stretch of time is over in which this worker had much to do, or little, or neither."""
        self.was_calm = is_calm
        if self.me == CALM_READER:
            busy = 1 if is_busy else 0
            if _ONE.unpack_from(self.shared, self.busy_at)[0] != busy:
                put(self.shared, self.busy_at, busy)
                if not is_busy and not self.holds:
                    self._ring()  # it may have waited for this
            if is_busy and self.holds:
                self._give(BUSY_READER)
        elif is_calm:
            self._give_back()

    def _give_back(self) -> None:
        if self.holds and _ONE.unpack_from(self.shared, self.busy_at)[0] == 0:
            self._give(CALM_READER)

    def _give(self, other: int) -> None:
        self.holds = False
        self.poller.unregister(self.tun)
        put(self.shared, self.reader_at, other)
        self._ring()

    def _ring(self) -> None:
        os.write(self.other_bell, b"\1\0\0\0\0\0\0\0")
