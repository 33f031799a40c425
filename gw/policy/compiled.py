"""A policy compiled to numbered rules, so that what holds for a node is a handful of integers.

    unit         one grant's network rule, its capability rule, or the companion of a capability
    Standing     of a node: the units it is a source of, and those whose rules it receives
    own units    those with `autogroup:self` as destination; they are about the devices of one user

Ref: spec policy §6 to §10
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from gw.policy.audience import Audience
from gw.policy.bits import Bits, PostureBits, ServiceBits, SideBits, SpanBits
from gw.policy.ipsets import INTERNET
from gw.policy.model import Grant, Policy
from gw.policy.people import People
from gw.policy.selectors import ANY
from gw.policy.services import Service
from gw.policy.spans import V6, Span, SpanSet, span, without

ALLOW_ALL: Final = Grant("grants", 0, (ANY,), (ANY,), (Service(),))
COMPANIONS: Final = {
    "tailscale.com/cap/drive": "tailscale.com/cap/drive-sharer",
    "tailscale.com/cap/relay": "tailscale.com/cap/relay-target",
}
CHROME_OS: Final = span("100.115.92.0/23")
_INTERNET: Final = SpanSet(INTERNET)


class UnitKind(Enum):
    NETWORK = "network"
    CAPABILITY = "capability"
    SILENT = "silent"  # makes nodes visible and sends no rule: `via` with `app` alone


@final
@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One numbered rule. capabilities: (name, values as JSON) that it grants. reverse: a companion, whose destinations
    are the grant's sources."""

    index: int
    kind: UnitKind
    grant: Grant
    sources: Audience
    destinations: Audience
    capabilities: tuple[tuple[str, tuple[str, ...]], ...] = ()
    reverse: bool = False

    @property
    def asks_posture(self) -> bool:
        """Of its sources."""
        return bool(self.grant.postures) and not self.reverse

    @property
    def sources_key(self) -> tuple[object, ...]:
        """Equal for units of equal sources."""
        if self.reverse:
            return (self.grant.destinations, ())
        return (self.grant.sources, self.grant.postures)


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """What a policy looks at in a node.

    owner: "" if it has tags. routes: approved subnets that it serves, exit routes aside. postures: those it is in.
    """

    owner: str
    tags: frozenset[str]
    places: tuple[int, ...]
    routes: tuple[Span, ...] = ()
    is_exit: bool = False
    postures: frozenset[str] = frozenset()


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """A node's place in the policy, as bits of units.

    source4, source6: it may use them by its address of the family. source: by either. seen: also by a subnet that it
    routes. target4, target6: they open something at its own address of the family. receives: their rules are sent to
    it. listed: source lists name it. own: own units of its owner.
    """

    source4: Bits = 0
    source6: Bits = 0
    source: Bits = 0
    seen: Bits = 0
    target4: Bits = 0
    target6: Bits = 0
    receives: Bits = 0
    listed: Bits = 0
    own: Bits = 0


@final
class Compiled:
    """pools: the tailnet's address prefixes, which `*` stands for as a source."""

    def __init__(self, policy: Policy, people: People, pools: Iterable[str]) -> None:
        self.policy: Final = policy
        self.people: Final = people
        self.pools: Final = SpanSet(without([span(text) for text in pools], CHROME_OS))
        self.units: Final[list[Unit]] = []
        self.own_units: Final[list[Unit]] = []
        for grant in (ALLOW_ALL,) if policy.grants is None else policy.grants:
            self._take(grant)
        units = self.units
        self.sources: Final = SideBits(unit.sources for unit in units)
        self.destinations: Final = SideBits(unit.destinations for unit in units)
        self._over = SpanBits((each, 1 << unit.index) for unit in units for each in _routed(unit))
        self._postures = PostureBits(() if unit.reverse else unit.grant.postures for unit in units)
        self._target_postures = PostureBits(unit.grant.postures if unit.reverse else () for unit in units)
        self.services: Final = ServiceBits(_services(unit) for unit in units)
        self.own_services: Final = ServiceBits(_services(unit) for unit in self.own_units)
        self._own_sources = SideBits(unit.sources for unit in self.own_units)
        self._own_postures = PostureBits(unit.grant.postures for unit in self.own_units)
        self.network: Final = _mask(units, lambda unit: unit.kind is UnitKind.NETWORK)
        self._silent = _mask(units, lambda unit: unit.kind is UnitKind.SILENT)
        self.via: Final = _mask(units, lambda unit: bool(unit.grant.via))
        self.to_internet: Final = _mask(units, lambda unit: unit.destinations.has_internet)
        self._inside_internet = _mask(
            units, lambda unit: any(_INTERNET.covers(each) for _, each in unit.destinations.pieces)
        )
        self._by_via: dict[str, Bits] = {}
        for unit in units:
            for tag in unit.grant.via:
                self._by_via[tag] = self._by_via.get(tag, 0) | 1 << unit.index
        self._owners: dict[tuple[str, frozenset[str]], tuple[Bits, Bits, Bits]] = {}
        self._standings: dict[tuple[object, ...], Standing] = {}
        self._kept: dict[Bits, Bits] = {}

    def standing(self, facts: Facts) -> Standing:
        """Where a node with these facts stands."""
        sources, destinations = self.sources, self.destinations
        from4 = from6 = to4 = to6 = 0
        for place in facts.places:
            found = sources.literals.at(place)
            if sources.everybody and place in self.pools:
                found |= sources.everybody
            if place < V6:
                from4, to4 = from4 | found, to4 | destinations.literals.at(place)
            else:
                from6, to6 = from6 | found, to6 | destinations.literals.at(place)
        # most nodes differ from others of their owner or tags by their address alone
        key = (facts.owner, facts.tags, from4, from6, to4, to6, facts.routes, facts.is_exit, facts.postures)
        known = self._standings.get(key)
        if known is None:
            known = self._standings[key] = self._standing(facts, (from4, from6), (to4, to6))
        return known

    def _standing(
        self, facts: Facts, literal_sources: tuple[Bits, Bits], literal_targets: tuple[Bits, Bits]
    ) -> Standing:
        """literal_…: units that name its IPv4 or IPv6 addresses."""
        by_owner, of_owner, own = self._of_owner(facts.owner, facts.tags)
        sources, destinations = self.sources, self.destinations
        hold = self._postures.held
        source4, source6 = (hold(by_owner | sources.anything | each, facts.postures) for each in literal_sources)
        source = source4 | source6
        listed = by_owner & ~(sources.everybody & ~self._postures.asking) & ~sources.anything
        listed = hold(listed, facts.postures) | source & self._postures.asking
        seen, over = source, 0
        for route in facts.routes:
            seen |= sources.literals.over(route) | sources.everybody
            over |= self._over.over(route) | destinations.everybody
        opened = of_owner | destinations.everybody
        target4, target6 = ((opened | each) & ~self.via for each in literal_targets)
        receives = target4 | target6 | (over & ~self.via)
        if facts.is_exit:
            receives |= self._inside_internet & self.network & ~self.via
        if self.via and facts.tags:
            receives |= self.with_via(facts.tags) & (over | (self.to_internet if facts.is_exit else 0))
        held = self._target_postures.held
        target4, target6, receives = (held(each, facts.postures) for each in (target4, target6, receives))
        own = self._own_postures.held(own, facts.postures)
        kept = (source4, source6, source, seen, target4, target6, receives, listed, own)
        return Standing(*map(self._keep, kept))

    def reaching(self, route: Span) -> Bits:
        """Units without `via` that lead to a subnet."""
        return (self.destinations.literals.over(route) | self.destinations.everybody) & ~self.via

    def steering(self, route: Span) -> Bits:
        """Units with `via` that lead to a subnet."""
        return (self.destinations.literals.over(route) | self.destinations.everybody) & self.via

    def returning(self, route: Span) -> Bits:
        """Units whose rule has sources in a subnet."""
        found = self.sources.literals.over(route) | self.sources.everybody | self.sources.anything
        return found & ~self._silent

    def to_exits(self) -> Bits:
        """Units without `via` that lead to the whole internet."""
        return (self.destinations.everybody | self.to_internet) & self.network & ~self.via

    def with_via(self, tags: Iterable[str]) -> Bits:
        """Units that lead by nodes with these tags."""
        found = 0
        for tag in tags:
            found |= self._by_via.get(tag, 0)
        return found

    def _of_owner(self, owner: str, tags: frozenset[str]) -> tuple[Bits, Bits, Bits]:
        """(source, target, own units) that follow from owner and tags alone."""
        known = self._owners.get((owner, tags))
        if known is None:
            own = 0 if tags or not owner else self._own_sources.of_owner(owner, tags) | self._own_sources.everybody
            known = self.sources.of_owner(owner, tags), self.destinations.of_owner(owner, tags), own
            self._owners[owner, tags] = known
        return known

    def _keep(self, bits: Bits) -> Bits:
        """One object for equal sets: most nodes stand alike."""
        return self._kept.setdefault(bits, bits)

    def _take(self, grant: Grant) -> None:
        if not grant.sources or not grant.destinations:
            return
        ipsets = self.policy.ipsets
        sources = Audience(grant.sources, self.people, ipsets)
        whole = Audience(grant.destinations, self.people, ipsets)
        others = [each for each in grant.destinations if not each.is_autogroup("self")]
        destinations = Audience(others, self.people, ipsets)
        for list_, audience, is_wanted in (
            (self.units, destinations, bool(others)),
            (self.own_units, destinations, whole.own and not grant.via),
        ):
            if not is_wanted:
                continue
            if grant.services:
                list_.append(Unit(len(list_), UnitKind.NETWORK, grant, sources, audience))
            elif grant.via:
                list_.append(Unit(len(list_), UnitKind.SILENT, grant, sources, audience))
            if not grant.capabilities or grant.via:
                continue
            kind, values = UnitKind.CAPABILITY, tuple(grant.capabilities.items())
            list_.append(Unit(len(list_), kind, grant, sources, audience, values))
            # who is a source among the devices of a user is decided device by device: there the sides stay
            back = (audience, sources) if list_ is self.units else (sources, audience)
            for name in (each for each in grant.capabilities if each in COMPANIONS):
                list_.append(Unit(len(list_), kind, grant, *back, ((COMPANIONS[name], ()),), reverse=True))


def _services(unit: Unit) -> tuple[Service, ...]:
    return unit.grant.services if unit.kind is UnitKind.NETWORK else ()


def _routed(unit: Unit) -> SpanSet:
    """Destinations that a node gets the rule for because it routes them. Of a capability, single addresses are not:
    it is granted at the node that has the address."""
    is_capability = unit.kind is UnitKind.CAPABILITY
    return SpanSet(each for _, each in unit.destinations.pieces if each[0] != each[1] or not is_capability)


def _mask(units: Sequence[Unit], holds: Callable[[Unit], bool]) -> Bits:
    mask = 0
    for unit in units:
        mask |= (1 << unit.index) * holds(unit)
    return mask
