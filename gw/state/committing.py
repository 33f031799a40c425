"""Group commit: many callers, one write and one `fdatasync`.

Two threads, started at the first commit. The committer takes everything that waits, writes it to the journal as one
group and wakes the callers; while the disk works the next group gathers by itself. The settler moves what lies in the
journal into the files about twice a second. What a commit costs depends on the change alone, never on how many
documents there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from gw.errors import Conflict, GwError, StateError
from gw.state.changes import Change, Ident, Put
from gw.state.codec import encode, rewrite
from gw.state.documents import AnyDocument, Key, Kind, file_name
from gw.state.journal import Entry, Journal, Record, encode_record, fingerprint, remove_segments
from gw.state.settling import Check, Loss, document_path, read_document, settle

SETTLE_DELAY_S: Final = 0.5
RETRY_DELAY_S: Final = 5.0
MAX_GROUP: Final = 8192  # commits; bounds what one group holds in memory

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """One commit on its way. texts: canonical, None = delete. done: of a thread, or of the event loop `loop`."""

    changes: list[tuple[Ident, AnyDocument | None, bytes | None]]
    done: Future[None] | asyncio.Future[None]
    loop: asyncio.AbstractEventLoop | None = None
    error: GwError | None = None


@dataclass(slots=True)
class Heads:
    """What the store knows of the texts: shared by committer, settler and watcher under `lock`.

    known: fingerprint of the newest text of each document of the kinds that were loaded, durable or settled.
    commented: documents whose file holds comments. pending: entries that are not settled yet.
    quarantined: documents that were broken at the start.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    known: dict[Kind, dict[Key, int]] = field(default_factory=dict)
    commented: set[Ident] = field(default_factory=set)
    pending: dict[Ident, list[Entry]] = field(default_factory=dict)
    quarantined: dict[Ident, GwError] = field(default_factory=dict)

    def head(self, root: Path, ident: Ident) -> int:
        """The fingerprint of a document's newest text; 0 if there is none."""
        known = self.known.get(ident[0])
        if known is not None:
            return known.get(ident[1], 0)
        chain = self.pending.get(ident)
        return chain[-1].after if chain else fingerprint(read_document(document_path(root, *ident)))

    def set_head(self, ident: Ident, value: int) -> None:
        """Remember the newest text of a document; 0 = it is gone."""
        known = self.known.get(ident[0])
        if known is not None:
            if value:
                known[ident[1]] = value
            else:
                known.pop(ident[1], None)


@final
class Committer:
    """Takes changes, makes them durable, settles them. `submit` may be called from any thread."""

    def __init__(
        self,
        root: Path,
        journal: Journal,
        heads: Heads,
        check: Check,
        lost: Callable[[Loss], None],
        wall: Callable[[], float],
        settle_delay_s: float,
        before_forgetting: Callable[[], None] = lambda: None,
    ) -> None:
        """before_forgetting: what must be durable before a change leaves the journal."""
        self._root, self._journal, self._heads = root, journal, heads
        self._check, self._lost, self._wall = check, lost, wall
        self._settle_delay_s = settle_delay_s
        self._before_forgetting = before_forgetting
        self._wake = threading.Condition()
        self._queue: list[_Waiting] = []
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._settler_wake = threading.Event()
        self._stop_settler = threading.Event()
        self._unsettled: list[Entry] = []
        self._segments: list[Path] = []  # closed ones, with entries in `_unsettled`
        self._complained = False
        self._settling = threading.Lock()

    def adopt(self, entries: Sequence[Entry], segments: Sequence[Path]) -> None:
        """Take over what a former run left in the journal. Before the first `submit`."""
        self._unsettled += entries
        self._segments += segments
        for entry in entries:
            self._heads.pending.setdefault((entry.kind, entry.key), []).append(entry)

    def submit(self, changes: Sequence[Change]) -> Future[None]:
        """Queue one commit: all of the changes or none. The future is done when they are durable.

        Raises UsageError for a document that cannot be written, StateError after `stop`.
        """
        done: Future[None] = Future()
        self._queue_up(_Waiting(_prepared(changes), done))
        return done

    async def commit(self, changes: Sequence[Change]) -> None:
        """The same on an event loop; returns when they are durable. Cancelling it leaves the commit on its way.

        All of a group that wait on one loop are woken by one call: waking costs a system call and the interpreter's
        lock, each.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._queue_up(_Waiting(_prepared(changes), done, loop))
        await done

    def _queue_up(self, waiting: _Waiting) -> None:
        with self._wake:
            if self._stopping:
                raise StateError("commit to a closed store")
            if not self._threads:
                self._start()
            self._queue.append(waiting)
            self._wake.notify()

    def _start(self) -> None:
        for name, work in (("gw-commit", self._commit_loop), ("gw-settle", self._settle_loop)):
            thread = threading.Thread(target=work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Finish what was submitted and settle it; what cannot be settled now stays in the journal. Blocks."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        for thread in self._threads[:1]:
            thread.join()
        self._stop_settler.set()
        self._settler_wake.set()
        for thread in self._threads[1:]:
            thread.join()
        self._threads = []
        self.settle_now()
        with self._heads.lock:
            self._journal.close()

    def _commit_loop(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
                if not group:
                    return
            try:
                with self._heads.lock:
                    self._write(group)
            except Exception as error:
                log.exception("commit failed")
                for waiting in group:
                    waiting.error = waiting.error or GwError(f"commit failed: {error}")
            self._settler_wake.set()
            _finish(group)

    def _write(self, group: list[_Waiting]) -> None:
        """Append the group to the journal; sets `error` on the commits that failed."""
        heads: dict[Ident, int] = {}
        texts: dict[Ident, bytes | None] = {}
        accepted: list[list[Entry]] = []
        raw: list[bytes] = []
        for waiting in group:
            try:
                entries = self._entries(waiting, heads, texts)
                raw.append(encode_record(Record(self._journal.next_number + len(raw), self._wall(), entries)))
            except GwError as error:
                waiting.error = error
                continue
            accepted.append(entries)
            for entry in entries:
                heads[entry.kind, entry.key] = entry.after
                texts[entry.kind, entry.key] = entry.text
        if not raw:
            return
        try:
            self._journal.append(raw)
        except GwError as error:
            for waiting in group:
                waiting.error = waiting.error or error
            return
        for entries in accepted:
            self._unsettled += entries
            for entry in entries:
                ident = (entry.kind, entry.key)
                self._heads.pending.setdefault(ident, []).append(entry)
                self._heads.set_head(ident, heads[ident])
                if entry.text is None:
                    self._heads.commented.discard(ident)

    def _entries(self, waiting: _Waiting, heads: dict[Ident, int], texts: dict[Ident, bytes | None]) -> list[Entry]:
        entries: list[Entry] = []
        own: dict[Ident, int] = {}
        for ident, document, text in waiting.changes:
            if document is not None and ident in self._heads.quarantined:
                raise Conflict(
                    f"{ident[0]} `{ident[1]}` is quarantined: {self._heads.quarantined[ident].message}",
                    hint="repair the file, or remove it",
                )
            before = own.get(ident, heads.get(ident))
            if before is None:
                before = self._heads.head(self._root, ident)
            if document is not None and ident in self._heads.commented:
                old = texts[ident] if ident in texts else self._newest_text(ident, before)
                text = rewrite(old, document) if old is not None else text
            entries.append(Entry(ident[0], ident[1], before, text))
            own[ident] = entries[-1].after
        return entries

    def _newest_text(self, ident: Ident, head: int) -> bytes | None:
        """The text to keep comments of; None if the file holds something nobody has looked at yet."""
        chain = self._heads.pending.get(ident)
        if chain:
            return chain[-1].text
        try:
            text = read_document(document_path(self._root, *ident))
        except GwError:
            return None
        return text if fingerprint(text) == head else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the files are as all commits before it left them, and stay so. Raises GwError."""
        with self._settling:
            if not self._settle():
                raise GwError("changes cannot be written to their files", hint="see the log; is the disk full?")
            yield

    def _settle_loop(self) -> None:
        while True:
            self._settler_wake.wait()
            if self._stop_settler.wait(self._settle_delay_s):
                return
            self._settler_wake.clear()
            if not self.settle_now():
                self._settler_wake.set()
                if self._stop_settler.wait(RETRY_DELAY_S):
                    return

    def settle_now(self) -> bool:
        """Move everything in the journal into the files; False if the disk refused, then nothing is lost."""
        with self._settling:
            return self._settle()

    def _settle(self) -> bool:
        with self._heads.lock:
            segment = self._journal.finish_segment()
            if segment is not None:
                self._segments.append(segment)
            entries, self._unsettled = self._unsettled, []
            segments, self._segments = self._segments, []
        if not entries and not segments:
            return True
        try:
            losses = settle(self._root, entries, self._check)
            self._before_forgetting()
            remove_segments(segments)
        except OSError as error:
            if not self._complained:
                log.warning("changes stay in the journal, their files cannot be written: %s", error)
            self._complained = True
            with self._heads.lock:
                self._unsettled = entries + self._unsettled
                self._segments = segments + self._segments
            return False
        if self._complained:
            log.warning("the journal is settled again")
        self._complained = False
        with self._heads.lock:
            for entry in entries:
                chain = self._heads.pending[entry.kind, entry.key]
                chain.pop(0)
                if not chain:
                    del self._heads.pending[entry.kind, entry.key]
        for loss in losses:
            self._lost(loss)
        return True


def _prepared(changes: Sequence[Change]) -> list[tuple[Ident, AnyDocument | None, bytes | None]]:
    """Raises UsageError for a key that no file can be named after, and for a document that cannot be written."""
    prepared: list[tuple[Ident, AnyDocument | None, bytes | None]] = []
    for change in changes:
        if isinstance(change, Put):
            file_name(change.document.key)
            prepared.append(((change.document.kind, change.document.key), change.document, encode(change.document)))
        else:
            file_name(change.key)
            prepared.append(((change.kind, change.key), None, None))
    return prepared


def _finish(group: list[_Waiting]) -> None:
    on_loops: dict[asyncio.AbstractEventLoop, list[_Waiting]] = {}
    for waiting in group:
        if waiting.loop is not None:
            on_loops.setdefault(waiting.loop, []).append(waiting)
        else:
            _tell(waiting)
    for loop, several in on_loops.items():
        try:
            loop.call_soon_threadsafe(_tell_all, several)
        except RuntimeError:
            log.debug("nobody waits for %d commits any more: their loop is closed", len(several))


def _tell_all(group: list[_Waiting]) -> None:
    for waiting in group:
        _tell(waiting)


def _tell(waiting: _Waiting) -> None:
    if waiting.done.done():
        return  # cancelled
    if waiting.error is not None:
        waiting.done.set_exception(waiting.error)
    else:
        waiting.done.set_result(None)
