"""The forwarding plane: one epoll loop that owns every client's socket. Nothing in it waits for anything else.

    turn:   readable sockets → decrypt → frames → other clients' out lists      one read of up to 128 KiB a socket
            ports with something out → one join, one TLS write, one send

Idle TLS clients cost about 20 KB each: an SSLObject over memory, no stream objects. Other descriptors (STUN, and
transports to come) may live in the same loop: `Plane.attach`.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import logging
import os
import random
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, final

from gw.engine.defects import Defects
from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.native.relaying import Owner, Port
from gw.relay.flowstates import FlowStates
from gw.relay.session import Offer, Reception, Session
from gw.relay.waiting import WaitingRoom
from gw.wire.derp.buckets import Bucket
from gw.wire.derp.frames import KEEP_ALIVE_FRAME, KEEPALIVE_JITTER_S, KEEPALIVE_S, RESTARTING, encode

logger = logging.getLogger(__name__)

READ_BYTES: Final = 128 << 10
TLS_READ_BYTES: Final = 16 << 10
HANDSHAKE_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 2.0
LINK_WRITE_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 2.0
ACCEPT_PAUSE_S: Final = 1.0  # out of descriptors: how long new clients wait in the backlog
RESTART_SPREAD_MS: Final = 1000
RESTART_TRY_MS: Final = 60_000
ACCEPTS_A_TURN: Final = 64
EVENTS_A_TURN: Final = 512
PACE_S: Final = 1.0
BUSY_READS: Final = 50  # in that time, of one connection
BUSY_SENDERS: Final = 3  # of them and more: the kernel wakes us in batches
SHORT_READS: Final = 500  # the same, with a few packets each: bulk that trickles, for which nobody waits
LONG_READ: Final = 8  # packets of a read that more would not make cheaper
LONE_S: Final = 0.00002  # a turn that had to be waited for so long is about one thing
GATHER_S: Final = 0.0001  # in both cases: between two turns, so that each finds more to do
TCP_USER_TIMEOUT_MS: Final = 15_000
KEEPALIVE_IDLE_S: Final = 600
LINK_KEEPALIVE_IDLE_S: Final = 5
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


class Transport(Protocol):
    """Clients that are no connections of the plane's own; its descriptor is attached."""

    def __len__(self) -> int: ...
    def counts(self) -> tuple[int, ...]:
        """Connections now, begun, resumed, moved, rejected; packets over the limit; protocol broken; defects met;
        datagrams for which there was no room."""

    def decide(self, now: float, node: bytes = b"") -> None:
        """Admission learned something, of this node key; empty: of any."""

    def limit(self) -> None:
        """The rate limit changed."""

    def close_links(self) -> None:
        """The mesh key is another one: links to other relays end."""

    def goodbye(self, after_ms: Callable[[], int], try_for_ms: int) -> None:
        """Tell clients that the relay stops, and end their connections."""


class Speaker(Protocol):
    """A session over a byte stream: a client's (`Session`) or a link's (`LinkSession`)."""

    @property
    def port(self) -> Port: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def is_waiting(self) -> bool: ...
    def feed(self, data: bytes, now: float) -> None: ...
    def take(self) -> bytes: ...
    def leave(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. context: None for plain TCP; taken anew for each connection, so that it may change."""

    channel: socket.socket
    offer: Offer
    context: Callable[[], ssl.SSLContext | None] = lambda: None


@dataclass(slots=True)
class Limits:
    """accepts: connections a second. clients: at once, 0 = as many as there are descriptors."""

    accepts: Bucket
    clients: int = 0
    clients_an_address: int = 0


@final
class Connection:
    """One socket and the session over it. Implements `Owner`."""

    __slots__ = (
        "_at_end",
        "_incoming",
        "_mask",
        "_outgoing",
        "_tls",
        "_unsent",
        "_verify",
        "channel",
        "drained",
        "host",
        "is_closing",
        "is_encrypted_up",
        "keep_alive_s",
        "number",
        "plane",
        "port",
        "progress_at",
        "session",
        "tokens",
    )

    def __init__(
        self,
        plane: Plane,
        channel: socket.socket,
        host: str,
        tls: _Tls | None,
        now: float,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """at_end: called in the plane's thread when the connection is gone."""
        self.plane = plane
        self.channel = channel
        self.number = channel.fileno()
        self.host = host
        self.session: Speaker
        self.port: Port
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self._tls: ssl.SSLObject | None = None
        self._verify: Callable[[ssl.SSLObject], None] | None = None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.context.wrap_bio(
                self._incoming, self._outgoing, server_side=tls.is_server, server_hostname=tls.server_name or None
            )
            self._verify = tls.verify
        self.is_encrypted_up = tls is None
        self._unsent = b""
        self.drained = 0
        self.progress_at = now  # when the peer last took bytes
        self.is_closing = False
        self.keep_alive_s = KEEPALIVE_S + random.random() * KEEPALIVE_JITTER_S
        self.tokens: Bucket | None = None
        self._mask = _IN
        self._at_end = at_end

    def begin(self, session: Speaker) -> None:
        """From now on it is fed."""
        self.session, self.port = session, session.port
        if self._tls is not None and not self._tls.server_side:
            self._shake()
            self._send()

    @property
    def is_open(self) -> bool:
        return self.plane.connections.get(self.number) is self

    # What comes in

    def readable(self) -> None:
        """Take what the socket has, at most READ_BYTES of it."""
        plane = self.plane
        plane.reads[self.number] = plane.reads.get(self.number, 0) + 1
        switch = plane.reception.switch
        before = switch.packets_received
        try:
            count = self.channel.recv_into(plane.buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.end()
            return
        now = plane.now
        fed = count
        try:
            if self._tls is None:
                self.session.feed(bytes(plane.view[:count]), now)
            else:
                fed = self._decrypt(plane.view[:count], now)
        except (ssl.SSLError, WireError) as error:
            logger.debug("connection from %s ends: %s", self.host, error)
            if self._outgoing is not None and self._outgoing.pending:
                self._send()  # the alert that says why
            self.end()
            return
        if 1 < switch.packets_received - before < LONG_READ:
            plane.short_reads[self.number] = plane.short_reads.get(self.number, 0) + 1
        if self._outgoing is not None and self._outgoing.pending and self.is_open:
            self._send()
        if self.tokens is not None and self.is_open and self.session.is_up and not self.port.is_mesh:
            wait = self.tokens.spend(fed, now)
            if wait > 0:
                plane.limited += 1
                self._watch(self._mask & ~_IN)
                plane.arm(now + wait, "resume", self)

    def _decrypt(self, data: memoryview, now: float) -> int:
        """Feed the session; returns how many bytes it got. Raises SSLError, WireError."""
        incoming, tls = self._incoming, self._tls
        assert incoming is not None and tls is not None
        incoming.write(data)
        fed = 0
        try:
            if not self.is_encrypted_up:
                self._shake()
                if not self.is_encrypted_up:
                    return 0
            read, feed = tls.read, self.session.feed
            while incoming.pending or tls.pending():
                plain = read(TLS_READ_BYTES)
                if not plain:
                    raise ssl.SSLEOFError("closed")
                fed += len(plain)
                feed(plain, now)
        except ssl.SSLWantReadError:
            pass
        return fed

    def _shake(self) -> None:
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        if self._verify is not None:
            self._verify(tls)
        self.is_encrypted_up = True
        if not tls.server_side:
            self.plane.reception.switch.taken(self.port)  # what waited for the handshake

    def resume(self) -> None:
        """The rate limit lets it send again."""
        self._watch(self._mask | _IN)

    # What goes out

    def flush(self) -> None:
        switch = self.plane.reception.switch
        if self._unsent or not self.is_encrypted_up or not self.is_open:
            switch.set_aside(self.port)
            return
        data = self.session.take()
        if self._tls is None:
            self._unsent = data
        elif data:
            write = self._tls.write
            try:
                done = write(data)
                if done < len(data):
                    view = memoryview(data)
                    while done < len(data):
                        done += write(view[done:])
            except ssl.SSLError as error:  # one broken session must not end the thread for everybody
                logger.debug("TLS: %s", error)
                self.end()
                return
        self._send()

    def _send(self) -> None:
        outgoing = self._outgoing
        data = self._unsent
        if outgoing is not None and outgoing.pending:
            data = data + outgoing.read() if data else outgoing.read()
        if data:
            try:
                sent = self.channel.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.end()
                return
            if sent == len(data):
                self._unsent = b""
            else:
                self._unsent = data[sent:] if sent else data
            if sent:
                self.progress_at = self.plane.now
                self.drained += sent
        port = self.port
        switch = self.plane.reception.switch
        if self._unsent:
            port.is_blocked = True
            if not self._mask & _OUT:
                self._watch(self._mask | _OUT)
                self.progress_at = self.plane.now
                self.plane.arm(self.plane.now + self._write_timeout, "write", self)
            return
        if self._mask & _OUT:
            self._watch(self._mask & ~_OUT)
        if self.is_encrypted_up and (port.is_blocked or switch.waits(port)):
            switch.taken(port)
        if self.is_closing and not port.out:
            self._goodbye()
            self.end()

    def writable(self) -> None:
        self._send()

    @property
    def is_stuck(self) -> bool:
        return bool(self._unsent)

    @property
    def _write_timeout(self) -> float:
        return LINK_WRITE_TIMEOUT_S if self.port.is_mesh else WRITE_TIMEOUT_S

    def still_stuck_at(self) -> float:
        """When it will have taken nothing for too long."""
        return self.progress_at + self._write_timeout

    def _watch(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self.plane.watch(self.number, mask)

    # How it ends

    def close(self) -> None:
        """Write what is out, then close."""
        if self.is_closing or not self.is_open:
            return
        self.is_closing = True
        self.plane.arm(self.plane.now + CLOSE_TIMEOUT_S, "close", self)
        self.plane.reception.switch.push(self.port, b"")

    def _goodbye(self) -> None:
        """close_notify, so that the peer knows that nothing was cut off."""
        if self._tls is None or self._outgoing is None:
            return
        with contextlib.suppress(ssl.SSLError, OSError):
            try:
                self._tls.unwrap()
            except ssl.SSLWantReadError:
                pass
            self.channel.send(self._outgoing.read())

    def end(self) -> None:
        """The socket is gone, or has to be."""
        if not self.is_open:
            return
        self.plane.forget(self)
        self.channel.close()
        try:
            self.session.leave()
        finally:
            if self._at_end is not None:
                self._at_end()


@dataclass(frozen=True, slots=True)
class _Tls:
    context: ssl.SSLContext
    is_server: bool = True
    server_name: str = ""
    verify: Callable[[ssl.SSLObject], None] | None = None


@final
class Plane:
    """Run `run` in a thread of its own; `stop`, `call`, `look_again`, `drop`, `adopt` may be called from any other."""

    def __init__(self, reception: Reception, listeners: list[Listener], limits: Limits | None = None) -> None:
        self.reception = reception
        self.limits = limits or Limits(Bucket(0, 0))
        self.connections: dict[int, Connection] = {}
        self.buffer = bytearray(READ_BYTES)
        self.view = memoryview(self.buffer)
        self.now = time.monotonic()  # of this turn
        self.came_alone = False  # whether this turn is about one thing: it had to be waited for
        self.reads: dict[int, int] = {}  # by descriptor, since the pace was set
        self.short_reads: dict[int, int] = {}  # the same of reads that brought a few packets
        self._is_batching = False
        self._gathers = False
        self.accepted = self.rejected = self.limited = self.stuck = 0
        self._listeners = {each.channel.fileno(): each for each in listeners}
        self._attached: dict[int, Callable[[], None]] = {}
        self.transports: list[Transport] = []
        self.defects = Defects(self)
        self.flow_states = FlowStates(reception.switch, self.arm_call)
        self._addresses: dict[str, int] = {}
        self._waiting: WaitingRoom[Connection] = WaitingRoom()  # for admission
        self._timers: list[tuple[float, int, str, Connection | Callable[[], None]]] = []
        self._order = 0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # it may be closed while another thread is about to write
        self._orders: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()

    def __len__(self) -> int:
        return len(self.connections) + sum(len(each) for each in self.transports)

    # For other threads

    def stop(self) -> None:
        self._stopping.set()
        self._rouse()

    def call(self, order: Callable[[], None]) -> None:
        """Do something in the plane's thread."""
        self._orders.append(order)
        self._rouse()

    def look_again(self, node: bytes = b"") -> None:
        """Admission learned something of a node key: ask again for its clients that wait. Empty: for all."""
        self.call(partial(self._decide, node))

    def drop(self, node: bytes) -> None:
        """Disconnect a node key."""
        self.call(lambda: self._drop(node))

    def adopt(
        self,
        channel: socket.socket,
        make: Callable[[Owner], Speaker],
        at_end: Callable[[], None],
        *,
        context: ssl.SSLContext | None = None,
        server_name: str = "",
        verify: Callable[[ssl.SSLObject], None] | None = None,
    ) -> None:
        """Take over a connected socket that we dialled. at_end: called in the plane's thread."""
        tls = None if context is None else _Tls(context, False, server_name, verify)

        def begin() -> None:
            connection = self._add(channel, server_name, tls, at_end)
            if channel.family != socket.AF_UNIX:  # a relay that vanished is to be noticed soon
                channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, LINK_KEEPALIVE_IDLE_S)
                channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, LINK_KEEPALIVE_IDLE_S)
            try:
                connection.begin(make(connection))
            except Exception:
                self.break_off(connection)

        self.call(begin)

    def _rouse(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # For what lives in the loop

    def attach(self, number: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever the descriptor is readable, in the plane's thread; before `run`."""
        self._attached[number] = ready

    def arm(self, when: float, what: str, connection: Connection) -> None:
        """Look after a connection at a time."""
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, what, connection))

    def arm_call(self, when: float, order: Callable[[], None]) -> None:
        """Call something at a time."""
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, "call", order))

    def quic_counts(self) -> tuple[int, ...]:
        """The sums of `Transport.counts`."""
        return tuple(map(sum, zip((0,) * 9, *(each.counts() for each in self.transports), strict=True)))

    def admit_address(self, host: str) -> bool:
        """Whether one more client may come from there, the rate of new ones apart."""
        limits = self.limits
        if limits.clients and len(self) >= limits.clients:
            return False
        return not limits.clients_an_address or self._addresses.get(host, 0) < limits.clients_an_address

    def count_accepted(self) -> None:
        """A transport let one in: it counts for the rate of new ones, as one that was accepted here does."""
        self.limits.accepts.take(1, self.now)

    def count_address(self, host: str, change: int) -> None:
        """A client came from there, or went."""
        left = self._addresses.get(host, 0) + change
        if left > 0:
            self._addresses[host] = left
        else:
            self._addresses.pop(host, None)

    def watch(self, number: int, mask: int) -> None:
        self._epoll.modify(number, mask)

    def forget(self, connection: Connection) -> None:
        """Its socket is about to be closed."""
        del self.connections[connection.number]
        self._waiting.leave(connection)
        self._epoll.unregister(connection.number)
        self.count_address(connection.host, -1)

    def break_off(self, connection: Connection) -> None:
        """It met a defect of ours, which is being handled: that ends this connection, not the loop."""
        self.defects.tell(f"the connection from {connection.host} ends")
        try:
            connection.end()
        except Exception:
            self.defects.tell(f"the connection from {connection.host} does not end well")
        if hasattr(connection, "port"):
            self.reception.presence.strike(connection.port)

    # The loop

    def run(self) -> None:
        """Serve until `stop`."""
        for number, listener in self._listeners.items():
            listener.channel.setblocking(False)
            self._epoll.register(number, _IN)
        for number in (self._wake, *self._attached):
            self._epoll.register(number, _IN)
        _spare_pauses()
        self._pace()
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self.defects.guard("the word that we stop ends", self._say_goodbye)
            for connection in list(self.connections.values()):
                self.defects.guard("a connection does not end well", connection.end)
            self._epoll.close()
            with self._wake_lock:
                os.close(self._wake)
                self._wake = -1

    def _pace(self) -> None:
        """Many senders: be woken for many packets at once, which halves the cost of each. Few: be woken at once."""
        self.arm_call(time.monotonic() + PACE_S, self._pace)
        busy = sum(1 for count in self.reads.values() if count >= BUSY_READS)
        self._gathers = busy >= BUSY_SENDERS or any(count >= SHORT_READS for count in self.short_reads.values())
        self.reads.clear()
        self.short_reads.clear()
        if (busy >= BUSY_SENDERS) != self._is_batching:
            self._is_batching = not self._is_batching
            with contextlib.suppress(OSError):
                policy = os.SCHED_BATCH if self._is_batching else os.SCHED_OTHER
                os.sched_setscheduler(0, policy, os.sched_param(0))

    def _turn(self) -> None:
        before = time.monotonic()
        wait = max(0.0, self._timers[0][0] - before) if self._timers else -1
        if self._gathers:
            time.sleep(GATHER_S)
        events = self._epoll.poll(wait, EVENTS_A_TURN)
        self.now = time.monotonic()
        self.came_alone = not self._gathers and self.now - before > LONE_S
        connections = self.connections
        for number, event in events:
            connection = connections.get(number)
            try:
                if connection is not None:
                    if event & _OUT:
                        connection.writable()
                    if event & ~_OUT and connections.get(number) is connection:
                        connection.readable()
                        if connection.session.is_waiting and connection.is_open:
                            self._wait(connection)
                elif number in self._listeners:
                    self._accept(self._listeners[number])
                elif number == self._wake:
                    os.eventfd_read(self._wake)
                    while self._orders:
                        self.defects.guard("an order ends", self._orders.popleft())
                elif number in self._attached:
                    self._attached[number]()
            except Exception:
                if connection is not None:
                    self.break_off(connection)
                else:
                    self.defects.tell("what a listening socket got is dropped")
        self._flush()
        if self._timers and self._timers[0][0] <= self.now:
            self._keep_time()
            self._flush()

    def _flush(self) -> None:
        switch = self.reception.switch
        while switch.dirty:
            for port in switch.clear_dirty():
                if port.is_closed:
                    continue
                try:
                    port.owner.flush()
                except Exception:
                    if isinstance(port.owner, Connection):
                        self.break_off(port.owner)
                    else:
                        self.defects.tell("what is for one client is dropped")
        if switch.crowded:
            try:
                self.flow_states.look(self.now)
            except Exception:
                self.defects.tell("a look at who does not keep up ends")

    def _say_goodbye(self) -> None:
        """Tell clients that we stop: they come back by themselves, not all at once."""
        for connection in list(self.connections.values()):
            if connection.port.key and not connection.is_stuck:
                after_ms = random.randrange(RESTART_SPREAD_MS)
                frame = encode(RESTARTING, struct.pack(">II", after_ms, RESTART_TRY_MS))
                self.reception.switch.push(connection.port, frame)
            connection.is_closing = True
        self._flush()
        for transport in self.transports:
            spread = partial(random.randrange, RESTART_SPREAD_MS)
            self.defects.guard("a goodbye ends", partial(transport.goodbye, spread, RESTART_TRY_MS))

    # Newcomers

    def _accept(self, listener: Listener) -> None:
        is_local = listener.channel.family == socket.AF_UNIX
        for _ in range(ACCEPTS_A_TURN):
            try:
                channel, source = listener.channel.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("cannot accept for now, %d are connected: %s", len(self), error.strerror)
                number = listener.channel.fileno()
                self._epoll.unregister(number)  # it stays readable: do not spin on it
                self.arm_call(self.now + ACCEPT_PAUSE_S, partial(self._epoll.register, number, _IN))
                return
            address = _address(source)
            if not is_local and not self._has_room(address.host):
                self.rejected += 1
                channel.close()
                continue
            self.accepted += 1
            context = listener.context()
            connection = self._add(channel, address.host, None if context is None else _Tls(context))
            try:
                connection.begin(Session(self.reception, connection, address, self.now, listener.offer))
            except Exception:
                self.break_off(connection)
                continue
            if self.reception.bytes_per_second:
                connection.tokens = Bucket(self.reception.bytes_per_second, self.reception.burst_bytes)
            if self.came_alone:  # to be told that there is no more costs more than to be called again
                return

    def _has_room(self, host: str) -> bool:
        return self.admit_address(host) and self.limits.accepts.take(1, self.now)

    def _add(
        self, channel: socket.socket, host: str, tls: _Tls | None, at_end: Callable[[], None] | None = None
    ) -> Connection:
        channel.setblocking(False)
        if channel.family != socket.AF_UNIX:
            _tune(channel)
        connection = Connection(self, channel, host, tls, self.now, at_end)
        self.connections[connection.number] = connection
        self.count_address(host, 1)
        self._epoll.register(channel, _IN)
        self.arm(self.now + HANDSHAKE_TIMEOUT_S, "handshake", connection)
        return connection

    def limit(self) -> None:
        """The rate limit changed: it holds for those who are here too. Call it in the plane's thread."""
        rate, burst = self.reception.bytes_per_second, self.reception.burst_bytes
        for connection in self.connections.values():
            connection.tokens = Bucket(rate, burst) if rate else None
            connection.resume()
        for transport in self.transports:
            self.defects.guard("a change of the rate limit ends", transport.limit)

    def close_links(self) -> None:
        """The mesh key is another one: links to other relays end, and come back where it is known. Those to workers
        stay. Call it in the plane's thread."""
        for connection in list(self.connections.values()):
            if connection.port.is_mesh and not connection.port.is_sibling:
                self.defects.guard("a link stays although the mesh key is another one", connection.end)
        for transport in self.transports:
            self.defects.guard("links stay although the mesh key is another one", transport.close_links)

    def _wait(self, connection: Connection) -> None:
        """Until `look_again`, or until its handshake has taken too long."""
        session = connection.session
        if isinstance(session, Session) and not self._waiting.enter(connection, session.node):
            self.rejected += 1
            connection.end()

    def _decide(self, node: bytes) -> None:
        for connection in self._waiting.called(node):
            session = connection.session
            try:
                if isinstance(session, Session):
                    session.decide(self.now)
            except WireError as error:
                logger.debug("client refused: %s", error)
                connection.end()
            except Exception:
                self.break_off(connection)
            else:
                if not session.is_waiting:
                    self._waiting.leave(connection)
        for transport in self.transports:
            self.defects.guard("what admission has learned ends", partial(transport.decide, self.now, node))

    def _drop(self, node: bytes) -> None:
        for port in self.reception.presence.ports_of(node):
            self.defects.guard("a node that is to be disconnected stays", port.owner.close)

    # Time

    def _keep_time(self) -> None:
        now = self.now
        while self._timers and self._timers[0][0] <= now:
            _, _, what, subject = heapq.heappop(self._timers)
            try:
                if not isinstance(subject, Connection):
                    subject()
                elif subject.is_open:
                    self._look_after(subject, what, now)
            except Exception:
                if isinstance(subject, Connection):
                    self.break_off(subject)
                else:
                    self.defects.tell("a call that was due ends")

    def _look_after(self, connection: Connection, what: str, now: float) -> None:
        if what == "handshake":
            if not connection.session.is_up:
                connection.end()
                return
            self.arm(now + connection.keep_alive_s, "keep-alive", connection)
        elif what == "keep-alive":
            if not connection.is_stuck:
                self.reception.switch.push(connection.port, KEEP_ALIVE_FRAME)
            self.arm(now + connection.keep_alive_s, "keep-alive", connection)
        elif what == "resume":
            connection.resume()
        elif what == "close":
            connection.end()
        elif connection.is_stuck:
            if connection.still_stuck_at() > now:  # slow, but it reads
                self.arm(connection.still_stuck_at(), "write", connection)
            else:
                self.stuck += 1
                connection.end()


def _address(source: object) -> AddrPort:
    """Where an accepted connection comes from; nowhere for a unix socket."""
    if isinstance(source, tuple):
        return AddrPort.of(str(source[0]).partition("%")[0], int(source[1]))
    return AddrPort("0.0.0.0", 0)  # noqa: S104  not an address to listen on


def _tune(channel: socket.socket) -> None:
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)


def _spare_pauses() -> None:
    """No pauses of the collector over all clients, short ones for the other thread."""
    sys.setswitchinterval(0.0005)
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
