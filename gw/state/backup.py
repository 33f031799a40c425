"""Backups: the whole directory at one instant, as a tar file with a list of hashes; made beside a running server.

    manifest.json     {"format": 1, "version": …, "time": …, "files": {"config.toml": "<sha256>", …}}   the last member
    config.toml  policy.hujson  control/…  relays/…  dns/…  keys/…  events/…

While the files are read nothing is moved from the journal into them: commits go on into the journal, which is no part
of the backup. The trail goes up to the line that was the last one then. Keys are in it: whoever has it has the server.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Final

import msgspec

from gw.errors import ConfigError, Conflict, NotFound
from gw.state.files import make_folder, sync_folder, translate
from gw.state.lock import DirectoryLock
from gw.state.paths import StatePaths
from gw.state.settling import sync_file_system

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
PARTS: Final = ("config.toml", "policy.hujson", "policy.toml", "control", "relays", "dns", "keys", "events")
_IGNORED: Final = (".tmp-",)
MAX_MANIFEST_BYTES: Final = 64 << 20


class Manifest(msgspec.Struct, kw_only=True):
    """What a backup holds. files: name → SHA-256."""

    format: int
    version: str
    time: str
    files: dict[str, str]


def write_backup(paths: StatePaths, target: IO[bytes], version: str, frozen: Mapping[Path, int | bytes]) -> Manifest:
    """Write a backup of a directory whose documents nobody changes meanwhile. Blocks. Raises GwError, OSError.

    frozen: files that go on being written: how much of them belongs to it, or what.
    """
    manifest = Manifest(format=FORMAT, version=version, time=datetime.now(UTC).isoformat(timespec="seconds"), files={})
    with (
        gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in _files(paths.root):
            name = path.relative_to(paths.root).as_posix()
            try:
                part = frozen.get(path, -1)
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    raw = part if isinstance(part, bytes) else file.read(part)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise translate(error, "read", path) from error
            _add(archive, name, raw, status.st_mode & 0o777, status.st_mtime)
            manifest.files[name] = hashlib.sha256(raw).hexdigest()
        _add(archive, MANIFEST, msgspec.json.encode(manifest), 0o600, time.time())
    return manifest


def _add(archive: tarfile.TarFile, name: str, raw: bytes, mode: int, when: float) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(raw), mode, int(when)
    archive.addfile(member, io.BytesIO(raw))


def _files(root: Path) -> Iterator[Path]:
    """Every regular file of the parts, in an order that stays."""
    for part in PARTS:
        place = root / part
        if place.is_file():
            yield place
        elif place.is_dir():
            for folder, folders, names in os.walk(place):
                folders.sort()
                for name in sorted(names):
                    path = Path(folder) / name
                    if not name.startswith(_IGNORED) and path.is_file() and not path.is_symlink():
                        yield path


def read_manifest(archive_path: Path) -> Manifest:
    """Read a backup through and check every file against its hash. Raises ConfigError, GwError."""
    hashes: dict[str, str] = {}
    manifest: Manifest | None = None
    for name, _, raw in _members(archive_path):
        if name == MANIFEST:
            try:
                manifest = msgspec.json.decode(raw, type=Manifest)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ConfigError(f"not a backup: {error}", path=str(archive_path)) from None
        elif name in hashes:
            raise ConfigError(f"`{name}` is in it twice", path=str(archive_path))
        else:
            hashes[name] = hashlib.sha256(raw).hexdigest()
    if manifest is None:
        raise ConfigError("no backup, or a torn one: it has no manifest", path=str(archive_path))
    if manifest.format > FORMAT:
        raise ConfigError(f"made by a newer version: {manifest.version}", path=str(archive_path))
    if hashes != manifest.files:
        wrong = sorted(name for name in {*hashes, *manifest.files} if hashes.get(name) != manifest.files.get(name))
        raise ConfigError(f"`{wrong[0]}` is damaged", path=str(archive_path), hint="use another backup")
    return manifest


def _members(archive_path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of each member. Raises ConfigError for anything that no backup holds."""
    try:
        with tarfile.open(archive_path, mode="r|gz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                good = member.isreg() and parts and ".." not in parts and not member.name.startswith("/")
                if not good or (member.name != MANIFEST and parts[0] not in PARTS):
                    raise ConfigError(f"no backup of ours: it holds `{member.name[:80]}`", path=str(archive_path))
                file = archive.extractfile(member)
                yield member.name, member.mode & 0o777, file.read() if file is not None else b""
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"not a backup, or a torn one: {error}", path=str(archive_path)) from None
    except OSError as error:
        if error.errno is None:  # gzip's own complaints
            raise ConfigError(f"not a backup, or a torn one: {error}", path=str(archive_path)) from None
        raise translate(error, "read the backup", archive_path, "check the path") from error


def restore(archive_path: Path, paths: StatePaths, *, force: bool = False) -> tuple[Manifest, Path | None]:
    """Put a backup into a directory. Returns what it held, and where what was there before lies now.

    Checked through before anything is touched; a directory that holds a server's state is replaced only by force, and
    one that a server uses never. Raises GwError.
    """
    manifest = read_manifest(archive_path)
    if paths.config_file.exists() and not force:
        raise Conflict(f"`{paths.root}` holds a server's state", hint="--force replaces it; what is there is kept")
    if "config.toml" not in manifest.files:
        raise NotFound("the backup has no config.toml")
    lock = DirectoryLock(paths.root)
    try:
        fresh = paths.root / f".tmp-restore-{os.getpid()}"
        _unpack(archive_path, fresh)
        sync_file_system(fresh)
        kept = _put_aside(paths)
        for part in PARTS:
            if (fresh / part).exists():
                (fresh / part).rename(paths.root / part)
        fresh.rmdir()
        sync_folder(paths.root)
    except OSError as error:
        raise translate(error, "restore into", paths.root) from error
    finally:
        lock.release()
    return manifest, kept


def _unpack(archive_path: Path, fresh: Path) -> None:
    make_folder(fresh, 0o700)
    for name, mode, raw in _members(archive_path):
        if name == MANIFEST:
            continue
        path = fresh / name
        for folder in reversed(path.relative_to(fresh).parents[:-1]):
            make_folder(
                fresh / folder,
                0o700 if folder.parts[0] == "keys" else 0o755 if folder.parts[0] in ("relays", "dns") else 0o750,
            )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            os.fchmod(file.fileno(), mode)
            owner = fresh.stat()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)


def _put_aside(paths: StatePaths) -> Path | None:
    """Move what is there into `snapshots/`, the journal too: it belongs to it."""
    there = [part for part in (*PARTS, "journal") if (paths.root / part).exists()]
    if not there:
        return None
    make_folder(paths.snapshots_dir, 0o700)
    kept = paths.snapshots_dir / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-before-restore"
    make_folder(kept, 0o700)
    for part in there:
        (paths.root / part).rename(kept / part)
    return kept
