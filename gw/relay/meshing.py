"""Keeps the links of a relay: to the other relays of its region, and between the workers of one relay.

A link is dialled here, where names are looked up, and handed to the forwarding plane as a connected socket. When it
ends it is dialled again. Each relay dials every other one: a link brings the keys of the other end and takes packets
for them; what the other end sends comes by its own link.

Ref: tailscale cmd/derper/mesh.go; spec relay-and-path §1.8
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, final

from gw.errors import GwError, UsageError, WireError
from gw.model.keys import NodeSecret, RelaySecret
from gw.native.relaying import Owner
from gw.net.tcp import dial
from gw.relay.forwarding import Plane, Speaker
from gw.relay.link import LinkSession
from gw.state.config import split_listen

logger = logging.getLogger(__name__)

RETRY_S: Final = 1.0
SIBLING_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 5.0
PIN_PREFIX: Final = "sha256-raw:"


class OverQuic(Protocol):
    """Links over QUIC beside those of here: `gw.relay.quiclinks.QuicLinks`. In the forwarding plane's thread."""

    def found(self, relay: bytes, host: str, port: int) -> None:
        """A relay that is linked with speaks QUIC there."""

    def lost(self, relay: bytes) -> None:
        """That link has ended."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a link goes. host: also the TLS name. dial_host: where to connect, if not there. path: a worker's socket.

    pin: `sha256-raw:<hex>` of a self-signed certificate. plain: without TLS.
    """

    host: str
    port: int = 443
    dial_host: str = ""
    pin: str = ""
    plain: bool = False
    path: str = ""

    def __str__(self) -> str:
        return self.path.rpartition("/")[2] if self.path else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """`host`, `host:port`, `host/dialhost`, each with `#sha256-raw:<hex>` behind it or `http://` before it.

    Raises UsageError.
    """
    where, _, pin = text.partition("#")
    plain = where.startswith("http://")
    where = where.removeprefix("http://").removeprefix("https://")
    where, _, dial_host = where.partition("/")
    if pin and (not pin.startswith(PIN_PREFIX) or len(pin) != len(PIN_PREFIX) + 64):
        raise UsageError(f"not a certificate's pin: `{pin}`", hint="`sha256-raw:` and 64 hex digits")
    if not where:
        raise UsageError(f"not a relay: `{text}`", hint="write `relay.example.org` or `host:port`")
    host, port = (where, 80 if plain else 443) if ":" not in where.rpartition("]")[2] else split_listen(where)
    return Target(host.strip("[]"), port, dial_host, pin, plain)


@final
class Mesh:
    """The links of one process. `set_targets` at any time; `run` until cancelled."""

    def __init__(self, plane: Plane, secret: RelaySecret, sibling_key: str) -> None:
        self._plane = plane
        self._secret = NodeSecret(secret.raw)
        self._own_key = plane.reception.identity.key
        self._sibling_key = sibling_key
        self._targets: list[Target] = []
        self._changed = asyncio.Event()
        self.up: set[Target] = set()
        self.over_quic: OverQuic | None = None

    def set_targets(self, targets: list[Target]) -> None:
        self._targets = targets
        self._changed.set()

    async def run(self) -> None:
        tasks: dict[Target, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for target in set(tasks) - set(self._targets):
                    tasks.pop(target).cancel()
                for target in self._targets:
                    if target not in tasks:
                        tasks[target] = group.create_task(self._keep(target))
                await self._changed.wait()

    async def _keep(self, target: Target) -> None:
        pause = first = SIBLING_RETRY_S if target.path else RETRY_S
        while True:
            try:
                reason, asked_s, was_up = await self._once(target)
            except (GwError, OSError) as error:
                reason, asked_s, was_up = str(error), 0.0, False
            except _ItIsMe:
                logger.info("mesh: `%s` is this relay", target)
                return
            logger.log(logging.DEBUG if target.path else logging.INFO, "link to %s ended: %s", target, reason)
            pause = first if was_up else min(pause * 1.5, MAX_RETRY_S)
            await asyncio.sleep(max(asked_s, pause * (0.5 + random.random() / 2)))

    async def _once(self, target: Target) -> tuple[str, float, bool]:
        """One link from dialling to its end: why it ended, how long to stay away, whether it was up."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        sessions: list[LinkSession] = []
        failures: list[str] = []
        over_quic = None if target.path else self.over_quic

        def make(owner: Owner) -> Speaker:
            session = LinkSession(
                self._plane.reception.presence, owner, self._secret, os.urandom(24),
                self._sibling_key if target.path else self._plane.reception.mesh_key, target.host,
                own_key=b"" if target.path else self._own_key,
                connected=lambda: self._say_up(loop, target), failed=failures.append,
                speaks_quic=lambda relay, port: over_quic.found(relay, host, port) if over_quic is not None else None,
                ended=lambda relay: over_quic.lost(relay) if over_quic is not None else None,
            )  # fmt: skip
            sessions.append(session)
            return session

        def at_end() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(ended.set)

        channel = await self._dial(target)
        host = "" if target.path else str(channel.getpeername()[0])
        context, verify = _tls(target)
        self._plane.adopt(channel, make, at_end, context=context, server_name=target.host, verify=verify)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self._plane.call(lambda: _close(sessions))  # there, it may begin before that
            raise
        finally:
            self.up.discard(target)
        if not sessions:
            return "it did not begin", 0.0, False
        session = sessions[0]
        if session.is_self:
            raise _ItIsMe
        return (failures or ["closed"])[-1], session.pause_s, session.is_up

    def _say_up(self, loop: asyncio.AbstractEventLoop, target: Target) -> None:
        def up() -> None:
            self.up.add(target)
            logger.log(logging.DEBUG if target.path else logging.INFO, "link to %s is up", target)

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(up)

    async def _dial(self, target: Target) -> socket.socket:
        if not target.path:
            return await dial(target.dial_host or target.host, target.port)
        channel = socket.socket(socket.AF_UNIX)
        channel.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(channel, target.path)
        except BaseException:
            channel.close()
            raise
        return channel


def _close(sessions: list[LinkSession]) -> None:
    for session in sessions:
        session.owner.close()


class _ItIsMe(Exception):
    """The target is this relay."""


def _tls(target: Target) -> tuple[ssl.SSLContext | None, Callable[[ssl.SSLObject], None] | None]:
    if target.path or target.plain:
        return None, None
    context = ssl.create_default_context()
    if not target.pin:
        return context, None
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    wanted = target.pin.removeprefix(PIN_PREFIX).lower()

    def verify(tls: ssl.SSLObject) -> None:
        if hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest() != wanted:
            raise WireError("another certificate than the one pinned")

    return context, verify
