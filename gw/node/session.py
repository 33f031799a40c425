"""Logged in and up to date: the node's side of the control protocol, from login to map stream, again and again.

    login ──────> map stream ──(ends)──> wait a little ──> login …
      │ refused, needs a browser: told once, then waits for the person
      └ key expired, node deleted: needs login

A session is run once for one wish of the person (`run(auth_key)`); it ends only by cancellation or where only the
person can help.

Ref: control protocol §4 to §6
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol, final

import msgspec

from gw.errors import AuthRequired, GwError
from gw.model.addresses import AddrPort
from gw.model.hostinfo import Hostinfo, NetInfo
from gw.model.keys import DiscoKey
from gw.model.mapping import MapRequest
from gw.model.registration import RegisterAuth, RegisterRequest, RegisterResponse
from gw.node.control import VERSION, ControlClient, NodeUnknown
from gw.node.identity import Identity
from gw.node.netmap import Netmap, NetmapChange

log: Final = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 30.0
STEADY_S: Final = 30.0  # a stream that lived this long makes the next wait short again
COALESCE_S: Final = 0.1
_LOGGED_OUT: Final = datetime(1970, 1, 2, tzinfo=UTC)  # an expiry in the past logs out


class State(enum.Enum):
    """What stands between the node and its map."""

    CONNECTING = "connecting"
    NEEDS_LOGIN = "needs-login"
    NEEDS_APPROVAL = "needs-approval"
    CONNECTED = "connected"


class SessionEvents(Protocol):
    """What the session tells its owner, on the owner's loop."""

    def state(self, state: State) -> None: ...

    def browse(self, url: str) -> None:
        """The person must open this."""

    def refused(self, text: str) -> None:
        """The server said no, in its own words."""

    def netmap(self, netmap: Netmap, change: NetmapChange) -> None: ...

    def problem(self, text: str | None) -> None:
        """Why there is no connection at the moment; None when there is."""


@final
class ControlSession:
    """One control server, one identity."""

    def __init__(
        self,
        client: ControlClient,
        identity: Identity,
        disco: DiscoKey,
        hostinfo: Hostinfo,
        events: SessionEvents,
        *,
        netmap: Netmap | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """netmap: of an earlier session of this process, to be kept until the new one comes."""
        self._client = client
        self._identity = identity
        self._disco = disco
        self._hostinfo = hostinfo
        self._events = events
        self._jitter = jitter
        self._endpoints: list[tuple[AddrPort, int]] | None = None
        self._dirty = asyncio.Event()
        self.netmap: Final = netmap or Netmap()

    # What the node has to say

    def set_endpoints(self, endpoints: list[tuple[AddrPort, int]]) -> None:
        """Where peers may find us, with the type of each; the order does not matter."""
        ordered = sorted(endpoints)
        if ordered != self._endpoints:
            self._endpoints = ordered
            self._dirty.set()

    def set_netinfo(self, netinfo: NetInfo) -> None:
        """What netcheck found; latencies alone are no news."""
        if _facts(netinfo) != _facts(self._hostinfo.net_info):
            self._hostinfo = msgspec.structs.replace(self._hostinfo, net_info=netinfo)
            self._dirty.set()

    def set_hostinfo(self, hostinfo: Hostinfo) -> None:
        hostinfo = msgspec.structs.replace(hostinfo, net_info=self._hostinfo.net_info)
        if hostinfo != self._hostinfo:
            self._hostinfo = hostinfo
            self._dirty.set()

    # Life

    async def run(self, auth_key: str = "", *, fresh: bool = False) -> None:
        """Log in and follow the map until cancelled; returns where the person must act first (state NEEDS_LOGIN).

        auth_key: used where the server does not know us yet. fresh: log in anew with a new node key.
        """
        if fresh and self._identity.has_node_key:
            self._identity.rotate()
        backoff = FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._events.state(State.CONNECTING)
                if not await self._log_in(auth_key, fresh):
                    self._events.state(State.NEEDS_LOGIN)
                    return
                auth_key, fresh = "", False
                await self._follow()
                self._events.problem("the control server closed the map stream")
            except AuthRequired as error:
                self._events.refused(error.message)
                self._events.state(State.NEEDS_LOGIN)
                return
            except NodeUnknown as error:
                log.warning("%s", error.message)
                self._events.problem(error.message)
                self._identity.forget()
                self._events.state(State.NEEDS_LOGIN)
                return
            except GwError as error:
                log.info("control server: %s", error.message)
                self._events.problem(error.message)
                if backoff == FIRST_BACKOFF_S:
                    self._events.state(State.CONNECTING)
            if loop.time() - began > STEADY_S:
                backoff = FIRST_BACKOFF_S
            await asyncio.sleep(backoff * (0.5 + self._jitter()))
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    async def log_out(self) -> None:
        """Tell the server that this node key is over, then forget it. The key is forgotten also where this fails."""
        if not self._identity.has_node_key:
            return
        request = self._register_request()
        request.expiry = _LOGGED_OUT
        try:
            await self._client.register(request)
        except GwError as error:
            log.warning("the control server did not hear of the logout: %s", error.message)
        finally:
            self._identity.forget()

    # Login

    async def _log_in(self, auth_key: str, fresh: bool) -> bool:
        """True when the server lets us in; False where only the person can help. Raises AuthRequired with its words."""
        known = self._identity.has_node_key and not fresh
        if known:
            answer = await self._client.register(self._register_request())
            if answer.error:
                raise AuthRequired(answer.error)
            if self._is_in(answer):
                return True
            if answer.node_key_expired:
                log.info("the node key has expired: taking a new one")
                self._identity.rotate()
        if auth_key:
            request = self._register_request()
            request.auth = RegisterAuth(auth_key=auth_key)
            answer = await self._client.register(request)
            if answer.error:
                raise AuthRequired(answer.error)
            if self._is_in(answer):
                return True
            raise AuthRequired("the control server does not take this auth key")
        return await self._log_in_by_browser()

    async def _log_in_by_browser(self) -> bool:
        followup = ""
        while True:
            request = self._register_request()
            request.followup = followup
            answer = await self._client.register(request)
            if answer.error:
                raise AuthRequired(answer.error)
            if self._is_in(answer):
                return True
            if answer.node_key_expired:
                self._identity.rotate()
                followup = ""
                continue
            if not answer.auth_url:
                return False
            if answer.auth_url != followup:
                self._events.state(State.NEEDS_LOGIN)
                self._events.browse(answer.auth_url)
            followup = answer.auth_url

    def _is_in(self, answer: RegisterResponse) -> bool:
        if answer.node_key_expired or answer.auth_url:
            return False
        if not answer.machine_authorized:
            self._events.state(State.NEEDS_APPROVAL)  # the map stream tells when that changes
        self._identity.settle()
        return True

    def _register_request(self) -> RegisterRequest:
        return RegisterRequest(
            version=VERSION,
            node_key=str(self._identity.node_key),
            old_node_key=str(self._identity.previous_key),
            hostinfo=self._hostinfo,
        )

    # Map

    async def _follow(self) -> None:
        """The map stream, with updates beside it, until it ends."""
        request = self._map_request()
        request.stream = True
        request.keep_alive = True
        self._dirty.clear()
        try:
            async with asyncio.TaskGroup() as group:
                updates = group.create_task(self._send_updates())
                try:
                    await self._read_stream(request)
                finally:
                    updates.cancel()
        except* GwError as found:
            raise _first(found) from None

    async def _read_stream(self, request: MapRequest) -> None:
        approved = True
        async for message in self._client.map_stream(request):
            if message.keep_alive and message.node is None and message.peers is None:
                continue
            if message.pop_browser_url:
                self._events.browse(message.pop_browser_url)
            change = self.netmap.apply(message)
            node = self.netmap.self_node
            if node is not None and node.expired:
                raise AuthRequired("this node's key has expired")
            if message.node is not None:
                approved = message.node.machine_authorized
                self._events.problem(None)
                self._events.state(State.CONNECTED if approved else State.NEEDS_APPROVAL)
            if change and approved:
                self._events.netmap(self.netmap, change)

    async def _send_updates(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(COALESCE_S)
            self._dirty.clear()
            request = self._map_request()
            request.omit_peers = True
            try:
                await self._client.update(request)
            except NodeUnknown:
                await self._client.close()  # the stream ends too, and with it this session
                raise
            except GwError as error:
                log.info("an update did not reach the control server: %s", error.message)
                self._dirty.set()
                await asyncio.sleep(1.0)

    def _map_request(self) -> MapRequest:
        request = MapRequest(
            version=VERSION,
            compress="zstd",
            node_key=str(self._identity.node_key),
            disco_key=str(self._disco),
            hostinfo=self._hostinfo,
        )
        if self._endpoints is not None:
            request.endpoints = [str(endpoint) for endpoint, _ in self._endpoints]
            request.endpoint_types = [kind for _, kind in self._endpoints]
        return request


def _first(group: BaseExceptionGroup[GwError]) -> GwError:
    """One error of a group: a deleted node explains the rest."""
    flat = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return next((error for error in flat if isinstance(error, NodeUnknown)), flat[0])


def _facts(netinfo: NetInfo | None) -> NetInfo | None:
    return None if netinfo is None else msgspec.structs.replace(netinfo, derp_latency=None)
