"""What one node may do at another and behind it, as sets that can be subtracted.

    services      protocol -> ports, at the node's own addresses
    behind        (place, services) for every piece of the subnets, or of the internet, that a router leads to
    capabilities  (name, value) that `app` grants, at the node and at the subnets it serves

Ref: spec policy §6 to §10
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from gw.model.addresses import EXIT_ROUTES
from gw.policy.bits import Bits, ones
from gw.policy.compiled import Unit, UnitKind
from gw.policy.ipsets import INTERNET
from gw.policy.routing import routes_for
from gw.policy.services import LAST_PORT, UNSTATED, WITH_PORTS, protocol_name
from gw.policy.spans import Span, SpanSet, is_v6, overlap, span_text, without
from gw.policy.topology import TopologyNode
from gw.policy.view import Entry, PolicyView

View = PolicyView[TopologyNode]
TopologyEntry = Entry[TopologyNode]
Services = dict[int, SpanSet]  # protocol -> ports
Capabilities = frozenset[tuple[str, str]]  # name, value as JSON; "" for a capability without values
NOTHING: Final[Services] = {}
_ALL: Final[Span] = (0, LAST_PORT)


def services(view: View, one: TopologyEntry, other: TopologyEntry) -> Services:
    """What `one` may reach at the other's own addresses."""
    compiled = view.compiled
    found = list(_units(compiled.units, _reaching(one, other) & compiled.network))
    found += [unit for unit in _own(view, one, other) if unit.kind is UnitKind.NETWORK]
    return _services(found)


def capabilities(view: View, one: TopologyEntry, other: TopologyEntry) -> Capabilities:
    """What `one` is granted at the other; companions of a capability go with it and are not told."""
    found = [*_units(view.compiled.units, _reaching(one, other)), *_own(view, one, other)]
    return _capabilities(found)


def capabilities_behind(view: View, one: TopologyEntry, router: TopologyEntry) -> dict[str, Capabilities]:
    """Destination -> what `one` is granted there, of those that overlap a subnet of the router."""
    found: dict[str, list[Unit]] = {}
    for unit in _units(view.compiled.units, one.standing.source & router.standing.receives):
        for text, piece in unit.destinations.pieces:
            is_routed = piece[0] != piece[1] and any(overlap(piece, route) for route in router.facts.routes)
            if is_routed and unit.kind is UnitKind.CAPABILITY:
                found.setdefault(text, []).append(unit)
    return {text: _capabilities(units) for text, units in found.items()}


def cuts(views: Iterable[View]) -> list[int]:
    """Where a destination of any rule begins or ends: between two of them, every address is open to the same."""
    found: set[int] = set()
    for view in views:
        for unit in view.compiled.units:
            for first, last in unit.destinations.literals:
                found |= {first, last + 1}
    return sorted(found)


def behind(view: View, one: TopologyEntry, router: TopologyEntry, atoms: Iterable[Span]) -> Iterator[Services]:
    """For each atom of what the router serves: what `one` may reach there by this router."""
    compiled = view.compiled
    routes = routes_for(view, one.node, router.node, lambda route: min(view.serving(route), default=None), _is_online)
    spans = SpanSet(router.routes[text] for text in routes if text in router.routes)
    is_exit = bool(set(routes) & set(EXIT_ROUTES))
    opened = router.standing.receives & compiled.network
    for atom in atoms:
        if not (spans.covers(atom) or (is_exit and _INTERNET.covers(atom))):
            yield NOTHING
            continue
        bits = opened & (one.standing.source6 if is_v6(atom[0]) else one.standing.source4)
        if bits:
            bits &= compiled.destinations.literals.at(atom[0]) | compiled.destinations.everybody
        yield _services(_units(compiled.units, bits)) if bits else NOTHING


def atoms_of(router: TopologyEntry, places: list[int]) -> list[Span]:
    """What a router serves, cut at these places."""
    whole = SpanSet([*router.facts.routes, *(INTERNET if router.facts.is_exit else ())])
    ends = {end for route in router.facts.routes for end in (route[0], route[1] + 1)}
    found: list[Span] = []
    for first, last in whole:
        starts = sorted({first, *(place for place in (*places, *ends) if first < place <= last)})
        found += [(start, end - 1) for start, end in zip(starts, [*starts[1:], last + 1], strict=True)]
    return found


def place_texts(atoms: Iterable[Span]) -> tuple[str, ...]:
    """Addresses, prefixes and ranges; `autogroup:internet` for all of it, or all of one family."""
    found = list(SpanSet(atoms))
    family4 = [each for each in INTERNET if not is_v6(each[0])]
    family6 = [each for each in INTERNET if is_v6(each[0])]
    if found in (list(INTERNET), family4, family6):
        return ("autogroup:internet",)
    return tuple(map(span_text, found))


def service_texts(more: Services, less: Services) -> tuple[str, ...]:
    """What the one opens and the other does not, as a grant would say it."""
    found: dict[int, list[Span]] = {}
    for protocol, ports in more.items():
        rest = list(ports)
        for span in less.get(protocol, ()):
            rest = without(rest, span)
        if rest:
            found[protocol] = rest
    if found.keys() == set(UNSTATED) and all(spans == [_ALL] for spans in found.values()):
        return ("*",)
    return tuple(
        f"{protocol_name(protocol)}:{'*' if span == _ALL else _port_text(span)}"
        for protocol, spans in sorted(found.items())
        for span in spans
    )


_INTERNET: Final = SpanSet(INTERNET)


def _is_online(_: TopologyNode) -> bool:
    return True


def _reaching(one: TopologyEntry, other: TopologyEntry) -> Bits:
    here, there = one.standing, other.standing
    return here.source4 & there.target4 | here.source6 & there.target6


def _own(view: View, one: TopologyEntry, other: TopologyEntry) -> Iterable[Unit]:
    """Units to the devices of one user, where both are his."""
    is_one = bool(one.facts.owner) and one.facts.owner == other.facts.owner
    return _units(view.compiled.own_units, one.standing.own) if is_one else ()


def _units(units: list[Unit], bits: Bits) -> Iterable[Unit]:
    return (units[index] for index in ones(bits))


def _services(units: Iterable[Unit]) -> Services:
    ports: dict[int, list[Span]] = {}
    for unit in units:
        for service in unit.grant.services:
            for protocol in service.protocols():
                ports.setdefault(protocol, []).append(service.ports if protocol in WITH_PORTS else _ALL)
    return {protocol: SpanSet(spans) for protocol, spans in ports.items()}


def _capabilities(units: Iterable[Unit]) -> Capabilities:
    return frozenset(
        (name, value)
        for unit in units
        if unit.kind is UnitKind.CAPABILITY and not unit.reverse
        for name, values in unit.capabilities
        for value in (values or ("",))
    )


def _port_text(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
