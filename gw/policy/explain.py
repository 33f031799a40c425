"""Why a packet may pass or may not: the rules that allow it, or the one that nearly does and what it lacks.

Ref: spec policy §4.4, §6, §10
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, final

from gw.policy.bits import Bits, ones
from gw.policy.compiled import Unit
from gw.policy.decisions import Decider
from gw.policy.faults import PolicyError
from gw.policy.hujson import compact, parse, position
from gw.policy.services import PROTOCOLS, WITH_PORTS, parse_protocol, protocol_name
from gw.policy.spans import address_at, is_v6, number
from gw.policy.topology import TopologyNode
from gw.policy.view import Entry, PolicyView

View = PolicyView[TopologyNode]
_Families = tuple[Bits, Bits]  # by IPv4, by IPv6

MAX_MISSES: Final = 3


@final
@dataclass(frozen=True, slots=True)
class Question:
    """source, target: a node's name or address, or an address beyond the nodes. port: 0 for protocols without."""

    source: str
    target: str
    protocol: int
    port: int

    def __str__(self) -> str:
        name = protocol_name(self.protocol)
        target = f"[{self.target}]" if ":" in self.target else self.target
        return f"{self.source} -> {target}:{self.port}/{name}" if self.port else f"{self.source} -> {target}/{name}"


@final
@dataclass(frozen=True, slots=True)
class Miss:
    """A rule that would allow it, but for `lacks`."""

    rule: Rule
    lacks: str


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """A place in the policy's text; line 0 for the default policy, which has none."""

    line: int
    column: int
    text: str


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """allowed_by: the rules that do. through: the routers that a packet beyond the nodes goes by. note: what else
    stands in the way. suggestion: a rule that would allow it."""

    question: Question
    allowed_by: list[Rule]
    through: list[str]
    misses: list[Miss]
    note: str = ""
    suggestion: str = ""

    @property
    def is_allowed(self) -> bool:
        return bool(self.allowed_by)

    def plain(self) -> dict[str, Any]:
        """For JSON."""

        def shown(rule: Rule) -> dict[str, Any]:
            return {"line": rule.line, "column": rule.column, "text": rule.text}

        return {
            "question": str(self.question),
            "allowed": self.is_allowed,
            "rules": [shown(rule) for rule in self.allowed_by],
            "through": self.through,
            "nearest": [{**shown(miss.rule), "lacks": miss.lacks} for miss in self.misses],
            "note": self.note,
            "suggestion": self.suggestion,
        }


def parse_question(source: str, target: str) -> Question:
    """`nas:22`, `nas:22/udp`, `nas/icmp`, `[fd7a::1]:443`. Raises ValueError."""
    rest, slash, name = target.rpartition("/")
    protocol = parse_protocol(name) if slash and (name.lower() in PROTOCOLS or name.isdigit()) else 0
    rest = rest if protocol else target
    host, colon, port = rest.rpartition(":")
    if colon and (":" not in host or host.startswith("[")) and port.isdigit():
        protocol = protocol or 6
        if not 0 < int(port) < 65536:
            raise ValueError(f"no such port: `{port}`")
        return Question(source, host.strip("[]"), protocol, int(port))
    if not protocol or protocol in WITH_PORTS:
        raise ValueError(f"which port of `{target}`? HOST:PORT, HOST:PORT/udp or HOST/icmp")
    return Question(source, rest.strip("[]"), protocol, 0)


@final
class Explainer:
    """Answers about one policy over one tailnet."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._decider = Decider(view)
        self._rules: dict[int, str] | None = None  # by their place in the text
        self._names = {entry.node.name: entry for entry in view.entries.values()}
        self._places = {place: entry for entry in view.entries.values() for place in entry.facts.places}

    def explain(self, question: Question) -> Explanation:
        """Raises PolicyError where source or target is unknown."""
        compiled = self._view.compiled
        source, sources = self._source(question.source)
        target, targets, routers, wanted = self._target(question.target)
        opening = compiled.services.opening(question.protocol, question.port)
        allowing = [
            compiled.units[index] for index in ones((sources[0] & targets[0] | sources[1] & targets[1]) & opening)
        ]
        if source is not None and target is not None and source is not target:
            _, own = self._decider.units(source, target, question.protocol, question.port)
            allowing += [compiled.own_units[index] for index in ones(own)]
        note = ""
        if target is None and not routers:
            note = f"no node has an approved route to {question.target}"
        elif source is not None and source is target:
            note = "a node reaches itself without asking the policy"
        misses = [] if allowing else self._misses(question, sources[0] | sources[1], wanted, opening)
        return Explanation(
            question,
            [self._rule(unit) for unit in allowing],
            [router.node.name for router in routers],
            misses,
            note,
            "" if allowing or note else self._suggestion(question, source, target),
        )

    def _source(self, text: str) -> tuple[Entry[TopologyNode] | None, _Families]:
        """Whose it is, and the units that it is a source of by its IPv4 and by its IPv6 address."""
        entry, place = self._find(text)
        if entry is not None:
            standing = entry.standing
            return entry, _of_family(place, standing.source4, standing.source6)
        compiled = self._view.compiled
        found = compiled.sources.literals.at(place or 0) | compiled.sources.anything
        if (place or 0) in compiled.pools or self._routers(place or 0, exits=False):
            found |= compiled.sources.everybody
        return None, _of_family(place, found, found)

    def _target(self, text: str) -> tuple[Entry[TopologyNode] | None, _Families, list[Entry[TopologyNode]], Bits]:
        """Whose it is, the units that open it, the routers on the way, and the units whose destinations it is among."""
        entry, place = self._find(text)
        if entry is not None:
            standing = entry.standing
            found = _of_family(place, standing.target4, standing.target6)
            return entry, found, [], found[0] | found[1]
        destinations = self._view.compiled.destinations
        wanted = destinations.literals.at(place or 0) | destinations.everybody
        routers = self._routers(place or 0)
        opened = 0
        for router in routers:
            opened |= router.standing.receives & wanted
        return None, _of_family(place, opened, opened), routers, wanted

    def _find(self, text: str) -> tuple[Entry[TopologyNode] | None, int | None]:
        """The node, if it is one, and the place, if an address was given."""
        entry = self._names.get(text) or self._names.get(text.lower()) or self._names.get(text.partition(".")[0])
        if entry is not None:
            return entry, None
        try:
            place = number(text)
        except ValueError:
            raise PolicyError(f"no such node: `{text}`") from None
        return self._places.get(place), place

    def _routers(self, place: int, *, exits: bool = True) -> list[Entry[TopologyNode]]:
        """Who serves a subnet with this address, or, where nobody does, the exit nodes."""
        found = [
            entry
            for entry in self._view.entries.values()
            if any(first <= place <= last for first, last in entry.facts.routes)
        ]
        if found or not exits or place in self._view.compiled.pools:
            return found
        return [entry for entry in self._view.entries.values() if entry.facts.is_exit]

    def _misses(self, question: Question, source: Bits, target: Bits, opening: Bits) -> list[Miss]:
        """Rules that hold two of the three: source, destination, service."""
        compiled = self._view.compiled
        network = compiled.network
        found: list[Miss] = []
        for bits, what in (
            (source & target & ~opening & network, f"its ports do not include {_service(question)}"),
            (source & opening & ~target & network, f"`{question.target}` is not among its destinations"),
            (target & opening & ~source & network, f"`{question.source}` is not among its sources"),
        ):
            found += [Miss(self._rule(compiled.units[index]), what) for index in ones(bits)]
        return found[:MAX_MISSES]

    def _rule(self, unit: Unit) -> Rule:
        text = self._view.policy.text
        if not text or self._view.policy.grants is None:
            return Rule(0, 0, "the default policy, which allows everything")
        line, column = position(text, unit.grant.at)
        if self._rules is None:
            self._rules = dict(_objects(text))
        return Rule(line, column, self._rules[unit.grant.at])

    def _suggestion(
        self, question: Question, source: Entry[TopologyNode] | None, target: Entry[TopologyNode] | None
    ) -> str:
        service = f"{protocol_name(question.protocol)}:{question.port or '*'}"
        sources = self._called(source, question.source)
        targets = self._called(target, question.target)
        return f'{{"src": ["{sources}"], "dst": ["{targets}"], "ip": ["{service}"]}}'

    def _called(self, entry: Entry[TopologyNode] | None, text: str) -> str:
        """As a rule should name it: by tag or owner rather than by address."""
        if entry is None:
            return text
        if entry.facts.tags:
            return min(entry.facts.tags)
        user = self._view.compiled.people.by_name.get(entry.facts.owner)
        if user is not None:
            return user.email or f"{user.name}@"
        return str(address_at(entry.facts.places[0])) if entry.facts.places else text


def _of_family(place: int | None, bits4: Bits, bits6: Bits) -> _Families:
    """What counts where an address of one family was given."""
    if place is None:
        return bits4, bits6
    return (0, bits6) if is_v6(place) else (bits4, 0)


def _service(question: Question) -> str:
    name = protocol_name(question.protocol)
    name = f"protocol {name}" if name.isdigit() else name
    return f"{name} {question.port}" if question.port else name


def _objects(text: bytes) -> Iterable[tuple[int, str]]:
    """Every rule, comments dropped, and where it begins."""
    root = parse(text)
    if isinstance(root.data, dict):
        for name, member in root.data.items():
            if name.lower() in ("acls", "grants") and isinstance(member.value.data, list):
                for item in member.value.data:
                    yield item.start, compact(text, item)
