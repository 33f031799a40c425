"""The users in memory: by name, by what an identity provider calls them, by e-mail address, and whatever the case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from gw.errors import NotFound
from gw.policy.people import User
from gw.state.documents import UserDoc


@final
class UserIndex:
    """users: by name; change it with `put` and `drop` only."""

    def __init__(self) -> None:
        self.users: dict[str, UserDoc] = {}
        self._by_identity: dict[str, str] = {}
        self._by_email: dict[str, str] = {}
        self._by_lowered: dict[str, str] = {}

    def load(self, users: Iterable[UserDoc]) -> None:
        for user in users:
            self.put(user)

    def put(self, user: UserDoc) -> None:
        """Entries of identities and addresses that a user no longer has stay until overwritten: who looks up checks."""
        self.users[user.name] = user
        self._by_lowered[user.name.lower()] = user.name
        if user.provider_id:
            self._by_identity[user.provider_id] = user.name
        if user.email:
            self._by_email[user.email.lower()] = user.name

    def drop(self, name: str) -> UserDoc | None:
        if self._by_lowered.get(name.lower()) == name:
            del self._by_lowered[name.lower()]
        return self.users.pop(name, None)

    def of_name(self, name: str) -> UserDoc:
        """Raises NotFound."""
        found = self.users.get(name)
        if found is None:
            raise NotFound(f"no such user: `{name}`", hint=f"gwctl users create {name}")
        return found

    def like(self, name: str) -> UserDoc | None:
        """The user of this name; letter case does not count."""
        return self.users.get(self._by_lowered.get(name.lower(), ""))

    def of_identity(self, provider_id: str) -> UserDoc | None:
        """The user that an identity provider knows by `issuer/subject`."""
        found = self.users.get(self._by_identity.get(provider_id, ""))
        return found if found is not None and found.provider_id == provider_id else None

    def of_email(self, email: str) -> UserDoc | None:
        """The user with this address; letter case does not count."""
        found = self.users.get(self._by_email.get(email.lower(), ""))
        return found if found is not None and found.email.lower() == email.lower() else None


def policy_user(user: UserDoc) -> User:
    """A user as the policy names it."""
    email = user.email or (user.name if "@" in user.name else "")
    return User(user.name, email, id=user.id, groups=frozenset(user.groups))
