"""Which nodes a list of selectors means, for the sections that are about nodes rather than packets.

Ref: spec policy §4.2
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from gw.policy.audience import Audience
from gw.policy.compiled import Compiled
from gw.policy.selectors import Selector
from gw.policy.view import Entry, PolicyNode

N = TypeVar("N", bound=PolicyNode)


def audience(compiled: Compiled, selectors: Iterable[Selector]) -> Audience:
    return Audience(selectors, compiled.people, compiled.policy.ipsets)


def is_meant(meant: Audience, entry: Entry[N], compiled: Compiled) -> bool:
    """Whether the node has an address among those meant."""
    facts = entry.facts
    if meant.anything or meant.has_owner(facts.owner, facts.tags):
        return True
    if meant.everybody and any(place in compiled.pools for place in facts.places):
        return True
    return any(place in meant.literals for place in facts.places)
