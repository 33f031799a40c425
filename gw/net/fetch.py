"""One HTTP/1.1 request over a connection of its own: bounded in time and size, never blocking the event loop.

For the few calls that a server makes of other servers (identity providers, web hooks). Redirects are not followed: the
caller named the server it trusts.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import urlsplit

import h11

from gw.errors import GwError, TimedOut, UsageError
from gw.net.tcp import connect

DEADLINE_S: Final = 10.0
MAX_BYTES: Final = 1 << 20
READ_BYTES: Final = 1 << 16


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """headers: names in lower case; of a repeated one the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def fetch(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
    deadline_s: float = DEADLINE_S,
    max_bytes: int = MAX_BYTES,
) -> Answer:
    """Ask `url` and return the whole answer, whatever its status.

    tls: for https; the host's CA certificates where it is None. Raises GwError (unreachable, no HTTP, too large),
    TimedOut, UsageError for what is no URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"not an http or https URL: `{url}`")
    is_secure = parts.scheme == "https"
    context = (tls or ssl.create_default_context()) if is_secure else None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"Host": parts.netloc.rpartition("@")[2], "Accept": "application/json", "Connection": "close"}
    sent |= headers or {}
    if body:
        sent["Content-Length"] = str(len(body))
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await connect(parts.hostname, parts.port or (443 if is_secure else 80), tls=context)
            try:
                http = h11.Connection(h11.CLIENT)
                request = h11.Request(method=method, target=target, headers=list(sent.items()))
                writer.write(
                    (http.send(request) or b"")
                    + ((http.send(h11.Data(data=body)) or b"") if body else b"")
                    + (http.send(h11.EndOfMessage()) or b"")
                )
                return await _answer(http, reader, max_bytes)
            finally:
                writer.close()
    except TimeoutError:
        raise TimedOut(f"no whole answer from {parts.hostname} within {deadline_s:g} s") from None
    except (h11.ProtocolError, UnicodeError) as error:
        raise GwError(f"{parts.hostname} does not speak HTTP: {error}") from error
    except OSError as error:
        raise GwError(f"the connection to {parts.hostname} broke: {error.strerror or error}") from error


async def _answer(http: h11.Connection, reader: asyncio.StreamReader, max_bytes: int) -> Answer:
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise GwError(f"the answer is larger than {max_bytes} bytes")
        elif isinstance(event, h11.InformationalResponse):
            continue
        else:
            break
    if head is None:
        raise GwError("the connection ended without an answer")
    names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
    return Answer(head.status_code, names, bytes(body))
