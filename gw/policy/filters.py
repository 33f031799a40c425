"""The packet filter that a node is sent: its share of every rule that leads to it.

Ref: spec policy §6 (reduction), §7, §9, §10 (packet rules of a via grant)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from gw.model.filterrule import CapGrant, FilterRule, NetPortRange, PortRange
from gw.policy.audience import Audience
from gw.policy.bits import ones
from gw.policy.compiled import Unit, UnitKind
from gw.policy.ipsets import INTERNET
from gw.policy.services import Ports
from gw.policy.spans import Span, SpanSet, address_text, networks, overlap
from gw.policy.view import Entry, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)
_Rules = dict[tuple[int, tuple[int, ...]], FilterRule]

_INTERNET = SpanSet(INTERNET)


def filter_for(view: PolicyView[N], node: N) -> list[FilterRule]:
    """The rules that `node` enforces on arriving packets; empty means that nothing may come in."""
    entry = view.entries[node.id]
    rules: _Rules = {}
    grants: list[FilterRule] = []
    for index in ones(entry.standing.receives):
        unit = view.compiled.units[index]
        if unit.kind is UnitKind.NETWORK:
            targets = _via_targets(unit, entry) if unit.grant.via else _targets(unit, entry)
            _add(rules, unit, view.sources(unit), targets)
        elif unit.kind is UnitKind.CAPABILITY:
            dsts = _capability_targets(view, unit, entry)
            if dsts:
                grants.append(_capability_rule(unit, view.sources(unit), dsts))
    for index in ones(_own_units(view, entry)):
        _add_own(view, view.compiled.own_units[index], entry, rules, grants)
    return [*rules.values(), *grants]


def _own_units(view: PolicyView[N], entry: Entry[N]) -> int:
    """Own units that any device of the node's owner is a source of."""
    found = 0
    for device in view.household(entry.facts.owner):
        found |= device.standing.own
    return found


def _add_own(
    view: PolicyView[N],
    unit: Unit,
    entry: Entry[N],
    rules: _Rules,
    grants: list[FilterRule],
) -> None:
    devices = view.household(entry.facts.owner)
    allowed = [device for device in devices if device.standing.own >> unit.index & 1]
    sources = SpanSet((place, place) for device in allowed for place in device.facts.places).text()
    own = [address_text(place) for place in entry.facts.places]
    if unit.kind is UnitKind.NETWORK:
        _add(rules, unit, sources, own)
    elif not unit.reverse:
        grants.append(_capability_rule(unit, sources, _prefixes(entry.facts.places)))
    elif entry.standing.own >> unit.index & 1:
        everyone = SpanSet((place, place) for device in devices for place in device.facts.places).text()
        grants.append(_capability_rule(unit, everyone, _prefixes(entry.facts.places)))


def _add(rules: _Rules, unit: Unit, sources: list[str], targets: list[str]) -> None:
    """Rules with equal sources and protocol become one."""
    if not sources or not targets:
        return
    by_protocol: dict[tuple[int, ...], list[Ports]] = {}
    for service in unit.grant.services:
        protocols: tuple[int, ...] = (service.protocol,) if service.protocol else ()
        by_protocol.setdefault(protocols, []).append(service.ports)
    for protocols, ports in by_protocol.items():
        opened = [NetPortRange(ip=target, ports=PortRange(*each)) for target in targets for each in ports]
        key = (id(sources), protocols)  # rules of equal sources share their list
        known = rules.get(key)
        if known is None:
            rules[key] = FilterRule(src_ips=sources, dst_ports=opened, ip_proto=list(protocols) or None)
        else:
            known.dst_ports = [*(known.dst_ports or ()), *opened]


def _targets(unit: Unit, entry: Entry[N]) -> list[str]:
    """What of a rule's destinations concerns the node, as `DstPorts` say it."""
    audience, facts = unit.destinations, entry.facts
    if audience.everybody:
        return ["*"]
    found: list[str] = []
    if audience.has_owner(facts.owner, facts.tags):
        found += [address_text(place) for place in facts.places]
    for text, piece in audience.pieces:
        is_ours = any(piece[0] <= place <= piece[1] for place in facts.places)
        is_routed = any(overlap(piece, route) for route in facts.routes)
        if is_ours or is_routed or (facts.is_exit and _INTERNET.covers(piece)):
            found.append(text)
    return list(dict.fromkeys(found))


def _via_targets(unit: Unit, entry: Entry[N]) -> list[str]:
    facts = entry.facts
    if unit.destinations.everybody:  # the subnets behind the node, never the node itself
        return [str(network) for route in facts.routes for network in networks(route)]
    found: list[str] = []
    for text, piece in unit.destinations.pieces:
        is_internet = unit.destinations.has_internet and facts.is_exit and _INTERNET.covers(piece)
        if is_internet or any(overlap(piece, route) for route in facts.routes):
            found.append(text)
    return found


def _capability_targets(view: PolicyView[N], unit: Unit, entry: Entry[N]) -> list[str]:
    """Own addresses, and whole prefixes that overlap a subnet which the node serves."""
    audience, facts = unit.destinations, entry.facts
    if audience.anything or audience.has_owner(facts.owner, facts.tags):
        places: Iterable[int] = facts.places
    else:
        places = [place for place in facts.places if _is_meant(view, audience, place)]
    found = _prefixes(places)
    for _, piece in audience.pieces:
        if piece[0] != piece[1] and any(overlap(piece, route) for route in facts.routes):
            found += [str(network) for network in networks(piece)]
    return found


def _is_meant(view: PolicyView[N], audience: Audience, place: int) -> bool:
    return place in audience.literals or (audience.everybody and place in view.compiled.pools)


def _capability_rule(unit: Unit, sources: list[str], dsts: list[str]) -> FilterRule:
    values = {name: [msgspec.Raw(each.encode()) for each in texts] or None for name, texts in unit.capabilities}
    return FilterRule(src_ips=sources, cap_grant=[CapGrant(dsts=dsts, cap_map=values)])


def _prefixes(places: Iterable[int]) -> list[str]:
    spans: list[Span] = [(place, place) for place in places]
    return [str(network) for each in spans for network in networks(each)]
