"""The source list of one rule, kept while nodes come and go.

    any address         ["*"]
    `*`                 the tailnet's pools, every approved subnet, and whatever else the rule names beyond them
    else                maximal spans of the addresses of all nodes meant, and of literal ones

Ref: spec policy §6 (sources), §14 (postures)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, final

from gw.policy.audience import Audience
from gw.policy.compiled import Compiled
from gw.policy.spans import EVERYTHING, SpanSet, span, span_text, without


@final
class SourceList:
    """Nodes' addresses are added and removed one by one; literal ones are always in."""

    def __init__(self, audience: Audience, compiled: Compiled, asks_posture: bool, places: Iterable[int]) -> None:
        """asks_posture: nodes count one by one even where a literal address or `*` names them."""
        self._audience: Final = audience
        self._pools: Final = compiled.pools
        self._asks_posture: Final = asks_posture
        literals = list(audience.literals)
        if asks_posture:
            for pool in compiled.pools:
                literals = without(literals, pool)
        self._fixed: Final = SpanSet(literals)
        self._spans = SpanSet([*literals, *((place, place) for place in places)])
        self._text: list[str] | None = None
        self._routes: frozenset[str] | None = None

    def add(self, place: int) -> None:
        if place not in self._fixed:
            self._spans.add(place)
            self._text = None

    def remove(self, place: int) -> None:
        if place not in self._fixed:
            self._spans.remove(place)
            self._text = None

    def text(self, routes: frozenset[str]) -> list[str]:
        """As `SrcIPs`; the same object until it changes. routes: approved subnets of all nodes."""
        if self._audience.anything:
            return ["*"]
        if self._audience.everybody:
            if self._text is None or routes is not self._routes:
                self._routes, self._text = routes, self._everybody(routes)
        elif self._text is None:
            self._text = self._spans.text()
        return self._text

    def spans(self, routes: Collection[str]) -> SpanSet:
        """The same as a set."""
        if self._audience.anything:
            return SpanSet(EVERYTHING)
        if not self._audience.everybody:
            return self._spans
        pools = [] if self._asks_posture else list(self._pools)
        return SpanSet([*pools, *(span(route) for route in routes), *self._spans])

    def _everybody(self, routes: frozenset[str]) -> list[str]:
        found = [] if self._asks_posture else self._pools.text()
        found += sorted(routes - set(found))
        found += [span_text(each) for each in self._spans if self._asks_posture or not self._pools.covers(each)]
        return list(dict.fromkeys(found))
