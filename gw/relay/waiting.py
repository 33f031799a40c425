"""Clients that wait until somebody has said whether they may come in, by the node key that they have.

An answer is about one key, and only its clients are looked at again: how many others wait costs nothing. Who makes up
keys for which answers are slow fills the room, and no more than that.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar, final

MAX_WAITING: Final = 1000

T = TypeVar("T")


@final
class WaitingRoom(Generic[T]):
    """Of one transport."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._nodes: dict[T, bytes] = {}
        self._clients: dict[bytes, set[T]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def enter(self, client: T, node: bytes) -> bool:
        """False where there is no room. Who is in it already stays."""
        if client in self._nodes:
            return True
        if len(self._nodes) >= self._limit:
            return False
        self._nodes[client] = node
        self._clients.setdefault(node, set()).add(client)
        return True

    def leave(self, client: T) -> None:
        """It waits no more; nothing happens where it did not."""
        node = self._nodes.pop(client, None)
        if node is None:
            return
        same = self._clients[node]
        same.discard(client)
        if not same:
            del self._clients[node]

    def called(self, node: bytes) -> list[T]:
        """Those whom an answer is about; an empty key: all. They stay until they `leave`."""
        return list(self._clients.get(node, ()) if node else self._nodes)
