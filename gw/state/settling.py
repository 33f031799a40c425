"""From the journal into the files, a batch at a time.

    1 read each file and decide   2 write temporary files   3 make them durable, all at once
    4 rename them into place      5 make the folders durable   (6 the caller removes the journal segments)

A crash between any two steps is repaired by doing it all again: every step is harmless the second time.

Who wins, for one document: its entries form runs in which each `before` is the `after` of the one ahead. If the file
holds what the last run began with, or anything the run made, the run's last text is written. Any other text came from a
person: a readable document wins and our text is kept as `.conflict`; an unreadable one loses and is kept as `.broken`,
because a broken text must not undo what was acknowledged.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gw.errors import ConfigError
from gw.state.changes import Ident
from gw.state.documents import PLACES, Key, Kind, file_name
from gw.state.files import Owner, sync_folder, write_into, write_temporary
from gw.state.journal import Entry, fingerprint
from gw.state.tomltext import MAX_FILE_BYTES

FEW: Final = 16  # up to here a batch is synced file by file, above it by one syncfs (0.2 ms a file against 0.4)
CONFLICT: Final = ".conflict"
BROKEN: Final = ".broken"

log = logging.getLogger(__name__)
_libc: Final = ctypes.CDLL(None, use_errno=True)

Check = Callable[[Kind, str, bytes, str], object]


@dataclass(frozen=True, slots=True)
class Loss:
    """A text that did not make it. kept: where it lies now, None for a deletion."""

    ident: Ident
    what: str  # `conflict`: ours lost to a hand edit; `broken-edit`: a broken hand edit lost to ours
    kept: Path | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One file to change. path: text, for there are many; seen: what `stat` said when its text was read."""

    path: str
    entry: Entry
    seen: tuple[int, int, int] | None


def document_path(root: Path, kind: Kind, key: Key) -> Path:
    """The file of a document. Raises UsageError for a key that cannot name one."""
    return root / PLACES[kind].folder / file_name(key)


def read_document(path: Path | str) -> bytes | None:
    """The file's bytes; None if there is none. Raises ConfigError for what is no readable regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            raw = os.read(descriptor, 1 << 16)
            while len(raw) >= 1 << 16 and (more := os.read(descriptor, 1 << 20)):
                raw += more
                if len(raw) > MAX_FILE_BYTES:
                    raise ConfigError(f"larger than {MAX_FILE_BYTES >> 20} MiB", path=str(path))
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = "a symbolic link" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
        raise ConfigError(f"not a readable file: {why}", path=str(path)) from error
    return raw


def settle(root: Path, entries: Iterable[Entry], check: Check) -> list[Loss]:
    """Bring the files to what the entries say; durable when it returns.

    check: decodes a document or raises ConfigError. Raises OSError; then nothing is half-written, call it again.
    """
    chains: dict[Ident, list[Entry]] = {}
    for entry in entries:
        chains.setdefault((entry.kind, entry.key), []).append(entry)
    losses: list[Loss] = []
    steps: list[_Step] = []
    folders = {kind: str(root / place.folder) for kind, place in PLACES.items()}
    for ident, chain in chains.items():
        path = f"{folders[ident[0]]}/{file_name(ident[1])}"
        step = _decide(path, ident, chain, check, losses)
        if step is not None:
            steps.append(step)
    late = _apply(root, steps)
    if late:
        losses += settle(root, [entry for ident in late for entry in chains[ident]], check)
    return losses


def _decide(path: str, ident: Ident, chain: list[Entry], check: Check, losses: list[Loss]) -> _Step | None:
    """What to do with one file; None if nothing. Appends to losses what was put aside."""
    start = 0
    for index in range(1, len(chain)):
        if chain[index].before != chain[index - 1].after:
            losses.append(Loss(ident, "conflict", _keep_conflict(Path(path), chain[index - 1])))
            start = index
    run = chain[start:]
    last = run[-1]
    seen = _stamp(path)
    try:
        current = read_document(path) if seen is not None else None
    except ConfigError:
        return _Step(path, last, _set_aside(Path(path), ident, losses))
    found = fingerprint(current)
    if found == last.after:
        return None
    if found == run[0].before or any(found == entry.after for entry in run):
        return _Step(path, last, seen)
    if current is not None:
        try:
            check(ident[0], os.path.basename(path), current, path)
        except ConfigError:
            return _Step(path, last, _set_aside(Path(path), ident, losses))
    losses.append(Loss(ident, "conflict", _keep_conflict(Path(path), last)))
    return None


def _keep_conflict(path: Path, entry: Entry) -> Path | None:
    if entry.text is None or not path.parent.is_dir():
        return None
    kept = _free_name(path, CONFLICT, entry.text)
    if not kept.exists():
        write_temporary(kept, entry.text, PLACES[entry.kind].mode, durable=True).rename(kept)
        sync_folder(kept.parent)
    return kept


def _set_aside(path: Path, ident: Ident, losses: list[Loss]) -> tuple[int, int, int] | None:
    """Give what lies there a second name; the first one stays until ours takes it, so that a crash loses nothing."""
    kept = _free_name(path, BROKEN, None)
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:  # a folder, or a file system without hard links
        path.rename(kept)
    losses.append(Loss(ident, "broken-edit", kept))
    return _stamp(path)


def _free_name(path: Path, suffix: str, text: bytes | None) -> Path:
    """A name beside `path` that is free, or that holds this very text already (after a crash)."""
    number = 1
    while True:
        name = path.with_name(f"{path.name}{suffix}{'' if number == 1 else f'-{number}'}")
        if not os.path.lexists(name) or (text is not None and name.is_file() and name.read_bytes() == text):
            return name
        number += 1


def _stamp(path: Path | str) -> tuple[int, int, int] | None:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _apply(root: Path, steps: list[_Step]) -> list[Ident]:
    """Steps 2 to 5. Returns the documents whose files were edited meanwhile; they are untouched."""
    late: list[Ident] = []
    temporary: dict[str, str] = {}
    owners: dict[str, Owner] = {}
    try:
        for step in steps:
            if step.entry.text is not None:
                mode = PLACES[step.entry.kind].mode
                durable = len(steps) <= FEW
                folder = os.path.dirname(step.path)
                temporary[step.path] = write_into(folder, step.entry.text, mode, durable=durable, owners=owners)
        if len(steps) > FEW:
            sync_file_system(root)
        for step in steps:
            if _stamp(step.path) != step.seen:
                late.append((step.entry.kind, step.entry.key))
            elif step.entry.text is None:
                Path(step.path).unlink(missing_ok=True)
            else:
                os.rename(temporary[step.path], step.path)
                del temporary[step.path]
    finally:
        for leftover in temporary.values():
            Path(leftover).unlink(missing_ok=True)
    for folder in {os.path.dirname(step.path) for step in steps}:
        if os.path.isdir(folder):
            sync_folder(folder)
    return late


def sync_file_system(root: Path) -> None:
    """Make everything written below `root` durable with one system call. Raises OSError."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(root))
    finally:
        os.close(descriptor)
