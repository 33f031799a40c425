"""Noticing what others write into the directory.

Every write of our own causes about three events; they are recognised by the text's fingerprint and dropped. A file that
disappears is looked at again a little later: many editors move the old file away before the new one comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from gw.errors import ConfigError, GwError
from gw.state.changes import ExternalChange, Ident, WatchedKind
from gw.state.codec import decode
from gw.state.committing import Heads
from gw.state.config import decode_config
from gw.state.documents import PLACES, SUFFIX, Key, Kind, file_name, key_of
from gw.state.files import make_folder
from gw.state.journal import fingerprint
from gw.state.loading import document_names
from gw.state.migrations import Migrations
from gw.state.paths import StatePaths
from gw.state.settling import BROKEN, CONFLICT, read_document
from gw.state.tomltext import read_bytes, text_of

if TYPE_CHECKING:
    from watchfiles import Change

DEBOUNCE_MS: Final = 100
TICK_MS: Final = 500
DELETION_GRACE_S: Final = 0.4
POLICY_NAMES: Final = ("policy.hujson", "policy.toml")

log = logging.getLogger(__name__)
Subject = tuple[WatchedKind, Key]


@final
class Watcher:
    """Compares files with what the store knows. refused: fingerprints of broken texts that were told already."""

    def __init__(self, paths: StatePaths, heads: Heads, migrations: Migrations) -> None:
        self._paths, self._heads, self._migrations = paths, heads, migrations
        self.refused: dict[Subject, int] = {}
        self._kinds_in: dict[str, list[Kind]] = {}  # by folder
        for kind, place in PLACES.items():
            self._kinds_in.setdefault(str(paths.root / place.folder), []).append(kind)
        self._others: dict[Path, int] = {path: _glance(path) for path in self._other_files()}
        self._opened_ns = paths.lock_file.stat().st_mtime_ns if paths.lock_file.exists() else 0

    def _other_files(self) -> list[Path]:
        root = self._paths.root
        found = [self._paths.config_file, *(root / name for name in POLICY_NAMES)]
        if self._paths.dns_dir.is_dir():
            found += sorted(self._paths.dns_dir.glob(f"*{SUFFIX}"))
        return found

    async def changes(self) -> AsyncIterator[ExternalChange]:
        """What others changed since the store was opened, and from now on. Ends by cancellation."""
        from watchfiles import awatch

        folders = {self._paths.root, self._paths.dns_dir, *(self._paths.root / p.folder for p in PLACES.values())}
        for folder in folders:
            make_folder(folder, 0o750 if self._paths.control_dir in (folder, *folder.parents) else 0o755)
        caught_up = False
        async for batch in awatch(
            *folders, watch_filter=_is_ours, debounce=DEBOUNCE_MS, step=20, recursive=False,
            rust_timeout=TICK_MS, yield_on_timeout=True,
        ):  # fmt: skip
            names = {Path(name) for _, name in batch}
            if not caught_up:
                caught_up = True
                names |= await asyncio.to_thread(self._changed_since_start)
            if not names:
                continue
            gone: list[Path] = []
            for change in await asyncio.to_thread(self._examine, names, gone):
                yield change
            if gone:
                await asyncio.sleep(DELETION_GRACE_S)
                for change in await asyncio.to_thread(self._examine, gone, None):
                    yield change

    def _changed_since_start(self) -> set[Path]:
        """Files that were touched between the store's start and the first event, and documents that went."""
        found = set(self._others) | set(self._other_files())
        for kind, place in PLACES.items():
            if kind not in self._heads.known:
                continue
            folder = self._paths.root / place.folder
            names = document_names(self._paths.root, kind)
            for name in names:
                try:
                    if (folder / name).lstat().st_ctime_ns >= self._opened_ns:
                        found.add(folder / name)
                except FileNotFoundError:
                    found.add(folder / name)
            with self._heads.lock:
                known = [file_name(key) for key in self._heads.known[kind]]
            found |= {folder / name for name in set(known).difference(names)}
        return found

    def _examine(self, paths: Iterable[Path], gone: list[Path] | None) -> list[ExternalChange]:
        """Compare files with what is known. gone: collects missing files to look at again; None = they are gone."""
        changes: list[ExternalChange] = []
        for path in sorted(paths):
            try:
                change = self._examine_document(path, gone) or self._examine_other(path, gone)
            except GwError as error:
                log.warning("watch: %s", error.message)
                continue
            if change is not None:
                changes.append(change)
        return changes

    def _examine_document(self, path: Path, gone: list[Path] | None) -> ExternalChange | None:
        folder, name = os.path.split(path)
        for suffix in (CONFLICT, BROKEN):  # beside a conflict lies a file that somebody edited
            if suffix in name:
                name = name.partition(suffix)[0]
                path = path.with_name(name)
        for kind in self._kinds_in.get(folder, ()):
            if kind in self._heads.known:
                key = key_of(kind, name)
                if key is not None:
                    with self._heads.lock:
                        return self._compare(kind, key, path, gone)
                return self._misnamed(kind, path)
        return None

    def _compare(self, kind: Kind, key: Key, path: Path, gone: list[Path] | None) -> ExternalChange | None:
        ident: Ident = (kind, key)
        raw: bytes | None = None
        try:
            raw = read_document(path)
            found = fingerprint(raw)
            if self._is_known(ident, found):
                return self._repaired(ident, kind, key, raw, path)
            if raw is None:
                if gone is not None:
                    gone.append(path)
                    return None
                document = None
            else:
                document, _ = decode(kind, path.name, raw, str(path), self._migrations)
        except ConfigError as error:
            found = fingerprint(raw)
            if self.refused.get(ident) == found:
                return None
            self.refused[ident] = found
            log.warning("%s: refused, the last good state stays", error.message)
            return ExternalChange(kind, key, error=error)
        self.refused.pop(ident, None)
        self._heads.quarantined.pop(ident, None)
        self._heads.set_head(ident, found)
        if raw is not None and b"#" in raw:
            self._heads.commented.add(ident)
        else:
            self._heads.commented.discard(ident)
        return ExternalChange(kind, key, document)

    def _misnamed(self, kind: Kind, path: Path) -> ExternalChange | None:
        if kind == "server" or not path.name.endswith(SUFFIX) or not path.exists():
            self.refused.pop((kind, path.name), None)
            return None
        if (kind, path.name) in self.refused:
            return None
        self.refused[kind, path.name] = 0
        error = ConfigError(f"no name for a {kind}", path=str(path))
        log.warning("%s: refused", error.message)
        return ExternalChange(kind, path.name, error=error)

    def _is_known(self, ident: Ident, found: int) -> bool:
        if found == self._heads.head(self._paths.root, ident):
            return True
        chain = self._heads.pending.get(ident, ())
        return any(found in (entry.before, entry.after) for entry in chain)

    def _repaired(self, ident: Ident, kind: Kind, key: Key, raw: bytes | None, path: Path) -> ExternalChange | None:
        """The good text is back where a broken one was told: tell it again, so that the warning can go."""
        if self.refused.pop(ident, None) is None:
            return None
        self._heads.quarantined.pop(ident, None)
        document = decode(kind, path.name, raw, str(path), self._migrations)[0] if raw is not None else None
        return ExternalChange(kind, key, document)

    def _examine_other(self, path: Path, gone: list[Path] | None) -> ExternalChange | None:
        kind: WatchedKind
        if path == self._paths.config_file:
            kind = "config"
        elif path.parent == self._paths.root and path.name in POLICY_NAMES:
            kind = "policy"
        elif path.parent == self._paths.dns_dir and path.name.endswith(SUFFIX):
            kind = "dns"
        else:
            return None
        found = _glance(path)
        if found == self._others.get(path, 0):
            return None
        if not found and gone is not None:
            gone.append(path)
            return None
        self._others[path] = found
        try:
            if not found:
                return ExternalChange(kind, path.name)
            raw = read_bytes(path, what=kind)
            if kind == "config":
                return ExternalChange(kind, path.name, decode_config(raw, path))
            return ExternalChange(kind, path.name, text_of(raw, str(path)))
        except ConfigError as error:
            log.warning("%s: refused, the last good state stays", error.message)
            return ExternalChange(kind, path.name, error=error)


def _is_ours(_change: Change, name: str) -> bool:
    base = os.path.basename(name)
    return not base.startswith(".") and (base in POLICY_NAMES or SUFFIX in base)


def _glance(path: Path) -> int:
    """The fingerprint of a file that people edit; 0 where there is none or it cannot be read."""
    try:
        return fingerprint(read_bytes(path, what="file"))
    except ConfigError:
        return 1
    except GwError:
        return 0
