"""A packet worker's part of a QUIC connection with a peer: sealing by numbers that the engine gave, opening.

    SealingLine   WireGuard messages wait here for numbers: as many as the congestion window has room for
    OpeningLine   what the engine is told of packets that were opened

A number is used once: it is taken from those that were given and never put back, whatever becomes of the packet.
"""

from __future__ import annotations

from typing import Any, Final, final

from mypy_extensions import i64, mypyc_attr

from gw.native.quicpackets import Keys, Window

MIN_ROOM: Final = 128 << 10
MESSAGE: Final = b"0\x10"  # a DATAGRAM frame to the packet's end, of one WireGuard message
OLDER_NS: Final = 1_000_000_000  # how long keys of the phase before may open


@final
@mypyc_attr(native_class=True)
class SealingLine:
    """limit: bytes of the largest WireGuard message. socket, address: where to."""

    def __init__(self, number: int, keys: Keys, cid: bytes, sock: Any, address: Any, limit: int) -> None:
        self.number: int = number  # the engine's, of the connection
        self.keys: Keys = keys
        self.cid: bytes = cid
        self.socket: Any = sock
        self.address: Any = address
        self.limit: i64 = limit
        self.trains: bool = True
        self.asked: bool = False  # for numbers, since some came
        self.ranges: list[int] = []  # numbers that may be used: first, stop, first, stop
        self.waiting: list[bytes] = []  # frames
        self.size: i64 = 0  # of what waits
        self.room: i64 = MIN_ROOM  # it may not be more than this

    def give(self, first: int, stop: int, fresh: bool, room: int) -> None:
        """Numbers; fresh: instead of the others."""
        if fresh:
            self.ranges = []
        if stop > first:
            self.ranges.append(first)
            self.ranges.append(stop)
        self.room = room
        self.asked = False

    def take(self, most: int) -> tuple[int, int]:
        """Use up at most so many numbers: the first, and how many there are."""
        ranges = self.ranges
        if not ranges:
            return 0, 0
        first = ranges[0]
        count = ranges[1] - first
        if count > most:
            ranges[0] = first + most
            return first, most
        del ranges[:2]
        return first, count

    def put(self, frame: bytes) -> None:
        self.waiting.append(frame)
        self.size += len(frame)

    def next(self, count: int) -> list[bytes]:
        """The oldest that wait."""
        found = self.waiting[:count]
        del self.waiting[:count]
        for frame in found:
            self.size -= len(frame)
        return found

    def trim(self) -> int:
        """Drop the oldest of what is too much; returns how many."""
        dropped: i64 = 0
        while self.size > self.room:
            self.size -= len(self.waiting[dropped])
            dropped += 1
        if dropped:
            del self.waiting[: int(dropped)]
        return int(dropped)


@final
@mypyc_attr(native_class=True)
class OpeningLine:
    """One connection to open packets of, and what is to be told of those that were."""

    def __init__(self, slot: int, number: int, keys: Keys, cids: list[bytes], expected: int) -> None:
        self.slot: int = slot
        self.number: int = number
        self.keys: Keys = keys
        self.older: Keys | None = None
        self.older_until_ns: i64 = 0
        self.cids: set[bytes] = set(cids)
        self.window: Window = Window()
        self.window.newest = expected - 1
        self.floor: int = expected  # what is older may have come before: the engine knows
        self.count: int = 0
        self.frames: list[bytes] = []
        self.runs: list[int] = []
        self.acks: list[list[int]] = []
        self.source: Any = None

    def follow(self, before: OpeningLine, now_ns: i64) -> None:
        """It is the same connection as before, with other keys or ids."""
        self.window = before.window
        self.floor = before.floor
        self.older = before.keys if before.keys.first != self.keys.first else before.older
        self.older_until_ns = now_ns + OLDER_NS
        self.count = before.count
        self.frames = before.frames
        self.runs = before.runs
        self.acks = before.acks
        self.source = before.source
