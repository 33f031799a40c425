"""The users of a tailnet, as policies name them. Ref: spec policy §4.2"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from gw.policy.faults import PolicyError
from gw.policy.selectors import Kind, Selector


@final
@dataclass(frozen=True, slots=True)
class User:
    """name: by which nodes name their owner. email: "" for a user without one. role: `member`, `admin`, `owner`, …

    groups: names without `group:` that the identity provider gives; they add to the groups that the policy names.
    """

    name: str
    email: str = ""
    role: str = "member"
    id: int = 0
    groups: frozenset[str] = frozenset()

    @property
    def called(self) -> set[str]:
        """What a policy may call this user."""
        return {self.email, self.name, f"{self.name}@"} - {""}

    @property
    def domain(self) -> str:
        return self.email.rpartition("@")[2] if "@" in self.email else ""


@final
class People:
    """Looks users up by what a policy calls them."""

    def __init__(self, users: Iterable[User] = (), groups: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.by_name: dict[str, User] = {}
        self._groups = groups or {}
        self._called: dict[str, list[str]] = {}
        self._in_domain: dict[str, set[str]] = {}
        self._in_group: dict[str, set[str]] = {}
        self._members: dict[str, frozenset[str]] = {}  # of the groups that somebody asked for
        for user in users:
            self.add(user)

    def add(self, user: User) -> None:
        self._members.clear()
        self.by_name[user.name] = user
        for word in user.called:
            self._called.setdefault(word, []).append(user.name)
        self._in_domain.setdefault(user.domain, set()).add(user.name)
        for group in user.groups:
            self._in_group.setdefault(f"group:{group}", set()).add(user.name)

    def remove(self, user: User) -> None:
        """Of a user that was added."""
        self._members.clear()
        del self.by_name[user.name]
        for word in user.called:
            self._called[word].remove(user.name)
            if not self._called[word]:
                del self._called[word]
        self._in_domain[user.domain].discard(user.name)
        for group in user.groups:
            self._in_group[f"group:{group}"].discard(user.name)

    def named(self, selector: Selector) -> frozenset[str] | None:
        """Names of the users that a selector is about; None where it is not about users.

        Raises PolicyError where a name fits two users: a rule must not be about somebody else.
        """
        match selector.kind:
            case Kind.USER:
                return self._find(selector.name)
            case Kind.DOMAIN:
                return frozenset(self._in_domain.get(selector.name, ()))
            case Kind.GROUP:
                return self._of_group(selector.name)
            case Kind.AUTOGROUP if selector.name not in ("member", "tagged", "self", "internet", "danger-all"):
                return frozenset(user.name for user in self.by_name.values() if _has_role(user, selector.name))
        return None

    def is_known(self, token: str) -> bool:
        """Whether a user is called so."""
        return token in self._called

    def _of_group(self, group: str) -> frozenset[str]:
        if group not in self._groups:
            return frozenset()
        known = self._members.get(group)
        if known is None:
            found = [self._find(member) for member in self._groups[group]]
            known = self._members[group] = frozenset(self._in_group.get(group, ())).union(*found)
        return known

    def _find(self, token: str) -> frozenset[str]:
        found = self._called.get(token, [])
        if len(found) > 1:
            raise PolicyError(f'multiple users found: "{token}" is {" and ".join(sorted(found))}')
        return frozenset(found)


def _has_role(user: User, role: str) -> bool:
    """An owner is an admin too."""
    return user.role == role or (role == "admin" and user.role == "owner")
