"""May one node reach another, on this protocol and port? Two look-ups and an AND, whatever the number of rules.

Ref: spec policy §4.4 (client facts), §6
"""

from __future__ import annotations

from typing import Generic, TypeVar, final

from gw.policy.bits import Bits
from gw.policy.view import Entry, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)


@final
class Decider(Generic[N]):
    """Asks a view; what it needs for a port is kept until the policy changes."""

    def __init__(self, view: PolicyView[N]) -> None:
        self._view = view
        self._compiled = view.compiled
        self._opening: dict[tuple[int, int], tuple[Bits, Bits]] = {}

    def allows(self, source: N, target: N, protocol: int, port: int) -> bool:
        """Whether the target's own addresses take such packets from the source. port: ignored without ports."""
        entries = self._view.entries
        one, other = entries[source.id], entries[target.id]
        opening, own = self._of(protocol, port)
        here, there = one.standing, other.standing
        if (here.source4 & there.target4 | here.source6 & there.target6) & opening:
            return True
        owner = one.facts.owner
        return bool(owner and one.standing.own & own and owner == other.facts.owner)

    def units(self, source: Entry[N], target: Entry[N], protocol: int, port: int) -> tuple[Bits, Bits]:
        """The units, and own units, that allow it."""
        opening, own = self._of(protocol, port)
        is_own = bool(source.facts.owner) and source.facts.owner == target.facts.owner
        here, there = source.standing, target.standing
        found = (here.source4 & there.target4 | here.source6 & there.target6) & opening
        return found, (here.own & own) * is_own

    def _of(self, protocol: int, port: int) -> tuple[Bits, Bits]:
        compiled = self._view.compiled
        if self._compiled is not compiled:
            self._compiled = compiled
            self._opening.clear()
        known = self._opening.get((protocol, port))
        if known is None:
            known = compiled.services.opening(protocol, port), compiled.own_services.opening(protocol, port)
            self._opening[protocol, port] = known
        return known
