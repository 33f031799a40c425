"""The tunnel: WireGuard sessions with all peers, over packet workers that move the bulk.

    TUN ──> outbound worker ──> UDP          handshakes, disco, STUN: inbound worker ──> Tunnel ──> TunnelEvents
    TUN <── inbound worker  <── UDP          relayed packets:         worker <──> Tunnel <──> TunnelEvents

The tunnel knows nothing of paths: `set_plan` tells it where a peer's datagrams go. It never touches a packet of a
direct path.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from gw.engine.filterrules import Address, Network, compile_rules
from gw.engine.link import (
    AddPeer,
    DropStaged,
    EndSession,
    FilterRules,
    Foreign,
    FromWorker,
    Heard,
    Inject,
    Jail,
    Note,
    OpenQuic,
    Plan,
    Quic,
    QuicNumbers,
    QuicOpened,
    QuicSent,
    ReceiveSession,
    Rejected,
    RelayOut,
    RemovePeer,
    Routes,
    SealQuic,
    SendKeepalive,
    SendSession,
    ToWorker,
    Tsmp,
)
from gw.engine.pathtotals import QUIC, RELAY, PathTotals, Total, peer_relay
from gw.engine.tallies import Tallies
from gw.engine.worker import Setup
from gw.engine.workers import SharedTables, Workers, usual_lanes
from gw.errors import GwError, UsageError, WireError
from gw.model.addresses import TAILNET_MTU, AddrPort
from gw.model.filterrule import FilterRule
from gw.model.keys import NodeKey, NodeSecret
from gw.model.sendplan import SendPlan
from gw.native import COMPILED
from gw.native.counters import MAX_LANES, MAX_PEERS
from gw.native.outbound import ACTIVE, CONFIRMED, NEED_SESSION, NO_TRAINS, SEND_FAILED, WAKE
from gw.net.offloads import ALL, Offloads
from gw.net.trains import TrainSocket
from gw.net.tun import Tun, open_tun
from gw.net.udp import UdpSockets, open_udp
from gw.wire import cipher, geneve
from gw.wire.geneve import Header
from gw.wire.wg import (
    TRANSPORT,
    Activity,
    Device,
    Install,
    Keepalive,
    Output,
    Reply,
    Retire,
    Transmit,
    Unreachable,
    kind_of,
)
from gw.wire.wg.peer import NEVER, REJECT_AFTER_S

if TYPE_CHECKING:
    from gw.engine.peershare import Share

log: Final = logging.getLogger(__name__)

TICK_S: Final = 0.25
QUIET_AFTER_S: Final = 200.0  # a peer without traffic for this long has no timers left
NO_PLAN: Final = SendPlan(wake=True)
RELAY_BATCH: Final = 48
ROUTES_BATCH: Final = 2000
MAX_QUICK_DEATHS: Final = 5
QUICK_S: Final = 2.0
ASLEEP_S: Final = 5.0  # of the whole machine, after which no keypair is used on


class TunnelEvents(Protocol):
    """What the tunnel tells its owner, on the owner's loop."""

    def datagrams(self, batch: list[tuple[bytes, AddrPort]]) -> None:
        """Everything that came on UDP and is not WireGuard or QUIC: STUN, disco, what comes by UDP relays."""

    def quic(self, trains: list[tuple[bytes, int, AddrPort]]) -> None:
        """QUIC packets that came on UDP: datagrams of one size in a row, that size, where they came from."""

    def quic_sent(self, line: int, sealer: int, first: int, sizes: list[int], sent_at: float) -> None:
        """A worker is about to send packets of a QUIC connection, as `share` has it do. Told before anything comes back
        because of them."""

    def quic_opened(
        self, line: int, count: int, frames: list[bytes], runs: list[int], acks: list[list[int]],
        source: AddrPort | None,
    ) -> None:  # fmt: skip
        """A worker has opened packets of a QUIC connection: see `gw.engine.link.QuicOpened`."""

    def workers_restarted(self) -> None:
        """What workers know by `share` is forgotten."""

    def relay_out(self, peer: NodeKey, datagrams: list[bytes], by: str = "") -> None:
        """WireGuard datagrams to be sent by relay or in QUIC, as the plan says. by: answers, to go by that carrier."""

    def wake(self, peer: NodeKey) -> None:
        """The first packet for the peer since a plan with `wake`."""

    def heard(self, peer: NodeKey, source: AddrPort | None) -> None:
        """Authentic datagrams of the peer now come from here; None: by relay."""

    def session(self, peer: NodeKey) -> None:
        """A new keypair can be sent with."""

    def tsmp(self, peer: NodeKey, packet: bytes) -> None:
        """An inner packet of protocol 99, addresses checked."""

    def rejected(self, peer: NodeKey, head: bytes) -> None:
        """No rule allows this SYN: the IPv4 header, and the ports."""

    def send_failed(self, peer: NodeKey, code: int) -> None:
        """The system refused to send to the peer's UDP address; code is an errno."""


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Traffic of one peer since the tunnel began. Bytes of inner packets; times monotonic seconds, NEVER if not yet.
    last_handshake is in Unix seconds, 0 if there was none; last_tx and last_rx count data, not keepalives."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    last_handshake: float
    last_rx: float
    last_tx: float
    drops: dict[str, int]  # by reason


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Traffic of the whole node since the tunnel began: by path (`gw.engine.pathtotals`), drops by reason."""

    sent: dict[str, Total]
    received: dict[str, Total]
    dropped_sending: dict[str, int]
    dropped_receiving: dict[str, int]


@dataclass(slots=True)
class _Peer:
    key: NodeKey
    slot: int
    allowed: frozenset[Network] = frozenset()
    plan: SendPlan = NO_PLAN
    sessions: set[int] = field(default_factory=set)
    jailed: bool = False
    carrier: str = RELAY  # what brings its datagrams that do not come as they are


@final
class Tunnel:
    """Use as `async with Tunnel(...) as tunnel`. Raises GwError on entry where the host does not allow it."""

    def __init__(
        self,
        secret: NodeSecret,
        tun_name: str,
        port: int,
        events: TunnelEvents,
        *,
        mtu: int = TAILNET_MTU,
        lanes: int = 0,
        offloads: Offloads = ALL,
    ) -> None:
        """port: UDP port of both families, 0 for any; mtu: of the TUN, in bytes; lanes: workers of each plane, 1, 2 or
        4, 0 for what fits the cores; offloads: those to be asked for."""
        if lanes not in (0, 1, 2, MAX_LANES):
            raise UsageError(f"cannot run {lanes} workers a plane", hint="1, 2, 4, or 0 for what fits the cores")
        self._events = events
        self._wanted = (tun_name, port)
        self._lanes = lanes or usual_lanes(len(os.sched_getaffinity(0)))
        self._offloads = offloads
        self._mtu = mtu
        self._device = Device(secret.raw, os.urandom, time.time_ns)
        self._by_key: dict[NodeKey, _Peer] = {}
        self._by_raw: dict[bytes, _Peer] = {}
        self._slots: dict[int, _Peer] = {}
        self._free_slots: list[int] = []
        self._is_full = False  # a peer was refused
        self._active: dict[int, float] = {}  # slot -> when it was last known to have traffic
        self._filter: list[FilterRules] = []
        self._stir = asyncio.Event()
        self._workers: Workers | None = None
        self._deaths: list[float] = []
        self._failure: GwError | None = None
        self._asleep_s = _asleep()

    # Life

    async def __aenter__(self) -> Self:
        name, port = self._wanted
        self._udp: UdpSockets = open_udp(port, self._lanes, self._offloads)
        try:
            self._tun: Tun = open_tun(name, self._udp.lanes, self._offloads)
        except GwError:
            self._udp.close()
            raise
        if len(self._tun.queues) < self._udp.lanes:  # the kernel has no queues: one lane does all
            self._udp.narrow()
        self._tables = SharedTables.make()
        sockets = (self._udp.v4, self._udp.v6)
        self._trains = [TrainSocket(sock, shared=True, gso=self._udp.gso) for sock in sockets if sock is not None]
        self._tallies = Tallies(self._tables.counters, self._udp.lanes)
        self._totals = PathTotals(self._tallies)
        setups = [self._setup(lane) for lane in range(self._udp.lanes)]
        try:
            self._workers = Workers(setups, self._on_message, self._restart)
        except OSError as error:
            await self.__aexit__(None, None, None)
            raise GwError(f"cannot start a packet worker: {error.strerror}", hint="is there memory left?") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._workers is not None:
            self._workers.stop()
            self._workers = None
        self._udp.close()
        self._tun.close()
        self._tallies.close()
        self._tables.close()

    async def run(self) -> None:
        """Keep the timers; runs until cancelled. Raises GwError where the workers cannot be kept alive."""
        while True:
            now = time.monotonic()
            self._tick(now)
            if self._failure is not None:
                raise self._failure
            due = self._device.deadline()
            wait = TICK_S if self._active else 60.0
            if due is not None:
                wait = min(wait, max(due - now, 0.01))
            self._stir.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._stir.wait()
            except TimeoutError:
                pass

    @property
    def port(self) -> int:
        return self._udp.port

    @property
    def tun_name(self) -> str:
        return self._tun.name

    @property
    def has_v6(self) -> bool:
        """True where the host has IPv6 sockets."""
        return self._udp.v6 is not None

    # Configuration

    def set_peer(self, key: NodeKey, allowed_ips: Iterable[Network]) -> None:
        """Let a peer in, with the inner addresses that are its own. Again: change them; sessions stay. One beyond the
        most that a tunnel has is refused, with one line in the log."""
        peer = self._by_key.get(key)
        if peer is None:
            slot = self._take_slot()
            if slot is None:
                if not self._is_full:
                    log.error("no room for peer %s and any further: a tunnel has at most %d", key.short(), MAX_PEERS)
                self._is_full = True
                return
            peer = _Peer(key, slot)
            self._by_key[key] = self._by_raw[key.raw] = self._slots[peer.slot] = peer
            self._device.add_peer(key.raw)
            self._tell(AddPeer(peer.slot))
            self._tell_plan(peer)
        allowed = frozenset(allowed_ips)
        add, remove = allowed - peer.allowed, peer.allowed - allowed
        peer.allowed = allowed
        self._tell_routes(peer, add, remove)

    def set_jailed(self, key: NodeKey, jailed: bool) -> None:
        """A jailed peer may answer what we began, and nothing else, whatever the rules say."""
        peer = self._by_key.get(key)
        if peer is not None and peer.jailed != jailed:
            peer.jailed = jailed
            self._tell_inbound(Jail(peer.slot, jailed))

    def remove_peer(self, key: NodeKey) -> None:
        peer = self._by_key.pop(key, None)
        if peer is None:
            return
        self._do(self._device.remove_peer(key.raw), None)
        self._tell_routes(peer, (), peer.allowed)
        self._tell(RemovePeer(peer.slot))
        self._settle(peer)
        self._totals.forget(peer.slot)
        del self._by_raw[key.raw], self._slots[peer.slot]
        self._active.pop(peer.slot, None)
        self._tallies.clear(peer.slot)
        self._free_slots.append(peer.slot)
        self._is_full = False

    def set_plan(self, key: NodeKey, plan: SendPlan) -> None:
        """Send the peer's datagrams this way from now on. A waiting handshake uses a new path at once."""
        peer = self._by_key.get(key)
        if peer is None or (peer.plan == plan and not plan.wake):
            return
        new_path = (
            (plan.udp is not None and (plan.udp, plan.vni) != (peer.plan.udp, peer.plan.vni))
            or (plan.relay and not peer.plan.relay)
            or (plan.quic and not peer.plan.quic)
        )
        self._settle(peer)
        before, peer.plan = peer.plan, plan
        if before.vni or plan.vni:  # what the peer sends goes that way too, as a rule
            self._totals.carried(peer.slot, before, _carrier(peer))
        self._tell_plan(peer)
        if new_path:
            self._do(self._device.nudge(key.raw, time.monotonic()), None)

    def reset_session(self, key: NodeKey) -> None:
        """The peer is known to have restarted: forget its keypairs, begin anew with the next packet."""
        self._do(self._device.reset(key.raw), None)

    def begin_session(self, key: NodeKey) -> None:
        """Have a handshake now rather than with the first packet."""
        now = time.monotonic()
        if not self._device.has_session(key.raw, now):
            self._do(self._device.want_session(key.raw, now), None)

    def set_filter(self, rules: Iterable[FilterRule], local: Sequence[Address | Network]) -> None:
        """Replace the packet filter. local: our own addresses and the routes we serve; nothing else is delivered."""
        self._filter = compile_rules(rules, local)
        self._tell_filter()

    def set_secret(self, secret: NodeSecret) -> None:
        """Our node key was rotated: all sessions end, peers stay."""
        for peer in self._by_key.values():
            self._do(self._device.remove_peer(peer.key.raw), None)
        self._device = Device(secret.raw, os.urandom, time.time_ns)
        for peer in self._by_key.values():
            self._device.add_peer(peer.key.raw)

    # Datagrams

    def send(self, datagram: bytes, to: AddrPort) -> bool:
        """Send from the node's own UDP port; False where the system refuses."""
        sock = self._udp.v6 if to.is_v6 else self._udp.v4
        if sock is None:
            return False
        try:
            sock.sendto(datagram, (to.host, to.port))
        except BlockingIOError:
            return True  # lost, as UDP may be
        except OSError:
            return False
        return True

    def send_trains(self, trains: Sequence[tuple[bytes, int, AddrPort]]) -> None:
        """Send datagrams by the train: data, size of each datagram, where to. What the system refuses is lost."""
        for wire in self._trains:
            is_v6 = wire.channel.family == socket.AF_INET6
            for data, segment, to in trains:
                if (":" in to[0]) == is_v6:
                    wire.send_train(data, segment, to)

    def receive_relayed(self, source: NodeKey, datagrams: list[bytes], *, quic: bool = False) -> None:
        """WireGuard datagrams that a relay, or the QUIC connection with it, brought from `source`."""
        peer = self._by_key.get(source)
        if peer is None:
            return
        self._carried(peer, QUIC if quic else RELAY)
        bulk = [datagram for datagram in datagrams if kind_of(datagram) == TRANSPORT]
        if self._workers is not None:
            for at in range(0, len(bulk), RELAY_BATCH):
                self._workers.received(bulk[at : at + RELAY_BATCH])
        if len(bulk) != len(datagrams):
            for datagram in datagrams:
                if kind_of(datagram) != TRANSPORT:
                    self._handshake(datagram, source.raw + b"\0\0", source)

    def _carried(self, peer: _Peer, carrier: str) -> None:
        if peer.carrier != carrier:
            peer.carrier = carrier
            self._totals.carried(peer.slot, peer.plan, carrier)

    def share(self, share: Share) -> None:
        """Have workers seal and open packets of a QUIC connection with a peer."""
        from gw.engine.peershare import Numbers, Opening, Sealing  # loaded already: this has come from it

        peer, workers = self._by_key.get(share.peer), self._workers
        if workers is None:
            return
        if peer is None:
            if isinstance(share, Opening) and not share.cids:  # the peer is gone, and its connection after it
                self._tell_inbound(OpenQuic(-1, share.line, share.secrets, [], 0))
            return
        match share:
            case Sealing(_, line, secrets, cid, to, limit):
                self._tell_outbound(SealQuic(peer.slot, line, secrets, cid, to.host, to.port, limit))
            case Numbers(_, line, sealer, first, stop, fresh, room):
                workers.sealer(sealer, QuicNumbers(peer.slot, line, first, stop, fresh, room))
            case Opening(_, line, secrets, cids, expected):
                self._tell_inbound(OpenQuic(peer.slot, line, secrets, list(cids), expected))

    @property
    def sealers(self) -> int:
        """How many workers may seal."""
        return self._workers.sealers if self._workers is not None else 0

    def inject(self, key: NodeKey, packet: bytes) -> None:
        """Send an inner packet of our own to the peer (TSMP)."""
        peer = self._by_key.get(key)
        if peer is not None and self._workers is not None:
            self._workers.send(Inject(peer.slot, packet))

    # Numbers

    def direct_counts(self, key: NodeKey) -> tuple[int, int, int]:
        """Data packets sent to the peer's UDP endpoint as they are; received from it so, copies counted; bytes sent."""
        peer = self._by_key.get(key)
        if peer is None:
            return 0, 0, 0
        self._settle(peer)
        sent = self._totals.sent_direct(peer.slot)
        return sent.packets, self._tallies.received_direct(peer.slot), sent.size

    def unanswered_s(self, key: NodeKey) -> float:
        """For how long the peer has not answered our handshakes, in seconds."""
        return self._device.unanswered_s(key.raw, time.monotonic())

    def stats(self, key: NodeKey) -> PeerStats | None:
        """The peer's counters, or None if it is not there."""
        peer = self._by_key.get(key)
        if peer is None:
            return None
        sent, received = self._tallies.sent(peer.slot), self._tallies.received(peer.slot)
        handshake = self._device.latest_handshake(key.raw)
        return PeerStats(
            received.size,
            sent.size,
            received.packets,
            sent.packets,
            0.0 if handshake == NEVER else time.time() - (time.monotonic() - handshake),
            _seconds(received.data_ns),
            _seconds(sent.data_ns),
            self._tallies.peer_drops(peer.slot),
        )

    def totals(self) -> NodeStats:
        """The node's counters; proportional to the peers that had traffic lately."""
        for slot in self._active:
            self._settle(self._slots[slot])
        return NodeStats(
            self._totals.sent,
            self._totals.received,
            self._tallies.dropped_sending(),
            self._tallies.dropped_receiving(),
        )

    def _settle(self, peer: _Peer) -> None:
        """Book its traffic to the path it has. A peer that is not active has none that was not booked."""
        if peer.slot in self._active:
            self._totals.settle(peer.slot, peer.plan)

    def active_peers(self) -> list[NodeKey]:
        """Peers that had traffic within the last few minutes: all that need watching."""
        return [self._slots[slot].key for slot in self._active]

    def health(self) -> dict[str, object]:
        """How the data plane runs on this host, for `gw status --json`."""
        return {
            "compiled": COMPILED,
            "tun": self._tun.name,
            "port": self._udp.port,
            "tcp_offload": self._tun.tcp_offload,
            "udp_offload": self._tun.udp_offload,
            "udp_gso": self._udp.gso,
            "udp_gro": self._udp.gro,
            "cipher": cipher.choose().name,
            "lanes": self._udp.lanes,
            "workers": self._workers.pids() if self._workers is not None else {},
            "drops": self._tallies.drops(),
        }

    # Workers

    def _setup(self, lane: int) -> Setup:
        return Setup(
            outbound=-1,
            inbound=-1,
            tun=self._tun.queues[lane],
            udp4=self._udp.all4[lane].fileno(),
            udp6=self._udp.all6[lane].fileno() if self._udp.all6 else -1,
            counters=self._tables.counters,
            flows=self._tables.flows,
            mtu=self._mtu,
            gso=self._udp.gso,
            tcp_offload=self._tun.tcp_offload,
            udp_offload=self._tun.udp_offload,
            cipher=cipher.choose().name,
            lane=lane,
            lanes=self._udp.lanes,
        )

    def _restart(self) -> None:
        """A worker died. No keypair that it held is ever used again: all sessions end, busy peers begin new ones."""
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < QUICK_S * MAX_QUICK_DEATHS] + [now]
        if len(self._deaths) > MAX_QUICK_DEATHS:
            self._failure = GwError("packet workers die as soon as they start", hint="run `gwd run --log-level debug`")
            self._stir.set()
            return
        had_session = [peer for peer in self._by_key.values() if peer.sessions]
        for peer in had_session:
            self._do(self._device.reset(peer.key.raw), None)
        if self._workers is not None:
            try:
                self._workers.revive()
            except OSError as error:
                self._failure = GwError(f"cannot start a packet worker: {error.strerror}", hint="is there memory left?")
                self._stir.set()
                return
        # a surviving worker takes what it knows already as it is
        for peer in self._by_key.values():
            self._tell(AddPeer(peer.slot))
            if peer.jailed:
                self._tell_inbound(Jail(peer.slot, jailed=True))
            self._tell_routes(peer, peer.allowed, ())
            self._tell_plan(peer)
        self._tell_filter()
        self._events.workers_restarted()
        for peer in had_session:
            self._do(self._device.renew(peer.key.raw, now), None)

    def _tell(self, message: ToWorker) -> None:
        self._tell_outbound(message)
        self._tell_inbound(message)

    def _tell_outbound(self, message: ToWorker) -> None:
        if self._workers is not None:
            self._workers.outbound(message)

    def _tell_inbound(self, message: ToWorker) -> None:
        if self._workers is not None:
            self._workers.inbound(message)

    def _tell_filter(self) -> None:
        for part in self._filter:
            self._tell_inbound(part)

    def _tell_routes(self, peer: _Peer, add: Iterable[Network], remove: Iterable[Network]) -> None:
        added, removed = _prefixes(add), _prefixes(remove)
        for at in range(0, max(len(added), len(removed)), ROUTES_BATCH):
            self._tell(Routes(peer.slot, added[at : at + ROUTES_BATCH], removed[at : at + ROUTES_BATCH]))

    def _tell_plan(self, peer: _Peer) -> None:
        plan = peer.plan
        host, port = (plan.udp.host, plan.udp.port) if plan.udp is not None else ("", 0)
        in_quic = plan.quic and not plan.relay and plan.udp is None
        self._tell_outbound(Plan(peer.slot, host, port, plan.relay or plan.quic, plan.wake, _head(plan), in_quic))

    def _on_message(self, message: FromWorker) -> None:
        match message:
            case Foreign(datagrams):
                self._on_foreign(datagrams)
            case QuicSent(line, sealer, first, sizes, at_ns):
                self._events.quic_sent(line, sealer, first, sizes, at_ns / 1e9)
            case QuicOpened(slot, line, count, frames, runs, acks, host, port):
                if acks and self._workers is not None:
                    self._workers.hear_sealers()  # what is acknowledged they have told of
                peer = self._slots.get(slot)
                if peer is not None:
                    if count > len(frames):
                        self._carried(peer, QUIC)
                    source = AddrPort(host, port) if host else None
                    self._events.quic_opened(line, count, frames, runs, acks, source)
            case Quic(trains):
                if self._workers is not None:
                    self._workers.hear_sealers()
                self._events.quic([(train, segment, AddrPort(host, port)) for train, segment, host, port in trains])
            case RelayOut(slot, datagrams):
                peer = self._slots.get(slot)
                if peer is not None:
                    self._events.relay_out(peer.key, datagrams)
            case Note(kind, slot, detail):
                peer = self._slots.get(slot)
                if peer is not None:
                    self._on_note(peer, kind, detail)
            case Heard(slot, host, port):
                peer = self._slots.get(slot)
                if peer is not None:
                    source = AddrPort(host, port) if host else None
                    self._totals.heard(slot, peer.plan, source, _carrier(peer))
                    self._events.heard(peer.key, source)
            case Rejected(slot, head):
                peer = self._slots.get(slot)
                if peer is not None:
                    self._events.rejected(peer.key, head)
            case Tsmp(slot, packet):
                peer = self._slots.get(slot)
                if peer is not None:
                    self._events.tsmp(peer.key, packet)

    def _on_note(self, peer: _Peer, kind: int, detail: int) -> None:
        now = time.monotonic()
        if kind == NEED_SESSION:
            self._do(self._device.want_session(peer.key.raw, now), None)
            self._stir.set()
        elif kind == ACTIVE:
            self._active[peer.slot] = now
            self._stir.set()
        elif kind == WAKE:
            self._events.wake(peer.key)
        elif kind == CONFIRMED:
            self._do(self._device.confirmed(detail, now), None)
        elif kind == SEND_FAILED:
            self._events.send_failed(peer.key, detail)
        elif kind == NO_TRAINS:
            self._udp.gso = False

    def _on_foreign(self, datagrams: list[tuple[bytes, str, int]]) -> None:
        others: list[tuple[bytes, AddrPort]] = []
        for datagram, host, port in datagrams:
            source = AddrPort(host, port)
            kind = kind_of(datagram)
            if kind == TRANSPORT:  # of a session of another lane
                if self._workers is not None:
                    self._workers.received([datagram], host, port)
            elif kind:
                self._handshake(datagram, socket.inet_pton(*_packed_family(host)) + port.to_bytes(2, "big"), source)
            else:
                others.append((datagram, source))
        if others:
            self._events.datagrams(others)

    def _handshake(self, datagram: bytes, source: bytes, came_from: AddrPort | NodeKey) -> None:
        try:
            outputs = self._device.receive(datagram, source, time.monotonic())
        except WireError as error:
            log.debug("handshake message dropped: %s", error)
            return
        for output in outputs:
            # whoever proved a key, by an initiation or a response, is where it came from
            if isinstance(output, Reply | Install) and output.peer is not None:
                peer = self._by_raw.get(output.peer)
                if peer is not None:
                    self._events.heard(peer.key, came_from if isinstance(came_from, AddrPort) else None)
        self._do(outputs, came_from)

    def _do(self, outputs: list[Output], came_from: AddrPort | NodeKey | None) -> None:
        """Carry out what the device wants. came_from: where a reply goes."""
        for output in outputs:
            match output:
                case Install():
                    self._install(self._by_raw[output.peer], output)
                case Retire(raw, index):
                    peer = self._by_raw[raw]
                    peer.sessions.discard(index)
                    self._tell(EndSession(peer.slot, index))
                case Reply(_, datagram):
                    if isinstance(came_from, AddrPort):
                        self.send(datagram, came_from)
                    elif came_from is not None:
                        self._events.relay_out(came_from, [datagram], self._by_key[came_from].carrier)
                case Transmit(raw, datagram):
                    self._transmit(self._by_raw[raw], datagram)
                case Keepalive(raw):
                    self._keepalive(self._by_raw[raw])
                case Unreachable(raw):
                    self._tell_outbound(DropStaged(self._by_raw[raw].slot))
        if outputs:
            self._stir.set()

    def _install(self, peer: _Peer, output: Install) -> None:
        keypair = output.keypair
        expires_ns = int((keypair.created + REJECT_AFTER_S) * 1e9)
        index = keypair.local_index
        if index not in peer.sessions:
            peer.sessions.add(index)
            confirm = not output.send
            if self._workers is not None:
                receive = ReceiveSession(peer.slot, index, keypair.receive_key, expires_ns, confirm)
                self._workers.session(index, receive)
        if output.send:
            self._tell_outbound(SendSession(peer.slot, index, keypair.send_key, keypair.remote_index, expires_ns))
            if keypair.initiator:
                self._keepalive(peer)  # proves to the responder that we have the keys
            self._active[peer.slot] = time.monotonic()
            self._events.session(peer.key)

    def _keepalive(self, peer: _Peer) -> None:
        if self._workers is not None:
            self._workers.send(SendKeepalive(peer.slot))

    def _transmit(self, peer: _Peer, datagram: bytes) -> None:
        plan = peer.plan
        if plan.udp is None and not plan.relay and not plan.quic:
            self._events.wake(peer.key)
            plan = peer.plan  # waking may have found a way
        if plan.udp is not None and not self.send(_head(plan) + datagram, plan.udp):
            self._events.send_failed(peer.key, 0)
        if plan.relay or plan.quic:
            self._events.relay_out(peer.key, [datagram])

    # Timers

    def _tick(self, now: float) -> None:
        asleep_s = _asleep()
        if asleep_s - self._asleep_s > ASLEEP_S:
            self._on_awake()
        self._asleep_s = asleep_s
        for slot in list(self._active):
            peer = self._slots[slot]
            sent, received = self._tallies.sent(slot), self._tallies.received(slot)
            activity = Activity(
                _seconds(sent.data_ns), _seconds(sent.any_ns), _seconds(received.data_ns), _seconds(received.any_ns)
            )
            self._do(self._device.observe(peer.key.raw, activity, now), None)
            if now - max(self._active[slot], *activity) > QUIET_AFTER_S:
                self._settle(peer)
                del self._active[slot]
        self._do(self._device.poll(now), None)

    def _on_awake(self) -> None:
        """The machine slept, which no clock of the sessions counts: keypairs are older than they seem, so they end."""
        log.info("awake again: new handshakes")
        for peer in self._by_key.values():
            if peer.sessions:
                self._do(self._device.reset(peer.key.raw), None)

    def _take_slot(self) -> int | None:
        """The place of a new peer; None where all are taken."""
        if self._free_slots:
            return self._free_slots.pop()
        return len(self._slots) if len(self._slots) < MAX_PEERS else None


def _carrier(peer: _Peer) -> str:
    """The path of what the peer sends and is not heard directly."""
    return peer_relay(peer.plan.udp) if peer.plan.vni and peer.plan.udp is not None else peer.carrier


def _head(plan: SendPlan) -> bytes:
    """What stands before each datagram to `plan.udp`."""
    return geneve.encode(Header(geneve.WIREGUARD, plan.vni)) if plan.vni else b""


def _asleep() -> float:
    """Seconds that the machine has slept since it started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _prefixes(networks: Iterable[Network]) -> list[tuple[bytes, int]]:
    return [(network.network_address.packed, network.prefixlen) for network in networks]


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9 if nanoseconds else NEVER


def _packed_family(host: str) -> tuple[socket.AddressFamily, str]:
    return (socket.AF_INET6, host.partition("%")[0]) if ":" in host else (socket.AF_INET, host)
