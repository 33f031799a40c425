"""Durable, whole writes of single files, with the right owner.

A reader never sees half a file: the bytes go to a temporary file beside it, are made durable, and take the name by
`rename`. What root writes below the state directory gets the owner and group of the folder it lies in, so that
`sudo gwctl …` never leaves a file that the program's own user cannot read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from itertools import count
from pathlib import Path
from typing import Final

from gw.errors import GwError, NotFound, PermissionNeeded

TEMPORARY_PREFIX: Final = ".tmp-"
SECRET_MODE: Final = 0o600
Owner = tuple[int, int]  # user, group
_serial: Final = count()
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, raw: bytes, mode: int = 0o644) -> None:
    """Put `raw` at `path`; durable when this returns, and nothing is changed when it raises GwError."""
    try:
        temporary = write_temporary(path, raw, mode, durable=True)
        try:
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise translate(error, "write", path) from error


def write_secret(path: Path, raw: bytes) -> None:
    """Put a secret at `path`, readable by its owner alone (0600); its folder is made if need be (0700)."""
    make_folder(path.parent, 0o700)
    write_atomic(path, raw, SECRET_MODE)


def read_secret(path: Path) -> bytes:
    """A secret's bytes. Raises NotFound, or PermissionNeeded also where other users may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                raise PermissionNeeded(
                    f"secret is readable by others: `{path}`", hint=f"chmod 600 {path}, and consider a new secret"
                )
            return file.read(1 << 20)
    except OSError as error:
        raise translate(error, "read", path) from error


def write_temporary(path: Path, raw: bytes, mode: int = 0o644, *, durable: bool) -> Path:
    """Write `raw` beside `path` under a temporary name and return that name. Raises OSError and leaves nothing."""
    return Path(write_into(str(path.parent), raw, mode, durable=durable))


def write_into(
    folder: str, raw: bytes, mode: int = 0o644, *, durable: bool, owners: dict[str, Owner] | None = None
) -> str:
    """The same for a batch, where paths as objects would cost as much as the files. Returns the temporary file's path.

    owners: of folders, as far as they are known by now; a batch asks once for each.
    """
    temporary = f"{folder}/{TEMPORARY_PREFIX}{os.getpid()}-{next(_serial)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_MODE)
    try:
        try:
            inherit_owner(descriptor, folder, owners)
            os.fchmod(descriptor, mode)
            left = memoryview(raw)
            while left:
                left = left[os.write(descriptor, left) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return temporary


def make_folder(path: Path, mode: int) -> None:
    """Make the folder with this mode unless it is there; missing parents are made with 0755. Raises GwError."""
    try:
        if path.is_dir():
            return
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                folder.mkdir(mode if folder == path else 0o755, exist_ok=True)
                _adopt(folder, mode if folder == path else 0o755)
    except OSError as error:
        raise translate(error, "make the folder", path) from error


def _adopt(folder: Path, mode: int) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        inherit_owner(descriptor, folder.parent)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def inherit_owner(descriptor: int, parent: Path | str, owners: dict[str, Owner] | None = None) -> None:
    """As root, give an open file or folder the owner and group of the folder it lies in. Raises OSError."""
    if os.geteuid() != 0:
        return
    owner = owners.get(str(parent)) if owners is not None else None
    if owner is None:
        status = os.stat(parent)
        owner = status.st_uid, status.st_gid
        if owners is not None:
            owners[str(parent)] = owner
    if owner != (0, 0):
        os.fchown(descriptor, *owner)


def sync_folder(path: Path | str) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def translate(
    error: OSError, verb: str, path: Path, missing: str = "see `--state-dir`, or run `gwctl init`"
) -> GwError:
    """The operating system's refusal as an error to show: `cannot <verb> <path>: why`. missing: the hint for that."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"cannot {verb} `{path}`: no such file or folder", hint=missing)
    if isinstance(error, PermissionError):
        return PermissionNeeded(f"may not {verb} `{path}`", hint="use sudo, or run as the user who owns it")
    if error.errno in _FULL:
        return GwError(f"disk full: cannot {verb} `{path}`", hint=f"free space below `{path.parent}`: see `df -h`")
    if error.errno == errno.EROFS:
        return GwError(f"read-only file system: cannot {verb} `{path}`", hint="choose another `--state-dir`")
    return GwError(f"cannot {verb} `{path}`: {error.strerror or error}")
