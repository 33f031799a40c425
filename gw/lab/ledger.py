"""What a lab has made, on disk before it is made: the next run removes it if this one is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, final

import msgspec

from gw.errors import Conflict, GwError, PermissionNeeded

FILE: Final = "lab.json"
USUAL: Final = Path("/tmp/ghostwire-lab")  # noqa: S108 - only taken where it is the caller's own: see `_see_that_it_is_ours`
PREFIX: Final = "gwlab-"
NETNS: Final = Path("/run/netns")
STOP_S: Final = 6.0


class Process(msgspec.Struct):
    """A process of the lab. start: its start time in clock ticks since boot, so that a reused pid is not mistaken."""

    pid: int
    start: int
    name: str


class Entry(msgspec.Struct):
    """The file. owner: the lab's own process; standing: left running by `gw lab up`."""

    owner: Process
    standing: bool = False
    namespaces: list[str] = []
    folders: list[str] = []
    processes: list[Process] = []
    nodes: list[str] = []


def lab_folder() -> Path:
    """Where labs keep their state: $GW_LAB_DIR, else a folder in the temporary one."""
    return Path(os.environ.get("GW_LAB_DIR") or Path(tempfile.gettempdir()) / USUAL.name)


def prefix(folder: Path) -> str:
    """How the names of a lab's namespaces begin: `gwlab-`, and a mark of the folder where it is not the usual one.

    Names are the machine's, so one name belongs to one folder, whatever $TMPDIR says.
    """
    if folder == USUAL:
        return PREFIX
    return f"{PREFIX}{hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:6]}-"


@final
class Ledger:
    """The record of one lab. Every `note_…` is written before it returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / FILE
        self._temporary = folder / f"{FILE}.{os.getpid()}.tmp"
        self._prefix = prefix(folder)
        self.entry = Entry(Process(os.getpid(), _started(os.getpid()) or 0, "gw lab"))

    @classmethod
    def open(cls, folder: Path) -> Ledger | None:
        """The record that is there, or None. Raises GwError where it cannot be read."""
        ledger = cls(folder)
        _see_that_it_is_ours(folder)
        try:
            ledger.entry = msgspec.json.decode(ledger._path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise GwError(f"cannot read `{ledger._path}`: {error}", hint=f"remove it: rm -r {folder}") from error
        return ledger

    @classmethod
    def begin(cls, folder: Path) -> Ledger:
        """A new record, after removing what a killed run left. Raises Conflict where a lab is up."""
        before = cls.open(folder)
        if before is not None:
            if before.entry.standing or before.is_owned():
                raise Conflict("a lab is up already", hint="gw lab down")
            before.remove_all()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise GwError(f"cannot make `{folder}`: {error.strerror}", hint="set GW_LAB_DIR") from error
        _see_that_it_is_ours(folder)
        ledger = cls(folder)
        try:
            os.link(ledger._write(), ledger._path)
        except FileExistsError:
            raise Conflict("another lab is coming up in this folder", hint="set GW_LAB_DIR") from None
        finally:
            ledger._temporary.unlink(missing_ok=True)
        return ledger

    def namespace(self, name: str) -> str:
        """The network namespace of a node, a router or the hub of this lab."""
        return self._prefix + name

    def is_owned(self) -> bool:
        """True while the process that made it lives."""
        return _is_alive(self.entry.owner)

    def save(self) -> None:
        self._write().rename(self._path)

    def _write(self) -> Path:
        self._temporary.write_bytes(msgspec.json.encode(self.entry))
        return self._temporary

    def note_namespace(self, name: str) -> None:
        self.entry.namespaces.append(name)
        self.save()

    def note_folder(self, path: Path) -> None:
        self.entry.folders.append(str(path))
        self.save()

    def note_process(self, pid: int, name: str) -> None:
        self.entry.processes.append(Process(pid, _started(pid) or 0, name))
        self.save()

    def remove_all(self, *, keep_files: bool = False) -> None:
        """End the processes, remove namespaces and folders. Whatever is gone already is no error."""
        _end(list(reversed(self.entry.processes)))
        for name in reversed(self.entry.namespaces):
            if name.startswith(PREFIX):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for folder in self.entry.folders:
            if Path(folder).name.startswith(PREFIX):
                shutil.rmtree(folder, ignore_errors=True)
        if keep_files:
            self._path.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove_stale(self, name: str) -> None:
        """Remove a namespace of this lab that stands although no record tells of it, with what runs inside.

        Only the lab that holds this folder has such names. Raises Conflict where the caller itself is inside.
        """
        if not (NETNS / name).exists():
            return
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
        pids = [int(pid) for pid in listed.split()]
        if os.getpid() in pids:
            raise Conflict(f"this shell is inside `{name}`, which an earlier lab left", hint="leave it and try again")
        _end([Process(pid, _started(pid) or 0, name) for pid in pids])
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _end(processes: list[Process]) -> None:
    """End them, by force where they do not go in STOP_S."""
    alive = [process for process in processes if _is_alive(process)]
    for process in alive:
        _signal(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while alive and time.monotonic() < deadline:
        alive = [process for process in alive if _is_alive(process)]
        time.sleep(0.02)
    for process in alive:
        _signal(process.pid, signal.SIGKILL)
    while alive and time.monotonic() < deadline + 1.0:
        alive = [process for process in alive if _is_alive(process)]
        time.sleep(0.02)


def _see_that_it_is_ours(folder: Path) -> None:
    """A record that another user can write would have us end their choice of processes and write to their links."""
    try:
        found = folder.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionNeeded(f"`{folder}` is not a folder of this user alone", hint="set GW_LAB_DIR to a new folder")


def _is_alive(process: Process) -> bool:
    started = _started(process.pid)
    return started is not None and started == process.start


def _started(pid: int) -> int | None:
    """The process's start time; None where there is none, or only its corpse."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
