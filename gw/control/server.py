"""`gwctl serve`: the store, the tailnet, the admin socket and the public listener, composed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from uvicorn import Config as WebConfig
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gw import logs
from gw.control import events
from gw.control.admin_socket import admin_socket
from gw.control.api.http import Observe
from gw.control.apikeys import token_seal
from gw.control.channel import Poller
from gw.control.connection import ControlSocket
from gw.control.desk import FrontDesk
from gw.control.edge import Switchboard
from gw.control.eventstream import EventStream
from gw.control.fanout import Fanout
from gw.control.frontdoor import FrontDoor
from gw.control.limits import descriptor_limit
from gw.control.liveness import Liveness
from gw.control.mapper import Mapper
from gw.control.metrics import Metrics, metrics_listener
from gw.control.observed import ObservedFile, read_observed
from gw.control.oidc.routes import BrowserLogins
from gw.control.sources import Sources
from gw.control.tailnet import Tailnet
from gw.control.tls.plain import plain_web
from gw.control.tls.setup import Tls, set_up
from gw.control.undo import FILE as UNDO_FILE
from gw.control.undo import Undo
from gw.control.watching import follow_edits, load_policy
from gw.control.web import web
from gw.control.webhooks import run_webhooks
from gw.control.webprotocol import WebProtocol
from gw.control.webrelay import WebDoor
from gw.control.worker import WorkerSettings
from gw.control.workforce import Workforce
from gw.errors import ConfigError, Conflict, GwError, PermissionNeeded
from gw.model.keys import MachineKey, MachineSecret
from gw.state.config import Config, split_listen
from gw.state.files import read_secret, write_secret
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore
from gw.wire.ts2021.noise import Accepted
from gw.wire.ts2021.server import ServerConnection
from gw.wire.x25519 import clamp, public_key

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
COLLECT: Final = (50_000, 20, 1000)  # a full collection walks every node: seldom
WEB_SOCKET: Final = "control-web.sock"
CONTROL_KEY: Final = "control.key"
SEAL_S: Final = 2.0


def control_key(paths: StatePaths) -> MachineSecret:
    """The server's Noise key, made at the first start. Its loss makes every client without TLS distrust the server."""
    path = paths.keys_dir / CONTROL_KEY
    if path.exists():
        return MachineSecret.parse(read_secret(path).decode().strip())
    secret = MachineSecret(clamp(secrets.token_bytes(32)))
    write_secret(path, f"{secret.text()}\n".encode())
    return secret


async def serve(
    paths: StatePaths,
    config: Config,
    ready: Callable[[str], None],
    workers: int = 0,
    on_reload: Callable[[Callable[[], None]], None] = lambda callback: None,
) -> None:
    """Serve until cancelled. Raises Conflict for a directory or port in use, ConfigError for bad files.

    workers: connection workers; 0 = this process holds the connections too.
    """
    store = DirectoryStore(paths).open()
    listener: socket.socket | None = None
    try:
        listener = listening_socket(config.listen)
        listener.listen(BACKLOG)  # who comes while everything is read waits for it, and is not refused
        metrics = Metrics()
        tailnet = Tailnet.load(
            store,
            config,
            load_policy(paths.policy_file),
            metrics.counting(events.recorder(store.trail)),
            observed=read_observed(paths.observed_file),
        )
        metrics.watch(tailnet)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)
        key = control_key(paths)
        tailnet.folder, tailnet.seal = paths.root, token_seal(key.raw)
        Undo(tailnet, paths.control_dir / UNDO_FILE)
        tls = set_up(paths, config, tailnet.clock, tailnet.publisher, workers)
        on_reload(tls.reload)
        logins = BrowserLogins(tailnet)
        if logins.is_on:
            logins.provider()  # what is wrong with its files is said here and now
            if config.oidc.only_start_if_oidc_is_available:
                await logins.check()
        plain = listening_socket(config.http_listen) if config.http_listen else None
        observed = ObservedFile(paths.observed_file, tailnet.nodes, tailnet.clock)
        tailnet.subscribe(observed.take)
        async with (
            tailnet.running(),
            observed.running(),
            admin_socket(tailnet, paths.control_socket),
            EventStream(store.trail).running() as stream,
            asyncio.TaskGroup() as tasks,
        ):
            tailnet.events = stream
            tasks.create_task(follow_edits(store, tailnet, paths))
            tasks.create_task(keep_sealed(store))
            tasks.create_task(run_webhooks(tailnet, stream, paths.events_dir / "webhooks"))
            tasks.create_task(logins.watch())
            tasks.create_task(Sources(tailnet, paths.control_dir / "derpmaps").run())
            tasks.create_task(metrics.measure_lag())
            async with AsyncExitStack() as listeners:
                if config.metrics_listen:
                    channel = listening_socket(config.metrics_listen)
                    await listeners.enter_async_context(metrics_listener(metrics, channel))
                if workers:
                    web_socket = paths.control_socket.with_name(WEB_SOCKET)
                    serving = with_workers(
                        tailnet, key, listener, web_socket, workers, tls, metrics.observe, logins, plain
                    )
                else:
                    serving = public_listener(tailnet, key, listener, tls, metrics.observe, logins, plain)
                await listeners.enter_async_context(serving)
                for work in tls.work:
                    tasks.create_task(work)
                ready(f"control server for {tailnet.domain} on {config.listen}, {len(tailnet.nodes)} nodes")
                await asyncio.Event().wait()
    finally:
        if listener is not None:
            listener.close()
        store.close()


async def keep_sealed(store: DirectoryStore) -> None:
    """Sign the event trail every two seconds while there are new events, until cancelled."""
    while True:
        await asyncio.sleep(SEAL_S)
        await asyncio.to_thread(store.trail.seal, time.time())


@asynccontextmanager
async def public_listener(
    tailnet: Tailnet,
    key: MachineSecret,
    listener: socket.socket,
    tls: Tls,
    observe: Observe = lambda *_: None,
    logins: BrowserLogins | None = None,
    plain: socket.socket | None = None,
) -> AsyncIterator[Fanout]:
    """Serve nodes on `listener` within the block, and beside it on `plain` without TLS."""
    async with (
        _answering(tailnet, key, observe, logins) as (fanout, desk, make_web, own),
        plain_listener(tailnet, key, desk, plain, tls),
    ):
        switchboard = Switchboard(desk)

        def make_control(accepted: Accepted, http: ServerConnection) -> asyncio.Protocol:
            return ControlSocket(switchboard, accepted.machine, http)

        listener.listen(BACKLOG)
        poller = Poller(listener, lambda: FrontDoor(key, make_web, make_control), tls.context, descriptor_limit())
        poller.start()
        own(asyncio.get_running_loop().create_task(switchboard.keep_alive()))
        try:
            yield fanout
        finally:
            poller.stop()
            fanout.close_all()
            await asyncio.sleep(0)
            poller.close()
            listener.close()


@asynccontextmanager
async def with_workers(
    tailnet: Tailnet,
    key: MachineSecret,
    listener: socket.socket,
    web_socket: Path,
    count: int,
    tls: Tls,
    observe: Observe = lambda *_: None,
    logins: BrowserLogins | None = None,
    plain: socket.socket | None = None,
) -> AsyncIterator[Fanout]:
    """Serve nodes within the block by `count` processes that share `listener`; web requests come back to this one."""
    async with (
        _answering(tailnet, key, observe, logins) as (fanout, desk, make_web, _),
        plain_listener(tailnet, key, desk, plain, tls),
    ):
        loop = asyncio.get_running_loop()
        web_socket.unlink(missing_ok=True)
        inner = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            inner.bind(str(web_socket))
        finally:
            os.umask(mask)
        relayed = await loop.create_unix_server(lambda: WebDoor(make_web), sock=inner)

        level, form = logs.chosen()

        def settings(number: int) -> WorkerSettings:
            return WorkerSettings(
                number=number,
                key=key.raw.hex(),
                web_socket=str(web_socket),
                tls_cert_file=tls.holder.cert_file if tls.holder is not None else "",
                tls_key_file=tls.holder.key_file if tls.holder is not None else "",
                tls_proofs=tls.proof_folder,
                log_level=level,
                log_format=form,
            )

        listener.listen(BACKLOG)
        force = Workforce(desk, listener, settings)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(force.run(number)) for number in range(1, count + 1)]
            try:
                yield fanout
            finally:
                relayed.close()
                fanout.close_all()
                await asyncio.sleep(0)
                for each in running:
                    each.cancel()
        web_socket.unlink(missing_ok=True)
        listener.close()


@asynccontextmanager
async def plain_listener(
    tailnet: Tailnet, key: MachineSecret, desk: FrontDesk, listener: socket.socket | None, tls: Tls
) -> AsyncIterator[None]:
    """Within the block send people from plain HTTP to https; nodes are served there too. None = no such listener."""
    if listener is None:
        yield
        return
    application = plain_web(tailnet.config.server_url, tls.proofs)
    settings = WebConfig(application, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    settings.load()
    state = ServerState()
    switchboard = Switchboard(desk)

    def make_web() -> H11Protocol:
        return WebProtocol(config=settings, server_state=state, app_state={})

    def make_control(accepted: Accepted, http: ServerConnection) -> asyncio.Protocol:
        return ControlSocket(switchboard, accepted.machine, http)

    listener.listen(BACKLOG)
    poller = Poller(listener, lambda: FrontDoor(key, make_web, make_control), None, descriptor_limit())
    poller.start()
    async with asyncio.TaskGroup() as tasks:
        alive = tasks.create_task(switchboard.keep_alive())
        try:
            yield
        finally:
            alive.cancel()
            poller.stop()
            poller.close()
            listener.close()


Own = Callable[[asyncio.Task[None]], None]


@asynccontextmanager
async def _answering(
    tailnet: Tailnet, key: MachineSecret, observe: Observe, logins: BrowserLogins | None
) -> AsyncIterator[tuple[Fanout, FrontDesk, Callable[[], H11Protocol], Own]]:
    """What answers requests, whichever process took them in."""
    fanout = Fanout(tailnet, Mapper(tailnet))
    unsubscribe = tailnet.subscribe(fanout.take)
    public = MachineKey(public_key(key.raw))
    application = web(tailnet, public, observe, logins)
    settings = WebConfig(application, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    settings.load()
    state = ServerState()
    requests: set[asyncio.Task[None]] = set()

    def own(task: asyncio.Task[None]) -> None:
        requests.add(task)
        task.add_done_callback(requests.discard)

    def make_web() -> H11Protocol:
        return WebProtocol(config=settings, server_state=state, app_state={})

    liveness = Liveness(tailnet, fanout.ping)
    desk = FrontDesk(tailnet, fanout, own)
    desk.pinged = liveness.answered
    own(asyncio.get_running_loop().create_task(liveness.run()))
    try:
        yield fanout, desk, make_web, own
    finally:
        unsubscribe()
        for task in list(requests):
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


def listening_socket(listen: str) -> socket.socket:
    """A bound socket. Raises Conflict, PermissionNeeded, ConfigError."""
    host, port = split_listen(listen)
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = infos[0]
        channel = socket.socket(family, socket.SOCK_STREAM)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        channel.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"no such address: `{listen}`", key="listen") from error
    except PermissionError as error:
        raise PermissionNeeded(f"may not listen on `{listen}`", hint="use a port above 1023, or run as root") from error
    except OSError as error:
        if error.errno == 98:
            raise Conflict(
                f"address is in use: `{listen}`", hint="stop what listens there, or --listen another"
            ) from error
        raise GwError(f"cannot listen on `{listen}`: {error.strerror}") from error
    channel.setblocking(False)
    return channel
