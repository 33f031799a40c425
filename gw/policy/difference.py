"""What a new policy would open and close for the nodes there are: at nodes, behind routers, by SSH, by capability; and
which attributes and approvals nodes would gain and lose.

Nodes that stand alike in both policies are one group, so that the answer is about groups and stays short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import msgspec

from gw.policy.attributes import NodeGifts
from gw.policy.logins import Login, login_of, logins
from gw.policy.reach import (
    NOTHING,
    Capabilities,
    TopologyEntry,
    View,
    atoms_of,
    behind,
    capabilities,
    capabilities_behind,
    cuts,
    place_texts,
    service_texts,
    services,
)
from gw.policy.spans import Span

Names = tuple[str, ...]
SHOWN_NAMES: Final = 4


@final
@dataclass(frozen=True, slots=True)
class Edge:
    """Nodes that may reach others, or places behind a router, by these services. All by name."""

    sources: Names
    targets: Names
    services: Names
    via: str = ""

    def plain(self) -> dict[str, Any]:
        via = {"via": self.via} if self.via else {}
        return {"src": list(self.sources), "dst": list(self.targets), "ip": list(self.services)} | via

    def __str__(self) -> str:
        return f"{_way(self.sources, self.targets, self.via)}: {', '.join(self.services)}"


@final
@dataclass(frozen=True, slots=True)
class SshEdge:
    """Nodes whose people may log in at others under these names. action: `accept` or `check`."""

    sources: Names
    targets: Names
    users: Names
    action: str
    accept_env: Names = ()

    def plain(self) -> dict[str, Any]:
        said = {"src": list(self.sources), "dst": list(self.targets), "users": list(self.users), "action": self.action}
        return said | ({"acceptEnv": list(self.accept_env)} if self.accept_env else {})

    def __str__(self) -> str:
        env = f", environment {', '.join(self.accept_env)}" if self.accept_env else ""
        return f"ssh {_way(self.sources, self.targets)} as {', '.join(self.users)}: {self.action}{env}"


@final
@dataclass(frozen=True, slots=True)
class AppEdge:
    """Nodes that are granted a capability at others, or at places behind a router. values: as JSON."""

    sources: Names
    targets: Names
    name: str
    values: Names
    via: str = ""

    def plain(self) -> dict[str, Any]:
        values = [msgspec.Raw(each.encode()) for each in self.values]
        said = {"src": list(self.sources), "dst": list(self.targets), "app": {self.name: values}}
        return said | ({"via": self.via} if self.via else {})

    def __str__(self) -> str:
        shown = f" {', '.join(self.values)}" if self.values else ""
        return f"app {_way(self.sources, self.targets, self.via)}: {self.name}{shown}"


@final
@dataclass(frozen=True, slots=True)
class AttributeChange:
    """Nodes that have an attribute. values: as JSON."""

    nodes: Names
    name: str
    values: Names = ()

    def plain(self) -> dict[str, Any]:
        values = {"values": [msgspec.Raw(each.encode()) for each in self.values]} if self.values else {}
        return {"nodes": list(self.nodes), "attr": self.name} | values

    def __str__(self) -> str:
        shown = f" {', '.join(self.values)}" if self.values else ""
        return f"attribute of {_some(self.nodes)}: {self.name}{shown}"


@final
@dataclass(frozen=True, slots=True)
class Approval:
    """A node whose routes need nobody's approval."""

    node: str
    routes: Names

    def plain(self) -> dict[str, Any]:
        return {"node": self.node, "routes": list(self.routes)}

    def __str__(self) -> str:
        return f"approved by itself at {self.node}: {', '.join(self.routes)}"


Change = Edge | SshEdge | AppEdge | AttributeChange | Approval


@final
@dataclass(slots=True)
class Side:
    """All that is gained, or all that is lost."""

    nodes: list[Edge] = field(default_factory=list)
    routes: list[Edge] = field(default_factory=list)
    ssh: list[SshEdge] = field(default_factory=list)
    app: list[AppEdge] = field(default_factory=list)
    attributes: list[AttributeChange] = field(default_factory=list)
    approvals: list[Approval] = field(default_factory=list)

    def all(self) -> list[Change]:
        return [*self.nodes, *self.routes, *self.ssh, *self.app, *self.attributes, *self.approvals]


_SECTIONS: Final[dict[str, Callable[[Side], Iterable[Change]]]] = {
    "routes": lambda side: side.routes,
    "ssh": lambda side: side.ssh,
    "app": lambda side: side.app,
    "nodeAttrs": lambda side: side.attributes,
    "autoApprovers": lambda side: side.approvals,
}


@final
@dataclass(frozen=True, slots=True)
class Difference:
    gained: Side
    lost: Side

    def plain(self) -> dict[str, Any]:
        """For JSON: `gained` and `lost` are about nodes; each other section has its own two lists."""

        def shown(side: Side, of: Callable[[Side], Iterable[Change]]) -> list[dict[str, Any]]:
            return [each.plain() for each in of(side)]

        found: dict[str, Any] = {
            "gained": shown(self.gained, lambda side: side.nodes), "lost": shown(self.lost, lambda side: side.nodes),
        }  # fmt: skip
        for name, of in _SECTIONS.items():
            found[name] = {"gained": shown(self.gained, of), "lost": shown(self.lost, of)}
        return found

    def lines(self) -> list[str]:
        """For people."""
        return [f"{sign} {each}" for sign, side in (("+", self.gained), ("-", self.lost)) for each in side.all()]


def difference(old: View, new: View) -> Difference:
    """Two views of the same nodes."""
    found = Difference(Side(), Side())
    groups = _groups(old, new)
    for sources in groups:
        for targets in groups:
            if sources is not targets or len(sources) > 1:
                _between(found, (old, new), sources, targets)
    _behind(found, (old, new), groups)
    _by_ssh(found, old, new)
    _given(found, old, new)
    return found


_Both = tuple[View, View]


def _groups(old: View, new: View) -> list[list[int]]:
    """Ids of the nodes that stand alike in both."""
    groups: dict[object, list[int]] = {}
    for id_, entry in new.entries.items():
        was = old.entries[id_].standing
        owner = entry.facts.owner if entry.standing.own | was.own else ""
        groups.setdefault((entry.standing, was, owner, tuple(entry.routes)), []).append(id_)
    return list(groups.values())


def _sides(found: Difference) -> tuple[tuple[Side, bool], tuple[Side, bool]]:
    return (found.gained, True), (found.lost, False)


def _between(found: Difference, views: _Both, sources: list[int], targets: list[int]) -> None:
    target = targets[0] if targets[0] != sources[0] else targets[-1]
    pairs = [(view, view.entries[sources[0]], view.entries[target]) for view in views]
    before, after = (services(*each) for each in pairs)
    had, has = (capabilities(*each) for each in pairs)
    names = _names(views[1], sources), _names(views[1], targets)
    for side, is_gain in _sides(found):
        opened = service_texts(after, before) if is_gain else service_texts(before, after)
        if opened:
            side.nodes.append(Edge(*names, opened))
        side.app += [AppEdge(*names, *each) for each in _apps(has - had if is_gain else had - has)]


def _behind(found: Difference, views: _Both, groups: list[list[int]]) -> None:
    """What lies behind each router, and the internet behind each exit node."""
    routers = [id_ for id_, entry in views[1].entries.items() if entry.routes or entry.facts.is_exit]
    places = cuts(views) if routers else []
    for id_ in routers:
        name = views[1].entries[id_].node.name
        atoms = atoms_of(views[1].entries[id_], places)
        for group in groups:
            sources = [each for each in group if each != id_]
            if not sources:
                continue
            ways = [(view, view.entries[sources[0]], view.entries[id_]) for view in views]
            changed: dict[tuple[bool, Names], list[Span]] = {}
            opened = zip(atoms, behind(*ways[0], atoms), behind(*ways[1], atoms), strict=True)
            for atom, before, after in opened:
                if before is NOTHING and after is NOTHING:
                    continue
                for is_gain, texts in ((True, service_texts(after, before)), (False, service_texts(before, after))):
                    if texts:
                        changed.setdefault((is_gain, texts), []).append(atom)
            names = _names(views[1], sources)
            for (is_gain, texts), where in changed.items():
                side = found.gained if is_gain else found.lost
                side.routes.append(Edge(names, place_texts(where), texts, name))
            had, has = (capabilities_behind(*each) for each in ways)
            for side, more, less in ((found.gained, has, had), (found.lost, had, has)):
                for text, granted in more.items():
                    more_ = granted - less.get(text, frozenset())
                    side.app += [AppEdge(names, (text,), *each, via=name) for each in _apps(more_)]


def _apps(granted: Capabilities) -> list[tuple[str, Names]]:
    """Name and values of each capability."""
    by_name: dict[str, list[str]] = {}
    for name, value in sorted(granted):
        by_name.setdefault(name, []).extend([value] if value else [])
    return [(name, tuple(values)) for name, values in by_name.items()]


def _by_ssh(found: Difference, old: View, new: View) -> None:
    before, after = logins(old), logins(new)
    names = {id_: entry.node.name for id_, entry in new.entries.items()}
    for side, more, less in ((found.gained, after, before), (found.lost, before, after)):
        by_users: dict[tuple[int, int, Login], list[str]] = {}
        for pair, granted in more.items():
            for user, login in granted.items():
                if login_of(less.get(pair, {}), user) != login:
                    by_users.setdefault((*pair, login), []).append(user)
        by_target: dict[tuple[int, Names, Login], list[int]] = {}
        for (source, target, login), users in by_users.items():
            by_target.setdefault((source, tuple(sorted(users)), login), []).append(target)
        by_source: dict[tuple[Names, Names, Login], list[str]] = {}
        for (source, users_, login), targets in by_target.items():
            there = tuple(sorted(names[target] for target in targets))
            by_source.setdefault((there, users_, login), []).append(names[source])
        side.ssh += [
            SshEdge(tuple(sorted(sources)), there, users_, login.action, login.accept_env)
            for (there, users_, login), sources in by_source.items()
        ]


def _given(found: Difference, old: View, new: View) -> None:
    """Attributes and approvals."""
    gifts = NodeGifts(old.compiled), NodeGifts(new.compiled)
    attributes: dict[tuple[bool, str, Names], list[str]] = {}
    for id_, entry in new.entries.items():
        entries = old.entries[id_], entry
        had, has = (_attributes(each, at) for each, at in zip(gifts, entries, strict=True))
        was, now = (each.approved(at, at.node.advertised) for each, at in zip(gifts, entries, strict=True))
        for side, is_gain in _sides(found):
            more, less = (has, had) if is_gain else (had, has)
            for name, values in more.items():
                if name not in less or set(values) - set(less[name]):
                    rest = tuple(each for each in values if each not in less.get(name, ()))
                    attributes.setdefault((is_gain, name, rest), []).append(entry.node.name)
            routes = [each for each in (now if is_gain else was) if each not in (was if is_gain else now)]
            if routes:
                side.approvals.append(Approval(entry.node.name, tuple(routes)))
    for (is_gain, name, values), nodes in attributes.items():
        side = found.gained if is_gain else found.lost
        side.attributes.append(AttributeChange(tuple(sorted(nodes)), name, values))


def _attributes(gifts: NodeGifts, entry: TopologyEntry) -> Mapping[str, Names]:
    found = gifts.attributes(entry, is_mac=entry.node.posture_attributes.get("node:os") == "macos")
    return {name: tuple(values or ()) for name, values in found.items()}


def _names(view: View, ids: list[int]) -> Names:
    return tuple(sorted(view.entries[id_].node.name for id_ in ids))


def _way(sources: Names, targets: Names, via: str = "") -> str:
    return f"{_some(sources)} -> {_some(targets)}{f' via {via}' if via else ''}"


def _some(names: Names) -> str:
    shown = ", ".join(names[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown
