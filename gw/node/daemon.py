"""The daemon: identity, control session, engine, routes and resolver as one, driven by preferences and the map.

    preferences, login ──> ControlSession ──netmap──> Engine, Router, Resolver
                                 ^── endpoints, netinfo ──┘

The engine, with its TUN and UDP port, stands from start to stop; `gw down` takes peers, addresses and names away.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, final

import msgspec

from gw import __version__
from gw.engine.engine import Engine, PeerConfig
from gw.engine.transport import Mode
from gw.errors import AuthRequired, Conflict, GwError, NotFound, StateError, TimedOut, UsageError
from gw.localapi.broadcast import Broadcast
from gw.localapi.notify import STATES, Notify, PingResult
from gw.localapi.prefs import Prefs
from gw.localapi.server import local_api
from gw.localapi.status import PeerStatus, Status
from gw.model.addresses import AddrPort
from gw.model.hostinfo import Hostinfo, NetInfo
from gw.model.keys import DiscoKey, DiscoSecret, NodeKey, NodeSecret
from gw.model.node import Node
from gw.native import COMPILED
from gw.net import interfaces
from gw.net.offloads import ALL, Offloads
from gw.net.resolv import ResolvConfig
from gw.node import metrics, statusview, translate
from gw.node.control import ControlClient, server_address
from gw.node.host import Host
from gw.node.hostinfo import gather
from gw.node.identity import Identity
from gw.node.netmap import Netmap, NetmapChange
from gw.node.peerrelays import PeerRelays
from gw.node.prefs import edited, load_prefs, save_prefs
from gw.node.session import ControlSession, State
from gw.node.tickets import TicketFolder
from gw.state.files import write_atomic
from gw.state.lock import DirectoryLock
from gw.state.paths import StatePaths
from gw.wire.x25519 import clamp, public_key

log: Final = logging.getLogger(__name__)

DEFAULT_PORT: Final = 41641
EVENT_S: Final = 1.0
EXPIRY_CHECK_S: Final = 10.0
PING_LIMIT_S: Final = 30.0
LOGOUT_S: Final = 10.0
_BACKEND: Final = {
    State.CONNECTING: "Starting",
    State.NEEDS_LOGIN: "NeedsLogin",
    State.NEEDS_APPROVAL: "NeedsMachineAuth",
    State.CONNECTED: "Running",
}


@dataclass(frozen=True, slots=True)
class Options:
    """tun: interface name. port: UDP, 0 = the one of last time, else 41641, else any. socket: of the local API.
    workers: of each packet plane, 0 = what fits the cores."""

    tun: str = "gw0"
    port: int = 0
    socket: Path | None = None
    operator: str = ""
    workers: int = 0
    offloads: Offloads = ALL


async def run(paths: StatePaths, options: Options, ready: Callable[[str], None]) -> None:
    """Run until cancelled. Raises GwError where the host or the state directory does not allow it."""
    if not COMPILED:
        log.warning("the packet core runs interpreted, about ten times slower: install with a C compiler")
    with DirectoryLock(paths.node_dir, program="gwd", mode=0o700):  # two with one key would take it from each other
        identity = Identity.load(paths.node_dir)
        prefs = load_prefs(paths.node_dir)
        disco = DiscoSecret(clamp(os.urandom(32)))
        daemon = Daemon(paths, identity, prefs, disco)
        async with (
            local_api(daemon, options.socket or paths.node_socket, operator=options.operator),
            _EngineEntry(daemon, paths, identity, disco, options) as engine,
        ):
            await daemon.serve(engine, ready)


@final
class _EngineEntry:
    """Enters an engine on the first UDP port that is free: asked for, last time's, the usual one, any."""

    def __init__(
        self, daemon: Daemon, paths: StatePaths, identity: Identity, disco: DiscoSecret, options: Options
    ) -> None:
        self._daemon = daemon
        # before the first login there is no key to be known by: a passing one keeps the engine going
        self._secret = identity.node if identity.has_node_key else NodeSecret(clamp(os.urandom(32)))
        self._disco = disco
        self._options = options
        self._file = paths.node_dir / "port"
        self._tickets = paths.node_dir / "relaytickets"
        self._wanted = options.port
        self._engine: Engine | None = None

    async def __aenter__(self) -> Engine:
        ports = [self._wanted] if self._wanted else list(dict.fromkeys([*self._last(), DEFAULT_PORT, 0]))
        for port in ports:
            engine = Engine(
                self._secret,
                NodeKey(public_key(self._secret.raw)),
                self._disco,
                self._daemon,
                interfaces.interfaces,
                tun_name=self._options.tun,
                port=port,
                lanes=self._options.workers,
                offloads=self._options.offloads,
                tickets=TicketFolder(self._tickets),
                transport=Mode(self._daemon.prefs().transport),
                peer_tickets=TicketFolder(self._tickets.with_name("peertickets")),
            )
            try:
                self._engine = await engine.__aenter__()
            except Conflict:
                if port == ports[-1] or self._wanted:
                    raise
                continue
            try:
                write_atomic(self._file, f"{self._engine.port}\n".encode())
            except GwError as error:  # a full disk is no reason to be off the net
                log.warning("the UDP port is not kept for the next start: %s", error.message)
            return self._engine
        raise StateError("no port was tried")

    async def __aexit__(self, *error: Any) -> None:
        if self._engine is not None:
            await self._engine.__aexit__(*error)

    def _last(self) -> list[int]:
        try:
            port = int(self._file.read_text())
        except (OSError, ValueError):
            return []
        return [port] if 0 < port < 65536 else []


@final
class Daemon:
    """State and wishes of the node; the local API's Backend, and the listener of session and engine."""

    def __init__(self, paths: StatePaths, identity: Identity, prefs: Prefs, disco: DiscoSecret) -> None:
        self._paths = paths
        self._identity = identity
        self._prefs = prefs
        self._disco = DiscoKey(public_key(disco.raw))
        self._netmap = Netmap()
        self._peer_relays = PeerRelays()
        self._engine: Engine | None = None
        self._host: Host | None = None
        self._session: ControlSession | None = None
        self._state = "NoState"
        self._auth_url = ""
        self._problem: str | None = None
        self._auth_key = ""
        self._fresh = False
        self._login_asked = False  # by a person; a node without a key does not log in by itself
        self._logging_in = False
        self._wish = asyncio.Event()  # something that the running session cannot follow by itself
        self._configs: dict[int, PeerConfig] = {}
        self._endpoints: list[tuple[AddrPort, int]] = []
        self._netinfo: NetInfo | None = None
        self._engine_key = identity.node_key if identity.has_node_key else NodeKey.zero()
        self._notes: Broadcast[Notify] = Broadcast()
        self._events: Broadcast[dict[str, Any]] = Broadcast()
        self._shown: dict[str, PeerStatus] = {}
        self._ids: dict[NodeKey, int] = {}
        self._resume: list[NodeKey] = []  # busy peers when we went down: their sessions begin anew when we are back
        self._mapped = False  # the map's peers are in the engine
        self._expiries: list[tuple[datetime, int]] = []  # heap of peers in the engine; entries may be stale
        self._expiry_of: dict[int, datetime | None] = {}  # by node id

    async def serve(self, engine: Engine, ready: Callable[[str], None]) -> None:
        """Run until cancelled."""
        self._engine = engine
        async with Host(engine.tun_name, self._paths.node_dir) as host, asyncio.TaskGroup() as group:
            self._host = host
            ready(f"gwd is running: {engine.tun_name}, UDP port {engine.port}")
            group.create_task(engine.run())
            group.create_task(host.run(engine.network_changed))
            group.create_task(self._publish_moving())
            group.create_task(self._watch_expiries())
            await self._follow_wishes()

    async def _follow_wishes(self) -> None:
        """One session after another, as preferences and logins ask for them."""
        while True:
            self._wish.clear()
            async with asyncio.TaskGroup() as group:
                session = group.create_task(self._one_session())
                await self._wish.wait()
                session.cancel()

    async def _one_session(self) -> None:
        if not self._prefs.want_running or not self._prefs.control_url:
            self._go_down()
            await self._on_host().followed()
            has_login = self._prefs.control_url and self._identity.has_node_key and not self._prefs.logged_out
            self._set_state("Stopped" if has_login else "NeedsLogin")
            return
        auth_key, self._auth_key = self._auth_key, ""
        fresh, self._fresh = self._fresh, False
        asked, self._login_asked = self._login_asked, False
        if asked:
            self._problem = None  # what went wrong with an earlier login is over
        if not asked and (self._prefs.logged_out or not self._identity.has_node_key):
            self._go_down()
            await self._on_host().followed()
            self._set_state("NeedsLogin")
            return
        try:
            control = ControlClient(self._prefs.control_url, self._identity.machine)
        except GwError as error:  # edited by hand: whoever comes next can set another one
            self._go_down()
            self.refused(error.message)
            self._set_state("NeedsLogin")
            return
        async with control as client:
            self._session = ControlSession(
                client, self._identity, self._disco, self._hostinfo(), self, netmap=self._netmap
            )
            if self._endpoints:
                self._session.set_endpoints(self._endpoints)
            if self._netinfo is not None:
                self._session.set_netinfo(self._netinfo)
            try:
                await self._session.run(auth_key, fresh=fresh)
            except GwError as error:
                self.refused(error.message)
                self._set_state("NeedsLogin")
            finally:
                self._session = None
                if not self._login_asked:  # else the next one is that login
                    self._logging_in = False

    # SessionEvents

    def state(self, state: State) -> None:
        if state is State.CONNECTED:
            self._auth_url = ""
            self._logging_in = False
            if self._prefs.logged_out:
                self._keep(msgspec.structs.replace(self._prefs, logged_out=False))
            self._follow_key()
        if state is State.CONNECTING and self._state == "Running":
            return  # peers go on without the control server
        if state is not State.CONNECTED:
            self._set_state(_BACKEND[state])
        if state is State.NEEDS_LOGIN:
            self._go_down()
        # "Running" is said once the first map is in place

    def browse(self, url: str) -> None:
        self._auth_url = url
        self._notes.publish(Notify(browse_to_url=url))

    def refused(self, text: str) -> None:
        log.warning("login refused: %s", text)
        self._problem = text
        self._notes.publish(Notify(err_message=text))

    def problem(self, text: str | None) -> None:
        self._problem = text
        if text is not None:
            self._notes.publish(Notify(state=STATES.index(self._state)))  # who waits for us looks at the health

    def netmap(self, netmap: Netmap, change: NetmapChange) -> None:
        engine = self._running()
        structural = change.self_changed or bool(change.upserted) or bool(change.removed)
        first = not self._mapped
        if change.derp_changed or first:
            engine.set_derp_map(netmap.derp_map)
        for node in change.removed:
            self._remove_peer(node)
        for id_ in list(netmap.peers) if first else change.upserted:
            self._set_peer(netmap.peers[id_])
        if first or change.self_changed or change.filter_changed or (structural and self._has_cap_rules()):
            self._apply_filter()
        if first or change.self_changed:
            self._apply_addresses()
            self._apply_attributes()
        if first or change.dns_changed:
            self._apply_names()
        self._mapped = True
        if first:
            for key in self._resume:
                if key in self._ids:
                    engine.begin_session(key)
            self._resume = []
        elif structural and self._state == "Running":
            self._publish_structure(change)
        if self._state != "Running":
            self._on_host().when_followed(self._arrived)

    # EngineEvents

    def endpoints(self, endpoints: list[tuple[AddrPort, int]]) -> None:
        self._endpoints = endpoints
        if self._session is not None:
            self._session.set_endpoints(endpoints)

    def netinfo(self, netinfo: NetInfo) -> None:
        self._netinfo = netinfo
        if self._session is not None:
            self._session.set_netinfo(netinfo)

    def path_changed(self, peer: NodeKey) -> None:
        self._publish_peers([peer])

    # Backend of the local API

    def status(self) -> Status:
        engine = self._engine
        if engine is None:
            return Status(version=__version__, backend_state="NoState", health=self._health())
        return statusview.whole_status(
            self._netmap if self._state == "Running" else Netmap(),
            engine,
            backend_state=self._state,
            auth_url=self._auth_url,
            has_key=self._identity.has_node_key and not self._prefs.logged_out,
            health=self._health(),
            own=[str(endpoint) for endpoint, _ in self._endpoints],
        )

    def prefs(self) -> Prefs:
        return self._prefs

    def health(self) -> dict[str, object]:
        return {"dataplane": self._running().health(), "state": self._state, "problems": self._health()}

    def metrics(self, *, peers: bool) -> str:
        engine = self._running()
        netmap = self._netmap if self._state == "Running" else Netmap()
        numbers = statusview.numbers(netmap, engine, is_running=self._state == "Running", warnings=len(self._health()))
        if not peers:
            return metrics.text(numbers)
        shown = (statusview.peer_status(node, engine, netmap.derp_map) for node in netmap.peers.values())
        return metrics.text(numbers, shown)

    def whois(self, address: str) -> dict[str, object]:
        node = self._find(address)
        profile = self._netmap.user_profiles.get(node.user)
        rules = translate.resolved_filter(self._netmap.packet_filter, self._netmap.peers.values())
        own = self._netmap.self_node
        theirs = translate.addresses(node)
        caps = translate.capabilities(rules, theirs[0], translate.addresses(own)) if own and theirs else {}
        return {"Node": node, "UserProfile": profile, "CapMap": caps}

    async def edit_prefs(self, masked: dict[str, Any]) -> Prefs:
        before = self._prefs
        after = edited(before, masked)
        if after.control_url:
            server_address(after.control_url)
        if after.control_url != before.control_url and before.control_url:
            self._forget_server()
            after = msgspec.structs.replace(after, logged_out=False)
        self._keep(after)
        session = self._session
        said = (before.hostname, before.shields_up, before.transport == "udp")
        if (after.hostname, after.shields_up, after.transport == "udp") != said and session is not None:
            session.set_hostinfo(self._hostinfo())
        if after.transport != before.transport and self._engine is not None:
            self._engine.set_transport(Mode(after.transport))
        if after.shields_up != before.shields_up and self._mapped:
            self._apply_filter()
        if after.corp_dns != before.corp_dns and self._mapped:
            self._apply_names()
        if after.route_all != before.route_all and self._mapped:
            for node in self._netmap.peers.values():
                self._set_peer(node)
        if (after.want_running, after.control_url) != (before.want_running, before.control_url):
            self._wish.set()
        return after

    async def start(self, auth_key: str, *, fresh: bool) -> None:
        """Log in with this key; fresh: as if this node had never been in."""
        if auth_key or fresh:
            self._auth_key, self._fresh = auth_key, fresh
            self._login_asked = self._logging_in = True
            self._wish.set()

    async def login_interactive(self) -> None:
        """Have a person open a page, unless a login is under way already; then that page is told of again."""
        if self._logging_in:
            if self._auth_url:
                self.browse(self._auth_url)
            return
        self._fresh = self._state == "Running"
        self._login_asked = self._logging_in = True
        self._wish.set()

    async def logout(self) -> None:
        if not self._prefs.control_url or not self._identity.has_node_key:
            raise AuthRequired("not logged in")
        self._keep(msgspec.structs.replace(self._prefs, logged_out=True, want_running=False))
        async with ControlClient(self._prefs.control_url, self._identity.machine) as client:
            session = ControlSession(client, self._identity, self._disco, self._hostinfo(), self)
            try:
                async with asyncio.timeout(LOGOUT_S):
                    await session.log_out()
            except TimeoutError:
                self._identity.forget()
                raise TimedOut(
                    "the control server did not hear of the logout; this node has forgotten its key"
                ) from None
            finally:
                self._forget_server()
                self._wish.set()

    async def ping(self, address: str) -> PingResult:
        node = self._find(address)
        engine = self._running()
        ours = self._netmap.self_node
        if ours is not None and node.id == ours.id:
            return PingResult(ip=address, node_ip=address, node_name=_label(node), err="that is this node")
        began = time.monotonic()
        try:
            async with asyncio.timeout(PING_LIMIT_S):
                pong = await engine.ping(NodeKey.parse(node.key))
        except TimeoutError:
            raise TimedOut(f"no answer from `{_label(node)}` in {time.monotonic() - began:.0f} s") from None
        return PingResult(
            ip=address,
            node_ip=address,
            node_name=_label(node),
            latency_seconds=pong.latency_s,
            endpoint=str(pong.endpoint) if pong.endpoint is not None else "",
            peer_relay=str(pong.via) if pong.via is not None else "",
            transport="quic" if pong.in_quic else "",
            derp_region_id=pong.region,
            derp_region_code=statusview.region_code(self._netmap.derp_map, pong.region) if pong.region else "",
        )

    async def notifications(self, *, initial: bool) -> AsyncIterator[Notify]:
        def state() -> list[Notify]:
            note = Notify(state=STATES.index(self._state))
            if self._auth_url:
                note.browse_to_url = self._auth_url
            return [note]

        async for note in self._notes.listen(state if initial else list, state):
            yield note

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        def whole() -> list[dict[str, Any]]:
            return [{"At": time.time(), "Status": self.status()}]

        async for event in self._events.listen(whole, whole):
            yield event

    # Inside: what the map says

    def _set_peer(self, node: Node) -> None:
        config = translate.peer_config(node)
        if config is None or self._netmap.is_expired(node, datetime.now(UTC)):
            self._remove_peer(node)
            return
        if node.key_expiry != self._expiry_of.get(node.id):
            self._expiry_of[node.id] = node.key_expiry
            if node.key_expiry is not None:
                heapq.heappush(self._expiries, (node.key_expiry, node.id))
        old = self._configs.get(node.id)
        config = translate.keep_known(config, old)
        config = translate.engine_allowed(config, accept_routes=self._prefs.route_all)
        if old is not None and config.key != old.key:
            self._remove_peer(node)
            old = None
        before = old.allowed if old is not None else frozenset()
        host = self._on_host()
        host.remove_routes(before - config.allowed)
        host.add_routes(config.allowed - before)
        self._configs[node.id] = config
        self._ids[config.key] = node.id
        self._running().set_peer(config)
        if self._peer_relays.set_peer(config.key, node):
            self._running().set_relaying_peers(self._peer_relays.keys)

    def _remove_peer(self, node: Node) -> None:
        self._expiry_of.pop(node.id, None)
        config = self._configs.pop(node.id, None)
        if config is not None:
            self._ids.pop(config.key, None)
            self._on_host().remove_routes(config.allowed)
            self._running().remove_peer(config.key)
            if self._peer_relays.remove_peer(config.key):
                self._running().set_relaying_peers(self._peer_relays.keys)

    async def _watch_expiries(self) -> None:
        """A key that is over is over, also while no control server says so."""
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            self.drop_expired(datetime.now(UTC))

    def drop_expired(self, wall: datetime) -> None:
        """Let go of peers whose key is over at `wall`, our UTC clock."""
        while self._expiries and self._expiries[0][0] <= wall + self._netmap.clock_offset:
            _, id_ = heapq.heappop(self._expiries)
            node = self._netmap.peers.get(id_)
            if node is not None and id_ in self._configs and self._netmap.is_expired(node, wall):
                log.info("the key of %s has expired", _label(node))
                self._remove_peer(node)

    def _has_cap_rules(self) -> bool:
        return any(
            source.startswith(translate.CAP_PREFIX)
            for rule in self._netmap.packet_filter
            for source in rule.src_ips or ()
        )

    def _hostinfo(self) -> Hostinfo:
        prefs = self._prefs
        return gather(prefs.hostname, shields_up=prefs.shields_up, quic=prefs.transport != "udp")

    def _apply_filter(self) -> None:
        node = self._netmap.self_node
        if node is not None:
            rules = translate.resolved_filter(self._netmap.packet_filter, self._netmap.peers.values())
            own = translate.addresses(node)
            self._running().set_filter(rules, own, [], shields_up=self._prefs.shields_up)
            peers = ((config.key, self._netmap.peers[id_]) for id_, config in self._configs.items())
            if self._peer_relays.set_filter(rules, own, peers):
                self._running().set_relaying_peers(self._peer_relays.keys)

    def _apply_addresses(self) -> None:
        node = self._netmap.self_node
        if node is not None:
            self._on_host().set_addresses(ipaddress.ip_interface(address) for address in translate.addresses(node))

    def _apply_attributes(self) -> None:
        node = self._netmap.self_node
        if node is not None:
            self._running().allow_peer_relays(translate.may_use_peer_relays(node))

    def _apply_names(self) -> None:
        self._on_host().set_names(translate.resolv_config(self._netmap.dns_config, accept=self._prefs.corp_dns))

    def _arrived(self) -> None:
        """The host has what the first map asked for."""
        if self._mapped and self._state != "Running":
            self._set_state("Running")

    def _follow_key(self) -> None:
        """The node key may have been rotated by the login."""
        if self._identity.node_key != self._engine_key:
            self._engine_key = self._identity.node_key
            self._running().set_secret(self._identity.node, self._engine_key)

    def _go_down(self) -> None:
        """Take away all that the map brought; the engine stays."""
        engine, host = self._engine, self._host
        if engine is None or host is None:
            return
        self._resume = engine.active_peers() or self._resume
        for config in self._configs.values():
            engine.remove_peer(config.key)
            host.remove_routes(config.allowed)
        self._mapped = False
        self._configs.clear()
        self._ids.clear()
        self._expiries.clear()
        self._expiry_of.clear()
        engine.set_filter([], [], [])
        host.set_names(ResolvConfig())
        host.set_addresses([])

    def _forget_server(self) -> None:
        """Another server, or none: nothing of the old map holds."""
        self._go_down()
        self._identity.forget()
        self._netmap = Netmap()
        self._resume = []
        self._auth_url = ""

    # Inside: what listeners are told

    def _set_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            log.info("state: %s", state)
        self._notes.publish(Notify(state=STATES.index(state)))
        if self._events:
            self._events.publish({"Status": self.status()}, whole=True)

    def _publish_structure(self, change: NetmapChange) -> None:
        if not self._events:
            return
        if change.removed and not change.upserted and not change.self_changed:
            self._events.publish({"Removed": [node.key for node in change.removed]})
            return
        self._events.publish({"Status": self.status()}, whole=True)

    async def _publish_moving(self) -> None:
        """Once a second tell listeners what moved, and when that was; nobody listening costs nothing."""
        while True:
            await asyncio.sleep(EVENT_S)
            if self._events:
                self._events.publish({"At": time.time(), "Peers": self._moved(self._running().active_peers())})
            elif self._shown:
                self._shown.clear()

    def _publish_peers(self, keys: list[NodeKey]) -> None:
        if not self._events or self._engine is None:
            return
        if changes := self._moved(keys):
            self._events.publish({"Peers": changes})

    def _moved(self, keys: list[NodeKey]) -> dict[str, dict[str, object]]:
        """Fields of these peers that listeners do not have yet."""
        changes: dict[str, dict[str, object]] = {}
        if self._engine is None:
            return changes
        for key in keys:
            id_ = self._ids.get(key)
            node = self._netmap.peers.get(id_) if id_ is not None else None
            if node is None:
                continue
            status = statusview.peer_status(node, self._engine, self._netmap.derp_map)
            fields = statusview.changed_fields(self._shown.get(node.key), status)
            if fields:
                self._shown[node.key] = status
                changes[node.key] = fields
        return changes

    def _health(self) -> list[str]:
        host = self._host.problems if self._host is not None else []
        return [text for text in (self._problem, *host, *self._netmap.health) if text]

    # Inside: small things

    def _keep(self, prefs: Prefs) -> None:
        save_prefs(self._paths.node_dir, prefs)
        self._prefs = prefs

    def _on_host(self) -> Host:
        if self._host is None:
            raise StateError("the host is not there yet")
        return self._host

    def _running(self) -> Engine:
        if self._engine is None:
            raise StateError("the engine is not there yet")
        return self._engine

    def _find(self, address: str) -> Node:
        """The node that has this tailnet address."""
        text = address.rpartition(":")[0] if address.count(":") == 1 else address
        try:
            wanted = ipaddress.ip_address(text.strip("[]"))
        except ValueError:
            raise UsageError(f"not an address: `{address}`") from None
        nodes = [self._netmap.self_node, *self._netmap.peers.values()]
        for node in nodes if self._state == "Running" else []:
            if node is not None and wanted in translate.addresses(node):
                return node
        raise NotFound(f"no node has the address `{address}`", hint="gw status lists the peers")


def _label(node: Node) -> str:
    return node.name.split(".")[0] or node.stable_id
