"""Following the event trail inside the server: for webhooks and for clients of `GET /api/v1/events`.

The trail on the disk is the queue: a follower says which number it has and gets what came after, also over restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from fnmatch import fnmatchcase
from typing import Any, Final, final

import msgspec

from gw.state.heads import Head
from gw.state.trail import Trail
from gw.state.trailreading import TrailReader

KEEP_ALIVE_S: Final = 15.0
BATCH: Final = 500


class Told(msgspec.Struct, frozen=True):
    """What of an event filters look at."""

    seq: int = 0
    event: str = ""
    actor: str = ""
    subject: str = ""


_told: Final = msgspec.json.Decoder(Told).decode


def told(line: bytes) -> Told:
    """The heads of a line; empty ones for what is no event."""
    try:
        return _told(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Told()


def fits(event: Told, globs: list[str], actor: str = "", subject: str = "") -> bool:
    """Whether an event is wanted. globs: of event names, empty = all; actor: a part of it; subject: a glob."""
    return (
        (not globs or any(fnmatchcase(event.event, glob) for glob in globs))
        and (not actor or actor.lower() in event.actor.lower())
        and (not subject or fnmatchcase(event.subject, subject))
    )


@final
class EventStream:
    """Wakes those who wait for new lines of a trail. `running()` first."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._waiting: set[asyncio.Event] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[EventStream]:
        loop = asyncio.get_running_loop()

        def wake(_: int, __: bytes) -> None:
            if self._waiting:
                loop.call_soon_threadsafe(self._wake)

        self._trail.listeners.append(wake)
        try:
            yield self
        finally:
            self._trail.listeners.remove(wake)

    def _wake(self) -> None:
        for each in self._waiting:
            each.set()

    @property
    def last(self) -> int:
        """The number of the newest event."""
        return self._trail.last

    @property
    def head(self) -> Head | None:
        """The newest signed head, once there is one."""
        return self._trail.head

    async def batches(self, after: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """Numbers and lines behind number `after`, for ever; an empty list when nothing came for 15 s."""
        reader = TrailReader(self._trail.folder)
        await asyncio.to_thread(reader.seek, after)
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            while True:
                news.clear()
                lines = await asyncio.to_thread(reader.read, BATCH)
                found = [(event.seq, line) for line in lines if (event := told(line)).seq > after]
                if found:
                    after = found[-1][0]
                    yield found
                elif not lines:
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_S):
                            await news.wait()
                    except TimeoutError:
                        yield []
        finally:
            self._waiting.discard(news)

    async def server_sent(
        self, after: int, globs: list[str], actor: str = "", subject: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """The same as server-sent events, filtered: `id: 7`, `event: node-renamed`, `data: {…}`."""
        yield b": follows the event trail\n\n"
        async with contextlib.aclosing(self.batches(after)) as batches:
            async for batch in batches:
                parts = [
                    b"id: %d\nevent: %s\ndata: %s\n\n" % (seq, event.event.encode(), line)
                    for seq, line in batch
                    if fits(event := told(line), globs, actor, subject)
                ]
                yield b"".join(parts) or b": nothing new\n\n"


def decoded(line: bytes) -> dict[str, Any]:
    """A line as a table; an empty one for what is none."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
