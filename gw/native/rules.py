"""Filter rules by what they hold: a question costs the same with one rule and with ten thousand.

Every rule and port range has a number. For an address, the numbers of the rules that hold it are the bits of an
integer, kept by prefix; likewise for a port. A packet may pass where source, destination and port share a bit.

Ref: tailscale wgengine/filter/match.go (what a rule holds)
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, final

from mypy_extensions import mypyc_attr

ALL_PORTS: Final = 65535
ANY_PORT: Final = -1  # of a question: any rule between the two addresses will do, whatever it opens
EVERY_PORT: Final = -2  # of a question: only a rule for all ports will do

Source = tuple[bool, bytes, bytes]  # IPv6?, first, last address
Destination = tuple[bool, bytes, bytes, int, int]  # the same, first and last port


@final
@mypyc_attr(native_class=True)
class AddressBits:
    """Ranges of addresses -> the bits of who holds them."""

    def __init__(self) -> None:
        self.v4: dict[int, dict[int, int]] = {}  # host bits of a prefix -> its network without them -> bits
        self.v6: dict[int, dict[int, int]] = {}

    def put(self, v6: bool, first: bytes, last: bytes, bits: int) -> None:
        low = int.from_bytes(first, "big")
        high = int.from_bytes(last, "big")
        tables = self.v6 if v6 else self.v4
        while low <= high:  # the fewest prefixes that make up the range
            span = (low & -low).bit_length() - 1 if low != 0 else 8 * len(first)
            room = (high - low + 1).bit_length() - 1
            if span > room:
                span = room
            table = tables.get(span)
            if table is None:
                table = {}
                tables[span] = table
            key = low >> span
            table[key] = table.get(key, 0) | bits
            low += 1 << span

    def find(self, v6: bool, address: int) -> int:
        found = 0
        for span, table in (self.v6 if v6 else self.v4).items():
            bits = table.get(address >> span)
            if bits is not None:
                found |= bits
        return found


@final
@mypyc_attr(native_class=True)
class PortBits:
    """Ranges of ports -> the bits of who opens them, for one protocol."""

    def __init__(self) -> None:
        self.ranges: dict[tuple[int, int], int] = {}
        self.edges: list[int] = []  # where the answer may change, in order; made with the first question
        self.known: dict[int, int] = {}  # between two edges

    def put(self, low: int, high: int, bits: int) -> None:
        self.ranges[low, high] = self.ranges.get((low, high), 0) | bits
        self.edges = []
        self.known = {}

    def find(self, port: int) -> int:
        """The bits for a port, or for EVERY_PORT."""
        if port == EVERY_PORT:
            return self.ranges.get((0, ALL_PORTS), 0)
        if not self.edges:
            edges = {0}
            for low, high in self.ranges:
                edges.add(low)
                edges.add(high + 1)
            self.edges = sorted(edges)
        place = bisect_right(self.edges, port)
        found = self.known.get(place)
        if found is None:
            found = 0
            for (low, high), bits in self.ranges.items():
                if low <= port <= high:
                    found |= bits
            self.known[place] = found
        return found


@final
@mypyc_attr(native_class=True)
class RuleSet:
    """All rules of a filter. Filled by `add`, then only asked."""

    def __init__(self) -> None:
        self.sources: AddressBits = AddressBits()
        self.destinations: AddressBits = AddressBits()
        self.ports: dict[int, PortBits] = {}  # by protocol
        self.count: int = 0

    def add(self, protocols: list[int], sources: list[Source], destinations: list[Destination]) -> None:
        """One rule. Ports and addresses are inclusive ranges."""
        numbers: dict[tuple[int, int], int] = {}
        for v6, first, last, low, high in destinations:
            bit = numbers.get((low, high))
            if bit is None:
                bit = 1 << self.count
                self.count += 1
                numbers[low, high] = bit
                for protocol in protocols:
                    if protocol not in self.ports:
                        self.ports[protocol] = PortBits()
                    self.ports[protocol].put(low, high, bit)
            self.destinations.put(v6, first, last, bit)
        every = 0
        for bit in numbers.values():
            every |= bit
        for v6, first, last in sources:
            self.sources.put(v6, first, last, every)

    def allow(self, v6: bool, source: int, destination: int, protocol: int, port: int) -> bool:
        """port: of the destination, or ANY_PORT (then the protocol does not matter), or EVERY_PORT."""
        found = self.sources.find(v6, source)
        if found == 0:
            return False
        found &= self.destinations.find(v6, destination)
        if found == 0 or port == ANY_PORT:
            return found != 0
        opened = self.ports.get(protocol)
        return opened is not None and found & opened.find(port) != 0
