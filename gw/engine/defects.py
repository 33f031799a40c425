"""What a program does about its own defects: count them, tell the log about some, and go on.

A stranger may find a defect; it ends their connection or the one call that met it, never the loop of everybody. `guard`
is for calls that happen now and then; where many happen, the caller has `try`, which costs nothing, and `tell`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol, final

from gw.wire.derp.buckets import Bucket

logger = logging.getLogger(__name__)

COMPLAINTS_A_S: Final = 0.1
COMPLAINT_BURST: Final = 10.0


class Clock(Protocol):
    """Monotonic seconds."""

    @property
    def now(self) -> float: ...


@final
class Defects:
    """Of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._complaints = Bucket(COMPLAINTS_A_S, COMPLAINT_BURST)
        self.met = 0

    def tell(self, what: str) -> None:
        """Count the exception that is being handled; log it unless there were many lately. what: ended by it."""
        self.met += 1
        if self._complaints.take(1, self._clock.now):
            logger.exception("%s: a defect, please report it", what)

    def guard(self, what: str, call: Callable[[], object]) -> None:
        """Call it; a defect that it meets ends the call."""
        try:
            call()
        except Exception:
            self.tell(what)


@final
class _Running:
    """The time of this process."""

    @property
    def now(self) -> float:
        return time.monotonic()


of_node: Final = Defects(_Running())  # what `gwd` has met, whichever part of it
