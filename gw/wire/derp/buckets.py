"""Token buckets: so much a second, and a burst."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
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


@final
class PrefixBuckets:
    """One bucket a network: /32 of IPv4, /56 of IPv6. Memory is bounded: who was not asked for longest is forgotten."""

    def __init__(self, rate: float, burst: float, limit: int = 4096) -> None:
        self._rate = rate
        self._burst = burst
        self._limit = limit
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, host: str) -> Bucket:
        """The bucket of a numeric address."""
        name = _prefix(host)
        found = self._buckets.get(name)
        if found is None:
            found = self._buckets[name] = Bucket(self._rate, self._burst)
            if len(self._buckets) > self._limit:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
        return found


def _prefix(host: str) -> str:
    address = ipaddress.ip_address(host)
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return address.packed[:7].hex()
    return host
