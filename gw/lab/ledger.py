"""What a lab has made, on disk before it is made: the next run removes it if this one is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, final

import msgspec

from gw.errors import Conflict, GwError

FILE: Final = "lab.json"
PREFIX: Final = "gwlab-"
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
    return Path(os.environ.get("GW_LAB_DIR") or usual_folder())


def usual_folder() -> Path:
    """The folder where $GW_LAB_DIR names none."""
    return Path(tempfile.gettempdir()) / "ghostwire-lab"


def prefix(folder: Path) -> str:
    """How the names of a lab's namespaces begin: `gwlab-`, and a mark of the folder where it is not the usual one."""
    if folder == usual_folder():
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
        self._end_processes()
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

    def _end_processes(self) -> None:
        alive = [process for process in reversed(self.entry.processes) if _is_alive(process)]
        for process in alive:
            _signal(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while alive and time.monotonic() < deadline:
            _reap()
            alive = [process for process in alive if _is_alive(process)]
            time.sleep(0.02)
        for process in alive:
            _signal(process.pid, signal.SIGKILL)
        while alive and time.monotonic() < deadline + 1.0:
            _reap()
            alive = [process for process in alive if _is_alive(process)]
            time.sleep(0.02)


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


def _reap() -> None:
    """Take the exit of our own children, or they stay as corpses."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
