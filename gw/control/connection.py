"""One client's Noise connection: HTTP/2 requests in, answers and map streams out.

Identity is the machine key that the handshake proved; every request names a node key that has to belong to it.

Ref: control protocol §3, §5
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, final

from gw.control.fanout import Fanout, Session
from gw.control.registration import register
from gw.control.tailnet import Tailnet
from gw.errors import WireError
from gw.model.gojson import decoder, encode
from gw.model.keys import MachineKey
from gw.model.mapping import MapRequest
from gw.model.registration import RegisterRequest
from gw.wire.ts2021 import server as h2

logger = logging.getLogger(__name__)

MIN_CAPABILITY_VERSION: Final = 113
IDLE_TIMEOUT_S: Final = 30.0  # for the first request
HIGH_WATER_BYTES: Final = 4 << 20
_read_register = decoder(RegisterRequest)
_read_map = decoder(MapRequest)


@final
class ControlSocket(asyncio.Protocol):
    """The protocol of an upgraded socket. spawn: starts a task that an owner waits for."""

    def __init__(
        self,
        tailnet: Tailnet,
        fanout: Fanout,
        machine: MachineKey,
        http: h2.ServerConnection,
        spawn: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._tailnet = tailnet
        self._fanout = fanout
        self._machine = machine
        self._http = http
        self._own = spawn
        self._sessions: dict[int, Session] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._deadline: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._deadline = asyncio.get_running_loop().call_later(IDLE_TIMEOUT_S, self._silent)
        self._write()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._http.feed(data):
                self._take(event)
        except WireError as error:
            logger.debug("connection of %s ended: %s", self._machine.short(), error)
            self._abort()
            return
        self._write()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        for session in list(self._sessions.values()):
            self._fanout.drained(session)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        for session in self._sessions.values():
            self._fanout.close(session)
        self._sessions.clear()
        for task in self._tasks.values():
            task.cancel()

    # Pipe

    def push(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Bytes of a map stream."""
        self._http.send(stream, data, end=end)
        if end:
            self._sessions.pop(stream, None)
        self._write()

    def is_slow(self, stream: int) -> bool:
        return self._is_full or self._http.is_clogged(stream)

    # Requests

    def _take(self, event: h2.Event) -> None:
        if isinstance(event, h2.Request):
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            task = asyncio.get_running_loop().create_task(self._serve(event))
            self._tasks[event.stream] = task
            self._own(task)
            task.add_done_callback(lambda _: self._tasks.pop(event.stream, None))
        elif isinstance(event, h2.Cancelled):
            session = self._sessions.pop(event.stream, None)
            if session is not None:
                self._fanout.close(session)
            waiting = self._tasks.get(event.stream)
            if waiting is not None:
                waiting.cancel()
        elif isinstance(event, h2.Drained):
            session = self._sessions.get(event.stream)
            if session is not None:
                self._fanout.drained(session)
        elif self._transport is not None:  # Closed: the client said goodbye
            self._transport.close()

    async def _serve(self, request: h2.Request) -> None:
        path = request.path.partition("?")[0]
        try:
            if path == "/machine/register" and request.method == "POST":
                answer = await register(self._tailnet, self._machine, _read_register(request.body))
                self._reply(request.stream, 200, encode(answer))
            elif path == "/machine/map" and request.method == "POST":
                self._map(request.stream, _read_map(request.body))
            elif path.startswith("/machine/"):
                self._reply(request.stream, 501, b"Not implemented yet", "text/plain")
            else:
                self._reply(request.stream, 404, b"not found", "text/plain")
        except WireError as error:
            logger.debug("bad request of %s: %s", self._machine.short(), error)
            self._reply(request.stream, 400, b"bad request", "text/plain")
        except Exception:
            logger.exception("request %s failed", path)
            self._reply(request.stream, 500, b"internal error", "text/plain")

    def _map(self, stream: int, request: MapRequest) -> None:
        node = self._tailnet.by_node_key.get(request.node_key.lower())
        if node is None or node.doc.machine_key != str(self._machine):
            self._reply(stream, 404, b"node not found", "text/plain")
            return
        if request.version < MIN_CAPABILITY_VERSION:
            self._reply(stream, 400, b"unsupported client version", "text/plain")
            return
        if not request.read_only:
            self._tailnet.observe(
                node,
                hostinfo=request.hostinfo,
                endpoints=request.endpoints,
                disco_key=request.disco_key or None,
                cap=request.version,
            )
        compress = request.compress == "zstd"
        if request.stream:
            self._http.start(stream, 200)
            session = Session(node, self, stream, compress, request.omit_peers)
            self._sessions[stream] = session
            self._fanout.open(session)
            self._write()
        elif request.omit_peers:
            self._reply(stream, 200, b"")
        else:
            self._reply(stream, 200, self._fanout.snapshot(node, compress=compress))

    def _reply(self, stream: int, status: int, body: bytes, content_type: str = "application/json") -> None:
        if self._transport is None:
            return
        if self._http.start(stream, status, content_type):
            self._http.send(stream, body, end=True)
        self._write()

    def _write(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _silent(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
