"""The packet workers as processes: started, listened to, noticed when they die.

    one core             one process that serves both planes
    two or three         one process for each plane, with a core that it keeps to while it is busy
    four; eight or more  two, or four, of each plane: "lanes", with a TUN queue and a UDP socket each

While a lane has little to do, its inbound process serves both planes and the outbound one sleeps (`gw.native.turn`).
All that may seal share every keypair and split its counters (`gw.native.outbound`); the kernel spreads flows over TUN
queues. An inbound session belongs to one lane, by the low bits of its index, whatever address its datagrams come from:
so its replay window is in one place.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import msgspec

from gw.engine.link import MESSAGE_BYTES, FromWorker, Relayed, Sender, ToWorker, pair, read_from_worker
from gw.engine.worker import COUNTER_BYTES, FLOW_BYTES, Setup
from gw.native.counters import MAX_LANES

log: Final = logging.getLogger(__name__)

Plane = Literal["outbound", "inbound"]
PLANES: Final[tuple[Plane, Plane]] = ("outbound", "inbound")
BOTH: Final = "both"
BELL: Final = os.EFD_NONBLOCK | os.EFD_CLOEXEC
INDEX_AT: Final = slice(4, 8)  # the receiver index of a transport datagram
MOST_READS: Final = 1024
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


@dataclass(frozen=True, slots=True)
class Place:
    """A process to be: its name, the planes it serves in one lane, its core (-1 for any), which sealer it is."""

    name: str
    planes: tuple[Plane, ...]
    lane: int
    core: int
    sealer: int


@final
class Workers:
    """All packet processes of a tunnel.

    heard: takes their messages. died: called when one is gone unasked; `revive` starts it again.
    """

    def __init__(self, setups: Sequence[Setup], heard: Callable[[FromWorker], None], died: Callable[[], None]) -> None:
        """setups: one a lane; links and cores are filled in here."""
        self._setups = setups
        self._heard = heard
        self._died = died
        self._hash_seed = secrets.randbelow(2**32 - 1) + 1  # all planes of a tunnel must agree on it
        self._layout = layout(sorted(os.sched_getaffinity(0)), len(setups))
        self._sealers = len(self._layout)  # every process may come to seal
        self._bells = (
            [(os.eventfd(0, BELL), os.eventfd(0, BELL)) for _ in setups] if self._sealers > len(setups) else []
        )
        self._processes: list[_Process] = []
        self._links: dict[tuple[Plane, int], _Link] = {}  # outbound: by sealer, inbound: by lane
        try:
            self.revive()
        except OSError:
            self.stop()
            raise

    @property
    def lanes(self) -> int:
        return len(self._setups)

    def revive(self) -> None:
        """Start the processes that are not there."""
        for process in [each for each in self._processes if not each.is_alive()]:
            process.stop()
            self._processes.remove(process)
        alive = {process.place for process in self._processes}
        for place in self._layout:
            if place not in alive:
                process = _Process(place, self._setup(place), self._hash_seed, self._heard, self._died)
                self._processes.append(process)
                for plane, link in process.links.items():
                    self._links[plane, place.sealer if plane == "outbound" else place.lane] = link

    def outbound(self, message: ToWorker) -> None:
        """Tell all that may seal, now or as soon as they listen."""
        for sealer in range(self._sealers):
            self._links["outbound", sealer].control(message)

    @property
    def sealers(self) -> int:
        return self._sealers

    def sealer(self, number: int, message: ToWorker) -> None:
        """Tell one of those that may seal."""
        self._links["outbound", number].control(message)

    def hear_sealers(self) -> None:
        """Take what they have said so far."""
        for sealer in range(self._sealers):
            self._links["outbound", sealer].read(MOST_READS)

    def send(self, message: ToWorker) -> None:
        """Tell one that may seal to send something of the engine's own."""
        self._links["outbound", self._sealers - 1].control(message)  # of an inbound worker: the outbound ones may sleep

    def inbound(self, message: ToWorker) -> None:
        """Tell every inbound lane, now or as soon as it listens."""
        for lane in range(self.lanes):
            self._links["inbound", lane].control(message)

    def session(self, index: int, message: ToWorker) -> None:
        """Tell the inbound lane that the session belongs to."""
        self._links["inbound", index & (self.lanes - 1)].control(message)

    def received(self, datagrams: list[bytes], host: str = "", port: int = 0) -> None:
        """Transport datagrams, by relay or from host and port, for the lanes of their sessions. A lane that does not
        keep up loses them."""
        if self.lanes == 1:
            self._links["inbound", 0].sender.bulk(Relayed(datagrams, host, port))
            return
        split: dict[int, list[bytes]] = {}
        for datagram in datagrams:
            split.setdefault(int.from_bytes(datagram[INDEX_AT], "little") & (self.lanes - 1), []).append(datagram)
        for lane, part in split.items():
            self._links["inbound", lane].sender.bulk(Relayed(part, host, port))

    def pids(self) -> dict[str, int]:
        """The process that serves each plane; `outbound.1` is that of the second lane."""
        found: dict[str, int] = {}
        for process in self._processes:
            if process.is_alive():
                place = process.place
                for name in PLANES if place.name == BOTH else (place.name,):
                    found[name if place.lane == 0 else f"{name}.{place.lane}"] = process.pid
        return found

    def stop(self) -> None:
        for process in self._processes:
            process.stop()
        self._processes = []
        for pair_ in self._bells:
            for bell in pair_:
                os.close(bell)
        self._bells = []

    def _setup(self, place: Place) -> Setup:
        setup = msgspec.structs.replace(
            self._setups[place.lane], core=place.core, sealer=place.sealer, sealers=self._sealers
        )
        if not self._bells:
            return setup
        calm, busy = self._bells[place.lane]
        mine, other = (busy, calm) if place.name == "outbound" else (calm, busy)
        return msgspec.structs.replace(setup, bell=mine, other_bell=other)


def usual_lanes(cores: int) -> int:
    """How many workers a plane has on so many cores."""
    return 1 if cores < 4 else min(MAX_LANES, 2 if cores < 8 else 4)


def layout(usable: list[int], lanes: int) -> list[Place]:
    """The processes. usable: cores of this process."""
    if len(usable) < 2:
        return [Place(BOTH, PLANES, lane, -1, lane) for lane in range(lanes)]
    found: list[Place] = []
    for lane in range(lanes):
        found.append(Place("outbound", ("outbound",), lane, usable[2 * lane % len(usable)], lane))
        found.append(Place("inbound", PLANES, lane, usable[(2 * lane + 1) % len(usable)], lanes + lane))
    return found


@final
class _Process:
    """One process with a link for each of its planes."""

    def __init__(
        self,
        place: Place,
        setup: Setup,
        hash_seed: int,
        heard: Callable[[FromWorker], None],
        died: Callable[[], None],
    ) -> None:
        self.place: Final = place
        self._died = died
        pairs = {plane: pair() for plane in place.planes}
        setup = msgspec.structs.replace(setup, **{plane: theirs.fileno() for plane, (_, theirs) in pairs.items()})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gw.engine", json.dumps(msgspec.to_builtins(setup))],
                pass_fds=setup.descriptors(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            )
        except OSError:
            for ours, _ in pairs.values():
                ours.close()
            raise
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
        log.warning("the packet worker (%s, lane %d) ended with %s", self.place.name, self.place.lane, code)
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
        self._loop.add_reader(sock, self.read)

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

    def read(self, most: int = READS) -> None:
        for _ in range(most):
            if self._sock.fileno() < 0:
                return  # closed by what it said
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
