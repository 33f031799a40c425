"""A blocking HTTP/1.1 client for unix sockets, small enough for the start of every command.

Errors travel as JSON `{"error": text, "code": id, "hint": text}` and come out of `Response.json` as the same `GwError`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h11
import msgspec

from gw.errors import GwError, NotRunning, PermissionNeeded, TimedOut, from_code

READ_BYTES: Final = 65536
HOST: Final = "local-tailscaled.sock"  # what Tailscale's own clients send; the server accepts nothing from browsers


class _ErrorBody(msgspec.Struct):
    error: str = ""
    code: str = "failed"
    hint: str | None = None


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes

    def json(self) -> Any:
        """The decoded body. Raises the `GwError` it carries where the status is 400 or more."""
        if self.status >= 400:
            raise self.error()
        return msgspec.json.decode(self.body) if self.body else None

    def error(self) -> GwError:
        """The error that a failed response carries."""
        try:
            carried = msgspec.json.decode(self.body, type=_ErrorBody)
        except msgspec.MsgspecError:
            carried = _ErrorBody(error=self.body.decode(errors="replace").strip())
        return from_code(carried.code, carried.error or f"the daemon answered {self.status}", carried.hint)


def connect(path: Path, timeout_s: float | None) -> socket.socket:
    """A connected stream socket. Raises NotRunning, PermissionNeeded or TimedOut."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(timeout_s)
    try:
        channel.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        channel.close()
        raise NotRunning(f"nothing listens on `{path}`") from None
    except PermissionError:
        channel.close()
        raise PermissionNeeded(f"no permission for `{path}`", hint="use sudo, or ask for operator rights") from None
    except TimeoutError:
        channel.close()
        raise TimedOut(f"no answer from `{path}`") from None
    except OSError as error:
        channel.close()
        raise NotRunning(f"cannot reach `{path}`: {error.strerror}") from error
    return channel


def request(
    path: Path,
    method: str,
    target: str,
    body: object = None,
    *,
    timeout_s: float | None = 10.0,
) -> Response:
    """One exchange. body: anything msgspec can encode as JSON. Raises as `connect`."""
    with connect(path, timeout_s) as channel:
        connection = _send(channel, method, target, body)
        status, parts = 0, []
        for event in _events(connection, channel, path):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
        return Response(status, b"".join(parts))


def stream(path: Path, target: str, *, timeout_s: float | None = None) -> Iterator[bytes]:
    """The lines of an endless response, without their newlines. Raises as `Response.json`."""
    with connect(path, timeout_s) as channel:
        connection = _send(channel, "GET", target, None)
        status, rest = 200, b""
        for event in _events(connection, channel, path):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                rest += bytes(event.data)
                if status < 400:
                    *lines, rest = rest.split(b"\n")
                    yield from (line for line in lines if line)
        if status >= 400:
            raise Response(status, rest).error()


def _send(channel: socket.socket, method: str, target: str, body: object) -> h11.Connection:
    raw = b"" if body is None else msgspec.json.encode(body)
    headers = [("Host", HOST), ("Content-Length", str(len(raw))), ("Connection", "close")]
    if raw:
        headers.append(("Content-Type", "application/json"))
    connection = h11.Connection(h11.CLIENT)
    head = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    data = connection.send(h11.Data(data=raw)) or b"" if raw else b""
    channel.sendall(head + data + (connection.send(h11.EndOfMessage()) or b""))
    return connection


def _events(connection: h11.Connection, channel: socket.socket, path: Path) -> Iterator[h11.Event]:
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(channel.recv(READ_BYTES))
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return
            elif isinstance(event, h11.Event):
                yield event
    except TimeoutError:
        raise TimedOut(f"no answer from `{path}`") from None
    except (ConnectionError, h11.RemoteProtocolError) as error:
        raise NotRunning(f"`{path}` closed the connection: {error}") from error
