"""The policy in force over the nodes there are: who sees whom, who may reach what, and whose rules a change touches.

Nodes that stand alike in the policy form one class, so that a question about all nodes is a question about the classes:
a tailnet of 50,000 nodes has about as many as it has groups of people. A change of one node costs what it touches.

Ref: spec policy §6, §10, §15
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar, final

from gw.model.addresses import EXIT_ROUTES
from gw.policy.audience import Audience
from gw.policy.bits import Bits, ones
from gw.policy.compiled import Compiled, Facts, Standing, Unit
from gw.policy.model import Policy
from gw.policy.people import People, User
from gw.policy.postures import held
from gw.policy.sources import SourceList
from gw.policy.spans import Span, SpanSet, number, span


class PolicyNode(Protocol):
    """What a policy looks at. user: its owner's name; tags replace the owner completely."""

    @property
    def id(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def tags(self) -> Collection[str]: ...
    @property
    def addresses(self) -> Collection[str]: ...
    @property
    def served_routes(self) -> Collection[str]:
        """Advertised and approved."""

    @property
    def posture_attributes(self) -> Mapping[str, object]: ...


N = TypeVar("N", bound=PolicyNode)


@final
@dataclass(frozen=True, slots=True)
class Effect(Generic[N]):
    """What a change of one node did to others.

    filters: whose packet filter is another one now (the node may be among them). lost: who saw the node before and no
    longer does. anew: the node itself may see its peers differently.
    """

    filters: Collection[N] = ()
    lost: Collection[N] = ()
    anew: bool = False


@dataclass(slots=True)
class Entry(Generic[N]):
    """One node in the view. routes: its subnets as text -> span."""

    node: N
    facts: Facts
    standing: Standing
    routes: dict[str, Span]


@dataclass(slots=True, eq=False)
class _Class(Generic[N]):
    """Nodes that stand alike, by id."""

    members: dict[int, N] = field(default_factory=dict)


_ClassKey = tuple[Bits, Bits]
_NO_CLASS: Final[frozenset[Any]] = frozenset()


@final
class PolicyView(Generic[N]):
    """A policy over an index of nodes. Nothing here waits.

    Only `put_in_force` walks all nodes, and the first question for the sources of a rule with a posture.
    """

    def __init__(self, policy: Policy, pools: Iterable[str], users: Iterable[User] = ()) -> None:
        """pools: the tailnet's address prefixes. Raises PolicyError where the users make the policy ambiguous."""
        self.pools = list(pools)
        self.compiled = Compiled(policy, People(users, policy.groups), self.pools)
        self.entries: dict[int, Entry[N]] = {}
        self._classes: dict[_ClassKey, _Class[N]] = {}
        self._seeing: dict[int, set[_Class[N]]] = {}  # unit -> classes that see by it
        self._receiving: dict[int, set[_Class[N]]] = {}  # unit -> classes that receive its rule
        self._owners: dict[str, dict[int, Entry[N]]] = {}
        self._tags: dict[str, dict[int, Entry[N]]] = {}
        self._routes: dict[str, dict[int, Entry[N]]] = {}  # subnet -> who serves it
        self._lists: dict[tuple[object, ...], SourceList] = {}  # those that somebody asked for
        self._route_names: frozenset[str] | None = None

    @property
    def policy(self) -> Policy:
        return self.compiled.policy

    def put_in_force(self, compiled: Compiled) -> None:
        """Another policy, or the same one over other users."""
        before, self.compiled = self.compiled, compiled
        entries = list(self.entries.values())
        asks_posture = bool(compiled.policy.postures or before.policy.postures)
        for index in (
            self.entries,
            self._classes,
            self._seeing,
            self._receiving,
            self._owners,
            self._tags,
            self._routes,
            self._lists,
        ):
            index.clear()
        self._route_names = None
        for entry in entries:
            self._enter(entry.node, None if asks_posture else (entry.facts, entry.routes))

    # Nodes come, change and go

    def add(self, node: N) -> Effect[N]:
        """Take in a new node."""
        entry = self._enter(node)
        return Effect(list(self._touched(None, entry).values()), anew=True)

    def remove(self, node: N) -> Effect[N]:
        """Take out a node that was deleted."""
        entry = self.entries[node.id]
        saw = self.peers_of(node)
        self._leave(entry)
        touched = self._touched(entry, None)
        touched.pop(node.id, None)
        return Effect(list(touched.values()), saw)

    def update(self, node: N) -> Effect[N]:
        """Look again at a node whose user, tags, addresses, routes or posture may have changed."""
        before = self.entries[node.id]
        facts, routes = self._facts(node)
        if facts == before.facts and routes == before.routes:
            return Effect()
        self._leave(before)
        after = self._enter(node)
        lost = self._lost(before, after)
        touched = self._touched(before, after)
        is_same = before.standing == after.standing and before.facts.owner == after.facts.owner
        return Effect(list(touched.values()), lost, anew=not is_same or before.routes != after.routes)

    # Who sees whom

    def visible(self, viewer: N, other: N) -> bool:
        """Whether the two are in each other's network map: at least one may reach the other."""
        if viewer.id == other.id:
            return False
        one, two = self.entries[viewer.id], self.entries[other.id]
        return _see(_key(one), _key(two)) or self._share(one, two)

    def peers_of(self, node: N) -> list[N]:
        """The nodes that `node` sees, in no particular order."""
        entry = self.entries[node.id]
        found: dict[int, N] = {}
        for seen in self._seen_by(entry):
            found |= seen.members
        if entry.facts.owner:
            for id_, member in self._owners.get(entry.facts.owner, {}).items():
                if id_ not in found and self._share(entry, member):
                    found[id_] = member.node
        found.pop(node.id, None)
        return list(found.values())

    def audience_of(self, node: N) -> Hashable:
        """Nodes with equal answers are seen by the same others (and see one another or not alike)."""
        entry = self.entries[node.id]
        owner = entry.facts.owner if self.compiled.own_units else ""
        return entry.standing.seen, entry.standing.receives, entry.standing.own, owner

    def sees_its_like(self, node: N) -> bool:
        """Whether nodes with its audience see one another."""
        entry = self.entries[node.id]
        return _see(_key(entry), _key(entry)) or self._share(entry, entry)

    def serving(self, route: str) -> dict[int, Entry[N]]:
        """Who serves a subnet, by id."""
        return self._routes.get(route, {})

    def all_routes(self) -> frozenset[str]:
        """Every subnet that somebody serves; the same object until that changes."""
        if self._route_names is None:
            self._route_names = frozenset(self._routes)
        return self._route_names

    def household(self, owner: str) -> Collection[Entry[N]]:
        """The untagged devices of a user."""
        return self._owners.get(owner, {}).values() if owner else ()

    def owned(self, meant: Audience) -> dict[int, Entry[N]]:
        """The nodes that an audience means by owner or tag, by id."""
        found: dict[int, Entry[N]] = {}
        owners = self._owners if meant.member else meant.users & self._owners.keys()
        tags = self._tags if meant.tagged else meant.tags & self._tags.keys()
        for owner in owners:
            found |= self._owners[owner]
        for tag in tags:
            found |= self._tags[tag]
        return found

    def sources(self, unit: Unit) -> list[str]:
        """`SrcIPs` of a unit, shared by all who get it."""
        return self._source_list(unit).text(self.all_routes())

    def source_spans(self, unit: Unit) -> SpanSet:
        """The same as a set."""
        return self._source_list(unit).spans(self.all_routes())

    # Inside

    def _seen_by(self, entry: Entry[N]) -> set[_Class[N]]:
        """The classes whose nodes it sees by a rule, its own perhaps among them."""
        found: set[_Class[N]] = set()
        for unit in ones(entry.standing.seen):
            found |= self._receiving.get(unit, _NO_CLASS)
        for unit in ones(entry.standing.receives):
            found |= self._seeing.get(unit, _NO_CLASS)
        return found

    def _lost(self, before: Entry[N], after: Entry[N]) -> list[N]:
        """Who saw the node as it was and does not see it as it is."""
        lost: dict[int, N] = {}
        for each in self._seen_by(before) - self._seen_by(after):
            lost |= each.members
        now = _key(after)
        for member in self.household(before.facts.owner):
            if self._share(before, member) and not _see(now, _key(member)):
                lost[member.node.id] = member.node
        for member in self.household(after.facts.owner):
            if self._share(after, member):
                lost.pop(member.node.id, None)
        lost.pop(after.node.id, None)
        return list(lost.values())

    def _listed(self, unit: Unit) -> Iterable[Entry[N]]:
        """The nodes that a unit's source list names one by one."""
        if unit.asks_posture:
            return [entry for entry in self.entries.values() if entry.standing.listed >> unit.index & 1]
        if unit.sources.everybody or unit.sources.anything:
            return ()
        return self.owned(unit.sources).values()

    def _source_list(self, unit: Unit) -> SourceList:
        found = self._lists.get(unit.sources_key)
        if found is None:
            places = [place for entry in self._listed(unit) for place in entry.facts.places]
            found = SourceList(unit.sources, self.compiled, unit.asks_posture, places)
            self._lists[unit.sources_key] = found
        return found

    def _share(self, one: Entry[N], other: Entry[N]) -> bool:
        """Whether both are devices of one user that the policy lets reach each other."""
        owner = one.facts.owner
        return bool(owner and owner == other.facts.owner and one.standing.own | other.standing.own)

    def _facts(self, node: N) -> tuple[Facts, dict[str, Span]]:
        tags = frozenset(node.tags)
        served = node.served_routes
        routes = {text: span(text) for text in served if text not in EXIT_ROUTES}
        policy = self.compiled.policy
        facts = Facts(
            "" if tags else node.user,
            tags,
            tuple(number(address) for address in node.addresses),
            tuple(routes.values()),
            any(text in EXIT_ROUTES for text in served),
            held(policy.postures, node.posture_attributes) if policy.postures else frozenset(),
        )
        return facts, routes

    def _enter(self, node: N, known: tuple[Facts, dict[str, Span]] | None = None) -> Entry[N]:
        """known: its facts, where they are known to hold still."""
        facts, routes = known or self._facts(node)
        entry = Entry(node, facts, self.compiled.standing(facts), routes)
        self.entries[node.id] = entry
        self._class_of(entry).members[node.id] = node
        if facts.owner:
            self._owners.setdefault(facts.owner, {})[node.id] = entry
        for tag in facts.tags:
            self._tags.setdefault(tag, {})[node.id] = entry
        for route in routes:
            self._routes.setdefault(route, {})[node.id] = entry
            self._route_names = None
        self._list(entry, SourceList.add)
        return entry

    def _leave(self, entry: Entry[N]) -> None:
        id_ = entry.node.id
        del self.entries[id_]
        self._leave_class(entry)
        if entry.facts.owner:
            _take_out(self._owners, entry.facts.owner, id_)
        for tag in entry.facts.tags:
            _take_out(self._tags, tag, id_)
        for route in entry.routes:
            _take_out(self._routes, route, id_)
            self._route_names = None
        self._list(entry, SourceList.remove)

    def _class_of(self, entry: Entry[N]) -> _Class[N]:
        key = _key(entry)
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = _Class()
            for index, bits in ((self._seeing, key[0]), (self._receiving, key[1])):
                for unit in ones(bits):
                    index.setdefault(unit, set()).add(found)
        return found

    def _leave_class(self, entry: Entry[N]) -> None:
        key = _key(entry)
        left = self._classes[key]
        del left.members[entry.node.id]
        if not left.members:
            del self._classes[key]
            for index, bits in ((self._seeing, key[0]), (self._receiving, key[1])):
                for unit in ones(bits):
                    index[unit].discard(left)

    def _list(self, entry: Entry[N], edit: Callable[[SourceList, int], None]) -> None:
        if not self._lists:
            return
        for index in ones(entry.standing.listed):
            found = self._lists.get(self.compiled.units[index].sources_key)
            if found is not None:
                for place in entry.facts.places:
                    edit(found, place)

    def _touched(self, before: Entry[N] | None, after: Entry[N] | None) -> dict[int, N]:
        """Whose filter is another one after a node changed so.

        Who receives a rule whose source list changed, the other devices of its owner, and the node itself.
        """
        bits = 0
        old = before.standing.listed if before else 0
        new = after.standing.listed if after else 0
        places_differ = before is None or after is None or before.facts.places != after.facts.places
        bits |= (old | new) if places_differ else old ^ new
        changed = (before.routes if before else {}).keys() ^ (after.routes if after else {}).keys()
        if any(len(self._routes.get(route, {})) <= 1 for route in changed):
            bits |= self.compiled.sources.everybody
        touched: dict[int, N] = {}
        if bits:
            receivers: set[_Class[N]] = set()
            for unit in ones(bits):
                receivers |= self._receiving.get(unit, _NO_CLASS)
            for each in receivers:
                touched |= each.members
        for entry in (before, after):
            if entry is not None and entry.standing.own:
                touched |= {each.node.id: each.node for each in self.household(entry.facts.owner)}
        if after is not None and (before is None or before.facts != after.facts):
            touched[after.node.id] = after.node
        return touched


def _key(entry: Entry[N]) -> _ClassKey:
    """What tells classes apart: (seen, receives)."""
    return entry.standing.seen, entry.standing.receives


def _see(one: _ClassKey, other: _ClassKey) -> bool:
    return bool(one[0] & other[1] or other[0] & one[1])


K = TypeVar("K")


def _take_out(index: dict[K, dict[int, Entry[N]]], key: K, id_: int) -> None:
    members = index[key]
    del members[id_]
    if not members:
        del index[key]
