"""Who may give a node which tag: the section `tagOwners`. Ref: spec policy §13"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gw.policy.compiled import Compiled
from gw.policy.selectors import Kind


@final
class TagOwners:
    """Owning a tag that owns a tag is owning it; cycles are legal and contribute nothing."""

    def __init__(self, compiled: Compiled) -> None:
        self._owners = compiled.policy.tag_owners
        self._people = compiled.people

    def may(self, user: str, tag: str, *, held: Iterable[str] = ()) -> bool:
        """Whether a node of this user, or one that holds these tags, may take the tag; never one not in the policy."""
        return self._may(user, tag, frozenset(held), set())

    def _may(self, user: str, tag: str, held: frozenset[str], asked: set[str]) -> bool:
        if tag in asked:
            return False
        asked.add(tag)
        for owner in self._owners.get(tag, ()):
            if owner.kind is Kind.TAG:
                if owner.name in held or self._may(user, owner.name, held, asked):
                    return True
            elif owner.is_autogroup("member"):
                if user:
                    return True
            elif owner.is_autogroup("tagged"):
                if held:
                    return True
            elif user in (self._people.named(owner) or ()):
                return True
        return False
