"""A connection worker, started by `gwctl serve`: `python -m gw.control.worker LINK LISTENER`, inherited descriptors.

It accepts from the shared listener, holds Noise and HTTP/2, compresses, seals and fans out, and knows nothing of the
tailnet. What it needs comes over the link, the Noise key too. When the link ends, so does the worker.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import final

import msgspec

from gw import logs
from gw.control.channel import Poller
from gw.control.connection import ControlSocket
from gw.control.edge import Switchboard
from gw.control.frontdoor import FrontDoor
from gw.control.limits import descriptor_limit
from gw.control.link import RemoteDesk
from gw.control.tls.holder import CertificateHolder
from gw.control.webrelay import WebRelay
from gw.model.keys import MachineSecret
from gw.wire.ts2021.noise import Accepted
from gw.wire.ts2021.server import ServerConnection

logger = logging.getLogger(__name__)


@final
class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told first. key: the server's Noise key, hex; tls_proofs: folder, see `gw.acme.proofs`."""

    number: int
    key: str
    web_socket: str
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_proofs: str = ""
    log_level: str = "info"
    log_format: str = "text"


async def work(link: socket.socket, listener: socket.socket) -> None:
    """Serve until the link ends."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    told: asyncio.Future[bytes] = loop.create_future()

    def lost() -> None:
        over.set()
        told.cancel()

    desk = RemoteDesk(lost, told.set_result)
    tasks: set[asyncio.Task[None]] = set()

    def own(task: asyncio.Task[None]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await loop.create_connection(lambda: desk.frames, sock=link)
    settings = msgspec.json.decode(await told, type=WorkerSettings)
    logs.start(settings.log_level, settings.log_format)
    key = MachineSecret(bytes.fromhex(settings.key))
    switchboard = Switchboard(desk)
    desk.edge = switchboard

    def make_web() -> asyncio.Protocol:
        return WebRelay(settings.web_socket, own)

    def make_control(accepted: Accepted, http: ServerConnection) -> asyncio.Protocol:
        return ControlSocket(switchboard, accepted.machine, http)

    context = None
    if settings.tls_cert_file:
        holder = CertificateHolder(settings.tls_cert_file, settings.tls_key_file, "", lambda: datetime.now(UTC))
        if Path(settings.tls_cert_file).exists():  # an authority may be about to give the first one
            holder.reload()
        context = holder.context
        if settings.tls_proofs:
            from gw.acme.proofs import chooser

            context.sni_callback = chooser(Path(settings.tls_proofs))
        own(loop.create_task(holder.follow()))
    poller = Poller(listener, lambda: FrontDoor(key, make_web, make_control), context, descriptor_limit())
    poller.start()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1000)
    own(loop.create_task(switchboard.keep_alive()))
    try:
        await over.wait()
    finally:
        poller.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    link_fd, listener_fd = map(int, sys.argv[1:3])
    logs.start("info", "text")  # until the server says which
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the server, which ends the link
        signal.signal(number, signal.SIG_IGN)
    link, listener = socket.socket(fileno=link_fd), socket.socket(fileno=listener_fd)
    link.setblocking(False)
    listener.setblocking(False)
    try:
        asyncio.run(work(link, listener))
    except asyncio.CancelledError:
        pass  # the server was gone before it said anything


if __name__ == "__main__":
    main()
