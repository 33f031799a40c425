"""The policy specification read aloud: slow, without indexes, one sentence after another. A second opinion for tests.

Network rules, visibility and routes of spec policy §6, §7, §8, §10; capability rules only as far as they make visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gw.policy.ipsets import INTERNET
from gw.policy.model import Grant, Policy
from gw.policy.people import People, User
from gw.policy.selectors import Kind, Selector
from gw.policy.services import Service
from gw.policy.spans import EVERYTHING, Span, SpanSet, number, overlap, span, without
from gw.policy.topology import POOLS, DescribedNode, Topology

EXITS = ("0.0.0.0/0", "::/0")
Rule = tuple[list[Span], list[tuple[Span, tuple[int, ...], tuple[int, int]]]]  # sources; (target, protocols, ports)


@dataclass
class Plain:
    """One policy over one topology."""

    topology: Topology
    policy: Policy

    def __post_init__(self) -> None:
        users = [User(each.name, each.email, each.role, each.id) for each in self.topology.users]
        self.people = People(users, self.policy.groups)
        self.nodes = self.topology.nodes
        self.pools = without([span(text) for text in POOLS], span("100.115.92.0/23"))

    # Nodes

    def owner(self, node: DescribedNode) -> str:
        return "" if node.tags else node.user or ""

    def served(self, node: DescribedNode) -> list[str]:
        return [route for route in node.routes.advertised if route in node.routes.approved]

    def subnets(self, node: DescribedNode) -> list[str]:
        return [route for route in self.served(node) if route not in EXITS]

    def is_exit(self, node: DescribedNode) -> bool:
        return len(self.served(node)) > len(self.subnets(node))

    def places(self, node: DescribedNode) -> list[Span]:
        return [(number(ip), number(ip)) for ip in node.ips]

    # Selectors

    def is_named(self, selector: Selector, node: DescribedNode) -> bool:
        named = self.people.named(selector)
        if named is not None:
            return not node.tags and node.user in named
        if selector.kind is Kind.TAG:
            return selector.name in node.tags
        if selector.is_autogroup("member"):
            return not node.tags
        return selector.is_autogroup("tagged") and bool(node.tags)

    def spans(self, selector: Selector) -> list[Span]:
        """The prefixes of a selector, node by node; `*` is not asked for."""
        if selector.kind in (Kind.ADDRESS, Kind.HOST):
            return [selector.at]
        if selector.kind is Kind.IPSET:
            return list(self.policy.ipsets[selector.name])
        if selector.is_autogroup("internet"):
            return list(INTERNET)
        return [place for node in self.nodes if self.is_named(selector, node) for place in self.places(node)]

    def sources(self, grant: Grant) -> list[Span]:
        found: list[Span] = []
        for selector in grant.sources:
            if selector.is_autogroup("danger-all"):
                return list(EVERYTHING)
            if selector.kind is Kind.ANY:
                found += self.pools
                found += [span(route) for node in self.nodes for route in self.subnets(node)]
            else:
                found += self.spans(selector)
        return found

    # Rules

    def grants(self) -> tuple[Grant, ...]:
        anybody = (Selector(Kind.ANY, "*"),)
        default = Grant("grants", 0, anybody, anybody, (Service(),))
        return (default,) if self.policy.grants is None else self.policy.grants

    def rules(self, node: DescribedNode) -> list[Rule]:
        """The network rules of a node, after reduction."""
        found: list[Rule] = []
        for grant in self.grants():
            targets = self.via_targets(grant, node) if grant.via else self.targets(grant, node)
            if targets and self.sources(grant) and grant.services:
                found.append((self.sources(grant), self.opened(grant, targets)))
            own = self.own(grant, node)
            if own and grant.services:
                found.append((own, self.opened(grant, self.places(node))))
        return found

    def opened(self, grant: Grant, targets: list[Span]) -> list[tuple[Span, tuple[int, ...], tuple[int, int]]]:
        return [(target, service.protocols(), service.ports) for target in targets for service in grant.services]

    def targets(self, grant: Grant, node: DescribedNode) -> list[Span]:
        found: list[Span] = []
        for selector in grant.destinations:
            if selector.kind is Kind.ANY:
                found += EVERYTHING
            elif not selector.is_autogroup("self"):
                found += [piece for piece in self.spans(selector) if self.concerns(piece, node)]
        return found

    def concerns(self, piece: Span, node: DescribedNode) -> bool:
        return (
            any(overlap(place, piece) for place in self.places(node))
            or any(overlap(span(route), piece) for route in self.subnets(node))
            or (self.is_exit(node) and SpanSet(INTERNET).covers(piece))
        )

    def via_targets(self, grant: Grant, node: DescribedNode) -> list[Span]:
        if not set(grant.via) & set(node.tags):
            return []
        found: list[Span] = []
        for selector in grant.destinations:
            if selector.is_autogroup("internet"):
                found += INTERNET if self.is_exit(node) else ()
            elif not selector.is_autogroup("self"):
                pieces = self.spans(selector)
                found += [p for p in pieces if any(overlap(span(route), p) for route in self.subnets(node))]
        return found

    def own(self, grant: Grant, node: DescribedNode) -> list[Span]:
        """Sources of an `autogroup:self` rule at a node."""
        if grant.via or not self.owner(node) or not any(each.is_autogroup("self") for each in grant.destinations):
            return []
        devices = [each for each in self.nodes if self.owner(each) == self.owner(node)]
        return [
            place
            for device in devices
            if any(selector.kind is Kind.ANY or self.is_named(selector, device) for selector in grant.sources)
            for place in self.places(device)
        ]

    # Visibility and routes

    def may_reach(self, one: DescribedNode, other: DescribedNode) -> bool:
        ways = [*self.places(one), *(span(route) for route in self.subnets(one))]
        return any(
            overlap(source, way) for sources in self.received(other) for source in sources for way in ways
        ) or any(self.via_leads(grant, one, other) for grant in self.grants() if grant.via)

    def received(self, node: DescribedNode) -> list[list[Span]]:
        """The sources of every rule that a node receives, capability rules and their companions included."""
        found = [sources for sources, _ in self.rules(node)]
        for grant in self.grants():
            if not grant.capabilities or grant.via:
                continue
            if any(self.is_target(selector, node) for selector in grant.destinations):
                found.append(self.sources(grant))
            own = self.own(grant, node)
            if own:
                found.append(own)
            if {"tailscale.com/cap/drive", "tailscale.com/cap/relay"} & grant.capabilities.keys():
                others = [each for each in grant.destinations if not each.is_autogroup("self")]
                if any(self.is_target(selector, node) for selector in grant.sources):
                    found.append(self.sources(Grant("", 0, tuple(others), ())))
        return found

    def is_target(self, selector: Selector, node: DescribedNode) -> bool:
        """Whether a capability's destination leaves something at a node."""
        if selector.is_autogroup("self"):
            return False
        if selector.is_autogroup("danger-all"):
            return True
        pieces = self.pools if selector.kind is Kind.ANY else self.spans(selector)
        mine = any(overlap(place, piece) for place in self.places(node) for piece in pieces)
        routed = any(
            overlap(span(route), piece) for route in self.subnets(node) for piece in pieces if piece[0] != piece[1]
        )
        return mine or routed

    def via_leads(self, grant: Grant, one: DescribedNode, other: DescribedNode) -> bool:
        is_source = any(overlap(source, place) for source in self.sources(grant) for place in self.places(one))
        return is_source and bool(self.via_targets(grant, other))

    def peers(self, viewer: DescribedNode) -> dict[str, set[str]]:
        return {
            peer.name: self.routes(viewer, peer)
            for peer in self.nodes
            if peer is not viewer and (self.may_reach(viewer, peer) or self.may_reach(peer, viewer))
        }

    def routes(self, viewer: DescribedNode, peer: DescribedNode) -> set[str]:
        found = {route for route in self.subnets(peer) if self.is_shown(viewer, peer, route)}
        if self.is_exit(peer) and self.may_exit(viewer, peer):
            found |= set(EXITS)
        return found

    def is_shown(self, viewer: DescribedNode, peer: DescribedNode, route: str) -> bool:
        serving = sorted((node for node in self.nodes if route in self.subnets(node)), key=lambda node: node.id)
        plain = any(self.leads(grant, viewer, route, by_routes=True) for grant in self.grants() if not grant.via)
        steering = [grant for grant in self.grants() if grant.via and self.leads(grant, viewer, route, by_routes=False)]
        if steering and not plain:
            firsts = [[node for node in serving if set(node.tags) & set(grant.via)] for grant in steering]
            return any(first and first[0] is peer for first in firsts)
        if serving[0] is not peer:
            return False
        returning = any(overlap(source, span(route)) for sources in self.received(viewer) for source in sources)
        return plain or returning or route in self.subnets(viewer)

    def leads(self, grant: Grant, viewer: DescribedNode, route: str, *, by_routes: bool) -> bool:
        ways = self.places(viewer)
        if by_routes:
            ways += [span(each) for each in self.subnets(viewer)]
        if not any(overlap(source, way) for source in self.sources(grant) for way in ways):
            return False
        return any(
            selector.kind is Kind.ANY
            or (
                not selector.is_autogroup("self") and any(overlap(piece, span(route)) for piece in self.spans(selector))
            )
            for selector in grant.destinations
        )

    def may_exit(self, viewer: DescribedNode, peer: DescribedNode) -> bool:
        for grant in self.grants():
            if not grant.services and not (grant.via and grant.capabilities):
                continue
            if not any(overlap(source, place) for source in self.sources(grant) for place in self.places(viewer)):
                continue
            to_all = any(selector.kind is Kind.ANY for selector in grant.destinations)
            to_internet = any(selector.is_autogroup("internet") for selector in grant.destinations)
            if grant.via:
                if to_internet and set(grant.via) & set(peer.tags):
                    return True
            elif to_all or to_internet:
                return True
        return False


def as_rules(rules: list[Rule]) -> list[dict[str, Any]]:
    """In the form of the wire, for the vectors' comparison."""

    def text(of: Span) -> list[str]:
        return SpanSet([of]).text()

    return [
        {
            "SrcIPs": SpanSet(sources).text(),
            "DstPorts": [{"IP": each, "Ports": {"First": ports[0], "Last": ports[1]}} for each in text(target)],
            "IPProto": list(protocols),
        }
        for sources, opened in rules
        for target, protocols, ports in opened
    ]
