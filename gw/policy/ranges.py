"""Sets of IP addresses kept as maximal ranges, and their text form in packet filters.

Adding or removing one address costs a binary search, so a rule whose source is "all devices of a user" stays cheap
while devices come and go; addresses handed out in sequence collapse into one range.

Ref: spec policy §6 (sources)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from typing import Final, final

RESERVED_V4: Final = ((int(IPv4Address("100.115.92.0")), int(IPv4Address("100.115.93.255"))),)  # ChromeOS
_FAMILIES: Final[dict[int, type[IPv4Address] | type[IPv6Address]]] = {4: IPv4Address, 6: IPv6Address}


@final
class AddressRanges:
    """A set of addresses of both families."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._starts: dict[int, list[int]] = {4: [], 6: []}
        self._ends: dict[int, list[int]] = {4: [], 6: []}
        for text in addresses:
            self.add(text)

    def __contains__(self, text: str) -> bool:
        address = ip_address(text)
        starts, ends = self._starts[address.version], self._ends[address.version]
        at = bisect_right(starts, int(address)) - 1
        return at >= 0 and int(address) <= ends[at]

    def add(self, text: str) -> None:
        """Put one address in; nothing happens if it is there."""
        address = ip_address(text)
        value = int(address)
        starts, ends = self._starts[address.version], self._ends[address.version]
        at = bisect_right(starts, value)
        if at > 0 and value <= ends[at - 1]:
            return
        joins_left = at > 0 and ends[at - 1] == value - 1
        joins_right = at < len(starts) and starts[at] == value + 1
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = value
        elif joins_right:
            starts[at] = value
        else:
            starts.insert(at, value)
            ends.insert(at, value)

    def remove(self, text: str) -> None:
        """Take one address out; nothing happens if it is not there."""
        address = ip_address(text)
        value = int(address)
        starts, ends = self._starts[address.version], self._ends[address.version]
        at = bisect_right(starts, value) - 1
        if at < 0 or value > ends[at]:
            return
        first, last = starts[at], ends[at]
        if first == last:
            del starts[at], ends[at]
        elif value == first:
            starts[at] = value + 1
        elif value == last:
            ends[at] = value - 1
        else:
            ends[at] = value - 1
            starts.insert(at + 1, value + 1)
            ends.insert(at + 1, last)

    def text(self) -> list[str]:
        """Every maximal range, as an address, a prefix where it is exactly one, else `first-last`; IPv4 first."""
        return [
            _range_text(version, first, last)
            for version in (4, 6)
            for first, last in zip(self._starts[version], self._ends[version], strict=True)
        ]


def _range_text(version: int, first: int, last: int) -> str:
    family = _FAMILIES[version]
    low, high = family(first), family(last)
    if first == last:
        return str(low)
    prefixes = list(summarize_address_range(low, high))
    return str(prefixes[0]) if len(prefixes) == 1 else f"{low}-{high}"


def pool_sources(prefixes: Iterable[str]) -> list[str]:
    """The `*` source of a rule: the tailnet's pools without the addresses that ChromeOS keeps for itself."""
    found: list[str] = []
    for text in prefixes:
        pool = ip_network(text)
        spans = [(int(pool.network_address), int(pool.broadcast_address))]
        if pool.version == 4:
            for low, high in RESERVED_V4:
                spans = [part for span in spans for part in _without(span, low, high)]
        found += [_range_text(pool.version, first, last) for first, last in spans]
    return found


def _without(span: tuple[int, int], low: int, high: int) -> list[tuple[int, int]]:
    first, last = span
    if high < first or low > last:
        return [span]
    return [part for part in ((first, low - 1), (high + 1, last)) if part[0] <= part[1]]
