"""The event trail: `events/<day>.jsonl`, one JSON object a line, appended and never rewritten.

    {"seq":7,"prev":"<64 hex>","time":"2031-05-01T10:00:00.123+00:00","event":"node-renamed", …}

`seq` counts from 1 without gaps through all days, `prev` is the SHA-256 of the whole line before (without its newline),
so that a line that was altered, inserted or taken out breaks the chain. What was cut off at the end shows against a
signed head (`gw.state.heads`): `events/head.json` is the newest one, `events/heads.jsonl` has one for each day.

It is not part of what must survive: a full disk costs an event, never a change, and the trail says how many it cost.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

import msgspec

from gw.errors import GwError
from gw.state.files import inherit_owner, make_folder, write_atomic
from gw.state.heads import Head, decode_head, sign, signing_key

HEAD_FILE: Final = "head.json"
DAILY_HEADS: Final = "heads.jsonl"
BEGINNING: Final = "0" * 64
DAY_FILE: Final = re.compile(r"\d{4}-\d{2}-\d{2}\.jsonl", re.ASCII)
_DAY_S: Final = 86400
_MODE: Final = 0o640

log = logging.getLogger(__name__)


class Link(msgspec.Struct, frozen=True):
    """What of a line makes the chain. seq 0: a line from before there was one."""

    seq: int = 0
    prev: str = ""


_read_link: Final = msgspec.json.Decoder(Link).decode
_encode: Final = msgspec.json.Encoder().encode


def link_of(line: bytes) -> Link:
    """The chain part of a line. Raises msgspec.MsgspecError for what is no event."""
    return _read_link(line)


def digest_of(line: bytes) -> str:
    """What the next line names as `prev`. line: without its newline."""
    return hashlib.sha256(line).hexdigest()


def day_files(folder: Path) -> list[Path]:
    """The files of a trail, oldest first."""
    try:
        names = sorted(name for name in os.listdir(folder) if DAY_FILE.fullmatch(name))
    except FileNotFoundError:
        return []
    return [folder / name for name in names]


@final
class Trail:
    """The writing end; any thread. Nothing is touched before the first event. Nothing here raises.

    listeners: called with every event's number and line, in order, on the thread that appended it.
    """

    def __init__(self, folder: Path, key_file: Path) -> None:
        self._folder = folder
        self._key_file = key_file
        self._key: Any = None
        self._lock = threading.RLock()
        self._descriptor = -1
        self._day = -1
        self._size = 0
        self._seq = 0
        self._hash = BEGINNING
        self._is_resumed = False
        self._unsynced = self._unsealed = False
        self._lost = 0
        self.head: Head | None = None  # the newest one that was signed
        self.listeners: list[Callable[[int, bytes], None]] = []

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def last(self) -> int:
        """The number of the newest event; 0 before the first one."""
        with self._lock:
            if not self._is_resumed:
                try:
                    self._resume(time.time())
                except (OSError, GwError):
                    return 0
            return self._seq

    def append(self, wall: float, event: str, **fields: object) -> int:
        """Append one event; its number, or 0 if the disk refused. wall: UTC seconds; event: a stable kebab-case id."""
        with self._lock:
            try:
                if not self._is_resumed:
                    self._resume(wall)
                if self._lost:
                    self._write(wall, {"event": "events-lost", "actor": "server", "count": self._lost})
                    self._lost = 0
                return self._write(wall, {"event": event, **fields})
            except (OSError, GwError) as error:
                self._lost += 1
                log.warning("event %s is not recorded: %s", event, error)
                return 0

    def _write(self, wall: float, fields: dict[str, object]) -> int:
        day = int(wall // _DAY_S)
        if day > self._day or self._descriptor < 0:
            self._open(max(day, self._day), wall)
        when = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
        line = _encode({"seq": self._seq + 1, "prev": self._hash, "time": when, **fields})
        try:
            written = os.write(self._descriptor, line + b"\n")
            if written != len(line) + 1:
                raise OSError(28, "no space left on device")
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written
        self._seq += 1
        self._hash = digest_of(line)
        self._unsynced = self._unsealed = True
        for listener in self.listeners:
            listener(self._seq, line)
        return self._seq

    def _open(self, day: int, wall: float) -> None:
        """Go on in the file of this day; the one before is closed with a signed head."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1
            self._close_day(wall)
        make_folder(self._folder, 0o750)
        path = self._folder / f"{datetime.fromtimestamp(day * _DAY_S, UTC):%Y-%m-%d}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, _MODE)
        try:
            inherit_owner(descriptor, self._folder)
            self._size = os.fstat(descriptor).st_size
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._day = descriptor, day

    def _resume(self, wall: float) -> None:
        """Find where the chain stands. A line torn by a crash is cut off; lines missing at the end are told."""
        torn = 0
        for path in reversed(day_files(self._folder)):
            whole, cut = _last_line(path)
            torn += cut
            self._day = max(self._day, _day_of(path))
            if whole:
                link = _link_or_none(whole)
                self._seq, self._hash = link.seq, digest_of(whole)
                break
        head = self._last_head()
        missing = max(0, head.seq - self._seq) if head is not None else 0
        if head is not None and missing:
            self._seq, self._hash = head.seq, head.hash
        self._is_resumed = True
        if torn:
            self._write(wall, {"event": "trail-repaired", "actor": "server", "torn_bytes": torn})
        if missing:
            log.error("events: %d lines at the end of the trail are gone: see `gwctl events verify`", missing)
            self._write(wall, {"event": "trail-cut", "actor": "server", "missing": missing})

    def _last_head(self) -> Head | None:
        try:
            head = decode_head((self._folder / HEAD_FILE).read_bytes(), HEAD_FILE)
        except (OSError, GwError):
            return None
        return head if head.is_genuine() else None

    def sync(self) -> None:
        """Make what was appended durable. Blocks."""
        with self._lock:
            if not self._unsynced or self._descriptor < 0:
                return
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                log.warning("events may not be durable: %s", error)
            else:
                self._unsynced = False

    def seal(self, wall: float) -> Head | None:
        """Sign how far the trail goes, if that is news. Returns the head in force. Blocks."""
        with self._lock:
            try:
                if not self._is_resumed:
                    self._resume(wall)
                if self._unsealed:
                    self.sync()
                    head = self._signed(wall)
                    write_atomic(self._folder / HEAD_FILE, _encode(head) + b"\n", _MODE)
                    self._unsealed = False
                    self.head = head
                elif self.head is None:
                    self.head = self._last_head()
                return self.head
            except (OSError, GwError) as error:
                log.warning("the event trail has no new signed head: %s", error)
                return None

    def frozen(self, wall: float) -> dict[Path, int | bytes]:
        """How far each file goes now, for a copy that fits together: sizes of the days, texts of the heads. Blocks."""
        with self._lock:
            self.seal(wall)
            found: dict[Path, int | bytes] = {path: path.stat().st_size for path in day_files(self._folder)}
            for name in (HEAD_FILE, DAILY_HEADS):
                path = self._folder / name
                if path.exists():
                    found[path] = path.read_bytes()
            return found

    def _signed(self, wall: float) -> Head:
        if self._key is None:
            self._key = signing_key(self._key_file)
        return sign(self._key, self._seq, self._hash, wall)

    def _close_day(self, wall: float) -> None:
        try:
            line = _encode(self._signed(wall)) + b"\n"
            path = self._folder / DAILY_HEADS
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, _MODE)
            try:
                inherit_owner(descriptor, self._folder)
                os.write(descriptor, line)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, GwError) as error:
            log.warning("the day's events have no signed head: %s", error)

    def close(self, wall: float) -> None:
        """Seal and let go of the file."""
        with self._lock:
            if self._is_resumed:
                self.seal(wall)
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
            self._is_resumed = False


def _day_of(path: Path) -> int:
    try:
        when = datetime.strptime(path.stem, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(when.timestamp() // _DAY_S)


def _link_or_none(line: bytes) -> Link:
    try:
        return link_of(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Link()


def _last_line(path: Path) -> tuple[bytes, int]:
    """The last whole line, and how many bytes of a torn one behind it were cut off."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        end = os.fstat(descriptor).st_size
        tail, start = b"", end
        while start and tail.count(b"\n") < 2:
            step = min(start, 65536)
            start -= step
            tail = os.pread(descriptor, step, start) + tail
        whole, newline, torn = tail.rpartition(b"\n")
        if torn:
            os.ftruncate(descriptor, end - len(torn))
        return (whole.rpartition(b"\n")[2] if newline else b""), len(torn)
    finally:
        os.close(descriptor)
