"""The two packet workers as processes: started, listened to, noticed when they die.

Their link is the only tie: no shared memory but the two tables, no signals but the end.
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

from gw.engine.link import MESSAGE_BYTES, FromWorker, Sender, pair, read_from_worker
from gw.engine.worker import COUNTER_BYTES, FLOW_BYTES, Setup

log: Final = logging.getLogger(__name__)

Kind = Literal["outbound", "inbound"]
KINDS: Final[tuple[Kind, Kind]] = ("outbound", "inbound")
READS: Final = 32  # messages of one worker before the loop is given back


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
class Worker:
    """One running worker. `heard` takes its messages, `died` is called once when it is gone unasked."""

    def __init__(
        self,
        kind: Kind,
        setup: Setup,
        hash_seed: int,
        heard: Callable[[FromWorker], None],
        died: Callable[[], None],
    ) -> None:
        self.kind: Final = kind
        self._heard = heard
        self._died = died
        self._loop = asyncio.get_running_loop()
        self._link, theirs = pair()
        setup = msgspec.structs.replace(setup, link=theirs.fileno())
        argument = json.dumps(msgspec.to_builtins(setup))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"gw.engine.{kind}", argument],
                pass_fds=setup.descriptors(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            )
        finally:
            theirs.close()
        self.sender: Final = Sender(self._link)
        self._writing = False
        self._loop.add_reader(self._link, self._read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def push(self) -> None:
        """Have waiting control messages sent as soon as the worker takes them."""
        if self.sender.is_behind and not self._writing:
            self._writing = True
            self._loop.add_writer(self._link, self._write)

    def stop(self) -> None:
        """End it: closing the link is enough, the signal is for one that hangs."""
        self._close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _write(self) -> None:
        self.sender.flush()
        if not self.sender.is_behind:
            self._loop.remove_writer(self._link)
            self._writing = False

    def _read(self) -> None:
        for _ in range(READS):
            try:
                raw = self._link.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                raw = b""
            if not raw:
                self._close()
                self._process.kill()
                code = self._process.wait()
                log.warning("the %s packet worker ended with %s", self.kind, code)
                self._died()
                return
            self._heard(read_from_worker(raw))

    def _close(self) -> None:
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link)
            if self._writing:
                self._loop.remove_writer(self._link)
            self._link.close()


def new_hash_seed() -> int:
    """For PYTHONHASHSEED: both workers of a tunnel must agree on it."""
    return secrets.randbelow(2**32 - 1) + 1


def cores() -> tuple[int, int]:
    """The cores that the outbound and the inbound worker are pinned to, -1 where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) >= 2 else (-1, -1)
