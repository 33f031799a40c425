"""The desk: requests of machines that proved their key become changes of the tailnet, answers and map streams.

Identity is the machine key; every request names a node key that has to belong to it. A request arrives whole, from an
edge in this process or in a connection worker (`gw.control.edge`).

Ref: control protocol §3, §5
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

from gw.control import liveness, sshchecks
from gw.control.certificates import NoBackend, read_set_dns, set_dns
from gw.control.edge import Edge
from gw.control.fanout import Fanout, Session
from gw.control.registration import register
from gw.control.tailnet import Tailnet
from gw.errors import GwError, NotFound, PermissionNeeded, UsageError, WireError
from gw.model.gojson import decoder, encode
from gw.model.keys import MachineKey
from gw.model.mapping import MapRequest
from gw.model.registration import RegisterRequest
from gw.wire.ts2021.server import Request

logger = logging.getLogger(__name__)

MIN_CAPABILITY_VERSION: Final = 113
JSON: Final = "application/json"
TEXT: Final = "text/plain"
_STATUS: Final[dict[type[GwError], int]] = {UsageError: 400, PermissionNeeded: 403, NotFound: 404, NoBackend: 501}
_read_register = decoder(RegisterRequest)
_read_map = decoder(MapRequest)

_Place = tuple[Edge, int]  # an edge's connection


@final
class FrontDesk:
    """Answers every edge. spawn: takes a task that an owner waits for."""

    def __init__(self, tailnet: Tailnet, fanout: Fanout, spawn: Callable[[asyncio.Task[None]], None]) -> None:
        self._tailnet = tailnet
        self._fanout = fanout
        self._spawn = spawn
        self._sessions: dict[_Place, dict[int, Session]] = {}
        self._waiting: dict[_Place, dict[int, asyncio.Task[None]]] = {}
        self.pinged: Callable[[str], bool] = lambda _: False  # takes the id of an answered ping; whether it was asked

    # Desk

    def ask(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        path = request.path.partition("?")[0]
        if path == "/machine/map" and request.method == "POST":
            self._guard(edge, connection, request.stream, path, lambda: self._map(edge, connection, machine, request))
        elif path in ("/machine/register", "/machine/set-dns") and request.method == "POST":
            answer = self._register if path == "/machine/register" else self._set_dns
            self._begin(edge, connection, request.stream, answer(edge, connection, machine, request))
        elif path.startswith(sshchecks.PATH) and request.method == "GET":
            self._begin(edge, connection, request.stream, self._ssh_action(edge, connection, machine, request))
        elif path == liveness.PATH:
            known = self.pinged(request.path.partition("?id=")[2])
            edge.reply(connection, request.stream, 200 if known else 404, b"", TEXT)
        elif path.startswith("/machine/"):
            edge.reply(connection, request.stream, 501, b"Not implemented yet", TEXT)
        else:
            edge.reply(connection, request.stream, 404, b"not found", TEXT)

    def cancel(self, edge: Edge, connection: int, stream: int) -> None:
        place = edge, connection
        task = self._waiting.get(place, {}).get(stream)
        if task is not None:
            task.cancel()
        streams = self._sessions.get(place, {})
        session = streams.pop(stream, None)
        if session is not None:
            self._fanout.close(session)
            if not streams:
                del self._sessions[place]

    def lost(self, edge: Edge, connection: int) -> None:
        place = edge, connection
        for task in self._waiting.get(place, {}).values():
            task.cancel()
        for session in self._sessions.pop(place, {}).values():
            self._fanout.close(session)

    def behind(self, edge: Edge, number: int) -> None:
        self._fanout.behind(number)

    def drained(self, edge: Edge, number: int) -> None:
        self._fanout.drained(number)

    def gone(self, edge: Edge) -> None:
        """The edge itself is gone, and every connection of it."""
        for place in [each for each in (*self._waiting, *self._sessions) if each[0] is edge]:
            self.lost(*place)

    # Requests

    def _begin(self, edge: Edge, connection: int, stream: int, work: Coroutine[Any, Any, None]) -> None:
        """Answer in a task of its own, which ends with the client's interest in it."""
        task = asyncio.get_running_loop().create_task(work)
        place = edge, connection
        self._waiting.setdefault(place, {})[stream] = task
        self._spawn(task)
        task.add_done_callback(lambda _: self._forget(place, stream))

    def _forget(self, place: _Place, stream: int) -> None:
        waiting = self._waiting.get(place)
        if waiting is not None:
            waiting.pop(stream, None)
            if not waiting:
                self._waiting.pop(place, None)

    def _guard(self, edge: Edge, connection: int, stream: int, path: str, work: Callable[[], None]) -> None:
        """Bad requests get 400, our own faults 500; neither harms anyone else."""
        try:
            work()
        except WireError as error:
            logger.debug("bad request for %s: %s", path, error)
            edge.reply(connection, stream, 400, b"bad request", TEXT)
        except Exception:
            logger.exception("request %s failed", path)
            edge.reply(connection, stream, 500, b"internal error", TEXT)

    async def _register(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        try:
            wanted = _read_register(request.body)
            answer = await register(self._tailnet, MachineKey.parse(machine), wanted)
            edge.reply(connection, request.stream, 200, encode(answer), JSON)
        except WireError as error:
            logger.debug("bad register request: %s", error)
            edge.reply(connection, request.stream, 400, b"bad request", TEXT)
        except Exception:
            logger.exception("register request failed")
            edge.reply(connection, request.stream, 500, b"internal error", TEXT)

    async def _ssh_action(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        try:
            action = await self._tailnet.ssh_checks.answer(machine, request.path)
            edge.reply(connection, request.stream, 200, encode(action), JSON)
        except GwError as error:
            edge.reply(connection, request.stream, _STATUS.get(type(error), 500), error.message.encode(), TEXT)
        except ValueError:
            edge.reply(connection, request.stream, 400, b"bad request", TEXT)
        except Exception:
            logger.exception("an SSH check failed")
            edge.reply(connection, request.stream, 500, b"internal error", TEXT)

    async def _set_dns(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        try:
            await set_dns(self._tailnet, machine, read_set_dns(request.body))
            edge.reply(connection, request.stream, 200, b"{}", JSON)
        except WireError as error:
            logger.debug("bad set-dns request: %s", error)
            edge.reply(connection, request.stream, 400, b"bad request", TEXT)
        except GwError as error:
            edge.reply(connection, request.stream, _STATUS.get(type(error), 500), error.message.encode(), TEXT)
        except Exception:
            logger.exception("set-dns request failed")
            edge.reply(connection, request.stream, 500, b"internal error", TEXT)

    def _map(self, edge: Edge, connection: int, machine: str, asked: Request) -> None:
        request = _read_map(asked.body)
        node = self._tailnet.by_node_key.get(request.node_key.lower())
        if node is None or node.doc.machine_key != machine:
            edge.reply(connection, asked.stream, 404, b"node not found", TEXT)
            return
        if request.version < MIN_CAPABILITY_VERSION:
            edge.reply(connection, asked.stream, 400, b"unsupported client version", TEXT)
            return
        if not request.read_only:
            self._tailnet.reports.observe(
                node,
                hostinfo=request.hostinfo,
                endpoints=request.endpoints,
                disco_key=request.disco_key or None,
                cap=request.version,
            )
        compress = request.compress == "zstd"
        if request.stream:
            session = self._fanout.open(node, edge, connection, asked.stream, (compress, request.omit_peers))
            self._sessions.setdefault((edge, connection), {})[asked.stream] = session
        elif request.omit_peers:
            edge.reply(connection, asked.stream, 200, b"", JSON)
        else:
            edge.reply(connection, asked.stream, 200, self._fanout.snapshot(node, compress=compress), JSON)
