"""Token buckets: so much a second, and a burst."""

from __future__ import annotations

from typing import Final, final

MIN_BURST_BYTES: Final = 65536 + 32  # one frame of the largest kind always fits


@final
class Bucket:
    """rate: tokens a second, 0 = no limit. It begins full."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def _refill(self, now: float) -> None:
        if self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now

    def take(self, count: float, now: float) -> bool:
        """Take tokens if they are there."""
        if not self._rate:
            return True
        self._refill(now)
        if self._left < count:
            return False
        self._left -= count
        return True

    def spend(self, count: float, now: float) -> float:
        """Take tokens that are gone already; returns the seconds until the debt is paid."""
        if not self._rate:
            return 0.0
        self._refill(now)
        self._left -= count
        return max(0.0, -self._left / self._rate)
