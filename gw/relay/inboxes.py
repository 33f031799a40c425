"""What came over UDP for clients and was not looked at yet: each client's turn is as long as any other's.

The kernel has one queue for all of them. Taken out of it, a client that has much under way waits for itself, and what
piled up of one meanwhile is looked at as one train.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, final

from mypy_extensions import mypyc_attr

ROUND_BYTES: Final = 512 << 10  # of all who wait, if each has so much
MIN_QUANTUM_BYTES: Final = 16 << 10  # of each of them
MAX_QUANTUM_BYTES: Final = 64 << 10
MAX_BYTES: Final = 16 << 20

Arrival = tuple[bytes, int, Any]  # a train, the size of its datagrams, where it came from


@final
@mypyc_attr(native_class=True)
class Inboxes:
    """Of any number of clients, which are told apart by their identity."""

    def __init__(self) -> None:
        self.size: int = 0  # bytes
        self.dropped: int = 0  # datagrams for which there was no room
        self._queues: dict[object, deque[Arrival]] = {}
        self._turns: deque[object] = deque()

    def put(self, client: object, train: bytes, segment: int, source: Any) -> None:
        """Datagrams of `segment` bytes each, the last may be shorter. Where much waits, who has something waiting gets
        no more room."""
        queue = self._queues.get(client)
        if queue is None:
            queue = deque()
            self._queues[client] = queue
            self._turns.append(client)
        elif self.size > MAX_BYTES:
            self.dropped += -(-len(train) // segment)
            return
        queue.append((train, segment, source))
        self.size += len(train)

    def take(self) -> tuple[object, list[Arrival]]:
        """The next client and the oldest that came for it, as much as its turn allows, at least a train; (None, [])
        when nothing waits."""
        while self._turns:
            client = self._turns.popleft()
            queue = self._queues.get(client)
            if queue is None:  # forgotten
                continue
            quantum = min(max(ROUND_BYTES // len(self._queues), MIN_QUANTUM_BYTES), MAX_QUANTUM_BYTES)
            found: list[Arrival] = []
            taken = 0
            while queue and (not taken or taken + len(queue[0][0]) <= quantum):
                arrival = queue.popleft()
                taken += len(arrival[0])
                found.append(arrival)
            self.size -= taken
            if queue:
                self._turns.append(client)
            else:
                del self._queues[client]
            return client, found if len(found) == 1 else joined(found)
        return None, []

    def forget(self, client: object) -> None:
        """It is gone, and what came for it as well."""
        queue = self._queues.pop(client, None)
        if queue is not None:
            for train, _, _ in queue:
                self.size -= len(train)


def joined(arrivals: list[Arrival]) -> list[Arrival]:
    """The same datagrams in the same order, as few trains as they make."""
    made: list[Arrival] = []
    pieces: list[bytes] = []
    size, origin, is_open = 0, None, False
    for train, segment, source in arrivals:
        fits = segment == size or (segment < size and segment == len(train))
        if not is_open or not fits or source != origin:
            if pieces:
                made.append((b"".join(pieces), size, origin))
            pieces, size, origin = [], segment, source
        pieces.append(train)
        is_open = len(train) % size == 0  # another may follow only if the last has the full size
    if pieces:
        made.append((b"".join(pieces), size, origin))
    return made
