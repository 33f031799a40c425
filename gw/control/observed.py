"""What nodes said of themselves, over a restart: endpoints, disco key, home relay, host information, last seen.

It is observed and not declared, so it may be lost: no sync, no journal. But a server that comes back can tell the first
node that asks where the others are, before those have come back themselves. `observed.jsonl` in the state directory:
one line a node, the last line of a node counts, changed nodes are appended from time to time and the file is written
anew when most of it is old.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Final, final

import msgspec

from gw.control.records import Change, NodeRecord
from gw.model.hostinfo import Hostinfo
from gw.state.files import SECRET_MODE, translate, write_temporary

logger = logging.getLogger(__name__)

PERIOD_S: Final = 30.0
SLICE: Final = 500  # nodes encoded in one turn of the loop
SPARE_LINES: Final = 1000

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


@final
class Observed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. id: of the node; the rest as in `NodeRecord`."""

    id: int
    last_seen: Moment | None = None
    endpoints: list[str] = []
    disco_key: str = ""
    home_derp: int = 0
    cap: int = 0
    hostinfo: Hostinfo = msgspec.field(default_factory=Hostinfo)


def observed_of(node: NodeRecord, now_wall: datetime) -> Observed:
    """What is known of a node. One that is online was seen now."""
    return Observed(
        id=node.id,
        last_seen=now_wall if node.online else node.last_seen,
        endpoints=node.endpoints,
        disco_key=node.disco_key,
        home_derp=node.home_derp,
        cap=node.cap,
        hostinfo=node.hostinfo,
    )


def recall(node: NodeRecord, known: Observed | None) -> NodeRecord:
    """Put into a fresh record what was known of it. It was checked before it was written, and only we write it."""
    if known is not None:
        node.endpoints = known.endpoints
        node.disco_key = known.disco_key
        node.home_derp = known.home_derp
        node.cap = known.cap
        node.hostinfo = known.hostinfo
        moments = [each for each in (node.last_seen, known.last_seen) if each is not None]
        node.last_seen = max(moments, default=None)
    return node


def read_observed(path: Path) -> dict[int, Observed]:
    """What the file knows, by node. Torn and foreign lines are passed over: whatever is missing is soon told again."""
    decode = msgspec.json.Decoder(Observed).decode
    found: dict[int, Observed] = {}
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    known = decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue
                found[known.id] = known
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("%s: nodes are known again when they come back", translate(error, "read", path).message)
    return found


@final
class ObservedFile:
    """Keeps `observed.jsonl` up to date with the records of a tailnet. Hand it every change by `take`."""

    def __init__(self, path: Path, nodes: Mapping[int, NodeRecord], clock: Callable[[], datetime]) -> None:
        self._path = path
        self._nodes = nodes
        self._clock = clock
        self._writing = Lock()
        self._changed: dict[int, None] = {}
        self._lines: int | None = None  # in the file; unknown until it was written anew once
        self._failed = False

    def take(self, change: Change) -> None:
        """Remember whose line is old now."""
        if change.node is not None:
            self._changed[change.node.id] = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block changes reach the file every half minute, and what is left at its end."""
        async with asyncio.TaskGroup() as tasks:
            saving = tasks.create_task(self._keep_saving())
            try:
                yield
            finally:
                saving.cancel()
        lines, whole = self._pending()
        self._write(b"".join(lines), whole=whole)

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.save()

    async def save(self) -> None:
        """Write what changed, a slice of nodes a turn of the loop; the disk is waited for in a thread."""
        lines, whole = self._pending()
        parts = []
        for number, line in enumerate(lines, 1):
            parts.append(line)
            if number % SLICE == 0:
                await asyncio.sleep(0)
        await asyncio.to_thread(self._write, b"".join(parts), whole=whole)

    def _pending(self) -> tuple[Iterator[bytes], bool]:
        """The lines to write, made as they are taken, and whether they are the whole file."""
        changed, self._changed = self._changed, {}
        whole = self._lines is None or self._lines + len(changed) > 2 * len(self._nodes) + SPARE_LINES
        if not changed and not self._failed:
            return iter(()), False
        chosen = list(self._nodes) if whole else list(changed)
        self._lines = len(chosen) if whole or self._lines is None else self._lines + len(chosen)
        return self._lines_of(chosen), whole

    def _lines_of(self, chosen: Iterable[int]) -> Iterator[bytes]:
        encode = msgspec.json.Encoder().encode
        for node_id in chosen:
            node = self._nodes.get(node_id)
            if node is not None:
                yield encode(observed_of(node, self._clock())) + b"\n"

    def _write(self, raw: bytes, *, whole: bool) -> None:
        if not raw:
            return
        with self._writing:
            try:
                if whole:
                    write_temporary(self._path, raw, SECRET_MODE, durable=False).rename(self._path)
                else:
                    with open(self._path, "ab", opener=_private) as file:
                        file.write(raw)
                self._failed = False
            except OSError as error:
                self._lines = None  # half a line may stand there: the next time it is written anew
                if not self._failed:
                    logger.warning("%s: it is tried again", translate(error, "write", self._path).message)
                self._failed = True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_MODE)
