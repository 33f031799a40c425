"""The control server's unix socket: administration for root and the server's own user, the feed for its group.

    /api/v1/…   gw.control.admin, for uid 0 and the uid that the server runs as
    /feed       gw.control.feed, for everyone who can open the socket (mode 0660)
    /health     the same

Who calls is asked of the kernel (SO_PEERCRED), never of the caller. A relay or DNS server in the group may read the
feed and can administer nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import h11
import msgspec

from gw.control.admin import PREFIX, respond
from gw.control.api.calls import Listing, Reply, Stream
from gw.control.events import acting_as
from gw.control.feed import feed_lines
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, GwError, NotFound, PermissionNeeded, UsageError
from gw.state.files import make_folder, translate

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 4 << 20
REQUEST_TIMEOUT_S: Final = 30.0
SOCKET_MODE: Final = 0o660
_CREDENTIALS: Final = struct.Struct("3i")
_STATUS: Final[dict[type[GwError], int]] = {UsageError: 400, PermissionNeeded: 403, NotFound: 404, Conflict: 409}


@final
@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end, as the kernel saw it when it connected."""

    pid: int
    uid: int

    @property
    def may_administer(self) -> bool:
        return self.uid in (0, os.geteuid())

    def __str__(self) -> str:
        try:
            name = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            name = "unknown"
        return f"{name} (uid {self.uid})"


@contextlib.asynccontextmanager
async def admin_socket(tailnet: Tailnet, path: Path) -> AsyncIterator[None]:
    """Serve within the block. Raises Conflict if another server listens on `path`, GwError if it cannot be made."""
    listener = listen(path)
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await _Exchange(tailnet, reader, writer).run()
        except (ConnectionError, TimeoutError, h11.RemoteProtocolError) as error:
            logger.debug("admin connection ended: %s", error)
        except Exception:
            logger.exception("admin request failed")
        finally:
            handlers.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(handle, sock=listener)
    try:
        yield
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        path.unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, mode 0660. What a dead server left there is replaced."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        make_folder(path.parent, 0o755)
        if path.is_socket():
            if _answers(path):
                raise Conflict(f"another server listens on `{path}`", hint="stop it first, or set GW_RUNTIME_DIR")
            path.unlink()
        channel.bind(str(path))
        path.chmod(SOCKET_MODE)  # nobody can connect before `listen`
        channel.listen(128)
        channel.setblocking(False)
    except OSError as error:
        channel.close()
        if "too long" in str(error):
            raise GwError(f"path of the socket is too long: `{path}`", hint="set GW_RUNTIME_DIR") from error
        raise translate(error, "listen on", path) from error
    except BaseException:
        channel.close()
        raise
    return channel


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@final
class _Exchange:
    """One connection: requests one after the other, until either side has enough."""

    def __init__(self, tailnet: Tailnet, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tailnet = tailnet
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER)
        raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        self._caller = Caller(pid, uid)

    async def run(self) -> None:
        while True:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request, body = await self._request()
            if request is None:
                return
            target = request.target.decode("ascii", "replace")
            if target.partition("?")[0] == "/feed":
                await self._feed()
                return
            with acting_as(str(self._caller)):
                await self._answer(request.method.decode(), target, body)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _request(self) -> tuple[h11.Request | None, bytes]:
        request: h11.Request | None = None
        body = b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("request too large")
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:
                return None, b""

    async def _answer(self, method: str, target: str, body: bytes) -> None:
        try:
            if target.partition("?")[0] == "/health":
                await self._send(200, b'{"status":"pass"}')
                return
            if not target.startswith(f"{PREFIX}/"):
                raise NotFound(f"no such call: `{target}`")
            if not self._caller.may_administer:
                raise PermissionNeeded(f"{self._caller} may not administer this server", hint="use sudo")
            result = await respond(self._tailnet, method, target, body)
        except GwError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
            carried = {"error": error.message, "code": error.code, "hint": error.hint}
            await self._send(status, msgspec.json.encode(carried))
        else:
            if isinstance(result, Stream):
                await self._send_stream(result)
            elif isinstance(result, Listing):
                await self._send_listing(result)
            elif isinstance(result, Reply):
                await self._send(result.status, result.body)
            else:
                await self._send(200, msgspec.json.encode(result))

    async def _send_stream(self, stream: Stream) -> None:
        """Until the follower leaves; nothing more can be asked on this connection."""
        headers = [("Content-Type", stream.media_type), ("Transfer-Encoding", "chunked")]
        self._writer.write(self._http.send(h11.Response(status_code=200, headers=headers)) or b"")
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(stream.chunks))
            await self._reader.read(1)
            pump.cancel()

    async def _send_listing(self, listing: Listing) -> None:
        headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        self._writer.write(self._http.send(h11.Response(status_code=200, headers=headers)) or b"")
        async for chunk in listing.chunks():
            self._writer.write(self._http.send(h11.Data(data=chunk)) or b"")
            await self._writer.drain()
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()

    async def _send(self, status: int, body: bytes) -> None:
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        head = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        data = self._http.send(h11.Data(data=body)) or b""
        self._writer.write(head + data + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def _feed(self) -> None:
        headers = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        self._writer.write(self._http.send(h11.Response(status_code=200, headers=headers)) or b"")
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self._pump(feed_lines(self._tailnet)))
            await self._reader.read(1)  # the follower says nothing more: this ends when it leaves
            pump.cancel()

    async def _pump(self, source: AsyncGenerator[bytes, None]) -> None:
        async with contextlib.aclosing(source) as lines:
            async for line in lines:
                self._writer.write(self._http.send(h11.Data(data=line)) or b"")
                await self._writer.drain()
