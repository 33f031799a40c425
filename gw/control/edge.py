"""The edge: connections and open map streams of one process, and the port between them and who owns the state.

    client ── Noise, HTTP/2 ── ControlSocket ── Switchboard ──ask, cancel, lost, behind, drained──▶ Desk
                                                          ◀──reply, open, deliver, end────────────  (tailnet, fan-out)

Here a message is compressed once and then sealed for each stream that gets it. The same code runs in the one process
that does all, and in each connection worker, where the desk is at the other end of a socket pair (`gw.control.link`).
Connections and streams are named by numbers, so that both sides can be told apart by one.

A stream whose client does not read falls behind: deltas for it are dropped until a whole map comes, which the desk
sends when it hears that the client took all that waited.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, final

from gw.wire.ts2021.mapframes import frame
from gw.wire.ts2021.server import Request

KEEP_ALIVE_S: Final = 50
KEEP_ALIVE_JITTER_S: Final = 9
KEEP_ALIVE: Final = frame(b'{"KeepAlive":true}', compress=True)
KEEP_ALIVE_PLAIN: Final = frame(b'{"KeepAlive":true}', compress=False)


class Edge(Protocol):
    """What the state's owner asks of an edge. connection, stream and number are the edge's and the desk's own names."""

    def reply(self, connection: int, stream: int, status: int, body: bytes, content_type: str) -> None:
        """A whole answer."""

    def open(self, connection: int, stream: int, number: int, compress: bool) -> None:
        """Answer 200 and keep the stream under `number`; its first message follows."""

    def deliver(self, message: bytes, numbers: Iterable[int], *, is_whole: bool) -> None:
        """One JSON message for these streams. is_whole: it stands on its own and ends a stream's being behind."""

    def end(self, number: int) -> None:
        """End the stream."""

    def is_full(self) -> bool:
        """Whether so much is on its way to it that whole maps should wait a moment."""


class Desk(Protocol):
    """What an edge tells the state's owner."""

    def ask(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        """A request of a machine that proved its key; answered by `reply` or `open`, now or later."""

    def cancel(self, edge: Edge, connection: int, stream: int) -> None:
        """The client gave up a request or a stream."""

    def lost(self, edge: Edge, connection: int) -> None:
        """The connection is gone with everything on it."""

    def behind(self, edge: Edge, number: int) -> None:
        """A message was dropped: the client does not read."""

    def drained(self, edge: Edge, number: int) -> None:
        """The client took all that waited: it is owed a whole map."""


class Pipe(Protocol):
    """The connection under a stream."""

    def reply(self, stream: int, status: int, body: bytes, content_type: str) -> None: ...
    def begin(self, stream: int) -> bool:
        """Answer 200 with a body to come. False where the client is gone."""

    def push(self, stream: int, data: bytes) -> bool:
        """Send bytes of the body; False, and nothing is sent, where it is slow."""

    def make_room(self, stream: int, size: int) -> None:
        """A message of this size comes: as much again may wait behind it before the stream counts as slow."""

    def finish(self, stream: int) -> None: ...
    def is_slow(self, stream: int) -> bool:
        """Whether so much waits already that more would only grow memory."""


@final
@dataclass(eq=False, slots=True)
class Outlet:
    """One open map stream."""

    number: int
    connection: int
    pipe: Pipe
    stream: int
    compress: bool
    is_behind: bool = False


@final
class Switchboard:
    """The connections and streams of this process. It is an `Edge`; within `running()` streams are kept alive."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._pipes: dict[int, Pipe] = {}
        self._outlets: dict[int, Outlet] = {}
        self._at: dict[int, dict[int, Outlet]] = {}  # connection -> stream -> outlet
        self._next = 1
        self._wheel: dict[int, list[int]] = {}  # second -> outlets that are due
        self._second = 0

    def __len__(self) -> int:
        return len(self._outlets)

    # What connections say

    def connect(self, pipe: Pipe) -> int:
        """A new connection's number."""
        number, self._next = self._next, self._next + 1
        self._pipes[number] = pipe
        return number

    def disconnect(self, connection: int) -> None:
        if self._pipes.pop(connection, None) is None:
            return
        for outlet in self._at.pop(connection, {}).values():
            del self._outlets[outlet.number]
        self._desk.lost(self, connection)

    def ask(self, connection: int, machine: str, request: Request) -> None:
        self._desk.ask(self, connection, machine, request)

    def cancel(self, connection: int, stream: int) -> None:
        outlet = self._at.get(connection, {}).pop(stream, None)
        if outlet is not None:
            del self._outlets[outlet.number]
        self._desk.cancel(self, connection, stream)

    def drained(self, connection: int, stream: int | None = None) -> None:
        """The client reads again. stream: None = whatever is open on the connection."""
        for each, outlet in list(self._at.get(connection, {}).items()):
            if outlet.is_behind and stream in (None, each) and not outlet.pipe.is_slow(each):
                self._desk.drained(self, outlet.number)

    # Edge

    def reply(self, connection: int, stream: int, status: int, body: bytes, content_type: str) -> None:
        pipe = self._pipes.get(connection)
        if pipe is not None:
            pipe.reply(stream, status, body, content_type)

    def open(self, connection: int, stream: int, number: int, compress: bool) -> None:
        pipe = self._pipes.get(connection)
        if pipe is None or not pipe.begin(stream):
            return
        outlet = Outlet(number, connection, pipe, stream, compress)
        self._outlets[number] = outlet
        self._at.setdefault(connection, {})[stream] = outlet
        self._wind(number)

    def deliver(self, message: bytes, numbers: Iterable[int], *, is_whole: bool) -> None:
        packed = bare = b""
        outlets = self._outlets
        for number in numbers:
            outlet = outlets.get(number)
            if outlet is None or (outlet.is_behind and not is_whole):
                continue
            if outlet.compress:
                data = packed = packed or frame(message, compress=True)
            else:
                data = bare = bare or frame(message, compress=False)
            if is_whole and not outlet.pipe.is_slow(outlet.stream):
                if outlet.is_behind:  # the desk may have sent this before it heard of the loss: then it sends another
                    outlet.is_behind = False
                    self._desk.drained(self, number)
                outlet.pipe.make_room(outlet.stream, len(data))
            if not outlet.pipe.push(outlet.stream, data):
                outlet.is_behind = True
                self._desk.behind(self, number)

    def end(self, number: int) -> None:
        outlet = self._outlets.pop(number, None)
        if outlet is not None:
            self._at.get(outlet.connection, {}).pop(outlet.stream, None)
            outlet.pipe.finish(outlet.stream)

    def is_full(self) -> bool:
        return False

    # Keeping alive: one timer for all streams

    async def keep_alive(self) -> None:
        """Send every stream something within a minute, until cancelled."""
        while True:
            await asyncio.sleep(1)
            self._second += 1
            for number in self._wheel.pop(self._second, ()):
                outlet = self._outlets.get(number)
                if outlet is None:
                    continue
                outlet.pipe.push(outlet.stream, KEEP_ALIVE if outlet.compress else KEEP_ALIVE_PLAIN)
                self._wind(number)

    def _wind(self, number: int) -> None:
        due = self._second + KEEP_ALIVE_S + random.randint(0, KEEP_ALIVE_JITTER_S)
        self._wheel.setdefault(due, []).append(number)
