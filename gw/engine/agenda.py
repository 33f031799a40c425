"""What is due when: the times of many things, of which few are due at once."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar, final

NEVER: Final = float("inf")
SPARE: Final = 64

T = TypeVar("T", bound=Hashable)


@final
class Agenda(Generic[T]):
    """A heap of times; those that hold no longer stay in it until they come up, or are more than those that do."""

    def __init__(self) -> None:
        self._at: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._serial = 0

    def put(self, item: T, due: float) -> None:
        """The item is due then, and not when it was before; NEVER takes it off."""
        if due == NEVER:
            self._at.pop(item, None)
        elif self._at.get(item) != due:
            self._at[item] = due
            self._serial += 1
            heapq.heappush(self._heap, (due, self._serial, item))
            if len(self._heap) > 2 * len(self._at) + SPARE:
                self._heap = [(at, number, each) for number, (each, at) in enumerate(self._at.items())]
                heapq.heapify(self._heap)

    def discard(self, item: T) -> None:
        self._at.pop(item, None)

    def take(self, now: float) -> list[T]:
        """What is due by now, earliest first; it is off the agenda then."""
        found: list[T] = []
        while self._heap and self._heap[0][0] <= now:
            due, _, item = heapq.heappop(self._heap)
            if self._at.get(item) == due:
                del self._at[item]
                found.append(item)
        return found

    def next(self) -> float:
        """When something is due, NEVER where nothing is."""
        while self._heap:
            due, _, item = self._heap[0]
            if self._at.get(item) == due:
                return due
            heapq.heappop(self._heap)
        return NEVER
