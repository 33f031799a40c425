"""Web requests that a connection worker accepted, carried to the process that answers them over a private socket.

    first line    `<client address> <port> <http|https>\\n`, then the client's bytes as they came, and back

Only the two processes of one server may connect there: the socket lies in the runtime directory with mode 0600.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, final

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

MAX_LINE_BYTES: Final = 200
FULL_BYTES: Final = 1 << 20  # waiting towards a side that does not read: the other side is not read from


class _Half(asyncio.Protocol):
    """One side of a relayed connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Half | None = None
        self.early = bytearray()
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is None or other.transport is None:
            self.early += data
            if len(self.early) > FULL_BYTES and self.transport is not None:
                self.transport.pause_reading()
            return
        other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport, self.is_lost = None, True
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


@final
class WebRelay(_Half):
    """A client's connection at the worker. path: of the private socket; spawn: takes a task that an owner waits for."""

    def __init__(self, path: str, spawn: Callable[[asyncio.Task[None]], None]) -> None:
        super().__init__()
        self._path, self._spawn = path, spawn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._spawn(asyncio.get_running_loop().create_task(self._connect()))

    async def _connect(self) -> None:
        assert self.transport is not None
        peer = self.transport.get_extra_info("peername")
        host, port = (peer[0], peer[1]) if isinstance(peer, tuple) else ("", 0)
        scheme = "https" if self.transport.get_extra_info("ssl_object") is not None else "http"
        try:
            _, inner = await asyncio.get_running_loop().create_unix_connection(_Half, self._path)
        except OSError as error:
            logger.warning("the control server does not take web requests: %s", error.strerror)
            if self.transport is not None:
                self.transport.abort()
            return
        self.other, inner.other = inner, self
        assert inner.transport is not None
        inner.transport.write(f"{host} {port} {scheme}\n".encode() + self.early)
        self.early.clear()
        if self.is_lost:
            inner.transport.close()
        else:
            self.transport.resume_reading()


@final
class WebDoor(asyncio.Protocol):
    """The other end, where the web application is: reads the first line and becomes uvicorn's protocol."""

    def __init__(self, make_web: Callable[[], H11Protocol]) -> None:
        self._make_web = make_web
        self._line = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._line += data
        transport = self._transport
        assert transport is not None
        line, found, rest = bytes(self._line).partition(b"\n")
        if not found:
            if len(self._line) > MAX_LINE_BYTES:
                transport.abort()
            return
        host, port, scheme = line.decode("latin-1").split(" ")
        protocol = self._make_web()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.client = (host, int(port))
        protocol.scheme = "https" if scheme == "https" else "http"
        if rest:
            protocol.data_received(rest)
