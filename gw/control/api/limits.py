"""Who sent wrong keys, and how long to turn them away: a bucket an address, an IPv6 /64 counting as one address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from math import ceil
from typing import Final, final

BURST: Final = 10.0
REFILL_PER_S: Final = 1 / 6  # ten a minute
MAX_ADDRESSES: Final = 10_000


@final
class Offenders:
    """now: seconds, monotonic. The longest quiet are forgotten first."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, address: str) -> int:
        """Count one wrong key. Returns 0, or the seconds until the next one is looked at again."""
        name, now = _network(address), self._now()
        left, at = self._buckets.pop(name, (BURST, now))
        left = min(BURST, left + (now - at) * REFILL_PER_S)
        is_spent = left < 1
        self._buckets[name] = (left if is_spent else left - 1, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return ceil((1 - left) / REFILL_PER_S) if is_spent else 0


def _network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return parsed.ipv4_mapped.compressed if parsed.ipv4_mapped else str(int(parsed) >> 64)
    return parsed.compressed
