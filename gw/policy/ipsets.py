"""IP sets: named lists of addresses, made by adding and removing in order.

    "ipset:office": ["192.0.2.0/24", "add host:printer", "remove ipset:guests"]

Ref: spec policy §14
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from gw.policy.fields import Faults
from gw.policy.spans import EVERYTHING, Span, SpanSet, span, without

INTERNET: Final[tuple[Span, ...]] = tuple(
    piece
    for piece in SpanSet(
        [
            *without(
                without(
                    without(
                        without(without([EVERYTHING[0]], span("10.0.0.0/8")), span("100.64.0.0/10")),
                        span("169.254.0.0/16"),
                    ),
                    span("172.16.0.0/12"),
                ),
                span("192.168.0.0/16"),
            ),
            span("2000::/3"),
        ]
    )
)


@final
class IpSets:
    """Definitions first, then `resolve`; `resolved` holds those without fault."""

    def __init__(self, hosts: Mapping[str, Span]) -> None:
        self.resolved: dict[str, SpanSet] = {}
        self._hosts = hosts
        self._defined: dict[str, tuple[int, list[tuple[int, str]]]] = {}

    def define(self, name: str, at: int, entries: list[tuple[int, str]]) -> None:
        self._defined[name] = (at, entries)

    def resolve(self, faults: Faults) -> None:
        for name in self._defined:
            self._spans_of(name, (), faults)

    def _spans_of(self, name: str, within: tuple[str, ...], faults: Faults) -> SpanSet:
        known = self.resolved.get(name)
        if known is not None:
            return known
        at, entries = self._defined[name]
        spans: list[Span] = []
        if name in within:
            faults.add(at, f'ipset "ipset:{name}" contains itself')
            return SpanSet()
        for place, text in entries:
            words = text.split()
            verb = words.pop(0) if len(words) == 2 and words[0] in ("add", "remove") else "add"
            targets = self._target(place, words[0] if len(words) == 1 else text, (*within, name), faults)
            if verb == "add":
                spans += targets
            else:
                for target in targets:
                    spans = without(spans, target)
        self.resolved[name] = SpanSet(spans)
        return self.resolved[name]

    def _target(self, at: int, text: str, within: tuple[str, ...], faults: Faults) -> list[Span]:
        if text == "autogroup:internet":
            return list(INTERNET)
        if text.startswith("host:"):
            found = self._hosts.get(text.removeprefix("host:"))
            if found is None:
                faults.add(at, f'host not defined in policy: "{text.removeprefix("host:")}"')
            return [] if found is None else [found]
        if text.startswith("ipset:"):
            name = text.removeprefix("ipset:")
            if name not in self._defined:
                faults.add(at, f'ipset not defined in policy: "{text}"')
                return []
            return list(self._spans_of(name, within, faults))
        try:
            return [span(text)]
        except ValueError:
            faults.add(at, f'invalid ipset target: "{text}"')
            return []
