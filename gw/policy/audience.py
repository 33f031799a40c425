"""A list of selectors, resolved as far as it can be without nodes: whose nodes, which tags, which addresses.

Ref: spec policy §4.2, §6
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, final

from gw.policy.ipsets import INTERNET
from gw.policy.people import People
from gw.policy.selectors import Kind, Selector
from gw.policy.spans import Span, SpanSet, span_text


@final
class Audience:
    """users, tags: names. member, tagged: all untagged, all tagged nodes. everybody: `*`. anything: danger-all.

    pieces: literal addresses in the order of the text, each as it is written in a rule.
    """

    __slots__ = (
        "anything", "everybody", "has_internet", "is_empty", "literals", "member", "own", "pieces", "tagged", "tags",
        "users",
    )  # fmt: skip

    def __init__(self, selectors: Iterable[Selector], people: People, ipsets: Mapping[str, SpanSet]) -> None:
        users: frozenset[str] = frozenset()
        tags: set[str] = set()
        pieces: list[tuple[str, Span]] = []
        self.member = self.tagged = self.everybody = self.anything = self.own = self.has_internet = False
        self.is_empty = True
        for selector in selectors:
            self.is_empty = False
            named = people.named(selector)
            if named is not None:
                users = users | named if users else named
                continue
            match selector.kind:
                case Kind.TAG:
                    tags.add(selector.name)
                case Kind.ANY:
                    self.everybody = True
                case Kind.ADDRESS | Kind.HOST:
                    pieces.append((span_text(selector.at), selector.at))
                case Kind.IPSET:
                    pieces += [(span_text(each), each) for each in ipsets[selector.name]]
                case Kind.AUTOGROUP:
                    self._take_autogroup(selector.name, pieces)
        self.users: Final = users
        self.tags: Final = frozenset(tags)
        self.pieces: Final = tuple(pieces)
        self.literals: Final = SpanSet(each for _, each in pieces)

    def _take_autogroup(self, name: str, pieces: list[tuple[str, Span]]) -> None:
        match name:
            case "member":
                self.member = True
            case "tagged":
                self.tagged = True
            case "self":
                self.own = True
            case "danger-all":
                self.anything = True
            case "internet":
                self.has_internet = True
                pieces += [(span_text(each), each) for each in INTERNET]

    def has_owner(self, owner: str, tags: frozenset[str]) -> bool:
        """Whether nodes of this owner, or with these tags, are meant. Tags replace the owner completely."""
        if tags:
            return self.tagged or not self.tags.isdisjoint(tags)
        return self.member or owner in self.users
