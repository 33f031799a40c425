"""What came over UDP for clients and was not looked at yet: each client's turn is as long as any other's.

The kernel has one queue for all of them. Taken out of it, a client that has much under way waits for itself, and what
piled up of one meanwhile is looked at as one train.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, final

from mypy_extensions import mypyc_attr

DATAGRAM_COST: Final = 300  # bytes that cost as much to open as a datagram does beside its own
ARRIVAL_COST: Final = 300  # and that it takes to keep
ROUND_COST: Final = 768 << 10  # of all who wait, if each has so much
MIN_QUANTUM: Final = 20 << 10  # of each of them
MAX_QUANTUM: Final = 96 << 10
MAX_COST: Final = 8 << 20  # of one, if nobody else waits

Arrival = tuple[bytes, int, Any]  # a train, the size of its datagrams, where it came from


@final
@mypyc_attr(native_class=True)
class Inbox:
    """Of one client."""

    def __init__(self, weight: int) -> None:
        self.weight: int = weight
        self.cost: int = 0
        self.arrivals: deque[Arrival] = deque()


@final
@mypyc_attr(native_class=True)
class Inboxes:
    """Of any number of clients, which are told apart by their identity."""

    def __init__(self) -> None:
        self.cost: int = 0  # of all that waits
        self.dropped: int = 0  # datagrams for which there was no room
        self._boxes: dict[object, Inbox] = {}
        self._turns: deque[object] = deque()

    def put(self, client: object, train: bytes, segment: int, source: Any, weight: int = 1) -> None:
        """Datagrams of `segment` bytes each, the last may be shorter. weight: whose turns are so many times as long.
        Who has his share of the room waiting gets no more."""
        box = self._boxes.get(client)
        if box is None:
            box = Inbox(weight)
            self._boxes[client] = box
            self._turns.append(client)
        elif box.cost >= box.weight * MAX_COST // len(self._boxes):
            self.dropped += -(-len(train) // segment)
            return
        cost = _cost(train, segment)
        box.arrivals.append((train, segment, source))
        box.cost += cost
        self.cost += cost

    def take(self) -> tuple[object, list[Arrival]]:
        """The next client and the oldest that came for it, as much as its turn allows, at least a train; (None, [])
        when nothing waits."""
        if not self._turns:
            return None, []
        client = self._turns.popleft()
        box = self._boxes[client]
        quantum = min(max(ROUND_COST // len(self._boxes), MIN_QUANTUM), MAX_QUANTUM) * box.weight
        found: list[Arrival] = []
        taken = 0
        arrivals = box.arrivals
        while arrivals:
            train, segment, _ = arrivals[0]
            cost = _cost(train, segment)
            if taken and taken + cost > quantum:
                break
            taken += cost
            found.append(arrivals.popleft())
        box.cost -= taken
        self.cost -= taken
        if arrivals:
            self._turns.append(client)
        else:
            del self._boxes[client]
        return client, found if len(found) == 1 else joined(found)

    def forget(self, client: object) -> None:
        """It is gone, and what came for it as well."""
        box = self._boxes.pop(client, None)
        if box is not None:
            self.cost -= box.cost
            self._turns.remove(client)


def _cost(train: bytes, segment: int) -> int:
    return len(train) + DATAGRAM_COST * -(-len(train) // segment) + ARRIVAL_COST


def joined(arrivals: list[Arrival]) -> list[Arrival]:
    """The same datagrams in the same order, as few trains as they make; none with short and long headers together."""
    made: list[Arrival] = []
    pieces: list[bytes] = []
    size, form, origin, is_open = 0, 0, None, False
    for train, segment, source in arrivals:
        fits = segment == size or (segment < size and segment == len(train))
        if not is_open or not fits or train[0] & 0x80 != form or source != origin:
            if pieces:
                made.append((b"".join(pieces), size, origin))
            pieces, size, form, origin = [], segment, train[0] & 0x80, source
        pieces.append(train)
        is_open = len(train) % size == 0  # another may follow only if the last has the full size
    if pieces:
        made.append((b"".join(pieces), size, origin))
    return made
