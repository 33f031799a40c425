"""The connection to the control server: one Noise connection, opened when needed, with many requests side by side.

Works with GhostWire, Headscale and Tailscale: ts2021 over HTTP or HTTPS.

Ref: control protocol §1 to §3
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import re
import ssl
import struct
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self, final
from urllib.parse import urlsplit

from gw.errors import AuthRequired, GwError, StateError, TimedOut, UsageError, WireError
from gw.model.gojson import decoder, encode
from gw.model.keys import MachineKey, MachineSecret
from gw.model.mapping import MapRequest, MapResponse, PingRequest
from gw.model.registration import RegisterRequest, RegisterResponse
from gw.net.tcp import Streams, connect
from gw.wire.ts2021.client import BodyData, Challenge, ConnectionClosed, ControlConnection, ResponseStarted, StreamEnded
from gw.wire.ts2021.mapframes import MapFrames
from gw.wire.ts2021.noise import ClientHandshake
from gw.wire.x25519 import fresh_pair

log: Final = logging.getLogger(__name__)

VERSION: Final = 121  # capability version that we speak: UDP relays between nodes are its newest part
WATCHDOG_S: Final = 120.0
ANSWER_S: Final = 30.0
FOLLOWUP_S: Final = 600.0  # then ask again: a middlebox may have forgotten the connection
MAX_PAGE_BYTES: Final = 1 << 20
MAX_ANSWER_BYTES: Final = 4 << 20

_register_response: Final = decoder(RegisterResponse)
_map_response: Final = decoder(MapResponse)


class NodeUnknown(GwError):
    """The server does not know this node any more: it was deleted."""

    code = "node-unknown"


class _Silent(TimedOut):
    """The server took a request and did not answer it."""


class _Call:
    """One request under way: its events arrive in `events`, None when the connection is gone."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[ResponseStarted | BodyData | StreamEnded | None] = asyncio.Queue()


def server_address(url: str) -> tuple[bool, str, int, str]:
    """(whether TLS, host, port, authority) of a control server's URL. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is none, a bracket that does not close
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isprintable():
        raise UsageError(f"not a control server address: `{_plain(url.encode())}`", hint="like https://control.example")
    is_tls = parts.scheme == "https"
    return is_tls, parts.hostname, port or (443 if is_tls else 80), parts.netloc.rpartition("@")[2]


@final
class ControlClient:
    """Use as `async with`. Methods raise GwError: TimedOut, NotFound (no such host), AuthRequired, NodeUnknown."""

    def __init__(self, url: str, machine: MachineSecret) -> None:
        """url: `http://…` or `https://…`. Raises UsageError."""
        is_tls, self._host, self._port, self._authority = server_address(url)
        self._url = url
        self._tls = ssl.create_default_context() if is_tls else None
        self._machine = machine
        self._group = asyncio.TaskGroup()
        self._opening = asyncio.Lock()
        self._link: _Link | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        await self._group.__aexit__(kind, error, trace)

    async def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def register(self, request: RegisterRequest) -> RegisterResponse:
        """Log in, look whether we are logged in, or wait for the browser (`followup`)."""
        wait = FOLLOWUP_S if request.followup else ANSWER_S
        try:
            status, body = await self._exchange("/machine/register", encode(request), wait)
        except _Silent:
            if request.followup:
                return RegisterResponse(auth_url=request.followup)  # not decided yet: to be asked again
            raise
        if status != 200:
            raise _refused("the login", status, body)
        return _read(body)

    async def update(self, request: MapRequest) -> None:
        """Tell the server something new of us, without a stream."""
        status, body = await self._exchange("/machine/map", encode(request), ANSWER_S)
        if status == 404:
            raise NodeUnknown("the control server does not know this node any more", hint="gw up --force-reauth")
        if status != 200:
            raise _refused("an update", status, body)

    async def map_stream(self, request: MapRequest) -> AsyncGenerator[MapResponse, None]:
        """Messages of the map stream until it ends. Silence of two minutes is an end too. Close it with `aclosing`."""
        link = await self._linked()
        stream, call = link.request("/machine/map", encode(request), self._authority)
        frames = MapFrames(compressed=request.compress == "zstd")
        refusal: int | None = None
        body = b""
        try:
            while True:
                try:
                    async with asyncio.timeout(WATCHDOG_S):
                        event = await call.events.get()
                except TimeoutError:
                    await self.close()
                    raise TimedOut("the control server went silent") from None
                if event is None or isinstance(event, StreamEnded):
                    if refusal == 404 or refusal == 401:
                        raise NodeUnknown("the control server does not know this node", hint="gw up --force-reauth")
                    if refusal is not None:
                        raise _refused("the map", refusal, body)
                    return
                if isinstance(event, ResponseStarted):
                    refusal = event.status if event.status != 200 else None
                elif refusal is not None:
                    body = (body + event.data)[:MAX_PAGE_BYTES]
                else:
                    try:
                        for raw in frames.feed(event.data):
                            message = _map_response(raw)
                            if message.ping_request is not None:
                                self._answer_ping(link, message.ping_request)
                            yield message
                    except WireError as error:
                        await self.close()
                        raise GwError(f"the control server sent nonsense: {error}") from None
        finally:
            link.give_up(stream)

    def _answer_ping(self, link: _Link, asked: PingRequest) -> None:
        """The server asks whether we are alive: a HEAD of the URL that it names, on this very connection."""
        where = urlsplit(asked.url)
        if asked.types or not asked.url_is_noise or not where.path.startswith("/machine/"):
            return
        path = f"{where.path}?{where.query}" if where.query else where.path
        with contextlib.suppress(GwError):
            link.request(path, b"", self._authority, method="HEAD")

    async def _exchange(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        link = await self._linked()
        stream, call = link.request(path, body, self._authority)
        status, answer = 0, bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    event = await call.events.get()
                    if event is None:
                        raise GwError(f"the control server `{self._url}` closed the connection")
                    if isinstance(event, ResponseStarted):
                        status = event.status
                    elif isinstance(event, BodyData):
                        answer += event.data
                        if len(answer) > MAX_ANSWER_BYTES:
                            raise GwError("the control server's answer is too long")
                    elif event.is_reset and not status:
                        raise GwError(f"the control server `{self._url}` cut the request off")
                    else:
                        return status, bytes(answer)
        except TimeoutError:
            await self.close()
            raise _Silent(f"no answer from the control server `{self._url}`") from None
        finally:
            link.give_up(stream)

    async def _linked(self) -> _Link:
        async with self._opening:
            if self._link is None or self._link.is_closed:
                self._link = await self._open()
                self._group.create_task(self._link.run())
            return self._link

    async def _open(self) -> _Link:
        server = await self._server_key()
        hello = ClientHandshake(self._machine, server, fresh_pair(), VERSION)
        reader, writer = await connect(self._host, self._port, tls=self._tls)
        try:
            async with asyncio.timeout(ANSWER_S):
                offer = base64.b64encode(hello.initiation()).decode()
                writer.write(
                    f"POST /ts2021 HTTP/1.1\r\nHost: {self._authority}\r\nUpgrade: tailscale-control-protocol\r\n"
                    f"Connection: upgrade\r\nContent-Length: 0\r\nX-Tailscale-Handshake: {offer}\r\n\r\n".encode()
                )
                head = await reader.readuntil(b"\r\n\r\n")
                if head.split(b" ", 2)[1:2] != [b"101"]:
                    raise GwError(f"`{self._url}` does not speak the control protocol: {_first_line(head)}")
                session = hello.finish(await _handshake_message(reader))
        except TimeoutError:
            writer.close()
            raise TimedOut(f"no answer from the control server `{self._url}`") from None
        except (OSError, EOFError, asyncio.LimitOverrunError, WireError) as error:
            writer.close()
            raise GwError(f"`{self._url}` broke off the handshake: {_plain(str(error).encode())}") from error
        except BaseException:
            writer.close()
            raise
        return _Link((reader, writer), ControlConnection(session))

    async def _server_key(self) -> MachineKey:
        """The server's key, as the TLS connection vouches for it. Asked at each connect, as Tailscale does."""
        reader, writer = await connect(self._host, self._port, tls=self._tls)
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(f"GET /key?v={VERSION} HTTP/1.0\r\nHost: {self._authority}\r\n\r\n".encode())
                page = await reader.read(MAX_PAGE_BYTES)
                while chunk := await reader.read(MAX_PAGE_BYTES):
                    page += chunk
                    if len(page) > MAX_PAGE_BYTES:
                        break
        except TimeoutError:
            raise TimedOut(f"no answer from the control server `{self._url}`") from None
        except OSError as error:
            raise GwError(f"`{self._url}` broke off: {error}") from error
        finally:
            writer.transport.abort()  # all that was wanted has been read
        head, _, body = page.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1:2]
        try:
            if status == [b"200"]:
                return MachineKey.parse(str(json.loads(body)["publicKey"]))
        except (ValueError, KeyError, TypeError, WireError, RecursionError):
            pass
        raise self._no_key(status[0] if status else b"", head, body)

    def _no_key(self, status: bytes, head: bytes, body: bytes) -> GwError:
        """Why the answer to /key is of no use."""
        if status == b"400" or (status == b"200" and not body):  # as Headscale refuses what it does not support
            return GwError(
                f"`{self._url}` does not speak version {VERSION} of the control protocol",
                hint="update the control server",
            )
        if status[:1] == b"3" and (found := re.search(rb"(?im)^location: *(https?://[^/\s]+)", head)):
            place = _plain(found[1])
            return GwError(f"`{self._url}` sends us on to `{place}`", hint=f"use --login-server {place}")
        if status[:1] == b"5":
            return GwError(
                f"`{self._url}` is out of order: {_first_line(head)}", hint="is the server behind it running?"
            )
        return GwError(
            f"`{self._url}` is not a control server: {_first_line(head)}", hint="check the address of --login-server"
        )


@final
class _Link:
    """One open connection: a reading task, and calls by stream."""

    def __init__(self, streams: Streams, connection: ControlConnection) -> None:
        self._reader, self._writer = streams
        self._connection = connection
        self._calls: dict[int, _Call] = {}
        self.is_closed = False
        self._flush()

    def request(self, path: str, body: bytes, authority: str, method: str = "POST") -> tuple[int, _Call]:
        if self.is_closed:
            raise GwError("the connection to the control server is closed")
        try:
            stream = self._connection.request(path, body, authority=authority, method=method)
        except (StateError, WireError) as error:
            self.close()
            raise GwError(f"the control server takes no more requests: {error}") from None
        call = self._calls[stream] = _Call()
        self._flush()
        return stream, call

    def give_up(self, stream: int) -> None:
        """No more of this call; harmless when it is over."""
        if self._calls.pop(stream, None) is not None and not self.is_closed:
            self._connection.cancel(stream)
            self._flush()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._writer.transport.abort()
            for call in self._calls.values():
                call.events.put_nowait(None)

    async def run(self) -> None:
        """Read until the connection ends. Raises nothing: callers learn of it by their calls."""
        try:
            while data := await self._reader.read(1 << 17):
                for event in self._connection.feed(data):
                    if isinstance(event, ConnectionClosed):
                        log.debug("control server: %s", event.reason)
                        return
                    if isinstance(event, Challenge):
                        continue
                    call = self._calls.get(event.stream)
                    if call is not None:
                        if isinstance(event, StreamEnded):
                            del self._calls[event.stream]
                        call.events.put_nowait(event)
                self._flush()
        except (OSError, WireError) as error:
            log.debug("control connection: %s", error)
        finally:
            self.close()

    def _flush(self) -> None:
        data = self._connection.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)


def _refused(what: str, status: int, body: bytes) -> GwError:
    reason = _plain(body) or f"status {status}"
    if status in (401, 403):
        return AuthRequired(f"the control server refuses {what}: {reason}")
    return GwError(f"the control server refuses {what}: {reason}")


def _read(body: bytes) -> RegisterResponse:
    try:
        return _register_response(body)
    except WireError as error:
        raise GwError(f"the control server sent nonsense: {error}") from None


async def _handshake_message(reader: asyncio.StreamReader) -> bytes:
    """The server's half of the handshake, or its refusal, which has a length of its own."""
    head = await reader.readexactly(3)
    (size,) = struct.unpack_from(">H", head, 1)
    return head + await reader.readexactly(size)


def _first_line(head: bytes) -> str:
    return _plain(head.split(b"\r\n", 1)[0])[:100] or "nothing"


def _plain(text: bytes) -> str:
    """The first line of what the server wrote, without anything that could steer a terminal."""
    lines = text.decode(errors="replace").strip().splitlines()
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0])[:200] if lines else ""
