"""IP sets: named lists of addresses, made by adding and removing in order.

    "ipset:office": ["192.0.2.0/24", "add host:printer", "remove ipset:guests"]

Ref: spec policy §14
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import pairwise
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
        """Sets within a set first."""
        for first in self._defined:
            path = [first]
            unseen = {first: self._within(first)}  # of the sets on the path, those within that were not looked at
            while path:
                name = path[-1]
                inner = next((each for each in unseen[name] if each not in self.resolved), None)
                if inner is None:
                    self.resolved[name] = self._built(name, faults)
                    path.pop()
                    del unseen[name]
                elif inner in unseen:
                    faults.add(self._defined[inner][0], f'ipset "ipset:{inner}" contains itself')
                    self.resolved[inner] = SpanSet()
                else:
                    path.append(inner)
                    unseen[inner] = self._within(inner)

    def _within(self, name: str) -> Iterator[str]:
        for _, text in self._defined[name][1]:
            inner = _words(text)[1].removeprefix("ipset:")
            if inner in self._defined:
                yield inner

    def _built(self, name: str, faults: Faults) -> SpanSet:
        said: list[tuple[bool, Span]] = []
        for at, text in self._defined[name][1]:
            verb, target = _words(text)
            said += [(verb == "add", each) for each in self._target(at, target, faults)]
        return _last_said(said)

    def _target(self, at: int, text: str, faults: Faults) -> Iterable[Span]:
        if text == "autogroup:internet":
            return INTERNET
        if text.startswith("host:"):
            found = self._hosts.get(text.removeprefix("host:"))
            if found is None:
                faults.add(at, f'host not defined in policy: "{text.removeprefix("host:")}"')
            return () if found is None else (found,)
        if text.startswith("ipset:"):
            inner = text.removeprefix("ipset:")
            if inner not in self._defined:
                faults.add(at, f'ipset not defined in policy: "{text}"')
            return self.resolved.get(inner, ())
        try:
            return (span(text),)
        except ValueError:
            faults.add(at, f'invalid ipset target: "{text}"')
            return ()


def _words(text: str) -> tuple[str, str]:
    """(add or remove, target)"""
    words = text.split()
    if len(words) == 2 and words[0] in ("add", "remove"):
        return words[0], words[1]
    return "add", text.strip()


def _last_said(said: list[tuple[bool, Span]]) -> SpanSet:
    """The addresses of which the last entry about them says that they are in."""
    cuts = sorted({first for _, (first, _) in said} | {last + 1 for _, (_, last) in said})
    waiting = sorted(range(len(said)), key=lambda index: said[index][1][0], reverse=True)
    begun: list[tuple[int, int]] = []  # a heap of (-index, last address): the latest entry on top
    found: list[Span] = []
    for here, following in pairwise(cuts):
        while waiting and said[waiting[-1]][1][0] == here:
            index = waiting.pop()
            heappush(begun, (-index, said[index][1][1]))
        while begun and begun[0][1] < here:
            heappop(begun)
        if begun and said[-begun[0][0]][0]:
            found.append((here, following - 1))
    return SpanSet(found)
