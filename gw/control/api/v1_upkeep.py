"""Upkeep: taking back the last change, and backups: ours, beside Headscale's REST v1."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec

from gw import __version__
from gw.control.api.calls import Answer, Call, Operation
from gw.control.apikeys import LOCAL
from gw.control.undo import describe
from gw.errors import Conflict, GwError, PermissionNeeded
from gw.state.backup import Manifest
from gw.state.files import make_folder, translate
from gw.state.store import DirectoryStore


class UndoRequest(msgspec.Struct, rename="camel"):
    """dry_run: say what would be taken back, change nothing."""

    dry_run: bool = False


class Undone(msgspec.Struct, rename="camel"):
    """What was taken back: whose change of when, and a line for each object."""

    actor: str
    time: str
    lines: list[str]
    dry_run: bool


class BackupMade(msgspec.Struct, rename="camel"):
    """A backup on the server's own disk, for `gwctl backup` to take away."""

    path: str
    files: int
    bytes: int
    time: str


async def undo(call: Call) -> Answer:
    """Take the newest administrative change back."""
    if call.tailnet.undo is None:
        raise Conflict("this server does not keep its changes")
    asked = call.read(UndoRequest)
    step = await call.tailnet.undo.undo(dry_run=asked.dry_run)
    return Undone(step.actor, step.time.isoformat(), describe(step), asked.dry_run)


async def backup(call: Call) -> Answer:
    """Only for who is on the machine: the file holds every key, and lies on the server's disk."""
    if call.caller is not LOCAL:
        raise PermissionNeeded("backups are made on the server itself: gwctl backup FILE")
    store = call.tailnet.store
    if not isinstance(store, DirectoryStore):
        raise Conflict("this server's state is not kept in a directory")
    path = store.paths.snapshots_dir / f".tmp-backup-{secrets.token_hex(8)}.tar.gz"
    manifest = await asyncio.to_thread(_write, store, path)
    call.tailnet.record("backup-made", "server:backup")
    return BackupMade(str(path), len(manifest.files), path.stat().st_size, manifest.time)


def _write(store: DirectoryStore, path: Path) -> Manifest:
    make_folder(path.parent, 0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            manifest = store.backup(file, __version__)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise translate(error, "write the backup", path) from error
    except GwError:
        path.unlink(missing_ok=True)
        raise
    return manifest


OPERATIONS: Final = [
    Operation(
        method="POST", path="/api/v1/undo", handler=undo, scope="all",
        summary="Take the last administrative change back", body=UndoRequest, answer=Undone,
    ),
    Operation(
        method="POST", path="/api/v1/backup", handler=backup, scope="all",
        summary="Write a backup on the server's disk; only by the unix socket", answer=BackupMade,
    ),
]  # fmt: skip
