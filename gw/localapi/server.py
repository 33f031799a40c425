"""The local API from the daemon's side: HTTP/1.1 on a unix socket, in Tailscale's paths.

    GET  status, prefs, whois, gw/health          POST start, login-interactive, logout, ping, check-prefs
    GET  usermetrics: Prometheus' text; with ?peers=1 (ours) series of each peer too
    PATCH prefs                                   GET  watch-ipn-bus, gw/events: a JSON line for each event

Who may connect: root, the daemon's own user and the operator; everybody else gets 403. A page in a browser cannot call
it: requests with an Origin or Referer are refused.

Ref: control protocol §10; tailscale ipn/localapi
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pwd
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, final
from urllib.parse import parse_qs, urlsplit

import h11
import msgspec

from gw.errors import Conflict, GwError, NotFound, PermissionNeeded, UsageError
from gw.localapi.notify import Notify, PingResult
from gw.localapi.prefs import Prefs
from gw.localapi.status import Status

log: Final = logging.getLogger(__name__)

PREFIX: Final = "/localapi/v0/"
MAX_BODY_BYTES: Final = 1 << 20
REQUEST_S: Final = 30.0
PING_S: Final = 60.0
WRITE_S: Final = 30.0
PROBE_S: Final = 1.0
INITIAL_STATE: Final = 2  # bit of the mask of watch-ipn-bus
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
T = TypeVar("T")
_STATUS_OF: Final = {"not-found": 404, "permission-needed": 403, "usage": 400, "conflict": 409, "timed-out": 504}


class Backend(Protocol):
    """What the daemon can do for its callers. Methods raise GwError."""

    def status(self) -> Status: ...
    def prefs(self) -> Prefs: ...
    def health(self) -> dict[str, object]: ...
    def metrics(self, *, peers: bool) -> str: ...
    def whois(self, address: str) -> dict[str, object]: ...
    async def edit_prefs(self, masked: dict[str, Any]) -> Prefs: ...
    async def start(self, auth_key: str, *, fresh: bool) -> None: ...
    async def login_interactive(self) -> None: ...
    async def logout(self) -> None: ...
    async def ping(self, address: str) -> PingResult: ...
    def notifications(self, *, initial: bool) -> AsyncIterator[Notify]: ...
    def events(self) -> AsyncIterator[dict[str, Any]]: ...


@asynccontextmanager
async def local_api(backend: Backend, path: Path, *, operator: str = "") -> AsyncIterator[None]:
    """Serve until the block is left. operator: a user who may do all that root may. Raises GwError."""
    owner = os.geteuid()
    if operator:
        try:
            owner = pwd.getpwnam(operator).pw_uid
        except KeyError:
            raise NotFound(f"no such user: `{operator}`", hint="check --operator") from None
    allowed = {0, os.geteuid(), owner}
    listener = _listen(path, owner)
    async with asyncio.TaskGroup() as group:

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = group.create_task(_Call(backend, allowed, reader, writer).run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_unix_server(handle, sock=listener)
        try:
            yield
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            path.unlink(missing_ok=True)


def _listen(path: Path, owner: int) -> socket.socket:
    """A socket at `path` for root and `owner`. What a dead daemon left there is replaced; what is no socket stays."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            if _answers(path):
                raise Conflict(f"another gwd answers on `{path}`", hint="stop it first")
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        path.chmod(0o600)
        if owner != os.geteuid():
            os.chown(path, owner, -1)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _translate(error, path) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full: somebody lives there
        return True


def _translate(error: OSError, path: Path) -> GwError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionNeeded(f"may not make `{path}`", hint="run `gwd` as root")
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"`{path}` is there and is no socket", hint="gwd run --socket PATH")
    if error.errno is None:  # Python's own check of the length
        return GwError(f"path of the socket is too long: `{path}`", hint="set GW_RUNTIME_DIR")
    return GwError(f"cannot make `{path}`: {error.strerror}")


@final
class _Call:
    """One connection, one request."""

    def __init__(
        self, backend: Backend, allowed: set[int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._backend = backend
        self._allowed = allowed
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        try:
            await self._serve()
        except (OSError, h11.ProtocolError, TimeoutError) as error:
            log.debug("local API: %s", error)
        except Exception:
            log.exception("a call of the local API failed")  # a bug of ours must not take the tunnel down
            await self._apologise()
        finally:
            self._writer.close()

    async def _serve(self) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                request, body = await self._read()
        except h11.RemoteProtocolError as error:
            await self._answer(400, {"error": f"not HTTP: {error}"})
            return
        try:
            self._check(request)
            await self._dispatch(request, body)
        except GwError as error:
            status = _STATUS_OF.get(error.code, 500)
            await self._answer(status, {"error": error.message, "code": error.code, "hint": error.hint})

    async def _apologise(self) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            await self._answer(500, {"error": "gwd failed at this", "code": "failed", "hint": "its log says why"})
        except (OSError, h11.ProtocolError, TimeoutError) as error:
            log.debug("local API: %s", error)

    async def _read(self) -> tuple[h11.Request, bytes]:
        request: h11.Request | None = None
        body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(65536)
                self._http.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("body too long")
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                return request, body
            else:
                raise h11.RemoteProtocolError("connection closed early")

    def _check(self, request: h11.Request) -> None:
        if any(name in (b"origin", b"referer") for name, _ in request.headers):
            raise PermissionNeeded("not for browsers")
        peer: socket.socket = self._writer.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("3i", credentials)
        if uid not in self._allowed:
            raise PermissionNeeded("only root and the operator may talk to gwd", hint="use sudo, or gwd run --operator")

    async def _dispatch(self, request: h11.Request, body: bytes) -> None:
        try:
            parts = urlsplit(request.target.decode("ascii", "replace"))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        except ValueError:
            raise UsageError("not a request target") from None
        if not parts.path.startswith(PREFIX):
            raise NotFound(f"no such path: `{parts.path}`")
        verb = (request.method.decode(), parts.path.removeprefix(PREFIX))
        backend = self._backend
        match verb:
            case ("GET", "status"):
                await self._answer(200, _without_peers(backend.status(), query))
            case ("GET", "prefs"):
                await self._answer(200, backend.prefs())
            case ("PATCH", "prefs"):
                await self._answer(200, await backend.edit_prefs(_object(body)))
            case ("POST", "check-prefs"):
                await self._answer(200, {"Error": _objection(body)})
            case ("GET", "gw/health"):
                await self._answer(200, backend.health())
            case ("GET", "usermetrics"):
                page = backend.metrics(peers=query.get("peers") in ("1", "true"))
                await self._answer_raw(200, page.encode(), METRICS_TYPE)
            case ("GET", "whois"):
                await self._answer(200, backend.whois(query.get("addr", "")))
            case ("POST", "start"):
                options = _object(body)
                if prefs := options.get("UpdatePrefs"):
                    if not isinstance(prefs, dict):
                        raise UsageError("`UpdatePrefs` is not a JSON object")
                    await backend.edit_prefs(_all_set(prefs))
                await backend.start(str(options.get("AuthKey") or ""), fresh=bool(options.get("ForceReauth")))
                await self._answer(204, None)
            case ("POST", "login-interactive"):
                await backend.login_interactive()
                await self._answer(204, None)
            case ("POST", "logout"):
                await backend.logout()
                await self._answer(204, None)
            case ("POST", "ping"):
                if query.get("type", "disco") != "disco":
                    raise UsageError(f"no such kind of ping here: `{query['type']}`", hint="type=disco")
                async with asyncio.timeout(PING_S):
                    await self._answer(200, await self._while_connected(lambda: backend.ping(query.get("ip", ""))))
            case ("GET", "watch-ipn-bus"):
                await self._stream(backend.notifications(initial=bool(_mask(query) & INITIAL_STATE)))
            case ("GET", "gw/events"):
                await self._stream(backend.events())
            case _:
                raise NotFound(f"no such call: `{verb[0]} {parts.path}`")

    async def _while_connected(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call's result; given up with ConnectionResetError when the caller hangs up."""
        result: list[T] = []
        failure: Exception = ConnectionResetError("the caller hung up")

        async def work() -> None:
            nonlocal failure
            try:
                result.append(await call())
            except Exception as error:  # raised below, not as a group
                failure = error
            watching.cancel()

        async def watch() -> None:
            try:
                await self._reader.read(1)
            except OSError:
                pass
            working.cancel()

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            working = group.create_task(work())
        if not result:
            raise failure
        return result[0]

    async def _stream(self, lines: AsyncIterator[Any]) -> None:
        """A JSON line for each item until there are no more or the caller leaves.

        A caller that reads slowly holds up nobody else; one that takes nothing for WRITE_S is cut off.
        """

        async def pump() -> None:
            async for line in lines:
                await self._send(h11.Data(data=msgspec.json.encode(line) + b"\n"))
            await self._send(h11.EndOfMessage())

        try:
            await self._send(h11.Response(status_code=200, headers=[("Content-Type", "application/json")]))
            await self._while_connected(pump)
        finally:
            if isinstance(lines, AsyncGenerator):
                await lines.aclose()

    async def _answer(self, status: int, value: object) -> None:
        await self._answer_raw(status, b"" if value is None else msgspec.json.encode(value), "application/json")

    async def _answer_raw(self, status: int, raw: bytes, kind: str) -> None:
        headers = [("Content-Type", kind), ("Content-Length", str(len(raw))), ("Connection", "close")]
        await self._send(h11.Response(status_code=status, headers=headers))
        if raw:
            await self._send(h11.Data(data=raw))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(WRITE_S):
                await self._writer.drain()


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise UsageError("not a JSON object") from None


def _objection(body: bytes) -> str:
    """What is wrong with whole preferences, "" for nothing."""
    try:
        msgspec.convert(_object(body), Prefs)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _mask(query: dict[str, str]) -> int:
    text = query.get("mask", "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"not a mask: `{text}`")
    return int(text)


def _all_set(prefs: dict[str, Any]) -> dict[str, Any]:
    """Whole preferences as a change of every field that they name and we have."""
    known = {field.encode_name for field in msgspec.structs.fields(Prefs)}
    named = {name: value for name, value in prefs.items() if name in known}
    return {**named, **{f"{name}Set": True for name in named}}


def _without_peers(status: Status, query: dict[str, str]) -> Status:
    return msgspec.structs.replace(status, peer=None) if query.get("peers") == "false" else status
