"""What a new policy would open and close, between the nodes there are.

Nodes that stand alike in both policies are one group, so that the answer is about groups and stays short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, final

from gw.policy.bits import Bits, ones
from gw.policy.compiled import Standing, Unit
from gw.policy.services import LAST_PORT, UNSTATED, WITH_PORTS, protocol_name
from gw.policy.spans import Span, SpanSet, without
from gw.policy.topology import TopologyNode
from gw.policy.view import Entry, PolicyView

View = PolicyView[TopologyNode]
_ALL: Final[Span] = (0, LAST_PORT)


@final
@dataclass(frozen=True, slots=True)
class Edge:
    """Nodes that may reach others by these services, by name."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    services: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        return {"src": list(self.sources), "dst": list(self.targets), "ip": list(self.services)}


@final
@dataclass(frozen=True, slots=True)
class Difference:
    gained: list[Edge]
    lost: list[Edge]


def difference(old: View, new: View) -> Difference:
    """Two views of the same nodes."""
    groups: dict[object, list[int]] = {}
    for id_, entry in new.entries.items():
        was = old.entries[id_].standing
        owner = entry.facts.owner if entry.standing.own | was.own else ""
        groups.setdefault((entry.standing, was, owner), []).append(id_)
    gained: list[Edge] = []
    lost: list[Edge] = []
    for sources in groups.values():
        for targets in groups.values():
            if sources is targets and len(sources) == 1:
                continue
            before = _opened(old, sources[0], targets[0])
            after = _opened(new, sources[0], targets[0])
            names = _names(new, sources), _names(new, targets)
            for into, more, less in ((gained, after, before), (lost, before, after)):
                services = _services(more, less)
                if services:
                    into.append(Edge(*names, services))
    return Difference(gained, lost)


def _opened(view: View, source: int, target: int) -> dict[int, SpanSet]:
    """Protocol -> ports that a node of one group may reach at one of the other."""
    one, other = view.entries[source], view.entries[target]
    compiled = view.compiled
    found = list(_units(compiled.units, _reaching(one.standing, other.standing) & compiled.network))
    if one.facts.owner and one.facts.owner == other.facts.owner:
        found += _units(compiled.own_units, one.standing.own)
    ports: dict[int, list[Span]] = {}
    for unit in found:
        for service in unit.grant.services:
            for protocol in service.protocols():
                ports.setdefault(protocol, []).append(service.ports if protocol in WITH_PORTS else _ALL)
    return {protocol: SpanSet(spans) for protocol, spans in ports.items()}


def _reaching(one: Standing, other: Standing) -> Bits:
    return one.source4 & other.target4 | one.source6 & other.target6


def _units(units: list[Unit], bits: Bits) -> Iterable[Unit]:
    return (units[index] for index in ones(bits))


def _services(more: dict[int, SpanSet], less: dict[int, SpanSet]) -> tuple[str, ...]:
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


def _port_text(span: Span) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _names(view: View, ids: list[int]) -> tuple[str, ...]:
    entries: list[Entry[TopologyNode]] = [view.entries[id_] for id_ in ids]
    return tuple(sorted(entry.node.name for entry in entries))
