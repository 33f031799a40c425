"""The node's connections to relays: one to its home always, others while they are used.

    send(peer, home, …) ──> connection to home, else one that the peer was heard on, else a new one to home

Ref: spec relay-and-path §3.10
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol, Self, final

from gw.engine.relaydial import open_derp, probe_latency
from gw.errors import GwError, NotFound, StateError, WireError
from gw.model.derpmap import DERPMap, DERPRegion
from gw.model.keys import NodeKey, NodeSecret
from gw.wire.derp.buckets import MIN_BURST_BYTES, Bucket
from gw.wire.derp.client import Client, Connected, Health, PeerGone, Received, Restarting
from gw.wire.derp.frames import RECEIVE_TIMEOUT_S

log: Final = logging.getLogger(__name__)

QUEUE_PACKETS: Final = 256  # waiting for the socket; the oldest gives way
IDLE_S: Final = 60.0
IDLE_CHECK_S: Final = 15.0
FIRST_BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 5.0
PING_S: Final = 5.0
SEND_OVERHEAD_BYTES: Final = 37
READ_BYTES: Final = 1 << 18
HELLO_S: Final = 10.0  # from the upgrade until the relay has taken us in


class RelayEvents(Protocol):
    """What relays bring, on the owner's loop."""

    def packets(self, region: int, batch: list[tuple[NodeKey, bytes]]) -> None:
        """From whoever uses the relay, strangers too: tell `RelayPool.learn` of those that are peers."""

    def peer_gone(self, region: int, peer: NodeKey) -> None: ...

    def connected(self, region: int) -> None: ...

    def disconnected(self, region: int) -> None: ...


@final
class RelayPool:
    """Use as `async with`."""

    def __init__(self, secret: NodeSecret, events: RelayEvents) -> None:
        self._secret = secret
        self._events = events
        self._map = DERPMap(regions={})
        self._home = 0
        self._lines: dict[int, _Line] = {}
        self._routes: dict[NodeKey, int] = {}  # where a peer was heard last, if not at its home
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in list(self._lines.values()):
            line.stop()
        await self._group.__aexit__(kind, error, trace)

    @property
    def home(self) -> int:
        return self._home

    def set_map(self, derp_map: DERPMap) -> None:
        """Follow a new relay map; connections to regions that changed are made anew."""
        before, self._map = self._map.regions or {}, derp_map
        after = derp_map.regions or {}
        for region in list(self._lines):
            if before.get(region) != after.get(region):
                self._drop(region)
        if self._home:
            self.set_home(self._home)

    def set_home(self, region: int) -> None:
        """Keep a connection there from now on; 0 for none."""
        old, self._home = self._home, region
        if old != region and old in self._lines:
            self._lines[old].note_home(False)
        if region and self._region(region) is not None:
            self._line(region).note_home(True)

    def set_secret(self, secret: NodeSecret) -> None:
        """The node key was rotated: every connection says hello again."""
        self._secret = secret
        for region in list(self._lines):
            self._drop(region)
        if self._home:
            self.set_home(self._home)

    def network_changed(self) -> None:
        """Ping every relay; a connection that does not survive is made anew after seconds, not minutes."""
        for line in self._lines.values():
            line.doubt()

    def send(self, peer: NodeKey, home: int, datagrams: list[bytes]) -> bool:
        """Send by the best relay; False where there is none."""
        line = self._lines.get(home)
        if line is None or not line.is_up:
            learned = self._lines.get(self._routes.get(peer, 0))
            if learned is not None and learned.is_up:
                line = learned
        if line is None:
            region = home if self._region(home) is not None else self._routes.get(peer, 0)
            if self._region(region) is None:
                return False
            line = self._line(region)
        line.send(peer, datagrams)
        return True

    def learn(self, region: int, peer: NodeKey) -> None:
        """The peer was heard there: answers may go that way where its home is not reached."""
        self._routes[peer] = region

    def forget(self, peer: NodeKey) -> None:
        self._routes.pop(peer, None)

    def last_heard(self, region: int) -> float:
        """Monotonic seconds of the last frame from there, -inf if there was none."""
        line = self._lines.get(region)
        return line.heard_at if line is not None else float("-inf")

    def is_connected(self, region: int) -> bool:
        line = self._lines.get(region)
        return line is not None and line.is_up

    async def latency_check(self, region: int) -> float:
        """Seconds to the region over HTTPS. Raises GwError."""
        found = self._region(region)
        nodes = [node for node in (found.nodes or ()) if not node.stunonly] if found is not None else []
        if not nodes:
            raise NotFound(f"no relay in region {region}")
        return await probe_latency(nodes[0])

    def _region(self, region: int) -> DERPRegion | None:
        return (self._map.regions or {}).get(region)

    def _line(self, region: int) -> _Line:
        line = self._lines.get(region)
        if line is None:
            found = self._region(region)
            if found is None:
                raise StateError(f"no region {region}")
            line = self._lines[region] = _Line(found, self._secret, self._events, self._unlearn)
            line.note_home(region == self._home)
            line.task = self._group.create_task(self._keep(line))
        return line

    async def _keep(self, line: _Line) -> None:
        try:
            await line.run()
        finally:
            if self._lines.get(line.region) is line:
                del self._lines[line.region]

    def _drop(self, region: int) -> None:
        line = self._lines.pop(region, None)
        if line is not None:
            line.stop()
        self._unlearn(region, None)

    def _unlearn(self, region: int, peer: NodeKey | None) -> None:
        gone = [peer] if peer is not None else [key for key, at in self._routes.items() if at == region]
        for key in gone:
            if self._routes.get(key) == region:
                del self._routes[key]


class _Unlearner(Protocol):
    def __call__(self, region: int, peer: NodeKey | None) -> None: ...


@final
class _Line:
    """The connection to one region, reopened while it is wanted."""

    def __init__(self, region: DERPRegion, secret: NodeSecret, events: RelayEvents, unlearn: _Unlearner) -> None:
        self.region: Final = region.region_id
        self._nodes = [node for node in region.nodes or () if not node.stunonly]
        self._secret = secret
        self._events = events
        self._unlearn = unlearn
        self._is_home = False
        self._home_said: bool | None = None
        self._client: Client | None = None
        self._waiting: deque[tuple[NodeKey, bytes]] = deque(maxlen=QUEUE_PACKETS)
        self._more = asyncio.Event()
        self._doubt = asyncio.Event()
        self._bucket = Bucket(0, 0)
        self._written_at = time.monotonic()
        self.heard_at = float("-inf")
        self.is_up = False
        self.task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def doubt(self) -> None:
        """The network changed: see whether the relay still answers, or try again at once."""
        self._doubt.set()

    def note_home(self, is_home: bool) -> None:
        self._is_home = is_home
        self._more.set()

    def send(self, peer: NodeKey, datagrams: list[bytes]) -> None:
        self._waiting.extend((peer, datagram) for datagram in datagrams)
        self._written_at = time.monotonic()
        self._more.set()

    async def run(self) -> None:
        """Connect and reconnect until stopped, or idle where this is not the home."""
        backoff = FIRST_BACKOFF_S
        turn = 0
        while self._nodes:
            node = self._nodes[turn % len(self._nodes)]
            turn += 1
            pause = 0.0
            try:
                pause = await self._once(turn - 1)
            except GwError as error:
                log.info("relay region %d, %s: %s", self.region, node.host_name, error.message)
            except (OSError, WireError) as error:
                log.info("relay region %d, %s: %s", self.region, node.host_name, error)
            finally:
                if self.is_up:  # a relay that only upgrades and closes has refused us: it is asked ever more seldom
                    backoff = FIRST_BACKOFF_S
                    self.is_up = False
                    self._unlearn(self.region, None)
                    self._events.disconnected(self.region)
                self._client = None
            if self._is_idle():
                return
            self._doubt.clear()
            with suppress(TimeoutError):  # another network: no reason to go on waiting
                async with asyncio.timeout(max(pause, backoff * (0.5 + random.random()))):
                    await self._doubt.wait()
            backoff = min(backoff * 2, MAX_BACKOFF_S)

    def _is_idle(self) -> bool:
        return not self._is_home and time.monotonic() - self._written_at > IDLE_S

    async def _once(self, turn: int) -> float:
        """One connection from hello to its end; returns how long the relay asked us to stay away."""
        node = self._nodes[turn % len(self._nodes)]
        reader, writer, relay_key = await open_derp(node, self._nodes[0])
        client = self._client = Client(self._secret, os.urandom(24), relay_key=relay_key)
        self._bucket = Bucket(0, 0)
        self._home_said = None
        pause = 0.0
        hello_until = asyncio.get_running_loop().time() + HELLO_S
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(client, writer))
                checking = group.create_task(self._check(client, writer))
                try:
                    while True:
                        async with (
                            asyncio.timeout_at(hello_until) if not self.is_up else asyncio.timeout(self._patience())
                        ):
                            data = await reader.read(READ_BYTES)
                        if not data:
                            break
                        pause = max(pause, self._take(client.feed(data)))
                        self._more.set()
                except TimeoutError:
                    log.info("relay region %d: %s", self.region, "idle or silent" if self.is_up else "no answer")
                finally:
                    writing.cancel()
                    checking.cancel()
        except* (OSError, WireError) as found:
            raise OSError(str(found.exceptions[0])) from None
        finally:
            writer.transport.abort()
        return pause

    def _patience(self) -> float:
        return RECEIVE_TIMEOUT_S if self._is_home else IDLE_S + IDLE_CHECK_S

    def _take(self, events: Sequence[object]) -> float:
        self.heard_at = time.monotonic()
        batch: list[tuple[NodeKey, bytes]] = []
        pause = 0.0
        for event in events:
            match event:
                case Received(source, packet):
                    batch.append((source, packet))
                case Connected(rate, burst):
                    self.is_up = True
                    self._bucket = Bucket(rate, max(burst, MIN_BURST_BYTES))
                    self._events.connected(self.region)
                case PeerGone(peer, _):
                    self._unlearn(self.region, peer)
                    self._events.peer_gone(self.region, peer)
                case Health(problem):
                    if problem:
                        log.warning("relay region %d says: %s", self.region, problem)
                case Restarting(after_ms, _):
                    pause = max(pause, after_ms / 1000)
        if batch:
            self._events.packets(self.region, batch)
        return pause

    async def _check(self, client: Client, writer: asyncio.StreamWriter) -> None:
        """Ping the relay when there is doubt; a connection that stays silent then is given up."""
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            if not client.is_connected:
                continue
            asked_at = time.monotonic()
            client.ping(os.urandom(8))
            self._more.set()
            await asyncio.sleep(PING_S)
            if self.heard_at < asked_at:
                log.info("relay region %d: no answer on the new network", self.region)
                writer.transport.abort()
                return

    async def _write(self, client: Client, writer: asyncio.StreamWriter) -> None:
        while True:
            if client.is_connected:
                if self._home_said != self._is_home:
                    self._home_said = self._is_home
                    client.note_preferred(self._is_home)
                while self._waiting:
                    peer, datagram = self._waiting.popleft()
                    if self._bucket.take(SEND_OVERHEAD_BYTES + len(datagram), time.monotonic()):  # the relay's limit
                        client.send(peer, [datagram])
            self._more.clear()
            data = client.data_to_send()
            if data:
                writer.write(data)
                await writer.drain()
            if self._waiting and client.is_connected:
                continue
            try:
                async with asyncio.timeout(IDLE_CHECK_S):
                    await self._more.wait()
            except TimeoutError:
                if self._is_idle():
                    writer.transport.abort()
                    return
