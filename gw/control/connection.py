"""One client's Noise connection at the edge: HTTP/2 requests in, answers and map streams out.

Ref: control protocol §3
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, final

from gw.control.edge import Switchboard
from gw.errors import WireError
from gw.model.keys import MachineKey
from gw.wire.ts2021 import server as h2

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S: Final = 30.0  # for the first request
HIGH_WATER_BYTES: Final = 4 << 20


@final
class ControlSocket(asyncio.Protocol):
    """The protocol of an upgraded socket, and the pipe under its streams."""

    __slots__ = ("_deadline", "_http", "_is_full", "_machine", "_number", "_switchboard", "_transport")

    def __init__(self, switchboard: Switchboard, machine: MachineKey, http: h2.ServerConnection) -> None:
        self._switchboard = switchboard
        self._machine = str(machine)
        self._http = http
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._deadline: asyncio.TimerHandle | None = None
        self._number = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._number = self._switchboard.connect(self)
        self._deadline = asyncio.get_running_loop().call_later(IDLE_TIMEOUT_S, self._silent)
        self._write()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http.feed(data):
                self._take(event)
        except WireError as error:
            logger.debug("connection of %s ended: %s", self._machine[:13], error)
            if self._transport is not None:
                self._transport.abort()
            return
        self._write()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._switchboard.drained(self._number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._switchboard.disconnect(self._number)

    # Pipe

    def reply(self, stream: int, status: int, body: bytes, content_type: str) -> None:
        if self._transport is not None and self._http.start(stream, status, content_type):
            self._http.send(stream, body, end=True)
            self._write()

    def begin(self, stream: int) -> bool:
        return self._transport is not None and self._http.start(stream, 200)

    def push(self, stream: int, data: bytes) -> bool:
        sealed = None if self._is_full else self._http.send_now(stream, data)
        if sealed is None:
            return False
        if sealed and self._transport is not None:
            self._transport.write(sealed)
        return True

    def make_room(self, stream: int, size: int) -> None:
        self._http.make_room(stream, size)
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=max(HIGH_WATER_BYTES, 2 * size))

    def finish(self, stream: int) -> None:
        self._http.send(stream, b"", end=True)
        self._write()

    def is_slow(self, stream: int) -> bool:
        return self._is_full or self._http.is_clogged(stream)

    # Inside

    def _take(self, event: h2.Event) -> None:
        if isinstance(event, h2.Request):
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            self._switchboard.ask(self._number, self._machine, event)
        elif isinstance(event, h2.Cancelled):
            self._switchboard.cancel(self._number, event.stream)
        elif isinstance(event, h2.Drained):
            self._switchboard.drained(self._number, event.stream)
        elif self._transport is not None:  # Closed: the client said goodbye
            self._transport.close()

    def _write(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _silent(self) -> None:
        if self._transport is not None:
            self._transport.close()
