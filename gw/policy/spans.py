"""Sets of IP addresses as spans on one number line: IPv4 addresses as they are, IPv6 ones above them.

A span is (first, last), both inside. A `SpanSet` keeps maximal spans in order, so that a question costs a binary search
and a text form needs no sorting.

Ref: spec policy §6 (sources)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import Final, final

Span = tuple[int, int]

V6: Final = 1 << 128  # number of ::
ALL_V4: Final[Span] = (0, (1 << 32) - 1)
ALL_V6: Final[Span] = (V6, 2 * V6 - 1)
EVERYTHING: Final = (ALL_V4, ALL_V6)
_MAPPED: Final = 0xFFFF  # of ::ffff:0:0/96, whose text depends on Python's version
_ZEROS: Final = tuple(":" + "0:" * count for count in range(8, 1, -1))


@lru_cache(maxsize=1 << 17)
def number(text: str) -> int:
    """The place of an address. Raises ValueError."""
    address = ip_address(text)
    return int(address) if address.version == 4 else V6 + int(address)


@lru_cache(maxsize=1 << 16)
def span(text: str) -> Span:
    """An address or prefix; bits beyond the prefix length are cleared. Raises ValueError, also for one of a zone."""
    if "%" in text:
        raise ValueError(f"an address with a zone: {text}")
    network = ip_network(text, strict=False)
    offset = 0 if network.version == 4 else V6
    return offset + int(network.network_address), offset + int(network.broadcast_address)


def is_v6(place: int) -> bool:
    return place >= V6


def overlap(one: Span, other: Span) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def address_at(place: int) -> IPv4Address | IPv6Address:
    return IPv6Address(place - V6) if place >= V6 else IPv4Address(place)


@lru_cache(maxsize=1 << 12)
def address_text(place: int) -> str:
    """`str(address_at(place))` at a tenth of its cost: it is asked for at every filter that is made."""
    if place < V6:
        return f"{place >> 24}.{place >> 16 & 255}.{place >> 8 & 255}.{place & 255}"
    if (place - V6) >> 32 == _MAPPED:
        return str(address_at(place))
    digits = f"{place:x}"  # 33 of them, the first says that it is IPv6
    hextets = [digits[at : at + 4].lstrip("0") or "0" for at in range(1, 33, 4)]
    text = f":{':'.join(hextets)}:"
    for zeros in _ZEROS:  # the longest run of two and more, the first of equals
        if zeros in text:
            head, _, tail = text.partition(zeros)
            return f"{head[1:]}::{tail[:-1]}"
    return text[1:-1]


def networks(of: Span) -> list[IPv4Network | IPv6Network]:
    """The prefixes that make up a span."""
    first, last = address_at(of[0]), address_at(of[1])
    if isinstance(first, IPv4Address) and isinstance(last, IPv4Address):
        return list(summarize_address_range(first, last))
    if isinstance(first, IPv6Address) and isinstance(last, IPv6Address):
        return list(summarize_address_range(first, last))
    raise ValueError("a span of both families")


def span_text(of: Span) -> str:
    """An address, a prefix where it is exactly one, else `first-last`."""
    first, last = of
    if first == last:
        return address_text(first)
    if is_v6(first) != is_v6(last):
        raise ValueError("a span of both families")
    size = last - first + 1
    if size & (size - 1) == 0 and first & (size - 1) == 0:
        return f"{address_text(first)}/{(128 if is_v6(first) else 32) + 1 - size.bit_length()}"
    return f"{address_text(first)}-{address_text(last)}"


def without(spans: Iterable[Span], hole: Span) -> list[Span]:
    """The spans with a hole cut into them."""
    found: list[Span] = []
    for first, last in spans:
        if last < hole[0] or hole[1] < first:
            found.append((first, last))
            continue
        if first < hole[0]:
            found.append((first, hole[0] - 1))
        if hole[1] < last:
            found.append((hole[1] + 1, last))
    return found


@final
class SpanSet:
    """A set of addresses. No span of it holds addresses of both families."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for first, last in sorted(spans):
            if self._ends and first <= self._ends[-1] + 1 and is_v6(first) == is_v6(self._ends[-1]):
                self._ends[-1] = max(self._ends[-1], last)
            else:
                self._starts.append(first)
                self._ends.append(last)

    def __iter__(self) -> Iterator[Span]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """How many maximal spans."""
        return len(self._starts)

    def __contains__(self, place: int) -> bool:
        at = bisect_right(self._starts, place) - 1
        return at >= 0 and place <= self._ends[at]

    def overlaps(self, other: Span) -> bool:
        at = bisect_left(self._ends, other[0])
        return at < len(self._starts) and self._starts[at] <= other[1]

    def covers(self, other: Span) -> bool:
        """Whether all of `other` is in."""
        at = bisect_right(self._starts, other[0]) - 1
        return at >= 0 and other[1] <= self._ends[at]

    def add(self, place: int) -> None:
        """Put one address in; nothing happens if it is there."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, place)
        if at > 0 and place <= ends[at - 1]:
            return
        joins_left = at > 0 and ends[at - 1] == place - 1 and place != V6
        joins_right = at < len(starts) and starts[at] == place + 1 and starts[at] != V6
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = place
        elif joins_right:
            starts[at] = place
        else:
            starts.insert(at, place)
            ends.insert(at, place)

    def remove(self, place: int) -> None:
        """Take one address out; nothing happens if it is not there."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, place) - 1
        if at < 0 or place > ends[at]:
            return
        first, last = starts[at], ends[at]
        if first == last:
            del starts[at], ends[at]
        elif place == first:
            starts[at] = place + 1
        elif place == last:
            ends[at] = place - 1
        else:
            ends[at] = place - 1
            starts.insert(at + 1, place + 1)
            ends.insert(at + 1, last)

    def text(self) -> list[str]:
        """Every maximal span, IPv4 first."""
        return [span_text(each) for each in self]
