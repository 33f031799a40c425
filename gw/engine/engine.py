"""The engine: tunnel, path finder, relays and netcheck as one, on one asyncio loop.

    datagrams that are not WireGuard's ──> NetCheck (STUN), PathFinder (disco, also through UDP relays)
    PathFinder's plans ──> Tunnel          Tunnel's relayed bulk <──> RelayPool, QuicPeers

What it decides it tells by `EngineEvents`; what it should know it is told by `set_…`.

Ref: tailscale wgengine/magicsock
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from gw.engine.endpoints import Interface, OwnEndpoints
from gw.engine.filterrules import Address, Network
from gw.engine.netcheck import NetCheck, Report
from gw.engine.paths import (
    Delivered,
    NeedEndpoints,
    PathChanged,
    PathFinder,
    PingResult,
    PlanChanged,
    SessionStale,
)
from gw.engine.pathtotals import QUIC
from gw.engine.peerpath import NEVER, ToUdp, Via
from gw.engine.quicpeers import QuicPeers, QuicView
from gw.engine.relayclient import RelayPool, Tickets
from gw.engine.transport import Mode
from gw.engine.tunnel import NO_PLAN, NodeStats, PeerStats, Tunnel
from gw.engine.viatable import Server
from gw.errors import GwError, NotFound, WireError
from gw.model.addresses import AddrPort
from gw.model.derpmap import DERPMap
from gw.model.filterrule import FilterRule
from gw.model.hostinfo import NetInfo
from gw.model.keys import DiscoKey, DiscoSecret, NodeKey, NodeSecret
from gw.model.sendplan import SendPlan
from gw.net.offloads import ALL, Offloads
from gw.wire import geneve, tsmp
from gw.wire.disco.envelope import is_disco
from gw.wire.quic.demux import Kind, kind_of

if TYPE_CHECKING:
    from gw.engine.peershare import Share

log: Final = logging.getLogger(__name__)

ACTIVITY_S: Final = 1.0
RESTUN_S: Final = (20.0, 26.0)
IDLE_RESTUN_S: Final = 120.0
NO_UDP_RETRY_S: Final = 60.0
RESOLVE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A peer of the network map as the engine needs it."""

    key: NodeKey
    disco: DiscoKey | None
    home: int
    endpoints: tuple[AddrPort, ...]
    allowed: frozenset[Network]
    addresses: tuple[Address, ...]
    jailed: bool = False  # it may only answer us
    quic: bool = False  # it speaks gw-peer/1


@dataclass(frozen=True, slots=True)
class PeerView:
    """How a peer is reached now. direct: the trusted path; latency in seconds, 0 unknown; relay: its home region; quic:
    None where the peer does not speak it; in_quic: its data goes so; via: the UDP relay by which it is reached."""

    direct: AddrPort | None
    latency_s: float
    relay: int
    is_active: bool
    stats: PeerStats
    quic: QuicView | None = None
    in_quic: bool = False
    via: Via | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a `ping`. in_quic: it went through the QUIC connection; via: through a UDP relay."""

    latency_s: float
    endpoint: AddrPort | None
    region: int
    in_quic: bool = False
    via: Via | None = None


class EngineEvents(Protocol):
    """What the engine tells its owner."""

    def endpoints(self, endpoints: list[tuple[AddrPort, int]]) -> None:
        """Where we may be found, with types."""

    def netinfo(self, netinfo: NetInfo) -> None: ...

    def path_changed(self, peer: NodeKey) -> None: ...


@final
class Engine:
    """Use as `async with`, and run `run()` beside it."""

    def __init__(
        self,
        secret: NodeSecret,
        node: NodeKey,
        disco: DiscoSecret,
        events: EngineEvents,
        interfaces: Callable[[], Sequence[Interface]],
        *,
        tun_name: str,
        port: int,
        lanes: int = 0,
        offloads: Offloads = ALL,
        tickets: Tickets | None = None,
        transport: Mode = Mode.AUTO,
        peer_tickets: Tickets | None = None,
    ) -> None:
        """lanes, offloads: as `Tunnel` takes them. tickets: of relays, peer_tickets: of peers, kept over restarts."""
        self._events = events
        self._interfaces = interfaces
        self._tunnel = Tunnel(secret, tun_name, port, self, lanes=lanes, offloads=offloads)
        self._paths = PathFinder(disco, node, os.urandom, self._tunnel.direct_counts, self._udp_relays)
        self._quic = QuicPeers(secret, node, self, mode=transport, tickets=peer_tickets)
        self._plans: dict[NodeKey, SendPlan] = {}  # the path finder's
        self._sent_plans: dict[NodeKey, SendPlan] = {}  # the tunnel's
        self._relays = RelayPool(secret, self, tickets)
        self._netcheck = NetCheck(os.urandom)
        self._own = OwnEndpoints()
        self._peers: dict[NodeKey, PeerConfig] = {}
        self._relaying_peers: frozenset[NodeKey] = frozenset()
        self._local: tuple[Address, ...] = ()
        self._shields_up = False
        self._map = DERPMap(regions={})
        self._home = 0
        self._waiting: dict[int, asyncio.Future[Pong]] = {}
        self._last_tx: dict[NodeKey, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_again = asyncio.Event()
        self._look_full = False
        self._last_active = time.monotonic()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._tunnel)
            await stack.enter_async_context(self._relays)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._quic.close()
        await self._stack.aclose()

    async def run(self) -> None:
        """Keep timers, activity and netcheck going until cancelled. Raises GwError where the data plane fails."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tunnel.run())
            group.create_task(self._quic.run())
            group.create_task(self._watch_activity())
            group.create_task(self._look_around())

    @property
    def tun_name(self) -> str:
        return self._tunnel.tun_name

    @property
    def port(self) -> int:
        return self._tunnel.port

    @property
    def home(self) -> int:
        """The relay region at which we are reached; 0 before there is one."""
        return self._home

    def health(self) -> dict[str, object]:
        report = self._netcheck.last
        return {
            **self._tunnel.health(),
            "udp": report is not None and report.has_udp,
            "home": self._home,
            "relay_transport": self._relays.transport(self._home),
        }

    # Configuration

    def set_derp_map(self, derp_map: DERPMap) -> None:
        self._map = derp_map
        self._relays.set_map(derp_map)
        if self._home not in (derp_map.regions or {}):
            self._set_home(0)
        homes = [id_ for id_, region in (derp_map.regions or {}).items() if not region.no_measure_no_home]
        if not self._home and len(homes) == 1:
            # nothing to choose: be reached there at once, without the seconds that a measurement may take
            self._set_home(homes[0])
            self._events.netinfo(NetInfo(preferred_derp=self._home))
        self.look_again(full=True)

    def set_peer(self, peer: PeerConfig) -> None:
        """A peer that is new or different."""
        self._peers[peer.key] = peer
        self._tunnel.set_peer(peer.key, peer.allowed)
        self._tunnel.set_jailed(peer.key, peer.jailed)
        self._paths.set_peer(peer.key, peer.disco, peer.home, list(peer.endpoints), time.monotonic())
        self._paths.set_counts(peer.key, peer.quic)
        self._quic.set_peer(peer.key, peer.quic)
        self._pump()

    def remove_peer(self, key: NodeKey) -> None:
        self._peers.pop(key, None)
        self._plans.pop(key, None)
        self._sent_plans.pop(key, None)
        self._quic.remove_peer(key)
        self._last_tx.pop(key, None)
        self._paths.remove_peer(key)
        self._relays.forget(key)
        self._tunnel.remove_peer(key)

    def set_filter(
        self,
        rules: Iterable[FilterRule],
        local: Sequence[Address],
        routes: Sequence[Network],
        *,
        shields_up: bool = False,
    ) -> None:
        """local: our own addresses; routes: networks that we serve; shields_up: nobody may begin anything with us."""
        self._local = tuple(local)
        self._shields_up = shields_up
        self._tunnel.set_filter([] if shields_up else rules, [*local, *routes])
        self._quic.set_routes(tuple(routes))

    def set_secret(self, secret: NodeSecret, node: NodeKey) -> None:
        """Our node key was rotated."""
        self._tunnel.set_secret(secret)
        self._relays.set_secret(secret)
        self._quic.set_secret(secret, node)
        self._paths.set_node(node)

    def set_transport(self, mode: Mode) -> None:
        """Whether peers are reached by QUIC."""
        self._quic.set_mode(mode)

    def allow_peer_relays(self, may_use: bool) -> None:
        """Whether peers may be reached through UDP relays."""
        self._paths.allow_vias(may_use)
        self._pump()

    def set_relaying_peers(self, keys: frozenset[NodeKey]) -> None:
        """Peers that may be asked to relay UDP to others."""
        self._relaying_peers = keys

    def begin_session(self, key: NodeKey) -> None:
        """Have a WireGuard handshake with the peer now: it may hold a session that we have lost."""
        self._paths.wake(key, time.monotonic())
        self._pump()
        self._tunnel.begin_session(key)

    def network_changed(self) -> None:
        """Our own interfaces changed."""
        self._own.forget()
        self._paths.network_changed(time.monotonic())
        self._quic.network_changed()
        self._relays.network_changed()
        self.look_again(full=True)
        self._pump()

    def look_again(self, *, full: bool = False) -> None:
        """Have a netcheck now."""
        self._look_full = self._look_full or full
        self._look_again.set()

    # Questions

    def view(self, key: NodeKey) -> PeerView | None:
        """How the peer is reached, and its counters; None for one that is not there."""
        peer, stats = self._peers.get(key), self._tunnel.stats(key)
        if peer is None or stats is None:
            return None
        now = time.monotonic()
        direct = self._paths.direct_path(key, now)
        via = self._paths.via(key, now)
        last = max(stats.last_rx, stats.last_tx)
        return PeerView(
            direct[0] if direct else None, direct[1] if direct else via[1] if via else 0.0, peer.home,
            now - last < 45.0, stats, self._quic.view(key), self._sent_plans.get(key, NO_PLAN).quic,
            via[0] if via else None,
        )  # fmt: skip

    def totals(self) -> NodeStats:
        """Traffic of the whole node by path, and drops by reason; proportional to the active peers."""
        return self._tunnel.totals()

    def active_peers(self) -> list[NodeKey]:
        """Peers with traffic within the last minutes."""
        return self._tunnel.active_peers()

    async def ping(self, key: NodeKey) -> Pong:
        """A ping below the tunnel, by disco, or inside QUIC where data goes so: the first pong, by whichever way.

        The caller sets the time limit.
        """
        if key not in self._peers:
            raise NotFound("no such peer")
        direct = self._paths.direct_path(key, time.monotonic())
        if direct is not None and self._sent_plans.get(key, NO_PLAN).quic:
            latency_s = await self._quic.ping(key)
            if latency_s is not None:
                return Pong(latency_s, direct[0], 0, in_quic=True)
        id_ = self._paths.ping(key, time.monotonic())
        future: asyncio.Future[Pong] = self._loop.create_future()
        self._waiting[id_] = future
        try:
            self._pump()
            return await future
        finally:
            del self._waiting[id_]

    # TunnelEvents

    def datagrams(self, batch: list[tuple[bytes, AddrPort]]) -> None:
        now = time.monotonic()
        for datagram, source in batch:
            if is_disco(datagram):
                self._paths.feed_udp(datagram, source, now)
            elif kind_of(datagram) is Kind.GENEVE:
                self._relayed_untrusted(datagram, source, now)
            elif self._netcheck.feed(datagram, now) and self._netcheck.is_running:
                self._look_again.set()
        self._pump()

    def _relayed_untrusted(self, datagram: bytes, source: AddrPort, now: float) -> None:
        """Through a UDP relay: disco, or WireGuard that is no data."""
        try:
            header = geneve.decode(datagram)
        except WireError:
            return
        if header.protocol == geneve.DISCO:
            self._paths.feed_via(datagram, source, now)
            return
        peer = self._paths.via_at(source, header.vni)
        if peer is not None and not header.control:
            self._tunnel.receive_relayed(peer, [datagram[geneve.HEADER_BYTES :]])

    def _udp_relays(self, home: int) -> list[Server]:
        """Who may relay UDP to a peer with this home: its relay and ours, while we are connected there, and peers that
        are granted to us as relays."""
        found = []
        for region in dict.fromkeys((home, self._home)):
            told = self._relays.peer_relay(region)
            if told is not None:
                found.append(Server(region, *told))
        for key in self._relaying_peers:
            peer = self._peers.get(key)
            if peer is not None and peer.disco is not None and peer.home:
                found.append(Server(peer.home, key, peer.disco))
        return found

    def quic(self, trains: list[tuple[bytes, int, AddrPort]]) -> None:
        self._quic.receive(trains)

    def quic_sent(self, line: int, sealer: int, first: int, sizes: list[int], sent_at: float) -> None:
        self._quic.sent(line, sealer, first, sizes, sent_at)

    def quic_opened(
        self, line: int, count: int, frames: list[bytes], runs: list[int], acks: list[list[int]],
        source: AddrPort | None,
    ) -> None:  # fmt: skip
        self._quic.opened(line, count, frames, runs, acks, source)

    def workers_restarted(self) -> None:
        self._quic.workers_restarted()

    def relay_out(self, peer: NodeKey, datagrams: list[bytes], by: str = "") -> None:
        config = self._peers.get(peer)
        if config is None:
            return
        plan = self._sent_plans.get(peer, NO_PLAN)
        in_quic = by == QUIC if by else plan.quic
        taken = in_quic and self._quic.send(peer, datagrams)
        if not taken or (plan.relay and not by):
            self._relays.send(peer, config.home, datagrams)

    def wake(self, peer: NodeKey) -> None:
        self._paths.wake(peer, time.monotonic())
        self._pump()

    def heard(self, peer: NodeKey, source: AddrPort | None) -> None:
        self._paths.heard(peer, source, time.monotonic())
        self._pump()

    def session(self, peer: NodeKey) -> None:
        """Tell the peer our disco key inside the tunnel: it may have an older one from control."""
        config = self._peers.get(peer)
        if config is None or config.disco is None:
            return
        for ours in self._local:
            theirs = next((each for each in config.addresses if each.version == ours.version), None)
            if theirs is not None:
                advert = tsmp.DiscoAdvert(self._paths.disco_key)
                self._tunnel.inject(peer, tsmp.encode(advert, ours, theirs))
                return

    def tsmp(self, peer: NodeKey, packet: bytes) -> None:
        config = self._peers.get(peer)
        try:
            source, destination, message = tsmp.decode(packet)
        except WireError:
            return
        if config is None:
            return
        if isinstance(message, tsmp.Ping):
            self._tunnel.inject(peer, tsmp.encode(tsmp.Pong(message.data), destination, source))
        elif isinstance(message, tsmp.DiscoAdvert) and message.key != config.disco and config.disco is not None:
            # fresher than control's: the peer was restarted, and this very session is its new one
            self._peers[peer] = config = replace(config, disco=message.key)
            self._paths.set_peer(peer, message.key, config.home, list(config.endpoints), time.monotonic())
            self._pump(keep_session=peer)

    def rejected(self, peer: NodeKey, head: bytes) -> None:
        """Tell the peer at once that its connection is refused, so that it need not wait for nothing."""
        at = (head[0] & 15) * 4
        if len(head) < at + 4 or at < tsmp.IPV4_BYTES:
            return
        source, destination = ipaddress.IPv4Address(head[12:16]), ipaddress.IPv4Address(head[16:20])
        ports = int.from_bytes(head[at : at + 2], "big"), int.from_bytes(head[at + 2 : at + 4], "big")
        reason = "S" if self._shields_up else "A"
        self._tunnel.inject(peer, tsmp.encode(tsmp.Reject(tsmp.TCP, reason, *ports), destination, source))

    def send_failed(self, peer: NodeKey, code: int) -> None:
        log.debug("sending to %s failed: %s", peer.short(), os.strerror(code) if code else "refused")
        self._paths.send_failed(peer, time.monotonic())
        self._pump()

    # What QUIC needs

    def send_trains(self, trains: Sequence[tuple[bytes, int, AddrPort]]) -> None:
        self._tunnel.send_trains(trains)

    def quic_bulk(self, peer: NodeKey, datagrams: list[bytes]) -> None:
        self._tunnel.receive_relayed(peer, datagrams, quic=True)

    def share(self, share: Share) -> None:
        self._tunnel.share(share)

    @property
    def sealers(self) -> int:
        return self._tunnel.sealers

    def best_endpoint(self, peer: NodeKey) -> AddrPort | None:
        return self._paths.best(peer)

    def is_active(self, peer: NodeKey) -> bool:
        plan = self._plans.get(peer)
        return plan is not None and not plan.wake

    def peer_at(self, source: AddrPort) -> NodeKey | None:
        return self._paths.found_at(source, time.monotonic())

    def peer_moved(self, peer: NodeKey, source: AddrPort) -> None:
        self._paths.moved(peer, source, time.monotonic())
        self._pump()

    def measure(self, peer: NodeKey) -> None:
        self._paths.measure(peer, time.monotonic())
        self._pump()

    def replan(self, peer: NodeKey) -> None:
        """Tell the tunnel the way of the peer's datagrams if it is another."""
        plan = self._plans.get(peer)
        if plan is None:
            return
        wanted = self._quic.plan(peer, plan)
        before = self._sent_plans.get(peer)
        if wanted != before:
            self._sent_plans[peer] = wanted
            self._tunnel.set_plan(peer, wanted)
            if before is not None and before.quic != wanted.quic:
                self._events.path_changed(peer)

    # RelayEvents

    def packets(self, region: int, batch: list[tuple[NodeKey, bytes]]) -> None:
        now = time.monotonic()
        bulk: dict[NodeKey, list[bytes]] = {}
        for source, datagram in batch:
            if source not in self._peers:
                if self._relays.is_relay(region, source):
                    self._paths.feed_server(datagram, now)
                continue
            if not self._paths.feed_relay(datagram, region, source, now):
                bulk.setdefault(source, []).append(datagram)
        for source in {source for source, _ in batch if source in self._peers}:
            self._relays.learn(region, source)
        for source, datagrams in bulk.items():
            self._tunnel.receive_relayed(source, datagrams)
        self._pump()

    def peer_gone(self, region: int, peer: NodeKey) -> None:
        log.debug("%s is not at relay %d", peer.short(), region)

    def connected(self, region: int) -> None:
        log.info("connected to relay %d%s", region, ", our home" if region == self._home else "")

    def disconnected(self, region: int) -> None:
        log.info("relay %d is gone", region)
        self.look_again()

    # Inside

    def _pump(self, *, keep_session: NodeKey | None = None) -> None:
        """Carry out what the path finder wants, and come back when it wants more."""
        now = time.monotonic()
        out, events = self._paths.poll(now)
        for event in events:
            match event:
                case PlanChanged(peer, plan):
                    before, self._plans[peer] = self._plans.get(peer), plan
                    self.replan(peer)
                    if before is None or (before.udp, before.vni, before.wake) != (plan.udp, plan.vni, plan.wake):
                        self._quic.path_changed(peer)
                case Delivered(peer, sent, received):
                    self._quic.delivered(peer, sent, received, self._tunnel.direct_counts(peer)[2])
                case PathChanged(peer, direct, latency_s, via):
                    way = f"direct {direct}" if direct else f"peer-relay {via}" if via else ""
                    log.info("%s: %s", peer.short(), f"{way}, {latency_s * 1e3:.1f} ms" if way else "by relay")
                    self._events.path_changed(peer)
                case PingResult(id_, _, latency_s, endpoint, region, via):
                    future = self._waiting.get(id_)
                    if future is not None and not future.done():
                        future.set_result(Pong(latency_s, endpoint, region, via=via))
                case NeedEndpoints():
                    self.look_again()
                case SessionStale(peer):
                    self._quic.restarted(peer)
                    if peer != keep_session:
                        self._tunnel.reset_session(peer)
        for outgoing in out:
            if isinstance(outgoing, ToUdp):
                self._tunnel.send(outgoing.datagram, outgoing.to)
            else:
                self._relays.send(outgoing.peer, outgoing.region, [outgoing.datagram])
        if self._timer is not None:
            self._timer.cancel()
        due = self._paths.deadline()
        self._timer = None if due is None else self._loop.call_later(max(due - now, 0.001), self._pump)

    async def _watch_activity(self) -> None:
        """Tell the path finder which peers data is sent to."""
        while True:
            await asyncio.sleep(ACTIVITY_S)
            now = time.monotonic()
            for key in self._tunnel.active_peers():
                stats = self._tunnel.stats(key)
                if stats is not None and stats.last_tx > self._last_tx.get(key, NEVER):
                    self._last_tx[key] = stats.last_tx
                    self._last_active = now
                    if now - stats.last_tx < 2 * ACTIVITY_S:
                        self._paths.active(key, now)
                is_direct = self._paths.direct_path(key, now) is not None
                self._quic.tick(key, self._tunnel.unanswered_s(key), is_direct)
            self._pump()

    async def _look_around(self) -> None:
        """Netchecks: at once when asked, often while there is traffic, seldom else."""
        while True:
            if self._map.regions:
                try:
                    await self._look_once()
                except GwError as error:  # the host does not tell its interfaces: what was known stays
                    log.warning("netcheck: %s", error.message)
            report = self._netcheck.last
            wait = random.uniform(*RESTUN_S) if time.monotonic() - self._last_active < 45.0 else IDLE_RESTUN_S
            if report is not None and not report.has_udp:
                wait = NO_UDP_RETRY_S
            self._look_again.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._look_again.wait()
            except TimeoutError:
                pass

    async def _look_once(self) -> None:
        await self._resolve_names()
        full, self._look_full = self._look_full, False
        self._netcheck.start(self._map, time.monotonic(), has_v6=self._tunnel.has_v6, home=self._home, full=full)
        while True:
            now = time.monotonic()
            for datagram, server in self._netcheck.poll(now):
                self._tunnel.send(datagram, server)
            report = self._netcheck.take(now)
            if report is not None:
                break
            due = self._netcheck.deadline()
            self._look_again.clear()
            try:
                async with asyncio.timeout(max((due or now) - now, 0.005)):
                    await self._look_again.wait()
            except TimeoutError:
                pass
        if not report.has_udp:
            await self._measure_https(report)
        now = time.monotonic()
        self._netcheck.settle(report, now)
        self._set_home(self._netcheck.choose_home(report, self._home, self._relays.last_heard, now))
        interfaces = self._interfaces()
        self._paths.set_own_hosts({str(entry.ip) for interface in interfaces for entry in interface.addresses})
        own = self._own.gather(interfaces, self._tunnel.port, report, now, own_tun=self._tunnel.tun_name)
        self._paths.set_own_endpoints([endpoint for endpoint, _ in own], now)
        self._events.endpoints(own)
        self._events.netinfo(report.netinfo(self._home, os_has_v6=self._tunnel.has_v6))
        self._pump()

    def _set_home(self, region: int) -> None:
        if region != self._home:
            log.info("home relay: %d", region)
            self._home = region
        self._relays.set_home(region)

    async def _measure_https(self, report: Report) -> None:
        """UDP is blocked: how near the relays are over HTTPS."""

        async def measure(region: int) -> None:
            try:
                async with asyncio.timeout(5.0):
                    report.https[region] = await self._relays.latency_check(region)
            except (TimeoutError, OSError, GwError) as error:
                log.debug("relay %d over HTTPS: %s", region, error)

        async with asyncio.TaskGroup() as group:
            for id_, region in (self._map.regions or {}).items():
                if not region.avoid and not region.no_measure_no_home:
                    group.create_task(measure(id_))

    async def _resolve_names(self) -> None:
        async def resolve(name: str) -> None:
            addresses: list[str] = []
            try:
                async with asyncio.timeout(RESOLVE_S):
                    found = await self._loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
                    addresses = sorted({str(ipaddress.ip_address(str(entry[4][0]))) for entry in found})
            except (TimeoutError, OSError, ValueError):
                log.info("relay `%s` has no address", name)
            self._netcheck.resolved(name, addresses, time.monotonic())

        async with asyncio.TaskGroup() as group:
            for name in self._netcheck.needs(self._map, time.monotonic()):
                group.create_task(resolve(name))
