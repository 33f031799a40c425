"""Sets of rules as the bits of one integer: bit i is rule i. Which rules a node falls under is then an OR of a few
look-ups, and whether one node may reach another an AND.

Ref: spec policy §6
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, final

from gw.policy.audience import Audience
from gw.policy.services import ALL_PORTS, LAST_PORT, UNSTATED, WITH_PORTS, Service
from gw.policy.spans import Span, SpanSet

Bits = int


def ones(bits: Bits) -> Iterator[int]:
    """The places of the set bits, from the lowest."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


@final
class SpanBits:
    """Which rules are about an address (or port): the number line cut where any of them begins or ends."""

    def __init__(self, entries: Iterable[tuple[Span, Bits]]) -> None:
        """Spans of one rule must not overlap."""
        turns: dict[int, Bits] = {}
        for (first, last), bits in entries:
            turns[first] = turns.get(first, 0) ^ bits
            turns[last + 1] = turns.get(last + 1, 0) ^ bits
        self._cuts: Final = sorted(turns)
        self._bits: list[Bits] = []
        now = 0
        for cut in self._cuts:
            now ^= turns[cut]
            self._bits.append(now)

    def at(self, place: int) -> Bits:
        found = bisect_right(self._cuts, place) - 1
        return self._bits[found] if found >= 0 else 0

    def over(self, span: Span) -> Bits:
        """Rules about any place of the span."""
        found = self.at(span[0])
        at = bisect_right(self._cuts, span[0])
        while at < len(self._cuts) and self._cuts[at] <= span[1]:
            found |= self._bits[at]
            at += 1
        return found


@final
class SideBits:
    """One side, source or destination, of all rules."""

    def __init__(self, audiences: Iterable[Audience]) -> None:
        self._users: dict[str, Bits] = {}
        self._tags: dict[str, Bits] = {}
        self.member = self.tagged = self.everybody = self.anything = 0
        literals: list[tuple[Span, Bits]] = []
        alike: dict[frozenset[str], Bits] = {}  # users -> rules about just them
        for index, audience in enumerate(audiences):
            bit = 1 << index
            if audience.users:
                alike[audience.users] = alike.get(audience.users, 0) | bit
            for tag in audience.tags:
                self._tags[tag] = self._tags.get(tag, 0) | bit
            self.member |= bit * audience.member
            self.tagged |= bit * audience.tagged
            self.everybody |= bit * audience.everybody
            self.anything |= bit * audience.anything
            literals += [(each, bit) for each in audience.literals]
        for users, bits in alike.items():
            for user in users:
                self._users[user] = self._users.get(user, 0) | bits
        self.literals: Final = SpanBits(literals)

    def of_owner(self, owner: str, tags: frozenset[str]) -> Bits:
        """Rules about nodes of this owner, or with these tags."""
        if not tags:
            return self.member | self._users.get(owner, 0)
        found = self.tagged
        for tag in tags:
            found |= self._tags.get(tag, 0)
        return found


@final
class PostureBits:
    """Which rules ask for a posture of their sources."""

    def __init__(self, asked: Iterable[tuple[str, ...]]) -> None:
        self.asking = 0
        self._by_name: dict[str, Bits] = {}
        for index, names in enumerate(asked):
            self.asking |= (1 << index) * bool(names)
            for name in names:
                self._by_name[name] = self._by_name.get(name, 0) | 1 << index

    def held(self, bits: Bits, postures: Iterable[str]) -> Bits:
        """Of `bits`, those that a node in these postures counts for."""
        if not self.asking & bits:
            return bits
        satisfied = 0
        for name in postures:
            satisfied |= self._by_name.get(name, 0)
        return bits & (~self.asking | satisfied)


@final
class ServiceBits:
    """Which rules open a protocol and port."""

    def __init__(self, services: Iterable[tuple[Service, ...]]) -> None:
        self._any = 0
        ported: dict[int, list[tuple[Span, Bits]]] = {protocol: [] for protocol in WITH_PORTS}
        self._whole: dict[int, Bits] = {}
        for index, found in enumerate(services):
            bit = 1 << index
            self._any |= bit * bool(found)
            spans: dict[int, list[Span]] = {}
            for service in found:
                for protocol in service.protocols():
                    if protocol in ported:
                        spans.setdefault(protocol, []).append(service.ports)
                    elif service.ports == ALL_PORTS:
                        self._whole[protocol] = self._whole.get(protocol, 0) | bit
            for protocol, ports in spans.items():
                ported[protocol] += [(each, bit) for each in SpanSet(ports)]
        self._ported: Mapping[int, SpanBits] = {protocol: SpanBits(entries) for protocol, entries in ported.items()}

    def opening(self, protocol: int, port: int) -> Bits:
        """port: ignored for protocols without ports."""
        if protocol in WITH_PORTS:
            return self._ported[protocol].at(min(max(port, 0), LAST_PORT))
        if protocol in UNSTATED:  # ICMP: any rule that opens any port
            return self._any
        return self._whole.get(protocol, 0)
