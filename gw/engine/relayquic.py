"""A relay reached over QUIC: socket, TLS by name or pin, tickets, moves. The protocol is `gw.wire.quic.client`.

    open ──▶ handshake, or early data with a ticket ──▶ node key proven ──▶ datagrams
                                  our address changes: the same connection goes on from the new one

aioquic is loaded with this module: import it where a relay of the map speaks QUIC.

Ref: spec quic §8, §10, §14, §15
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, final

from gw.engine import defects
from gw.engine.refusals import ASK_S, Refusals
from gw.engine.relayclient import Tickets
from gw.engine.relaydial import PIN_PREFIX, udp_address
from gw.engine.throttle import Throttle
from gw.errors import GwError, NotRunning, TimedOut, WireError
from gw.model.derpmap import DERPNode
from gw.model.keys import NodeKey, NodeSecret
from gw.net.trains import TrainSocket
from gw.net.udp import bypass
from gw.quic.configuration import client_settings
from gw.quic.connection import Connection, random_cid
from gw.quic.link import Link
from gw.quic.patience import NEVER, Patience
from gw.quic.selftest import fast_path_works
from gw.quic.tickets import decode_ticket, encode_ticket
from gw.wire.derp.buckets import MIN_BURST_BYTES, Bucket
from gw.wire.quic import frames
from gw.wire.quic.client import Connected, FlowState, RelayClient
from gw.wire.x25519 import public_key

log: Final = logging.getLogger(__name__)

OPEN_S: Final = 5.0  # for one attempt; TLS is tried meanwhile
KEEP_ALIVE_S: Final = 20.0  # a NAT forgets a UDP flow after 30 s
CHECK_S: Final = 1.0
SILENT_S: Final = 2.0  # without an answer, and PTOs: the path is dead
SILENT_PTOS: Final = 3
QUEUE_PACKETS: Final = 256  # of data; the oldest gives way
PRIORITY_PACKETS: Final = 64  # disco and WireGuard's handshakes, which go first
HAND_OVER: Final = 96  # datagrams that may wait in the link
TRAINS_A_TURN: Final = 16
EARLY_BYTES: Final = 600  # larger ones do not fit beside the ClientHello
MAX_EARLY: Final = 32
MAX_TICKETS: Final = 4  # that are taken of one connection: each is written to a file
GONE_S: Final = 0.2  # for the packet that closes


@final
class MemoryTickets:
    """Tickets for as long as the process lives."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def take(self, relay: str) -> bytes | None:
        return self._kept.pop(relay, None)

    def keep(self, relay: str, ticket: bytes) -> None:
        self._kept[relay] = ticket


@final
class QuicLine:
    """One connection. `open`, then `serve` until it ends; implements `LinkHandler`."""

    def __init__(
        self,
        node: DERPNode,
        secret: NodeSecret,
        tickets: Tickets,
        take: Callable[[Sequence[object]], None],
        early: Sequence[tuple[NodeKey, bytes]] = (),
        instance: bytes = b"",
    ) -> None:
        """take: gets the events of `gw.wire.quic.client`. early: trains that wait; small ones go as early data.

        instance: as of `gw.wire.derp.client.Client`.
        """
        self._node = node
        self._secret = secret
        self._public = public_key(secret.raw)
        self._tickets = tickets
        self._take = take
        self._early = [each for each in early if len(each[1]) <= EARLY_BYTES][:MAX_EARLY]
        self._loop = asyncio.get_running_loop()
        key = b""
        with suppress(ValueError):
            key = bytes.fromhex(node.relay_key)
        self._client = RelayClient(
            secret, lambda: os.urandom(24), relay_key=key if len(key) == 32 else b"", instance=instance
        )
        self._socket: TrainSocket | None = None
        self._link: Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_scheduled = False
        self._bucket = Bucket(0, 0)
        self._priority: deque[tuple[NodeKey, bytes]] = deque(maxlen=PRIORITY_PACKETS)
        self._data: deque[tuple[NodeKey, bytes]] = deque(maxlen=QUEUE_PACKETS)
        self._throttle = Throttle()
        self._patience = Patience()
        self._refusals = Refusals()
        self.is_refused = False  # whether the host says that no relay is there
        self._tickets_left = MAX_TICKETS
        self._unproven: list[Any] = []  # tickets that came before the relay's proof
        self._connected = asyncio.Event()
        self._ended = asyncio.Event()
        self._sent_at = 0.0
        self.end: tuple[int, str] | None = None
        self.is_resumed = False
        self.is_early_accepted = False
        self.name: Final = f"{node.host_name}:{node.quic_port}"

    # For the owner

    async def open(self) -> None:
        """Until the relay has let us in. Raises GwError."""
        if not 0 < self._node.quic_port < 65536:
            raise GwError(f"relay `{self._node.host_name}`: no UDP port is {self._node.quic_port}")
        address = await udp_address(self._node)
        try:
            self._begin(address)
        except ValueError as error:  # a name that TLS cannot say
            raise GwError(f"relay `{self.name}` cannot be reached over QUIC: {error}") from error
        try:
            async with asyncio.timeout(OPEN_S):
                await self._connected.wait()
        except TimeoutError:
            raise TimedOut(f"no answer from relay `{self.name}` over QUIC") from None
        if self.is_refused:
            raise NotRunning(f"no relay at UDP port `{self.name}`")
        if self.end is not None:
            raise GwError(f"relay `{self.name}` ends the QUIC connection: {self.end[1] or hex(self.end[0])}")

    async def serve(self) -> None:
        """Keep it alive until it ends."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._ended.wait()
                    return
            link = self._link
            assert link is not None
            if self._loop.time() - max(link.heard_at, self._sent_at) > KEEP_ALIVE_S:
                self._sent_at = self._loop.time()
                link.ping()
                self._schedule()

    @property
    def relay_key(self) -> bytes:
        """Empty before it is known."""
        return self._client.relay_key

    @property
    def is_silent(self) -> bool:
        """Whether what we send is not answered any more."""
        link = self._link
        return link is None or (
            link.connection._loss._pto_count >= SILENT_PTOS and self._loop.time() - link.heard_at > SILENT_S
        )

    def send(self, peer: NodeKey, datagrams: Sequence[bytes]) -> None:
        link = self._link
        if link is None:
            return
        now = self._loop.time()
        is_slow = peer in self._throttle
        for datagram in datagrams:
            if datagram[:1] != b"\x04":
                self._queue(self._priority, peer, datagram, now)
            elif is_slow:
                self._throttle.put(peer, datagram, now)
            else:
                self._queue(self._data, peer, datagram, now)
        self._schedule()

    def _queue(self, queue: deque[tuple[NodeKey, bytes]], peer: NodeKey, datagram: bytes, now: float) -> None:
        """Unless the relay takes no more of us."""
        if self._bucket.take(len(datagram), now):
            queue.append((peer, datagram))

    def note_home(self, is_home: bool) -> None:
        self._client.note_preferred(is_home)
        self._schedule()

    def network_changed(self) -> None:
        """Our own addresses changed: go on from the new ones."""
        link = self._link
        if link is not None and link.is_settled:
            log.debug("relay `%s`: going on from another address", self.name)
            with self._alone():
                link.move(self._loop.time())
            self._schedule()

    def close(self) -> None:
        """End it, without waiting."""
        if self._link is not None and not self._link.is_closed:
            with self._alone():
                self._link.close()
            self._flush()
        self._release()

    # Inside

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A defect of ours that is met inside ends this connection, and whoever serves it hears of that."""
        try:
            yield
        except Exception:
            defects.of_node.tell(f"relay `{self.name}`: the QUIC connection ends")
            if self._link is not None:
                self._link.is_closed = True
            self.closed(frames.BROKEN, "a defect")
            self._release()

    def _begin(self, target: tuple[socket.AddressFamily, Any]) -> None:
        family, address = target
        try:
            channel = socket.socket(family, socket.SOCK_DGRAM)
            bypass(channel)
            channel.bind(("", 0))
        except OSError as error:
            raise GwError(f"no UDP socket: {error.strerror}") from error
        self._socket = TrainSocket(channel)
        self._socket.hear_refusals()
        self._address = address
        node = self._node
        self._pin = node.cert_name.removeprefix(PIN_PREFIX).lower() if node.cert_name.startswith(PIN_PREFIX) else ""
        name = node.cert_name if node.cert_name and not self._pin else node.host_name
        settings = client_settings(frames.RELAY_ALPN, name, verify=not self._pin and not node.insecure_for_tests)
        first_cid = b""
        kept = self._tickets.take(self.name)
        if kept is not None:
            with suppress(WireError):
                settings.session_ticket, issuer = decode_ticket(kept, self._public, name, time.time())
                first_cid = issuer[:1] + random_cid()[1:]  # its first byte leads to the worker that knows the ticket
        connection = Connection(configuration=settings, first_cid=first_cid, session_ticket_handler=self._keep_ticket)
        self._link = Link(connection, self, fast=fast_path_works())
        self._link.connect(address, self._loop.time())
        if settings.session_ticket is not None:
            for peer, datagram in self._early:
                self.send(peer, [datagram])
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._flush()

    def _keep_ticket(self, ticket: Any) -> None:
        """Only of a relay that has proven its key: what resumes by a ticket shows no certificate again."""
        link = self._link
        if link is None or not self._tickets_left:
            return
        if not self._client.is_connected:
            self._unproven = [ticket]
        else:
            self._tickets_left -= 1
            raw = encode_ticket(ticket, self._public, link.connection._peer_cid.cid, time.time())
            self._tickets.keep(self.name, raw)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._ended.set()

    def _readable(self) -> None:
        with self._alone():
            self._receive()
        self._schedule()

    def _receive(self) -> None:
        link, channel = self._link, self._socket
        assert link is not None
        for _ in range(TRAINS_A_TURN):
            if channel is None or self._socket is None:
                return
            try:
                train, segment, source = channel.receive()
            except OSError as error:  # nothing there, or an ICMP message of some earlier packet
                if channel.take_refusals():
                    self._refused(link)
                if isinstance(error, BlockingIOError):
                    break
                continue
            if source[:2] == self._address[:2]:
                link.receive(train, segment, self._address, self._loop.time())

    def _refused(self, link: Link) -> None:
        """The host says that nobody listens: ask, and believe it when it is said again."""
        now = self._loop.time()
        if not link.is_up or self._refusals.refused(link.heard_at, link.rtt_s, now):
            self.is_refused = True
            link.abandon("no relay is there")
        elif self._refusals.may_ask(now):
            self._loop.call_later(ASK_S, self._ask_again)

    def _ask_again(self) -> None:
        if self._link is not None and not self._link.is_closed:
            self._link.nudge()
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._socket is not None:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        with self._alone():
            self._send_due()

    def _send_due(self) -> None:
        link, channel = self._link, self._socket
        if link is None or channel is None:
            return
        said = self._client.data_to_send()
        if said:
            link.send_stream(said)
        now = self._loop.time()
        patient_until = self._patience.look_at_control(link, now)
        if patient_until <= now:
            link.close(frames.CLOSED, "takes nothing of what waits for it")
            patient_until = NEVER
        for peer, datagram in self._throttle.take(now):
            self._queue(self._data, peer, datagram, now)
        trains = link.poll(now)
        while (self._priority or self._data) and link.waiting < HAND_OVER and not link.is_closed:
            while (self._priority or self._data) and link.waiting < HAND_OVER:
                peer, datagram = (self._priority or self._data).popleft()
                for each in self._client.wrap(peer, datagram, link.limit):
                    link.send(each)
            trains += link.poll(now)
        said = self._client.data_to_send()  # numbers for peers that trains went to
        if said:
            link.send_stream(said)
            trains += link.poll(now)
        if trains:
            self._sent_at = now
            channel.send(trains)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = min(link.deadline(), self._throttle.deadline(), patient_until)
        if link.is_closed:
            self._release()
        elif due != NEVER:
            self._timer = self._loop.call_at(max(due, now + 0.0002), self._flush)

    # LinkHandler

    def up(self) -> None:
        link = self._link
        assert link is not None
        self.is_resumed, self.is_early_accepted = link.is_resumed, link.is_early_accepted
        if self._pin and not link.is_resumed:
            shown = hashlib.sha256(link.connection.peer_certificate).hexdigest()
            if shown != self._pin:
                link.close(frames.NOT_ALLOWED, "another certificate than the relay map pins")
                return
        self._client.begin(link.bind, int(time.time() * 1000), is_resumed=link.is_resumed)

    def datagrams(self, batch: list[bytes], now: float) -> None:
        received = self._client.feed_datagrams(batch, now)
        if received:
            self._take(received)

    def stream(self, data: bytes, now: float) -> None:
        if self._link is not None:
            self._client.unsent = self._link.unsent
        events = self._client.feed(data, int(time.time() * 1000))
        for event in events:
            if isinstance(event, Connected):
                self._bucket = Bucket(event.bytes_per_second, max(event.burst_bytes, MIN_BURST_BYTES))
                self._connected.set()
            elif isinstance(event, FlowState):
                self._throttle.hear(event, now)
        if self._unproven and self._client.is_connected:
            self._keep_ticket(self._unproven.pop())
        if events:
            self._take(events)

    def moved(self, address: Any) -> None:
        """A relay does not move."""

    def closed(self, code: int, reason: str) -> None:
        self.end = code, reason
        self._connected.set()
        self._ended.set()
