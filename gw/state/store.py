"""The store: declared state, durable and watched.

`Store` is what the servers see. `DirectoryStore` keeps it in the state directory:

    commit → journal (one fdatasync for all who wait) → caller goes on → files, a batch at a time
    start  → lock → journal into files → read every document once → watch for hand edits

With `open(lock=False)` the directory is only read, beside a running server or without one.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol, Self, final, overload

from gw.errors import GwError, StateError
from gw.state.backup import Manifest, write_backup
from gw.state.changes import Change, Delete, ExternalChange, Ident, Put, WatchedKind
from gw.state.codec import decode
from gw.state.committing import SETTLE_DELAY_S, Committer, Heads
from gw.state.documents import (
    PLACES,
    SCHEMA,
    ApiKeyDoc,
    Kind,
    NodeDoc,
    PreauthKeyDoc,
    RelayRegionDoc,
    ServerDoc,
    UserDoc,
)
from gw.state.files import TEMPORARY_PREFIX, make_folder, translate
from gw.state.heads import KEY_FILE
from gw.state.journal import Journal, read_journal
from gw.state.loading import load_kind
from gw.state.lock import DirectoryLock
from gw.state.migrations import MIGRATIONS, Migrations
from gw.state.paths import StatePaths
from gw.state.recovering import record_recovered
from gw.state.settling import Loss
from gw.state.trail import Trail
from gw.state.watching import Watcher

__all__ = ["Change", "Delete", "DirectoryStore", "ExternalChange", "Put", "Store", "WatchedKind"]

SNAPSHOT_PARTS: Final = ("config.toml", "policy.hujson", "policy.toml", "control", "relays", "dns")

log = logging.getLogger(__name__)


class Store(Protocol):
    """Declared state. Everything a `commit` returned for is there after any crash."""

    @overload
    def load(self, kind: Literal["user"]) -> dict[str, UserDoc]: ...
    @overload
    def load(self, kind: Literal["node"]) -> dict[int, NodeDoc]: ...
    @overload
    def load(self, kind: Literal["preauthkey"]) -> dict[str, PreauthKeyDoc]: ...
    @overload
    def load(self, kind: Literal["apikey"]) -> dict[str, ApiKeyDoc]: ...
    @overload
    def load(self, kind: Literal["relay"]) -> dict[int, RelayRegionDoc]: ...
    @overload
    def load(self, kind: Literal["server"]) -> dict[str, ServerDoc]: ...
    def load(self, kind: Kind) -> Any:
        """All documents of a kind by key. Called once a kind; blocks."""

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all of the changes durable, or none. Many callers at once share the disk's work.

        Raises GwError (disk full, a quarantined document); then nothing was changed.
        """

    def commit_sync(self, changes: Sequence[Change]) -> None:
        """The same for programs without an event loop; blocks."""

    def watch(self) -> AsyncIterator[ExternalChange]:
        """Changes that others make from now on, and since the start. Ends when it is closed or cancelled."""


@final
class DirectoryStore:
    """The store in a directory of TOML files. `open`, use, `close`; or `with DirectoryStore(paths).open():`."""

    def __init__(
        self,
        paths: StatePaths,
        *,
        migrations: Migrations = MIGRATIONS,
        wall: Callable[[], float] = time.time,
        settle_delay_s: float = SETTLE_DELAY_S,
    ) -> None:
        self._paths = paths
        self._migrations = migrations
        self._wall = wall
        self._settle_delay_s = settle_delay_s
        self._heads = Heads()
        self._lock: DirectoryLock | None = None
        self._committer: Committer | None = None
        self._watcher: Watcher | None = None
        self._has_snapshot = False
        self.trail = Trail(paths.events_dir, paths.keys_dir / KEY_FILE)

    @property
    def paths(self) -> StatePaths:
        return self._paths

    @property
    def quarantined(self) -> dict[Ident, GwError]:
        """Documents that could not be read at the start, by kind and key: their objects are denied."""
        return self._heads.quarantined

    def open(self, lock: bool = True, wait_s: float = 0.0) -> Self:
        """Take the directory for writing and settle what a crash left; or, without lock, open it to read.

        wait_s: how long to wait for another holder. Raises Conflict naming the holder, PermissionNeeded, GwError.
        """
        if self._lock is not None:
            raise StateError("the store is open")
        if not lock:
            self._heads.pending.clear()
            for record in read_journal(self._paths.journal_dir).records:
                for entry in record.entries:
                    self._heads.pending.setdefault((entry.kind, entry.key), []).append(entry)
            return self
        self._lock = DirectoryLock(self._paths.root, wait_s)
        try:
            self._sweep()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        replay = read_journal(self._paths.journal_dir)
        committer = Committer(
            self._paths.root,
            Journal(self._paths.journal_dir, replay),
            self._heads,
            self._check,
            self._tell_loss,
            self._wall,
            self._settle_delay_s,
            self.trail.sync,
        )
        if replay.torn_bytes:
            log.warning("journal: dropped %d bytes of a change that was never acknowledged", replay.torn_bytes)
        if replay.records:
            log.info("journal: settling %d changes of the last run", len(replay.records))
            record_recovered(self.trail, replay.records, self._migrations, self._wall())
        committer.adopt([entry for record in replay.records for entry in record.entries], replay.segments)
        self._watcher = Watcher(self._paths, self._heads, self._migrations)
        committer.settle_now()
        self._committer = committer

    def _sweep(self) -> None:
        """Remove temporary files that a crash left."""
        folders = {self._paths.root, *(self._paths.root / place.folder for place in PLACES.values())}
        for folder in folders:
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise translate(error, "read", folder) from error
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    (folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Finish all commits, settle them, give the lock back. Blocks; twice does no harm."""
        if self._committer is not None:
            self._committer.stop()
        self.trail.close(self._wall())
        if self._lock is not None:
            self._lock.release()
        self._committer = self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def load(self, kind: Literal["user"]) -> dict[str, UserDoc]: ...
    @overload
    def load(self, kind: Literal["node"]) -> dict[int, NodeDoc]: ...
    @overload
    def load(self, kind: Literal["preauthkey"]) -> dict[str, PreauthKeyDoc]: ...
    @overload
    def load(self, kind: Literal["apikey"]) -> dict[str, ApiKeyDoc]: ...
    @overload
    def load(self, kind: Literal["relay"]) -> dict[int, RelayRegionDoc]: ...
    @overload
    def load(self, kind: Literal["server"]) -> dict[str, ServerDoc]: ...
    def load(self, kind: Kind) -> Any:
        """All documents of a kind by key. A broken one is left out, logged, and listed in `quarantined`.

        Older schemas are migrated, with a snapshot taken first where this store may write.
        Raises ConfigError for a newer schema, PermissionNeeded, GwError.
        """
        with self._heads.lock:
            loaded = load_kind(self._paths.root, kind, self._heads.pending, self._migrations)
            self._heads.known[kind] = loaded.heads
            self._heads.commented |= {(kind, key) for key in loaded.commented}
            for key, (error, found) in loaded.broken.items():
                log.warning("%s: quarantined, its %s is denied", error.message, kind)
                self._heads.quarantined[kind, key] = error
                if self._watcher is not None:
                    self._watcher.refused[kind, key] = found
        if loaded.migrated and self._committer is not None:
            self._snapshot()
            self.commit_sync([Put(document) for document in loaded.migrated])
            log.info("migrated %d documents of kind %s to schema %d", len(loaded.migrated), kind, SCHEMA)
        return loaded.documents

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make all of the changes durable, or none; returns only then. See `Store.commit`."""
        await self._writer().commit(changes)

    def commit_sync(self, changes: Sequence[Change]) -> None:
        """The same, blocking."""
        self._writer().submit(changes).result()

    def settle(self) -> bool:
        """Bring the files up to date now (for backups and tests); False if the disk refused. Blocks."""
        return self._writer().settle_now()

    def backup(self, target: IO[bytes], version: str) -> Manifest:
        """Write a backup of the directory as it is now; commits go on meanwhile. Blocks. Raises GwError."""
        with self._writer().held():
            return write_backup(self._paths, target, version, self.trail.frozen(self._wall()))

    def _writer(self) -> Committer:
        if self._committer is None:
            raise StateError("the store is not open for writing")
        return self._committer

    async def watch(self) -> AsyncIterator[ExternalChange]:
        """Hand edits and other programs' changes, one file at a time, until cancelled. Own writes are not told.

        A broken edit comes with `error` and the last good state stays in force; it comes again when it was repaired.
        """
        if self._watcher is None:
            raise StateError("the store is not open for writing")
        async for change in self._watcher.changes():
            yield change

    def _check(self, kind: Kind, name: str, raw: bytes, where: str) -> object:
        return decode(kind, name, raw, where, self._migrations)

    def _tell_loss(self, loss: Loss) -> None:
        kind, key = loss.ident
        kept = str(loss.kept.relative_to(self._paths.root)) if loss.kept is not None else ""
        if loss.what == "conflict":
            log.warning("%s `%s`: a hand edit overtook a change%s", kind, key, f", kept as {kept}" if kept else "")
        else:
            log.warning("%s `%s`: a broken hand edit was replaced, kept as %s", kind, key, kept)
        self.trail.append(self._wall(), loss.what, actor="hand edit", subject=f"{kind}:{key}", kept=kept)

    def _snapshot(self) -> None:
        """Copy what people and the server wrote, once a run, before a migration touches it."""
        if self._has_snapshot:
            return
        stamp = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y%m%dT%H%M%SZ")
        make_folder(self._paths.snapshots_dir, 0o700)
        target = self._paths.snapshots_dir / f"{stamp}-before-schema-{SCHEMA}"
        make_folder(target, 0o700)
        try:
            for part in SNAPSHOT_PARTS:
                _copy(self._paths.root / part, target / part)
        except (OSError, shutil.Error) as error:
            raise GwError(
                f"no snapshot before the migration: {error}", hint="free some space below the directory"
            ) from error
        self._has_snapshot = True
        log.info("snapshot of the directory: %s", target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    elif source.exists():
        shutil.copy2(source, target)
