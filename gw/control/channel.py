"""Sockets of very many idle clients: one epoll set under the event loop, and a transport of a few hundred bytes.

`Poller` accepts and watches; a `Channel` is the asyncio transport of one connection, so that any asyncio protocol runs
over it. With TLS it holds an `SSLObject` over two `MemoryBIO`s, 20 KB a client where asyncio's own holds 290.

Descriptors are finite: with `limit` connections open, the listener is left alone, and whoever comes waits in its queue
or is taken by another process that shares it. At most ACCEPTED_AT_ONCE are taken a turn, so that a storm of handshakes
leaves turns for those that are in.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, final

logger = logging.getLogger(__name__)

READ_BYTES: Final = 64 << 10
EVENTS_AT_ONCE: Final = 256
ACCEPTED_AT_ONCE: Final = 16
HIGH_WATER_BYTES: Final = 64 << 10
LINGER_S: Final = 10.0  # for what is still to be sent when a connection is closed
RETRY_ACCEPT_S: Final = 1.0


@final
class Poller:
    """Watches the connections of one listener. make: a protocol for each."""

    def __init__(
        self, listener: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None, limit: int
    ) -> None:
        self._listener, self._make, self._tls, self._limit = listener, make, tls, limit
        self.loop = asyncio.get_running_loop()
        self.epoll = select.epoll()
        self._channels: dict[int, Channel] = {}
        self._is_accepting = False

    def __len__(self) -> int:
        return len(self._channels)

    def start(self) -> None:
        self.loop.add_reader(self.epoll.fileno(), self._turn)
        self._accept_more()

    def stop(self) -> None:
        """Take nobody in any more."""
        self._limit = 0
        self._accept_more()

    def close(self) -> None:
        """Cut off whoever is left."""
        self.stop()
        for channel in list(self._channels.values()):
            channel.abort()
        self.loop.remove_reader(self.epoll.fileno())
        self.epoll.close()

    def adopt(self, channel: Channel, descriptor: int) -> None:
        self._channels[descriptor] = channel
        self.epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        if self._channels.pop(descriptor, None) is not None:
            try:
                self.epoll.unregister(descriptor)
            except (OSError, ValueError):
                pass  # the set itself is closed
            self._accept_more()

    def _turn(self) -> None:
        for descriptor, mask in self.epoll.poll(0, EVENTS_AT_ONCE):
            channel = self._channels.get(descriptor)
            if channel is not None:
                channel.ready(mask)

    def _accept_more(self) -> None:
        wanted = len(self._channels) < self._limit
        if wanted and not self._is_accepting:
            self.loop.add_reader(self._listener.fileno(), self._accept)
        elif not wanted and self._is_accepting:
            self.loop.remove_reader(self._listener.fileno())
        self._is_accepting = wanted

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if len(self._channels) >= self._limit:
                break
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or memory: the others go on
                logger.error("cannot accept connections for a moment: %s", error.strerror)
                self.loop.remove_reader(self._listener.fileno())
                self._is_accepting = False
                self.loop.call_later(RETRY_ACCEPT_S, self._accept_more)
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel(self, sock, peer, self._make(), self._tls)
            self.adopt(channel, sock.fileno())
            channel.begin()
        self._accept_more()


@final
class Channel(asyncio.Transport):
    """The transport of one connection."""

    __slots__ = (
        "_backlog", "_fd", "_high", "_incoming", "_is_closing", "_is_handshaking", "_is_paused", "_is_reading",
        "_outgoing", "_peer", "_poller", "_protocol", "_sock", "_tls", "_watched",
    )  # fmt: skip

    def __init__(
        self, poller: Poller, sock: socket.socket, peer: Any, protocol: asyncio.BaseProtocol, tls: ssl.SSLContext | None
    ) -> None:
        self._poller, self._sock, self._peer, self._protocol = poller, sock, peer, protocol
        self._fd = sock.fileno()
        self._backlog: bytearray | None = None  # what the socket did not take
        self._high = HIGH_WATER_BYTES
        self._is_closing = False
        self._is_paused = False
        self._is_reading = True
        self._watched = select.EPOLLIN
        self._tls: ssl.SSLObject | None = None
        self._is_handshaking = tls is not None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def begin(self) -> None:
        self._protocol.connection_made(self)

    # Events

    def ready(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._drain()
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and self._fd >= 0:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            self._end(None)
            return
        if self._tls is not None:
            self._receive_tls(data)
        else:
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        if self._is_closing:
            return
        protocol = self._protocol
        assert isinstance(protocol, asyncio.Protocol)
        try:
            protocol.data_received(data)
        except Exception as error:
            logger.exception("a connection failed")
            self._end(error)

    def _receive_tls(self, data: bytes) -> None:
        tls = self._tls
        assert tls is not None
        self._incoming.write(data)
        plain = []
        try:
            if self._is_handshaking:
                tls.do_handshake()
                self._is_handshaking = False
            while True:
                part = tls.read(READ_BYTES)
                if not part:
                    break
                plain.append(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, OSError) as error:
            self._flush_tls()
            self._end(error)
            return
        self._flush_tls()
        if plain:
            self._hand_on(b"".join(plain))

    def _flush_tls(self) -> None:
        sealed = self._outgoing.read()
        if sealed:
            self._send(sealed)

    def _drain(self) -> None:
        backlog = self._backlog
        if backlog:
            try:
                sent = self._sock.send(backlog)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._end(error)
                return
            del backlog[:sent]
        if not backlog:
            self._backlog = None
            if self._is_closing:
                self._end(None)
                return
        self._watch()
        if self._is_paused and (backlog is None or len(backlog) <= self._high // 4):
            self._is_paused = False
            self._protocol.resume_writing()

    def _watch(self) -> None:
        wanted = (select.EPOLLIN if self._is_reading and not self._is_closing else 0) | (
            select.EPOLLOUT if self._backlog else 0
        )
        if wanted != self._watched and self._fd >= 0:
            self._watched = wanted
            self._poller.epoll.modify(self._fd, wanted)

    def _end(self, error: Exception | None) -> None:
        if self._fd < 0:
            return
        self._poller.forget(self._fd)
        self._fd = -1
        self._is_closing = True
        self._backlog = None
        self._poller.loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error if isinstance(error, OSError) else None)
        finally:
            self._sock.close()

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._is_closing or not data:
            return
        if self._tls is None:
            self._send(data)
            return
        try:
            self._tls.write(data)
        except (ssl.SSLError, OSError) as error:
            self._end(error)
            return
        self._flush_tls()

    def _send(self, data: bytes | bytearray | memoryview[Any]) -> None:
        backlog = self._backlog
        if backlog is None:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._end(error)
                return
            if sent == len(data):
                return
            backlog = self._backlog = bytearray(data[sent:])
            self._watch()
        else:
            backlog += data
        if len(backlog) > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        if self._is_closing:
            return
        if self._tls is not None and not self._is_handshaking:
            try:
                self._tls.unwrap()
            except (ssl.SSLError, OSError):
                pass  # the client's own goodbye is not waited for
            self._flush_tls()
        self._is_closing = True
        if self._backlog is None:
            self._end(None)
        else:
            self._watch()
            self._poller.loop.call_later(LINGER_S, self.abort)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        found = {
            "socket": self._sock,
            "peername": self._peer,
            "sslcontext": self._tls.context if self._tls is not None else None,
            "ssl_object": self._tls,
        }.get(name)
        if name == "sockname" and self._fd >= 0:
            found = self._sock.getsockname()
        return default if found is None else found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return len(self._backlog) if self._backlog is not None else 0

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False
        self._watch()

    def resume_reading(self) -> None:
        self._is_reading = True
        self._watch()

    def can_write_eof(self) -> bool:
        return False
