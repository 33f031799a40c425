"""What is held while a change is on its way to the disk: names and keys reserved, changes of one subject in a row.

reserved   a name or key that is not in any document yet, and that nobody else may take meanwhile
enrolling  a user that a node logs in as: not to be removed or renamed before that is durable
locked     one change at a time; in the order machine, key, node where several are held
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import final

from gw.errors import AuthRequired


@final
class Holds:
    """The holds of one tailnet: each is a context, and gone with it."""

    def __init__(self) -> None:
        self._users: set[str] = set()
        self._keys: dict[str, str] = {}
        self._enrolling: Counter[str] = Counter()
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    @contextmanager
    def reserved_user(self, name: str) -> Iterator[None]:
        """Keep others from making a user of this name meanwhile."""
        self._users.add(name.lower())
        try:
            yield
        finally:
            self._users.discard(name.lower())

    def is_user_reserved(self, name: str) -> bool:
        """Letter case does not count."""
        return name.lower() in self._users

    @contextmanager
    def reserved_key(self, node_key: str, machine_key: str) -> Iterator[None]:
        """Keep other machines from registering the same node key meanwhile. Raises AuthRequired if one is doing so."""
        holder = self._keys.setdefault(node_key, machine_key)
        if holder != machine_key:
            raise AuthRequired("node key is in use by another machine")
        try:
            yield
        finally:
            self._keys.pop(node_key, None)

    @contextmanager
    def enrolling(self, user: str) -> Iterator[None]:
        """Keep the user from being removed or renamed while a node logs in as it."""
        self._enrolling[user] += 1
        try:
            yield
        finally:
            self._enrolling[user] -= 1
            if not self._enrolling[user]:
                del self._enrolling[user]

    def is_enrolling(self, user: str) -> bool:
        return self._enrolling[user] > 0

    @asynccontextmanager
    async def locked(self, subject: str) -> AsyncIterator[None]:
        """One at a time for each subject."""
        lock, holders = self._locks.setdefault(subject, (asyncio.Lock(), []))
        holders.append(None)
        try:
            async with lock:
                yield
        finally:
            holders.pop()
            if not holders:
                self._locks.pop(subject, None)
