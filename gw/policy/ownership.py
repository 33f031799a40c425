"""Who may give a node which tag: the section `tagOwners`. Ref: spec policy §13"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gw.policy.compiled import Compiled
from gw.policy.selectors import Kind, Selector


@final
class TagOwners:
    """Owning a tag that owns a tag is owning it; cycles are legal and contribute nothing.

    Raises PolicyError where an owner's name fits two users.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._owners = compiled.policy.tag_owners
        self._people = compiled.people
        for owner in {each for owners in self._owners.values() for each in owners}:
            self._people.named(owner)

    def may(self, user: str, tag: str, *, held: Iterable[str] = ()) -> bool:
        """Whether a node of this user, or one that holds these tags, may take the tag; never one not in the policy."""
        carried = frozenset(held)
        asked, waiting = {tag}, [tag]
        while waiting:
            for owner in self._owners.get(waiting.pop(), ()):
                if owner.kind is not Kind.TAG:
                    if self._is_owner(owner, user, carried):
                        return True
                elif owner.name in carried:
                    return True
                elif owner.name not in asked:
                    asked.add(owner.name)
                    waiting.append(owner.name)
        return False

    def _is_owner(self, owner: Selector, user: str, held: frozenset[str]) -> bool:
        if owner.is_autogroup("member"):
            return bool(user)
        if owner.is_autogroup("tagged"):
            return bool(held)
        return user in (self._people.named(owner) or ())
