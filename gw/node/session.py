"""Logged in and up to date: the node's side of the control protocol, from login to map stream, again and again.

    login ──────> map stream ──(ends)──> wait a little ──> login …
      │ refused, needs a browser: told once, then waits for the person
      ├ key expired: needs login, unless an administrator extends it: the stream stays open, as stock clients keep it
      └ node deleted: needs login

A session is run once for one wish of the person (`run(auth_key)`); it ends only by cancellation or where only the
person can help.

Ref: control protocol §4 to §6
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Final, Protocol, final

import msgspec

from gw.errors import AuthRequired, GwError
from gw.model.addresses import AddrPort
from gw.model.hostinfo import Hostinfo, NetInfo
from gw.model.keys import DiscoKey
from gw.model.mapping import MapRequest, MapResponse
from gw.model.registration import RegisterAuth, RegisterRequest, RegisterResponse
from gw.node.control import VERSION, NodeUnknown
from gw.node.identity import Identity
from gw.node.netmap import Netmap, NetmapChange

log: Final = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 30.0
STEADY_S: Final = 30.0  # a stream that lived this long makes the next wait short again
COALESCE_S: Final = 0.1
ASK_AGAIN_S: Final = 2.0  # a follow-up that says nothing new is not asked again sooner
EXPIRY_CHECK_S: Final = 60.0  # at least: clocks jump and hosts sleep
_LOGGED_OUT: Final = datetime(1970, 1, 2, tzinfo=UTC)  # an expiry in the past logs out


class State(enum.Enum):
    """What stands between the node and its map."""

    CONNECTING = "connecting"
    NEEDS_LOGIN = "needs-login"
    NEEDS_APPROVAL = "needs-approval"
    CONNECTED = "connected"


class Control(Protocol):
    """What a session needs of a control server: `gw.node.control.ControlClient`."""

    async def register(self, request: RegisterRequest) -> RegisterResponse: ...

    async def update(self, request: MapRequest) -> None: ...

    def map_stream(self, request: MapRequest) -> AsyncGenerator[MapResponse, None]: ...

    async def close(self) -> None: ...


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
        client: Control,
        identity: Identity,
        disco: DiscoKey,
        hostinfo: Hostinfo,
        events: SessionEvents,
        *,
        netmap: Netmap | None = None,
        jitter: Callable[[], float] = random.random,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """netmap: of an earlier session of this process, to be kept until the new one comes."""
        self._client = client
        self._identity = identity
        self._disco = disco
        self._hostinfo = hostinfo
        self._events = events
        self._jitter = jitter
        self._endpoints: list[tuple[AddrPort, int]] | None = None
        self._wall = wall
        self._dirty = asyncio.Event()
        self._self_changed = asyncio.Event()
        self._followup = ""  # the login that waits for a person, kept over reconnects
        self._browsed = ""
        self._told_state: State | None = None
        self._told_problem: str | None = None
        self._is_expired = False  # our key; nothing of the map holds meanwhile
        self._has_told = False  # the map of this stream
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
            self._followup = ""
        self._told_state, self._is_expired = None, False
        backoff = FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                if not self._is_expired:
                    self._tell_state(State.CONNECTING)
                    await self._log_in(auth_key, fresh=fresh)
                    auth_key, fresh = "", False
                await self._follow()
                self._tell_problem("the control server closed the map stream")
            except AuthRequired as error:
                self._followup = ""
                self._events.refused(error.message)
                self._tell_state(State.NEEDS_LOGIN)
                return
            except NodeUnknown as error:
                log.warning("%s", error.message)
                self._tell_problem(error.message)
                self._identity.forget()
                self._tell_state(State.NEEDS_LOGIN)
                return
            except GwError as error:
                log.info("control server: %s", error.message)
                self._tell_problem(error.message)
            if not self._is_expired:
                self._tell_state(State.CONNECTING)
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
            self._followup = ""
            self._identity.forget()

    def _tell_state(self, state: State) -> None:
        if state is not self._told_state:
            self._told_state = state
            self._events.state(state)

    def _tell_problem(self, text: str | None) -> None:
        if text != self._told_problem:
            self._told_problem = text
            self._events.problem(text)

    def _browse(self, url: str) -> None:
        self._browsed = url
        self._events.browse(url)

    # Login

    async def _log_in(self, auth_key: str, *, fresh: bool) -> None:
        """Return when the server has let us in. Raises AuthRequired with its words where it will not."""
        url = self._followup
        if not url and self._identity.has_node_key and not fresh:
            answer = await self._register()
            if self._is_in(answer):
                return
            if answer.node_key_expired:
                log.info("the node key has expired: taking a new one")
                self._identity.rotate()
            url = answer.auth_url
        if not auth_key:
            await self._await_person(url)
            return
        answer = await self._register(auth_key=auth_key)
        if answer.node_key_expired:  # this server wants a new key for a new login
            self._identity.rotate()
            answer = await self._register(auth_key=auth_key)
        if not self._is_in(answer):
            raise AuthRequired("the control server does not take this auth key")

    async def _await_person(self, url: str) -> None:
        """Have a person open `url` (or one that the server gives), and wait until that let us in."""
        loop = asyncio.get_running_loop()
        has_rotated = False
        self._followup = ""
        while True:
            if url and url != self._followup:
                self._followup = url
                self._tell_state(State.NEEDS_LOGIN)
                self._browse(url)
            asked = loop.time()
            answer = await self._register(followup=self._followup)
            if self._is_in(answer):
                return
            if answer.node_key_expired:
                if has_rotated:
                    raise AuthRequired("the control server takes no new node key of this machine")
                has_rotated = True
                self._identity.rotate()
                self._followup = ""
            elif self._followup:
                await asyncio.sleep(max(0.0, ASK_AGAIN_S - (loop.time() - asked)))
            url = answer.auth_url

    async def _register(self, *, auth_key: str = "", followup: str = "") -> RegisterResponse:
        request = self._register_request()
        request.followup = followup
        if auth_key:
            request.auth = RegisterAuth(auth_key=auth_key)
        answer = await self._client.register(request)
        self._tell_problem(None)
        if answer.error:
            raise AuthRequired("".join(letter if letter.isprintable() else " " for letter in answer.error)[:500])
        return answer

    def _is_in(self, answer: RegisterResponse) -> bool:
        if answer.node_key_expired or answer.auth_url:
            return False
        self._followup = ""
        if not answer.machine_authorized:
            self._tell_state(State.NEEDS_APPROVAL)  # the map stream tells when that changes
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
        """The map stream until it ends, with updates beside it and an eye on our key's expiry."""
        request = self._map_request()
        request.stream = True
        request.keep_alive = True
        self._dirty.set()  # a server may ignore what the stream's own request says of us
        self._self_changed.clear()
        self._has_told = False
        failure: GwError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(self._send_updates()), group.create_task(self._watch_expiry())]
                try:
                    await self._read_stream(request)
                finally:
                    for task in beside:
                        task.cancel()
        except* GwError as found:
            failure = _first(found)
        if failure is not None:
            raise failure

    async def _read_stream(self, request: MapRequest) -> None:
        is_first = True
        self.netmap.begin()
        async with aclosing(self._client.map_stream(request)) as messages:
            async for message in messages:
                if message.pop_browser_url and message.pop_browser_url != self._browsed:
                    self._browse(message.pop_browser_url)
                if message.keep_alive:
                    continue
                if is_first and message.node is None:
                    raise GwError("the control server's map lacks this node", hint="update the control server")
                is_first = False
                change = self.netmap.apply(message, self._wall())
                if message.node is not None:
                    self._check_expiry()
                    self._self_changed.set()
                self._show(change)

    def _show(self, change: NetmapChange) -> None:
        """Tell the map if the node is in. A stream's first one is told though it is the one we had: who came back up,
        or was expired, waits for it."""
        node = self.netmap.self_node
        if node is None or self._is_expired:
            return
        self._tell_state(State.CONNECTED if node.machine_authorized else State.NEEDS_APPROVAL)
        if node.machine_authorized and (change or not self._has_told):
            self._has_told = True
            self._events.netmap(self.netmap, change)

    def _check_expiry(self) -> float:
        """Notice that our key is over, or holds again. Returns the seconds until it has to be looked at again."""
        node, wall = self.netmap.self_node, self._wall()
        if node is None:
            return EXPIRY_CHECK_S
        is_expired = self.netmap.is_expired(node, wall)
        if is_expired and not self._is_expired:
            self._is_expired, self._has_told = True, False
            self._told_problem = "this node's key has expired: `gw up`, or `gwctl nodes extend` at the server"
            self._events.refused(self._told_problem)
            self._tell_state(State.NEEDS_LOGIN)
        elif self._is_expired and not is_expired:
            log.info("the node key was extended")
            self._is_expired = False
            self._tell_problem(None)
        if is_expired or node.key_expiry is None:
            return EXPIRY_CHECK_S
        left = (node.key_expiry - wall - self.netmap.clock_offset).total_seconds()
        return min(left, EXPIRY_CHECK_S)

    async def _watch_expiry(self) -> None:
        """The server need not tell when our key's time is over: we know it from the map."""
        await self._self_changed.wait()  # the map of an earlier stream does not count
        while True:
            self._self_changed.clear()
            left = self._check_expiry()
            if not self._has_told:
                self._show(NetmapChange())  # the clock went back
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._self_changed.wait()

    async def _send_updates(self) -> None:
        backoff = 1.0
        while True:
            await self._dirty.wait()
            await asyncio.sleep(COALESCE_S)
            self._dirty.clear()
            request = self._map_request()
            request.omit_peers = True
            try:
                await self._client.update(request)
                backoff = 1.0
            except NodeUnknown:
                raise  # the stream stays open and silent: only this answer tells
            except GwError as error:
                log.info("an update did not reach the control server: %s", error.message)
                self._dirty.set()
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_S)

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
