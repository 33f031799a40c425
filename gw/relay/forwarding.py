"""The forwarding plane: one epoll loop that owns every client's socket. Nothing in it waits for anything else.

    turn:   readable sockets → decrypt → frames → clients' out lists      one read of up to 128 KiB a socket
            clients with something out → one join, one TLS write, one send

Idle TLS clients cost about 20 KB each: an SSLObject over memory, no stream objects. STUN is answered in the same loop.
"""

from __future__ import annotations

import heapq
import logging
import os
import random
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.wire import stun
from gw.wire.derp.frames import KEEP_ALIVE_FRAME, KEEPALIVE_JITTER_S, KEEPALIVE_S, RESTARTING, encode
from gw.wire.derp.server import Client, Relay

logger = logging.getLogger(__name__)

READ_BYTES: Final = 128 << 10
TLS_READ_BYTES: Final = 16 << 10
HANDSHAKE_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 2.0
ACCEPT_PAUSE_S: Final = 1.0  # out of descriptors: how long new clients wait in the backlog
RESTART_SPREAD_MS: Final = 1000
RESTART_TRY_MS: Final = 60_000
ACCEPTS_A_TURN: Final = 64
DATAGRAMS_A_TURN: Final = 64
EVENTS_A_TURN: Final = 512
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT


@final
class _Connection:
    """One accepted socket and its client. Implements `gw.wire.derp.server.Owner`."""

    def __init__(
        self, plane: Plane, channel: socket.socket, source: str, context: ssl.SSLContext | None, now: float
    ) -> None:
        self.plane = plane
        self.channel = channel
        self.number = channel.fileno()
        self.client = Client(plane.relay, self, now, source)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = None if context is None else context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.is_up = self.tls is None
        self.unsent = b""
        self.progress_at = now  # when the peer last took bytes
        self.is_closing = False
        self.keep_alive_s = KEEPALIVE_S + random.random() * KEEPALIVE_JITTER_S

    def wants_to_write(self) -> None:
        self.plane.writers.append(self)

    def must_close(self) -> None:
        self.is_closing = True


@final
class Plane:
    """Run `run` in a thread of its own; `stop`, `look_again` and `drop` may be called from any other."""

    def __init__(
        self, relay: Relay, listener: socket.socket, context: ssl.SSLContext | None, stun_sockets: list[socket.socket]
    ) -> None:
        self.relay = relay
        self.context = context
        self.writers: list[_Connection] = []
        self._listener = listener
        self._stun = {channel.fileno(): channel for channel in stun_sockets}
        self._connections: dict[int, _Connection] = {}
        self._waiting: set[_Connection] = set()  # for admission
        self._timers: list[tuple[float, int, str, _Connection | None]] = []
        self._order = 0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # it may be closed while another thread is about to write
        self._orders: deque[bytes | None] = deque()
        self._stopping = threading.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def stop(self) -> None:
        self._stopping.set()
        self._rouse()

    def look_again(self) -> None:
        """Admission learned something: ask again for clients that wait."""
        self._orders.append(None)
        self._rouse()

    def drop(self, node: bytes) -> None:
        """Disconnect a node key."""
        self._orders.append(node)
        self._rouse()

    def run(self) -> None:
        """Serve until `stop`."""
        self._listener.setblocking(False)
        self._epoll.register(self._listener, _IN)
        self._epoll.register(self._wake, _IN)
        for channel in self._stun.values():
            channel.setblocking(False)
            self._epoll.register(channel, _IN)
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._say_goodbye()
            for connection in list(self._connections.values()):
                self._close(connection)
            self._epoll.close()
            with self._wake_lock:
                os.close(self._wake)
                self._wake = -1

    def _rouse(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _say_goodbye(self) -> None:
        """Tell clients that we stop: they come back by themselves, not all at once."""
        for connection in list(self._connections.values()):
            if connection.client.key and not connection.client.is_blocked:
                after_ms = random.randrange(RESTART_SPREAD_MS)
                connection.client.push(encode(RESTARTING, struct.pack(">II", after_ms, RESTART_TRY_MS)))
        self._write_all()

    def _turn(self) -> None:
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
        for number, event in self._epoll.poll(wait, EVENTS_A_TURN):
            connection = self._connections.get(number)
            if connection is not None:
                if event & _OUT:
                    self._send(connection)
                if event & ~_OUT and number in self._connections:
                    self._read(connection)
                    if connection.client.is_waiting:
                        self._waiting.add(connection)
            elif number in self._stun:
                self._answer_stun(self._stun[number])
            elif number == self._wake:
                os.eventfd_read(self._wake)
                self._obey()
            else:
                self._accept()
        self._write_all()
        self._keep_time()

    def _accept(self) -> None:
        now = time.monotonic()
        for _ in range(ACCEPTS_A_TURN):
            try:
                channel, source = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.warning("cannot accept for now, %d are connected: %s", len(self), error.strerror)
                self._epoll.unregister(self._listener)  # it stays readable: do not spin on it
                self._arm(now + ACCEPT_PAUSE_S, "listen", None)
                return
            channel.setblocking(False)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, channel, str(source[0]), self.context, now)
            self._connections[connection.number] = connection
            self._epoll.register(channel, _IN)
            self._arm(now + HANDSHAKE_TIMEOUT_S, "handshake", connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.channel.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        now = time.monotonic()
        try:
            if connection.tls is None:
                connection.client.feed(data, now)
                return
            connection.incoming.write(data)
            if not connection.is_up:
                connection.tls.do_handshake()
                connection.is_up = True
            while connection.incoming.pending or connection.tls.pending():
                plain = connection.tls.read(TLS_READ_BYTES)
                if not plain:
                    self._close(connection)
                    return
                connection.client.feed(plain, now)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, WireError) as error:
            logger.debug("client dropped: %s", error)
            self._close(connection)
            return
        if connection.outgoing.pending:
            self._send(connection)

    def _write_all(self) -> None:
        writers, self.writers = self.writers, []
        for connection in writers:
            client = connection.client
            if connection.number not in self._connections or client.is_closed:
                continue
            data = b"".join(client.out)
            client.out.clear()
            if connection.tls is None:
                connection.unsent += data
            else:
                view = memoryview(data)
                try:
                    while view:
                        view = view[connection.tls.write(view) :]
                except ssl.SSLError as error:  # one broken session must not end the thread for everybody
                    logger.debug("TLS: %s", error)
                    self._close(connection)
                    continue
            self._send(connection)

    def _send(self, connection: _Connection) -> None:
        had = bool(connection.unsent)
        data = connection.unsent + connection.outgoing.read()
        try:
            sent = connection.channel.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        connection.unsent = data[sent:]
        if sent:
            connection.progress_at = time.monotonic()
        if connection.unsent and not connection.client.is_blocked:
            connection.client.is_blocked = True
            self._epoll.modify(connection.number, _IN | _OUT)
            self._arm(time.monotonic() + WRITE_TIMEOUT_S, "write", connection)
        elif not connection.unsent:
            if had or connection.client.is_blocked:
                self._epoll.modify(connection.number, _IN)
                connection.client.unblock()
            if connection.is_closing and not connection.client.out:
                self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection.number, None) is None:
            return
        self._waiting.discard(connection)
        self._epoll.unregister(connection.number)
        connection.channel.close()
        self.relay.leave(connection.client)

    def _answer_stun(self, channel: socket.socket) -> None:
        for _ in range(DATAGRAMS_A_TURN):
            try:
                datagram, source = channel.recvfrom(2048)
                tx_id = stun.decode_request(datagram)
                channel.sendto(stun.encode_answer(tx_id, AddrPort.of(source[0].partition("%")[0], source[1])), source)
            except BlockingIOError:
                return
            except (WireError, OSError):
                continue

    def _obey(self) -> None:
        while self._orders:
            node = self._orders.popleft()
            if node is not None:
                for client in list(self.relay.clients.get(node, ())):
                    if isinstance(client.owner, _Connection):
                        self._close(client.owner)
                continue
            waiting, self._waiting = self._waiting, set()
            now = time.monotonic()
            for connection in waiting:
                try:
                    connection.client.decide(now)
                except WireError as error:
                    logger.debug("client refused: %s", error)
                    self._close(connection)
                else:
                    if connection.client.is_waiting:
                        self._waiting.add(connection)

    def _arm(self, when: float, what: str, connection: _Connection | None) -> None:
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, what, connection))

    def _keep_time(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, what, connection = heapq.heappop(self._timers)
            if connection is None:
                self._epoll.register(self._listener, _IN)
                continue
            if self._connections.get(connection.number) is not connection:
                continue
            client = connection.client
            if what == "handshake":
                if not client.key:
                    self._close(connection)
                    continue
                self._arm(now + connection.keep_alive_s, "keep-alive", connection)
            elif what == "keep-alive":
                if not client.is_blocked:
                    client.push(KEEP_ALIVE_FRAME)
                self._arm(now + connection.keep_alive_s, "keep-alive", connection)
            elif client.is_blocked:
                if connection.progress_at + WRITE_TIMEOUT_S > now:  # slow, but it reads
                    self._arm(connection.progress_at + WRITE_TIMEOUT_S, "write", connection)
                else:
                    self._close(connection)  # two seconds without taking a byte
        self._write_all()
