"""Starts the connection workers, replaces the ones that end, and is the only one that knows how many there are.

The listener belongs to the state's owner and is shared by inheritance, so that a worker's death closes nothing but its
own connections: whoever waits in the queue is taken by another. Its clients come back by themselves within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol, final

import msgspec

from gw.control.edge import Desk, Edge
from gw.control.link import HELLO, WorkerEdge
from gw.control.worker import WorkerSettings

logger = logging.getLogger(__name__)

LONG_ENOUGH_S: Final = 10.0  # a worker that lived so long is replaced at once
FIRST_WAIT_S: Final = 0.2
MAX_WAIT_S: Final = 10.0
STOP_S: Final = 2.0
LOOK_S: Final = 1.0


class Owner(Desk, Protocol):
    """The desk, which also hears of a whole edge's end."""

    def gone(self, edge: Edge) -> None: ...


@final
class Workforce:
    """`await run(number)` keeps one worker there until cancelled. settings: for a worker's number."""

    def __init__(self, desk: Owner, listener: socket.socket, settings: Callable[[int], WorkerSettings]) -> None:
        self._desk, self._listener, self._settings = desk, listener, settings

    async def run(self, number: int) -> None:
        wait = FIRST_WAIT_S
        while True:
            begun = time.monotonic()
            code = await self._once(number)
            if time.monotonic() - begun > LONG_ENOUGH_S:
                wait = FIRST_WAIT_S
            logger.error("connection worker %d ended (%s): its clients come back to the others", number, code)
            await asyncio.sleep(wait)
            wait = min(MAX_WAIT_S, wait * 2)

    async def _once(self, number: int) -> int:
        """One worker's life. Returns its exit code."""
        ours, theirs = socket.socketpair()
        over = asyncio.Event()
        edge = WorkerEdge(self._desk, over.set)
        process = None
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gw.control.worker", str(theirs.fileno()), str(self._listener.fileno()),
                pass_fds=(theirs.fileno(), self._listener.fileno()), stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
            await asyncio.get_running_loop().create_connection(lambda: edge.frames, sock=ours)
            edge.frames.send(HELLO, msgspec.json.encode(self._settings(number)))
            while not over.is_set():
                try:
                    async with asyncio.timeout(LOOK_S):
                        await over.wait()
                except TimeoutError:
                    if edge.is_stuck():
                        logger.error("connection worker %d does not read: replaced", number)
                        process.kill()
            async with asyncio.timeout(STOP_S):
                return await process.wait()
        except TimeoutError:
            return -1
        finally:
            theirs.close()
            edge.frames.close()
            ours.close()
            self._desk.gone(edge)
            if process is not None and process.returncode is None:
                await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The link is closed, which ends a worker; one that does not is killed."""
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
