"""`gwrelay serve --workers N`: one relay in several processes, so that it uses several cores and more descriptors.

    parent     binds every port N times (SO_REUSEPORT), keeps the sockets, starts workers, replaces one that dies
    worker     a `Relaying` over its sockets, given by a socket pair together with what it has to know
    workers    linked with one another by unix sockets, in the protocol of the mesh: a packet for another worker's
               client crosses in the batch of that turn

Because the parent keeps the sockets, connections that arrive while a worker is replaced wait in its backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gw.errors import GwError, UsageError
from gw.model.keys import RelaySecret
from gw.net.udp import steer_quic
from gw.relay.issuing import keep_certificate
from gw.relay.metrics import SLOT_BYTES
from gw.relay.relaymap import enter_map
from gw.relay.server import (
    BACKLOG,
    Relaying,
    Share,
    Sockets,
    open_sockets,
    relay_secret,
    status,
    tls,
)
from gw.relay.settings import Overrides, Settings, load_settings, speaks_quic
from gw.state.paths import StatePaths
from gw.wire.x25519 import public_key

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
START_S: Final = 30.0
STOP_S: Final = 4.0
MAX_ORDER_BYTES: Final = 64 << 10
_PROGRAM: Final = "from gw.commands.gwrelay import main; main()"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent tells a worker. Descriptors are inherited; -1 = none. path: of its own link socket."""

    state_dir: str
    flags: Overrides
    workers: int
    slot: int
    sibling_key: str
    sockets: list[str]
    public: int
    stun: int = -1
    http: int = -1
    metrics: int = -1
    siblings: int = -1
    shared: int = -1


async def supervise(
    paths: StatePaths,
    flags: Overrides,
    ready: Callable[[str], None],
    on_reload: Callable[[Callable[[], None]], None],
) -> None:
    """Run the workers until cancelled."""
    settings = load_settings(paths, flags)
    count = settings.workers
    secret = relay_secret(paths)
    _enter(paths, settings, secret)
    shared = os.memfd_create("gwrelay-metrics")
    os.ftruncate(shared, SLOT_BYTES * count)
    running: dict[int, asyncio.subprocess.Process] = {}

    def reload() -> None:
        try:
            _enter(paths, load_settings(paths, flags), secret)
        except GwError as error:
            logger.error("the settings stay as they were: %s", error.message)
            return
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

    with tempfile.TemporaryDirectory(prefix="gwrelay-", ignore_cleanup_errors=True) as folder:
        sibling_key = secrets.token_hex(32)
        places = [str(Path(folder) / f"worker-{slot}") for slot in range(count)]
        sockets = [_with_link(open_sockets(settings, is_shared=True), place) for place in places]
        udp = sockets[0].stun
        if udp is not None and speaks_quic(settings) and not steer_quic(udp, count):
            logger.warning("the kernel does not steer QUIC to workers: clients whose address changes connect anew")
        orders = [
            Order(
                state_dir=str(paths.root), flags=flags, workers=count, slot=slot, sibling_key=sibling_key,
                sockets=[each for each in places if each != places[slot]], shared=shared, **_numbers(sockets[slot]),
            )
            for slot in range(count)
        ]  # fmt: skip
        started = [asyncio.Event() for _ in orders]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keep_certificate(paths, settings, reload))
                for order in orders:
                    group.create_task(_keep(order, sockets[order.slot], running, started[order.slot]))
                for event in started:
                    await event.wait()
                on_reload(reload)
                ready(f"{status(settings)}, {count} workers")
        finally:
            os.close(shared)
            for each in sockets:
                for channel in each.all():
                    channel.close()


def _enter(paths: StatePaths, settings: Settings, secret: RelaySecret) -> None:
    key = public_key(secret.raw)
    _, pin = tls(paths, settings, key)
    enter_map(paths, settings, pin, key)


def _with_link(sockets: Sockets, path: str) -> Sockets:
    channel = socket.socket(socket.AF_UNIX)
    channel.bind(path)
    channel.listen(BACKLOG)
    sockets.siblings = channel
    return sockets


def _numbers(sockets: Sockets) -> dict[str, int]:
    return {
        name: -1 if channel is None else channel.fileno()
        for name, channel in (
            ("public", sockets.public), ("stun", sockets.stun), ("http", sockets.http), ("metrics", sockets.metrics),
            ("siblings", sockets.siblings),
        )
    }  # fmt: skip


async def _keep(
    order: Order, sockets: Sockets, running: dict[int, asyncio.subprocess.Process], started: asyncio.Event
) -> None:
    """One worker, started again when it dies. One that does not come up at the first start ends the relay."""
    pause = RETRY_S
    while True:
        ours, theirs = socket.socketpair()
        descriptors = [each.fileno() for each in sockets.all()] + [order.shared, theirs.fileno()]
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-c", _PROGRAM, "worker", str(theirs.fileno()), pass_fds=descriptors
                )
            running[order.slot] = process
            try:
                if await _greet(ours, order):
                    started.set()
                    pause = RETRY_S
                code = await process.wait()
            except BaseException:
                await _stop(process)
                raise
            finally:
                del running[order.slot]
        if not started.is_set():
            raise GwError("a worker of the relay does not start", hint="the log above says why")
        logger.error("worker %d ended with %d: another takes its place", order.slot, code)
        await asyncio.sleep(pause * (0.5 + random.random()))
        pause = min(pause * 2, MAX_RETRY_S)


async def _greet(ours: socket.socket, order: Order) -> bool:
    """Tell a worker what to do; True when it serves."""
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    try:
        async with asyncio.timeout(START_S):
            await loop.sock_sendall(ours, msgspec.json.encode(order) + b"\n")
            return await loop.sock_recv(ours, 1) == b"+"
    except OSError:
        return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def work(channel: int, on_reload: Callable[[Callable[[], None]], None]) -> None:
    """A worker: do what stands in the order on the inherited descriptor, until told to stop or the parent is gone."""
    parent = socket.socket(fileno=channel)
    raw = b""
    while not raw.endswith(b"\n") and len(raw) < MAX_ORDER_BYTES:
        piece = parent.recv(4096)
        if not piece:
            break
        raw += piece
    try:
        order = msgspec.json.decode(raw, type=Order)
    except msgspec.DecodeError as error:
        raise UsageError("`gwrelay worker` is for `gwrelay serve` alone") from error
    paths = StatePaths(Path(order.state_dir))
    share = Share(
        order.workers, order.slot, mmap.mmap(order.shared, SLOT_BYTES * order.workers), order.sibling_key,
        tuple(order.sockets),
    )  # fmt: skip
    sockets = Sockets(
        socket.socket(fileno=order.public), *(
            socket.socket(fileno=number) if number >= 0 else None
            for number in (order.stun, order.http, order.metrics, order.siblings)
        ),
    )  # fmt: skip
    relaying = Relaying(paths, lambda: load_settings(paths, order.flags), sockets, share)
    on_reload(lambda: (relaying.reload(), None)[1])
    parent.setblocking(False)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(relaying.run(lambda: parent.send(b"+")))  # type: ignore[arg-type]
        await asyncio.get_running_loop().sock_recv(parent, 1)  # ends when the parent does
        serving.cancel()
