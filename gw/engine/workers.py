"""The packet workers as processes: started, listened to, noticed when they die.

    two cores or more   one process for each plane, pinned to a core of its own
    one core            one process that serves both planes

A plane's link is its only tie to the engine: no shared memory but the two tables, no signals but the end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, final

import msgspec

from gw.engine.link import MESSAGE_BYTES, FromWorker, Relayed, Sender, ToWorker, pair, read_from_worker
from gw.engine.worker import COUNTER_BYTES, FLOW_BYTES, Setup

log: Final = logging.getLogger(__name__)

Plane = Literal["outbound", "inbound"]
PLANES: Final[tuple[Plane, Plane]] = ("outbound", "inbound")
READS: Final = 32  # messages of one plane before the loop is given back


@dataclass(frozen=True, slots=True)
class SharedTables:
    """Descriptors of the two memory files."""

    counters: int
    flows: int

    @classmethod
    def make(cls) -> SharedTables:
        tables = cls(os.memfd_create("gw-counters"), os.memfd_create("gw-flows"))
        os.ftruncate(tables.counters, COUNTER_BYTES)
        os.ftruncate(tables.flows, FLOW_BYTES)
        return tables

    def close(self) -> None:
        os.close(self.counters)
        os.close(self.flows)


@final
class Workers:
    """All packet processes of a tunnel.

    heard: takes their messages. died: called when one is gone unasked; `revive` starts it again.
    """

    def __init__(self, setup: Setup, heard: Callable[[FromWorker], None], died: Callable[[], None]) -> None:
        """setup: of any process; links and core are filled in here."""
        self._setup = setup
        self._heard = heard
        self._died = died
        self._hash_seed = secrets.randbelow(2**32 - 1) + 1  # all planes of a tunnel must agree on it
        self._layout = layout(sorted(os.sched_getaffinity(0)))
        self._processes: list[_Process] = []
        self._links: dict[Plane, _Link] = {}
        self.revive()

    def revive(self) -> None:
        """Start the processes that are not there."""
        for process in [each for each in self._processes if not each.is_alive()]:
            process.stop()
            self._processes.remove(process)
        alive = {plane for process in self._processes for plane in process.links}
        for planes, core in self._layout:
            if planes[0] not in alive:
                setup = msgspec.structs.replace(self._setup, core=core)
                process = _Process(planes, setup, self._hash_seed, self._heard, self._died)
                self._processes.append(process)
                self._links |= process.links

    def outbound(self, message: ToWorker) -> None:
        """Tell the outbound plane, now or as soon as it listens."""
        self._links["outbound"].control(message)

    def inbound(self, message: ToWorker) -> None:
        """Tell the inbound plane, now or as soon as it listens."""
        self._links["inbound"].control(message)

    def relayed(self, message: Relayed) -> None:
        """Bulk for the inbound plane: dropped where it does not keep up."""
        self._links["inbound"].sender.bulk(message)

    def pids(self) -> dict[str, int]:
        """The process that serves each plane."""
        return {plane: process.pid for process in self._processes if process.is_alive() for plane in process.links}

    def stop(self) -> None:
        for process in self._processes:
            process.stop()
        self._processes = []


def layout(usable: list[int]) -> list[tuple[tuple[Plane, ...], int]]:
    """The planes of each process, and the core that it is pinned to (-1 for any). usable: cores of this process."""
    if len(usable) < 2:
        return [(PLANES, -1)]
    return [((plane,), core) for plane, core in zip(PLANES, usable, strict=False)]


@final
class _Process:
    """One process with a link for each of its planes."""

    def __init__(
        self,
        planes: tuple[Plane, ...],
        setup: Setup,
        hash_seed: int,
        heard: Callable[[FromWorker], None],
        died: Callable[[], None],
    ) -> None:
        self._died = died
        pairs = {plane: pair() for plane in planes}
        setup = msgspec.structs.replace(setup, **{plane: theirs.fileno() for plane, (_, theirs) in pairs.items()})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gw.engine", json.dumps(msgspec.to_builtins(setup))],
                pass_fds=setup.descriptors(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            )
        finally:
            for _, theirs in pairs.values():
                theirs.close()
        self.links: Final = {plane: _Link(ours, heard, self._ended) for plane, (ours, _) in pairs.items()}

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End it: closing the links is enough, the signal is for one that hangs."""
        self._close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _ended(self) -> None:
        self._close()
        self._process.kill()
        code = self._process.wait()
        log.warning("the packet worker (%s) ended with %s", ", ".join(self.links), code)
        self._died()

    def _close(self) -> None:
        for link in self.links.values():
            link.close()


@final
class _Link:
    """The engine's end of one plane's link. ended: called when the other end is gone."""

    def __init__(self, sock: socket.socket, heard: Callable[[FromWorker], None], ended: Callable[[], None]) -> None:
        self.sender: Final = Sender(sock)
        self._sock = sock
        self._heard = heard
        self._ended = ended
        self._writing = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def control(self, message: ToWorker) -> None:
        self.sender.control(message)
        if self.sender.is_behind and not self._writing and self._sock.fileno() >= 0:
            self._writing = True
            self._loop.add_writer(self._sock, self._write)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            if self._writing:
                self._loop.remove_writer(self._sock)
            self._sock.close()

    def _write(self) -> None:
        self.sender.flush()
        if not self.sender.is_behind:
            self._loop.remove_writer(self._sock)
            self._writing = False

    def _read(self) -> None:
        for _ in range(READS):
            try:
                raw = self._sock.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                raw = b""
            if not raw:
                self._ended()
                return
            self._heard(read_from_worker(raw))
            if self._sock.fileno() < 0:
                return  # closed by what it said
