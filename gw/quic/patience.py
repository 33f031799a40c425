"""How long the other end of a link may take nothing of what waits for it. No I/O.

What others make us say (answers to pings, to flow numbers, to routes) is said only while they take what was said
before: above `frames.MAX_UNSENT_BYTES` of the control stream nothing is answered, and who then takes nothing is closed.

Ref: spec quic §8, §11; RFC 9000 §4.1 (the receiver of a stream alone says how much it takes)
"""

from __future__ import annotations

from typing import Final, final

from gw.quic.link import Link
from gw.wire.quic import frames

DEAF_S: Final = 2.0  # who sends, and takes nothing of what waits for it
SILENT_S: Final = 10.0  # who does not even send: it may be changing networks
NEVER: Final = float("inf")


@final
class Patience:
    """How long somebody may take nothing of what waits."""

    def __init__(self) -> None:
        self._mark = -1
        self._since = NEVER
        self._heard_since = NEVER

    def look(self, is_held: bool, mark: int, link: Link, now: float) -> float:
        """When it is over, if nothing changes. mark: moves whenever something was taken."""
        if not is_held:
            self._since = self._heard_since = NEVER
            return NEVER
        if self._since == NEVER or mark != self._mark:
            self._mark, self._since, self._heard_since = mark, now, NEVER
        if self._heard_since == NEVER and link.heard_at > self._since:
            self._heard_since = now
            link.nudge()  # whatever the timers say: who is back answers this
        return min(self._since + SILENT_S, self._heard_since + DEAF_S)

    def look_at_control(self, link: Link, now: float) -> float:
        """The same of the control stream."""
        return self.look(link.unsent > frames.MAX_UNSENT_BYTES, link.acknowledged, link, now)
