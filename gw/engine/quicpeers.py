"""QUIC with peers on the engine's loop: connections when they are wanted, and the choice between them and plain UDP.

    outbound worker ──QUIC packets──> UDP ──trains──> inbound worker       keys and packet numbers from here, word back
    outbound worker ──sealed──> Engine.relay_out ──> QuicPeers ──packets by the train──> UDP        what they cannot yet
    UDP ──trains──> inbound worker ──> Engine.quic ──> QuicPeers ──sealed──> inbound worker

What needs aioquic is loaded with the first connection that is wanted or knocks, on a thread: a node whose peers are all
reached by UDP never does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, assert_never, final

from gw.engine import defects
from gw.engine.filterrules import Network
from gw.engine.relayclient import Tickets
from gw.engine.transport import Chooser, Mode, Way
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.model.sendplan import SendPlan

if TYPE_CHECKING:
    from gw.engine.peerlines import Event, LineView, PeerLines
    from gw.engine.peershare import Share

log: Final = logging.getLogger(__name__)

MAX_EARLY: Final = 16  # trains that wait for the first load
MIN_WAIT_S: Final = 0.0005
PING_BYTES: Final = 8
PING_S: Final = 2.0
LOOK_S: Final = 0.02  # so long what packet workers tell may wait
INITIATION: Final = 1


class Host(Protocol):
    """What the engine does for us."""

    def send_trains(self, trains: Sequence[tuple[bytes, int, AddrPort]]) -> None: ...

    def quic_bulk(self, peer: NodeKey, datagrams: list[bytes]) -> None:
        """WireGuard messages that came in QUIC."""

    def share(self, share: Share) -> None:
        """For packet workers: of a connection that they seal and open packets of."""

    @property
    def sealers(self) -> int:
        """How many packet workers may seal."""

    def replan(self, peer: NodeKey) -> None:
        """The peer's way may be another now."""

    def best_endpoint(self, peer: NodeKey) -> AddrPort | None: ...

    def is_active(self, peer: NodeKey) -> bool:
        """Whether data was sent to the peer lately."""

    def peer_at(self, source: AddrPort) -> NodeKey | None:
        """Whom a round trip has lately found there."""

    def peer_moved(self, peer: NodeKey, source: AddrPort) -> None: ...

    def measure(self, peer: NodeKey) -> None:
        """Have the path finder ask what arrives over UDP."""


@dataclass(frozen=True, slots=True)
class QuicView:
    """How QUIC is used with a peer. way, reason: as `gw.engine.transport` has them."""

    way: Way
    reason: str
    line: LineView | None


@final
class QuicPeers:
    """Run `run()` beside it."""

    def __init__(self, secret: NodeSecret, node: NodeKey, host: Host, *, mode: Mode, tickets: Tickets | None) -> None:
        """tickets: where they are kept over restarts; None: nowhere."""
        self._secret, self._node = secret, node
        self._host = host
        self._chooser = Chooser(mode)
        self._tickets = _PeerTickets(tickets)
        self._able: set[NodeKey] = set()
        self._served: tuple[Network, ...] = ()
        self._lines: PeerLines | None = None
        self._load = asyncio.Event()
        self._early: list[tuple[bytes, int, AddrPort]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._flushed_at = 0.0
        self._silent: set[NodeKey] = set()
        self._pings: dict[bytes, asyncio.Future[float]] = {}

    async def run(self) -> None:
        """Load what connections need when the first is wanted; runs until cancelled."""
        await self._load.wait()
        try:
            make, fast, certificate = await asyncio.to_thread(_prepare)
        except ImportError as error:
            log.warning("no QUIC: %s", error)
        else:
            self._lines = make(
                self._secret, self._node, self._may, self._tickets,
                random_bytes=os.urandom, wall=time.time, fast=fast, certificate=certificate,
                sealers=self._host.sealers if fast else 0,
            )  # fmt: skip
            self._lines.set_routes(self._served)
            early, self._early = self._early, []
            for train, segment, source in early:
                self._lines.receive(train, segment, source, self._host.peer_at(source), time.monotonic())
            for peer in self._able:
                self._seek(peer)
            self._flush()
        await asyncio.Event().wait()

    def close(self) -> None:
        """Tell peers that we go: they fall back at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._lines is not None:
            for peer in self._able:
                self._lines.drop(peer, "the node stops")
            trains, _ = self._lines.poll(time.monotonic())
            self._host.send_trains(trains)
            self._lines = None

    # Configuration

    @property
    def mode(self) -> Mode:
        return self._chooser.mode

    def set_mode(self, mode: Mode) -> None:
        if mode is self._chooser.mode:
            return
        before = self._chooser.mode
        self._chooser.set_mode(mode)
        for peer in self._able:
            if self._lines is not None and (mode is Mode.UDP or before is Mode.QUIC):
                self._lines.drop(peer, "not wanted any more")
            self._seek(peer)
            self._host.replan(peer)
        self._stir()

    def set_peer(self, peer: NodeKey, able: bool) -> None:
        """Whether the peer speaks gw-peer/1."""
        if able:
            self._able.add(peer)
        elif peer in self._able:
            self._able.discard(peer)
            self._forget(peer)

    def remove_peer(self, peer: NodeKey) -> None:
        self._able.discard(peer)
        self._forget(peer)
        self._tickets.take(peer)

    def set_secret(self, secret: NodeSecret, node: NodeKey) -> None:
        self._secret, self._node = secret, node
        if self._lines is not None:
            self._lines.set_secret(secret, node)
            self._stir()

    def set_routes(self, served: tuple[Network, ...]) -> None:
        """Networks behind this node, told to peers."""
        self._served = served
        if self._lines is not None:
            self._lines.set_routes(served)
            self._stir()

    # What happens

    def plan(self, peer: NodeKey, plan: SendPlan) -> SendPlan:
        """The path finder's plan, with QUIC in it where that is the way."""
        if peer not in self._able or plan.udp is None or plan.vni:
            return plan
        match self._chooser.way(peer):
            case Way.DIRECT:
                return plan
            case Way.FALLBACK:
                return SendPlan(udp=plan.udp, relay=True, wake=plan.wake)
            case Way.QUIC:
                return SendPlan(quic=True, relay=plan.relay or peer in self._silent, wake=plan.wake)
            case Way.PROBING:
                return SendPlan(udp=plan.udp, quic=True, relay=plan.relay, wake=plan.wake)
            case never:
                assert_never(never)

    def path_changed(self, peer: NodeKey) -> None:
        """The path finder knows another best endpoint."""
        best = self._host.best_endpoint(peer)
        if best is not None and self._lines is not None:
            self._lines.set_address(peer, best, time.monotonic())
        self._seek(peer)
        self._stir()

    def restarted(self, peer: NodeKey) -> None:
        """The peer is another process than before: the connection with the old one is over."""
        if self._lines is not None:
            self._lines.restarted(peer, time.monotonic())
            self._stir()

    def network_changed(self) -> None:
        if self._lines is not None:
            self._lines.network_changed(time.monotonic())
            self._flush()

    def delivered(self, peer: NodeKey, sent: int, received: int, size: int) -> None:
        """As `Chooser.delivered`."""
        if peer in self._able:
            self._changed(peer, self._chooser.delivered(peer, sent, received, size, time.monotonic()))

    def tick(self, peer: NodeKey, unanswered_s: float, is_direct: bool) -> None:
        """Once a second for a peer with traffic. unanswered_s: as `Chooser.stalled`; is_direct: on a trusted path."""
        if peer not in self._able:
            return
        now = time.monotonic()
        changed = is_direct and self._chooser.stalled(peer, unanswered_s)
        lines = self._lines
        if lines is not None:
            by_way, measure = self._chooser.tick(peer, lines.delivered(peer), now)
            changed = changed or by_way
            if measure:
                self._host.measure(peer)
            is_silent = lines.is_silent(peer, now)
            if is_silent != (peer in self._silent):
                (self._silent.add if is_silent else self._silent.discard)(peer)
                changed = True
        self._changed(peer, changed)
        self._seek(peer)

    def _changed(self, peer: NodeKey, changed: bool) -> None:
        if changed:
            log.info("%s: transport %s%s", peer.short(), self._chooser.way(peer).value, self._why(peer))
            self._host.replan(peer)
            self._seek(peer)

    def _why(self, peer: NodeKey) -> str:
        reason = self._chooser.reason(peer)
        return f", UDP is {reason}" if reason in ("blocked", "stalled", "lossy") else ""

    def send(self, peer: NodeKey, datagrams: list[bytes]) -> bool:
        """WireGuard messages for the peer; False where there is no connection with it."""
        if self._lines is None or not self._lines.send(peer, datagrams, time.monotonic()):
            return False
        self._stir()
        return True

    def sent(self, line: int, sealer: int, first: int, sizes: list[int], sent_at: float) -> None:
        """A packet worker sends QUIC packets now."""
        if self._lines is not None and (
            self._lines.sent(line, sealer, first, sizes, sent_at) or sent_at - self._flushed_at > LOOK_S
        ):
            self._stir()

    def opened(
        self, line: int, count: int, frames: list[bytes], runs: list[int], acks: list[list[int]],
        source: AddrPort | None,
    ) -> None:  # fmt: skip
        """A packet worker has opened QUIC packets."""
        if self._lines is not None:
            self._lines.opened(line, count, frames, runs, acks, source, time.monotonic())
            self._stir()

    def workers_restarted(self) -> None:
        """Packet workers know of no connection any more."""
        if self._lines is not None:
            self._lines.share_again()
            self._stir()

    def receive(self, trains: list[tuple[bytes, int, AddrPort]]) -> None:
        """QUIC packets of the UDP socket."""
        if self._chooser.mode is Mode.UDP:
            return
        if self._lines is None:
            for train, segment, source in trains:
                if len(self._early) < MAX_EARLY and self._host.peer_at(source) in self._able:
                    self._early.append((train, segment, source))
                    self._load.set()
            return
        now = time.monotonic()
        for train, segment, source in trains:
            self._lines.receive(train, segment, source, self._host.peer_at(source), now)
        self._stir()

    # Questions

    def view(self, peer: NodeKey) -> QuicView | None:
        """None for a peer that does not speak it."""
        if peer not in self._able:
            return None
        line = self._lines.view(peer) if self._lines is not None else None
        return QuicView(self._chooser.way(peer), self._chooser.reason(peer), line)

    async def ping(self, peer: NodeKey) -> float | None:
        """Seconds of a round trip on the control stream; None where no answer comes in time."""
        data = os.urandom(PING_BYTES)
        if self._lines is None or not self._lines.ping(peer, data):
            return None
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._pings[data] = future
        began = time.monotonic()
        try:
            self._flush()
            async with asyncio.timeout(PING_S):
                return await future - began
        except TimeoutError:
            return None
        finally:
            del self._pings[data]

    # Inside

    def _may(self, peer: NodeKey) -> bool:
        return peer in self._able and self._chooser.mode is not Mode.UDP

    def _forget(self, peer: NodeKey) -> None:
        self._chooser.forget(peer)
        self._silent.discard(peer)
        if self._lines is not None:
            self._lines.drop(peer, "not a peer any more")
            self._stir()

    def _seek(self, peer: NodeKey) -> None:
        """Dial where a connection is wanted and there is somewhere to dial."""
        address = self._host.best_endpoint(peer)
        if address is None or peer not in self._able or not self._host.is_active(peer):
            return
        now = time.monotonic()
        if self._lines is None:
            if self._chooser.mode is Mode.QUIC or self._chooser.reason(peer):
                self._load.set()
            return
        if self._chooser.wants_line(peer, now):
            log.debug("%s: dialling by QUIC at %s", peer.short(), address)
            self._lines.dial(peer, address, now)
            self._stir()

    def _stir(self) -> None:
        """Flush once, after what else the loop has to do now: so packets go by the train."""
        if not self._is_due and self._lines is not None:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        lines = self._lines
        if lines is None:
            return
        self._flushed_at = time.monotonic()
        trains, events = lines.poll(self._flushed_at)
        if trains:
            self._host.send_trains(trains)
        for event in events:
            try:
                self._on_event(event)
            except Exception:  # what one peer has caused keeps nothing from the others, nor from the timer
                defects.of_node.tell(f"{event.peer.short()}: what came by QUIC is dropped")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = lines.deadline()
        if due < float("inf"):
            wait = max(due - time.monotonic(), MIN_WAIT_S)
            self._timer = asyncio.get_running_loop().call_later(wait, self._flush)

    def _on_event(self, event: Event) -> None:
        from gw.engine import peerlines, peershare  # loaded already: this has come from it

        now = time.monotonic()
        match event:
            case peerlines.Bulk(peer, datagrams):
                self._host.quic_bulk(peer, datagrams)
                if any(datagram[0] == INITIATION for datagram in datagrams):
                    self._changed(peer, self._chooser.brought(peer, now))
            case peerlines.Up(peer, is_resumed, early):
                log.info(
                    "%s: QUIC connection is up%s%s", peer.short(), ", resumed" if is_resumed else "",
                    ", first messages in the first flight" if early else "",
                )  # fmt: skip
                self._silent.discard(peer)
                changed = self._chooser.line(peer, now, is_up=True)
                best = self._host.best_endpoint(peer)
                if best is not None and self._lines is not None:
                    self._lines.set_address(peer, best, now)
                self._changed(peer, changed)
            case peerlines.Down(peer, reason):
                log.info("%s: QUIC connection is gone: %s", peer.short(), reason)
                self._silent.discard(peer)
                self._changed(peer, self._chooser.line(peer, now, is_up=False))
            case peerlines.Ponged(_, data):
                future = self._pings.get(data)
                if future is not None and not future.done():
                    future.set_result(now)
            case peerlines.Moved(peer, source):
                self._host.peer_moved(peer, source)
            case peershare.Sealing() | peershare.Numbers() | peershare.Opening():
                self._host.share(event)
            case peerlines.RoutesTold(peer, prefixes):
                log.debug("%s serves %s", peer.short(), ", ".join(map(str, prefixes)) or "no routes")


@final
class _PeerTickets:
    """Tickets by peer."""

    def __init__(self, kept: Tickets | None) -> None:
        self._kept = kept

    def take(self, peer: NodeKey) -> bytes | None:
        return self._kept.take(str(peer)) if self._kept is not None else None

    def keep(self, peer: NodeKey, ticket: bytes) -> None:
        if self._kept is not None:
            self._kept.keep(str(peer), ticket)


def _prepare() -> tuple[type[PeerLines], bool, tuple[bytes, bytes]]:
    from gw.engine.peerlines import PeerLines, prepare

    return PeerLines, *prepare()
