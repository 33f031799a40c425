"""The relay's UDP port: STUN, QUIC and what is relayed between two nodes (`peerrelay`) by the first byte, clients of
QUIC in the forwarding plane's loop.

    turn:   trains of datagrams ─▶ by connection id ─▶ Inboxes ─▶ one client after the other: Link ─▶ Switch
            ports with something out, and links with something to say ─▶ one poll, one train a client

Ref: spec quic §5, §11; RFC 9443
"""

from __future__ import annotations

import heapq
import logging
import math
import struct
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, final

from mypy_extensions import mypyc_attr

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.model.keys import RelaySecret
from gw.native.relaying import Port, same_head
from gw.quic.connection import stateless_reset
from gw.quic.gate import Gate
from gw.quic.link import Link
from gw.relay.inboxes import Inboxes
from gw.relay.peerrelay import PeerRelay
from gw.relay.quicnewcomers import MAX_UNPROVEN, Doorway, Newcomers
from gw.relay.quicsession import QuicSession, Stage
from gw.relay.session import Reception
from gw.relay.waiting import WaitingRoom
from gw.wire import stun
from gw.wire.derp.buckets import Bucket
from gw.wire.derp.frames import RESTARTING, encode
from gw.wire.quic import frames
from gw.wire.quic.demux import Kind, destination_of, kind_of

logger = logging.getLogger(__name__)

READS_A_TURN: Final = 128
RELAYED_READS: Final = 4  # that a train between two nodes stands for beside its own
STRANGER_READS: Final = 15  # and what nobody known sent, which may begin a handshake
LINK_WEIGHT: Final = 8  # of a link to another relay, which has many clients
CLIENTS_A_TURN: Final = 24  # that something came of
RESETS_A_S: Final = 100.0
COMPLAINTS_A_S: Final = 0.1  # log lines about defects that strangers may find
COMPLAINT_BURST: Final = 10.0
ARM_SLACK_S: Final = 0.0005
MIN_PAUSE_S: Final = 0.0002
NEVER: Final = float("inf")


class Loop(Doorway, Protocol):
    """What the port needs of the forwarding plane."""

    came_alone: bool  # whether this turn is about one thing

    def count_address(self, host: str, change: int) -> None: ...
    def count_accepted(self) -> None: ...


class Wire(Protocol):
    """A UDP socket by the train: `gw.net.trains.TrainSocket`."""

    @property
    def is_ipv6(self) -> bool: ...
    def fileno(self) -> int: ...
    def receive(self) -> tuple[bytes, int, Any]: ...
    def send(self, trains: Sequence[tuple[bytes, int, Any]]) -> int: ...
    def send_train(self, data: bytes, segment: int, target: Any) -> int: ...


class Speaker(Protocol):
    """A session over QUIC: a client's, or a link's that was dialled from here."""

    source: AddrPort
    stage: Stage
    patient_until: float
    limited: int
    moves: int
    was_faulty: bool

    @property
    def link(self) -> Link: ...
    @property
    def port(self) -> Port: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def is_waiting(self) -> bool: ...
    @property
    def node(self) -> bytes: ...
    def wants_turn(self, now: float) -> bool: ...
    def receive(self, train: bytes, segment: int, address: Any, now: float) -> None: ...
    def pour(self, now: float) -> None: ...
    def poured(self) -> None: ...
    def decide(self, now: float) -> None: ...
    def limit(self) -> None: ...


@final
@mypyc_attr(native_class=False)  # timers point at it weakly
class QuicClient:
    """One connection. Implements `Owner`."""

    __slots__ = ("__weakref__", "_armed", "_host", "_port", "cids", "session")

    def __init__(
        self, port: QuicPort, source: AddrPort, cids: set[bytes], make: Callable[[QuicClient], Speaker]
    ) -> None:
        """make: its session, given its owner."""
        self._port = port
        self._host = source.host
        self.session: Speaker = make(self)
        self.cids = cids
        self._armed: list[float] = []  # when `_tick` is called, a heap

    def receive(self, train: bytes, segment: int, address: Any, now: float) -> None:
        port = self._port
        try:
            self.session.receive(train, segment, address, now)
            port.follow(self)
        except Exception:
            port.break_off(self)
            return
        if self.session.stage is Stage.GONE:
            port.forget(self)
            return
        if self.session.wants_turn(now):
            port.rouse(self)
        else:
            self._arm(self._due(), now)

    def flush(self) -> None:
        session, port = self.session, self._port
        now = port.loop.now
        try:
            session.pour(now)
            trains = session.link.poll(now)
            if trains:
                port.send(trains)
            session.poured()
            port.follow(self)
        except Exception:
            port.break_off(self)
            return
        if session.stage is Stage.GONE:
            port.forget(self)
            return
        self._arm(self._due(), now)

    @property
    def drained(self) -> int:
        return self.session.link.delivered

    def close(self) -> None:
        self.session.link.close(frames.NOT_ALLOWED, "disconnected by the relay")
        self._port.rouse(self)

    def give_up(self) -> None:
        """It should be in by now."""
        why = "nobody says whether it may come in" if self.session.is_waiting else "no proof of a node key"
        self.session.link.close(frames.NO_AUTH, why)
        self.flush()

    def _arm(self, due: float, now: float) -> None:
        """Be called at `due`; who is called before anyway looks again then, so that no call is ordered in vain."""
        due = max(due, now + MIN_PAUSE_S)
        if due != NEVER and (not self._armed or due < self._armed[0] - ARM_SLACK_S):
            heapq.heappush(self._armed, due)
            self._port.loop.arm_call(due, partial(_tick, weakref.ref(self)))

    def _due(self) -> float:
        session = self.session
        return min(session.link.deadline(), session.patient_until)

    def tick(self) -> None:
        now = self._port.loop.now
        if self._armed:
            heapq.heappop(self._armed)
        if self.session.stage is Stage.GONE:
            self._port.forget(self)
            return
        due = self._due()
        if due <= now + ARM_SLACK_S:
            self.flush()
        else:
            self._arm(due, now)

    @property
    def host(self) -> str:
        """Where it came from at first."""
        return self._host


def _tick(client: weakref.ref[QuicClient]) -> None:
    """A timer keeps nobody who is gone."""
    found = client()
    if found is not None:
        found.tick()


@final
class QuicPort:
    """Give `ready` to `Plane.attach`, and itself to `Plane.transports`."""

    def __init__(
        self,
        wire: Wire,
        reception: Reception,
        secret: RelaySecret,
        loop: Loop,
        gate: Gate,
        reset_key: bytes,
        *,
        fast: bool,
        unix_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._wire = wire
        self.reception: Final = reception
        self.secret: Final = secret
        self.loop: Final = loop
        self.gate = gate
        self.peers: PeerRelay | None = None
        self.fast: Final = fast
        self.unix_ms: Final = unix_ms
        self._reset_key = reset_key
        self._clients: dict[bytes, QuicClient] = {}  # by connection id
        self._all: set[QuicClient] = set()
        self._inboxes = Inboxes()
        self._is_due = False  # whether `_look_on` is to be called
        self._waiting: WaitingRoom[QuicClient] = WaitingRoom(MAX_UNPROVEN)  # for admission
        self._newcomers = Newcomers(loop, gate)
        self._unproven = self._newcomers.unproven
        self._resets = Bucket(RESETS_A_S, RESETS_A_S)
        self._complaints = Bucket(COMPLAINTS_A_S, COMPLAINT_BURST)
        self.broken = 0  # clients that met a defect of ours
        self.faults = 0  # clients that broke the protocol
        self.stun_requests = 0
        self.ignored = 0
        self.accepted = 0
        self.resumed = 0
        self.moves = 0
        self.limited = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def is_ipv6(self) -> bool:
        return self._wire.is_ipv6

    @property
    def rejected(self) -> int:
        """Newcomers for whom there was no room."""
        return self._newcomers.rejected

    def fileno(self) -> int:
        return self._wire.fileno()

    # What comes in

    def ready(self) -> None:
        """Take what is there, as far as it goes in a turn: the rest keeps the descriptor readable."""
        clients = self._clients
        left = READS_A_TURN
        while left > 0:
            left -= 1
            try:
                train, segment, source = self._wire.receive()
            except BlockingIOError:
                break
            except OSError:
                self.ignored += 1
                continue
            if len(train) < 2 or not source[1]:  # nobody can be answered at port 0
                self.ignored += 1
                continue
            if not train[0] and self.peers is not None and kind_of(train) is Kind.GENEVE:
                self._relay_untrusted(self.peers, train, segment, source)
                left -= RELAYED_READS
            elif segment < len(train):
                left -= STRANGER_READS * self._train_untrusted(train, segment, source)
            else:
                client = clients.get(train[1:9] if train[0] & 0xC0 == 0x40 else destination_of(train))
                if client is None:
                    self._stranger_untrusted(train, source)
                    left -= STRANGER_READS
                else:
                    self._keep(client, train, segment, source)
                if self.loop.came_alone:  # to be told that there is no more costs as much as to be called again
                    break
        if not self._is_due:
            self._look()

    def _keep(self, client: QuicClient, train: bytes, segment: int, source: Any) -> None:
        """For its turn."""
        weight = LINK_WEIGHT if client.session.port.is_mesh else 1
        self._inboxes.put(client, train, segment, source, weight)

    def _look(self) -> None:
        """Let some clients have what came for them; the others in the next turn, which waits for nothing."""
        inboxes = self._inboxes
        try:
            for _ in range(CLIENTS_A_TURN):
                client, arrivals = inboxes.take()
                if client is None:
                    return
                assert isinstance(client, QuicClient)
                for train, segment, source in arrivals:
                    if client in self._all:
                        client.receive(train, segment, source, self.loop.now)
        finally:
            if inboxes.cost and not self._is_due:
                self._is_due = True
                self.loop.arm_call(math.nextafter(self.loop.now, NEVER), self._look_on)

    def _look_on(self) -> None:
        self._is_due = False
        self._look()

    def _train_untrusted(self, train: bytes, segment: int, source: Any) -> int:
        """Behind one address there may be several clients: each gets its own. How many datagrams were strangers'."""
        clients = self._clients
        if train[0] & 0xC0 == 0x40 and same_head(train, segment, 1):
            client = clients.get(train[1:9])
            if client is not None:
                self._keep(client, train, segment, source)
                return 0
        at, size, strangers = 0, len(train), 0
        while at < size:
            packet = train[at : at + segment]
            name = packet[1:9] if packet[0] & 0xC0 == 0x40 else destination_of(packet)
            client = clients.get(name)
            end = at + segment
            if client is None:
                self._stranger_untrusted(packet, source)
                strangers += 1
                at = end
                continue
            while end < size:
                if train[end + 1 : end + 9] != name:
                    other = train[end : end + segment]
                    if clients.get(other[1:9] if other[0] & 0xC0 == 0x40 else destination_of(other)) is not client:
                        break
                end += segment
            self._keep(client, train[at:end], segment, source)
            at = end
        return strangers

    def _stranger_untrusted(self, datagram: bytes, source: Any) -> None:
        kind = kind_of(datagram)
        if kind is Kind.STUN:
            self._stun_untrusted(datagram, source)
            return
        if kind is Kind.GENEVE and self.peers is not None:
            self._relay_untrusted(self.peers, datagram, len(datagram), source)
            return
        if kind is Kind.QUIC_LONG:
            client = self._clients.get(destination_of(datagram))
            if client is not None:
                client.receive(datagram, len(datagram), source, self.loop.now)
            else:
                try:
                    self._meet_untrusted(datagram, source)
                except Exception:
                    self._tell(f"a first packet from {source} is dropped")
            return
        if kind is Kind.QUIC_SHORT and self._resets.take(1, self.loop.now):
            answer = stateless_reset(self._reset_key, destination_of(datagram), len(datagram))
            if answer:
                self._wire.send_train(answer, len(answer), source)
            return
        self.ignored += 1

    def _relay_untrusted(self, peers: PeerRelay, train: bytes, segment: int, source: Any) -> None:
        try:
            for data, size, target in peers.feed(train, segment, source, self.loop.now):
                self._wire.send_train(data, size, target)
        except Exception:
            self._tell(f"relayed datagrams from {source} are dropped")

    def _tell(self, what: str) -> None:
        """A defect that is being handled. what: ended by it."""
        self.broken += 1
        if self._complaints.take(1, self.loop.now):
            logger.exception("%s: a defect, please report it", what)

    def _stun_untrusted(self, datagram: bytes, source: Any) -> None:
        try:
            tx_id = stun.decode_request(datagram)
            answer = stun.encode_answer(tx_id, _address(source))
            self._wire.send_train(answer, len(answer), source)
            self.stun_requests += 1
        except WireError:
            self.ignored += 1

    def _meet_untrusted(self, datagram: bytes, source: Any) -> None:
        now = self.loop.now
        address = _address(source)
        met = self._newcomers.meet(datagram, source, address.host)
        if isinstance(met, bytes):
            if met:
                self._wire.send_train(met, len(met), source)
            return
        self.accepted += 1
        client = QuicClient(
            self, address, {destination_of(datagram), *met.connection.cids},
            lambda owner: QuicSession(
                self.reception, self.secret, met, owner, address, now, self.unix_ms, fast=self.fast
            ),
        )  # fmt: skip
        self.welcome(client)
        self._newcomers.await_proof(client)
        client.receive(datagram, len(datagram), source, now)
        if not client.session.link.has_understood and client in self._all:
            self.faults += 1
            self.forget(client)

    def welcome(self, client: QuicClient) -> None:
        """A connection begins, from there or from here."""
        self.loop.count_address(client.host, 1)
        self._all.add(client)
        for cid in client.cids:
            self._clients[cid] = client

    # Clients

    def follow(self, client: QuicClient) -> None:
        """Its connection ids may have changed, and what it is."""
        session = client.session
        if session.link.cids_changed:
            session.link.cids_changed = False
            now = set(session.link.connection.cids)
            for cid in client.cids - now:
                if session.link.is_settled:
                    self._clients.pop(cid, None)
                else:
                    now.add(cid)  # the client's first destination, until the handshake is confirmed
            for cid in now - client.cids:
                self._clients[cid] = client
            client.cids = now
        if session.is_waiting:
            self._waiting.enter(client, session.node)
        if session.is_up and client in self._unproven:
            self._newcomers.proved(client)
            self._waiting.leave(client)
            self.loop.count_accepted()
            self.resumed += session.link.is_resumed
        if session.moves:
            self.moves += session.moves
            session.moves = 0
        if session.limited:
            self.limited += session.limited
            session.limited = 0

    def rouse(self, client: QuicClient) -> None:
        """Have it flushed in this turn; what is out already is enough of a reason."""
        port, switch = client.session.port, self.reception.switch
        if port.is_listed:
            return
        if port.out:
            port.is_listed = True
            switch.dirty.append(port)
        else:
            switch.push(port, b"")

    def break_off(self, client: QuicClient) -> None:
        """What it sent, or what we know of it, met a defect of ours: that ends this client, not the loop."""
        self._tell(f"QUIC client {client.session.source} is dropped")
        try:
            client.session.link.abandon("internal error")
        except Exception:
            client.session.port.is_closed = True
        self.forget(client)

    def forget(self, client: QuicClient) -> None:
        """It is gone."""
        if client not in self._all:
            return
        self._all.discard(client)
        self._inboxes.forget(client)
        self.faults += client.session.was_faulty
        self._unproven.discard(client)
        self._waiting.leave(client)
        for cid in client.cids:
            self._clients.pop(cid, None)
        self.loop.count_address(client.host, -1)

    # What goes out

    def send(self, trains: Sequence[tuple[bytes, int, Any]]) -> None:
        self._wire.send(trains)

    # For the plane

    def counts(self) -> tuple[int, ...]:
        """Connections now, begun, resumed, moved, rejected; packets over the limit; protocol broken; defects met;
        datagrams for which there was no room."""
        return (
            len(self._all), self.accepted, self.resumed, self.moves, self.rejected, self.limited, self.faults,
            self.broken, self._inboxes.dropped,
        )  # fmt: skip

    def decide(self, now: float, node: bytes = b"") -> None:
        """Admission learned something, of this node key; empty: of any."""
        for client in self._waiting.called(node):
            try:
                client.session.decide(now)
            except Exception:
                self.break_off(client)
            else:
                client.flush()

    def limit(self) -> None:
        """The rate limit changed."""
        for client in list(self._all):
            try:
                client.session.limit()
            except Exception:
                self.break_off(client)
            else:
                self.rouse(client)

    def close_links(self) -> None:
        """The mesh key is another one."""
        for client in list(self._all):
            if client.session.port.is_mesh:
                try:
                    client.session.link.close(frames.NOT_ALLOWED, "the mesh key is another one")
                except Exception:
                    self.break_off(client)
                else:
                    client.flush()

    def goodbye(self, after_ms: Callable[[], int], try_for_ms: int) -> None:
        """Tell clients that we stop."""
        for client in list(self._all):
            link = client.session.link
            try:
                if client.session.is_up:
                    link.send_stream(encode(RESTARTING, struct.pack(">II", after_ms(), try_for_ms)))
                    self.send(link.poll(self.loop.now))
                link.close(frames.RESTARTING, "the relay restarts")
            except Exception:
                self.break_off(client)
            else:
                client.flush()


def _address(source: Any) -> AddrPort:
    return AddrPort.of(str(source[0]).partition("%")[0], int(source[1]))
