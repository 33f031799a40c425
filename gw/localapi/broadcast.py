"""One source, many listeners, none of whom can slow it down or make it grow.

A listener that falls behind by more than its queue loses what waits and gets what `catch_up` gives instead: the whole
state in one item. An item that is the whole state itself takes the place of all that waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")
QUEUE_ITEMS: Final = 256


class Broadcast(Generic[T]):
    """`publish` never waits; `listen` yields from then on."""

    def __init__(self) -> None:
        self._listeners: set[_Listener[T]] = set()

    def __bool__(self) -> bool:
        """True while somebody listens."""
        return bool(self._listeners)

    def publish(self, item: T, *, whole: bool = False) -> None:
        """whole: the item says everything, so what was not heard yet need not be."""
        for listener in self._listeners:
            if whole:
                listener.items.clear()
                listener.lost = False
            listener.put(item)

    async def listen(self, first: Callable[[], list[T]], catch_up: Callable[[], list[T]]) -> AsyncIterator[T]:
        """first: items to begin with, made once nothing can be missed any more."""
        listener: _Listener[T] = _Listener()
        self._listeners.add(listener)
        try:
            for item in first():
                yield item
            while True:
                await listener.more.wait()
                listener.more.clear()
                if listener.lost:
                    listener.lost = False
                    listener.items.clear()
                    for item in catch_up():
                        yield item
                while listener.items:
                    yield listener.items.popleft()
        finally:
            self._listeners.discard(listener)


class _Listener(Generic[T]):
    def __init__(self) -> None:
        self.items: deque[T] = deque()
        self.more = asyncio.Event()
        self.lost = False

    def put(self, item: T) -> None:
        if len(self.items) >= QUEUE_ITEMS:
            self.items.clear()
            self.lost = True
        if not self.lost:
            self.items.append(item)
        self.more.set()
