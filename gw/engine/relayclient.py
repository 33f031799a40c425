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
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from gw.engine.relaydial import open_derp, probe_latency
from gw.errors import GwError, NotFound, NotRunning, StateError, WireError
from gw.model.derpmap import DERPMap, DERPNode, DERPRegion
from gw.model.keys import DiscoKey, NodeKey, NodeSecret
from gw.wire.derp.buckets import MIN_BURST_BYTES, Bucket
from gw.wire.derp.client import Client, Connected, Health, PeerGone, Received, Restarting
from gw.wire.derp.frames import INSTANCE_BYTES, RECEIVE_TIMEOUT_S

if TYPE_CHECKING:  # aioquic is loaded where a relay of the map speaks QUIC
    from gw.engine.relayquic import QuicLine

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
QUIC_LEAD_S: Final = 0.3  # how long TLS waits for QUIC
QUIC_TRIES: Final = 2
UDP_BLOCKED_S: Final = 60.0  # before QUIC is tried again, doubling
MAX_UDP_BLOCKED_S: Final = 600.0
SERVED_S: Final = 5.0  # after which a connection over QUIC counts as one that worked
QUIC_PROVEN_S: Final = 1.0  # for which TLS stays beside QUIC: what is under way there still arrives


class RelayEvents(Protocol):
    """What relays bring, on the owner's loop."""

    def packets(self, region: int, batch: list[tuple[NodeKey, bytes]]) -> None:
        """From whoever uses the relay, strangers too: tell `RelayPool.learn` of those that are peers."""

    def peer_gone(self, region: int, peer: NodeKey) -> None: ...

    def connected(self, region: int) -> None: ...

    def disconnected(self, region: int) -> None: ...


class Tickets(Protocol):
    """Where QUIC's session tickets are kept over restarts, readable by nobody else."""

    def take(self, relay: str) -> bytes | None:
        """The ticket for a relay; it is gone then, for it opens once."""

    def keep(self, relay: str, ticket: bytes) -> None: ...


@final
class RelayPool:
    """Use as `async with`."""

    def __init__(self, secret: NodeSecret, events: RelayEvents, tickets: Tickets | None = None) -> None:
        """tickets: where QUIC's are kept over restarts; without, they live as long as the pool."""
        self._secret = secret
        self._events = events
        self._tickets = tickets
        self._instance: Final = os.urandom(INSTANCE_BYTES)
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

    def transport(self, region: int) -> str:
        """`quic` or `derp`: what carries packets there now; empty where nothing does."""
        line = self._lines.get(region)
        return line.transport if line is not None else ""

    def peer_relay(self, region: int) -> tuple[NodeKey, DiscoKey] | None:
        """The key of the relay that we are connected to there, and of its UDP relay between nodes, if it has one."""
        line = self._lines.get(region)
        return line.peer_relay if line is not None else None

    def is_relay(self, region: int, key: NodeKey) -> bool:
        """Whether this is the key of the relay that we are connected to there."""
        line = self._lines.get(region)
        return line is not None and key.raw in line.relay_keys

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
            if self._tickets is None and any(node.quic_port for node in found.nodes or ()):
                from gw.engine.relayquic import MemoryTickets

                self._tickets = MemoryTickets()
            line = self._lines[region] = _Line(
                found, self._secret, self._instance, self._events, self._unlearn, self._tickets
            )
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

    def __init__(
        self,
        region: DERPRegion,
        secret: NodeSecret,
        instance: bytes,
        events: RelayEvents,
        unlearn: _Unlearner,
        tickets: Tickets | None,
    ) -> None:
        self.region: Final = region.region_id
        self._nodes = [node for node in region.nodes or () if not node.stunonly]
        self._quic_nodes = [node for node in self._nodes if node.quic_port] if tickets is not None else []
        self._tickets = tickets
        self._quic: QuicLine | None = None  # that has let us in
        self._quic_pause = 0.0  # for which the relay asks us to stay away when it ends
        self._quic_changed = asyncio.Event()
        self._network_changed = asyncio.Event()
        self._tls_up = False
        self._quic_peer_relay = self._tls_peer_relay = b""  # the disco key of its UDP relay
        self._secret = secret
        self._instance = instance
        self._problem = ""  # that the relay tells of us
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
        self.task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def doubt(self) -> None:
        """The network changed: see whether the relay still answers, or try again at once."""
        self._doubt.set()
        self._network_changed.set()
        if self._quic is not None:
            self._quic.network_changed()

    def note_home(self, is_home: bool) -> None:
        if self._quic is not None and is_home != self._is_home:
            self._quic.note_home(is_home)
        self._is_home = is_home
        self._more.set()

    def send(self, peer: NodeKey, datagrams: list[bytes]) -> None:
        self._written_at = time.monotonic()
        if self._quic is not None and (not self._tls_up or not self._quic.is_silent):
            self._quic.send(peer, datagrams)
            return
        self._waiting.extend((peer, datagram) for datagram in datagrams)
        self._more.set()

    @property
    def is_up(self) -> bool:
        return self._tls_up or self._quic is not None

    @property
    def transport(self) -> str:
        return "quic" if self._quic is not None else "derp" if self._tls_up else ""

    @property
    def relay_keys(self) -> tuple[bytes, ...]:
        """Of those that carry packets now."""
        carriers = (self._quic, self._client if self._tls_up else None)
        return tuple(each.relay_key for each in carriers if each is not None)

    @property
    def peer_relay(self) -> tuple[NodeKey, DiscoKey] | None:
        if self._quic is not None and (not self._tls_up or not self._quic.is_silent):
            key, disco = self._quic.relay_key, self._quic_peer_relay
        elif self._tls_up and self._client is not None:
            key, disco = self._client.relay_key, self._tls_peer_relay
        else:
            return None
        return (NodeKey(key), DiscoKey(disco)) if disco else None

    async def run(self) -> None:
        """Connect and reconnect until stopped, or idle where this is not the home."""
        if not self._quic_nodes:
            await self._run_tls()
            return
        async with asyncio.TaskGroup() as group:
            quic = group.create_task(self._run_quic())
            await self._run_tls()
            quic.cancel()

    # Over QUIC

    async def _run_quic(self) -> None:
        """Keep a connection over QUIC, where UDP passes; TLS steps in when there is none."""
        failures = 0
        backoff = FIRST_BACKOFF_S  # of a relay that lets in and ends: one that did so at once is asked ever more seldom
        blocked_s = UDP_BLOCKED_S
        turn = 0
        while True:
            node = self._quic_nodes[turn % len(self._quic_nodes)]
            self._network_changed.clear()
            try:
                began = asyncio.get_running_loop().time()
                asked = await self._once_quic(node)
                failures, blocked_s = 0, UDP_BLOCKED_S
                if asyncio.get_running_loop().time() - began > SERVED_S:
                    backoff = FIRST_BACKOFF_S
                pause = max(asked, backoff * (0.5 + random.random()))
                backoff = min(2 * backoff, MAX_BACKOFF_S)
            except NotRunning as error:  # UDP passes: the relay is gone, or restarts
                turn += 1
                failures = 0
                log.info("relay region %d over QUIC: %s", self.region, error.message)
                pause = backoff * (0.5 + random.random())
                backoff = min(2 * backoff, MAX_BACKOFF_S)
            except GwError as error:
                turn += 1
                failures += 1
                log.info("relay region %d over QUIC: %s", self.region, error.message)
                pause = FIRST_BACKOFF_S if failures < QUIC_TRIES * len(self._quic_nodes) else blocked_s
                if failures >= QUIC_TRIES * len(self._quic_nodes):
                    blocked_s = min(2 * blocked_s, MAX_UDP_BLOCKED_S)
            self._quic_changed.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._network_changed.wait()

    async def _once_quic(self, node: DERPNode) -> float:
        """One connection from hello to its end; returns how long the relay asked us to stay away.

        Raises GwError where it does not come up.
        """
        from gw.engine.relayquic import QuicLine

        assert self._tickets is not None
        self._quic_pause = 0.0
        self._quic_peer_relay = b""
        line = QuicLine(node, self._secret, self._tickets, self._take_quic, list(self._waiting), self._instance)
        try:
            await line.open()
            was_up = self.is_up
            self._quic = line
            if line.is_early_accepted:
                log.debug("relay region %d: resumed with early data", self.region)
            line.note_home(self._is_home)
            while self._waiting:
                peer, datagram = self._waiting.popleft()
                line.send(peer, [datagram])
            self._quic_changed.set()
            if not was_up:
                self._events.connected(self.region)
            await line.serve()
            if line.is_refused:
                raise NotRunning("the relay has gone")
            code, reason = line.end or (0, "closed")
            log.info("relay region %d over QUIC ended: %s", self.region, reason or hex(code))
            return self._quic_pause
        finally:
            line.close()
            if self._quic is line:
                self._quic = None
                if not self._tls_up:
                    self._unlearn(self.region, None)
                    self._events.disconnected(self.region)

    def _take_quic(self, events: Sequence[object]) -> None:
        self._quic_pause = max(self._quic_pause, self._take(events, over_quic=True))

    async def _while_quic_serves(self) -> None:
        """Return when TLS is wanted: there is no QUIC, or it is silent."""
        lead_until = asyncio.get_running_loop().time() + QUIC_LEAD_S
        while True:
            self._quic_changed.clear()
            quic = self._quic
            if quic is not None and not quic.is_silent:
                if self._is_idle():
                    return
                wait_s = 1.0
            else:
                wait_s = lead_until - asyncio.get_running_loop().time() if quic is None else 0.0
                if wait_s <= 0:
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._quic_changed.wait()
                    if self._quic is None:
                        lead_until = asyncio.get_running_loop().time() + QUIC_LEAD_S

    async def _retire(self, writer: asyncio.StreamWriter) -> None:
        """End the TLS connection some time after QUIC carries."""
        proven_at = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            if self._quic is None or self._quic.is_silent:
                proven_at = 0.0
            elif not proven_at:
                proven_at = now
            elif now - proven_at > QUIC_PROVEN_S:
                writer.transport.abort()
                return
            await asyncio.sleep(QUIC_PROVEN_S / 4)

    # Over TLS

    async def _run_tls(self) -> None:
        backoff = FIRST_BACKOFF_S
        turn = 0
        while self._nodes:
            if self._quic_nodes:
                await self._while_quic_serves()
                if self._quic is not None and self._is_idle():
                    return
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
                if self._tls_up:  # a relay that only upgrades and closes has refused us: it is asked ever more seldom
                    backoff = FIRST_BACKOFF_S
                    self._tls_up = False
                    if self._quic is None:
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
        client = self._client = Client(self._secret, os.urandom(24), relay_key=relay_key, instance=self._instance)
        self._bucket = Bucket(0, 0)
        self._home_said = None
        pause = 0.0
        hello_until = asyncio.get_running_loop().time() + HELLO_S
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(client, writer))
                checking = group.create_task(self._check(client, writer))
                retiring = group.create_task(self._retire(writer)) if self._quic_nodes else None
                try:
                    while True:
                        async with (
                            asyncio.timeout_at(hello_until) if not self._tls_up else asyncio.timeout(self._patience())
                        ):
                            data = await reader.read(READ_BYTES)
                        if not data:
                            break
                        pause = max(pause, self._take(client.feed(data)))
                        self._more.set()
                except TimeoutError:
                    log.info("relay region %d: %s", self.region, "idle or silent" if self._tls_up else "no answer")
                finally:
                    writing.cancel()
                    checking.cancel()
                    if retiring is not None:
                        retiring.cancel()
        except* (OSError, WireError) as found:
            raise OSError(str(found.exceptions[0])) from None
        finally:
            writer.transport.abort()
        return pause

    def _patience(self) -> float:
        return RECEIVE_TIMEOUT_S if self._is_home else IDLE_S + IDLE_CHECK_S

    def _take(self, events: Sequence[object], *, over_quic: bool = False) -> float:
        self.heard_at = time.monotonic()
        batch: list[tuple[NodeKey, bytes]] = []
        pause = 0.0
        for event in events:
            match event:
                case Received(source, packet):
                    batch.append((source, packet))
                case Connected(_, _, told) if over_quic:
                    self._quic_peer_relay = told or self._quic_peer_relay
                case Connected(rate, burst, told):
                    self._tls_peer_relay = told
                    was_up, self._tls_up = self.is_up, True
                    self._bucket = Bucket(rate, max(burst, MIN_BURST_BYTES))
                    if not was_up:
                        self._events.connected(self.region)
                case PeerGone(peer, _):
                    self._unlearn(self.region, peer)
                    self._events.peer_gone(self.region, peer)
                case Health(problem):
                    self._told(problem)
                case Restarting(after_ms, _):
                    pause = max(pause, after_ms / 1000)
        if batch:
            self._events.packets(self.region, batch)
        return pause

    def _told(self, problem: str) -> None:
        """The relay names a problem, or says by an empty word that it is over."""
        if problem and problem != self._problem:
            log.warning("relay region %d says: %s", self.region, problem)
        elif self._problem and not problem:
            log.info("relay region %d: what it complained of is over", self.region)
        self._problem = problem

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
