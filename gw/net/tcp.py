"""TCP connections of the node's own, beside the tunnel: marked, optionally TLS, every failure one clear error.

A name with several addresses is tried as RFC 8305 has it: IPv6 and IPv4 in turn, each a quarter of a second after the
one before (at once where that failed), and the first to answer wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Container, Sequence
from typing import Final

from gw.errors import GwError, NotFound, TimedOut
from gw.net.udp import bypass

CONNECT_S: Final = 10.0
STAGGER_S: Final = 0.25
READ_LIMIT: Final = 1 << 20
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    addresses: list[str] | None = None,
    families: Container[socket.AddressFamily] = (socket.AF_INET, socket.AF_INET6),
) -> Streams:
    """Connect to the first address that answers, IPv6 and IPv4 in turn.

    addresses: literal ones to use instead of a name look-up. families: which of the looked-up ones.
    server_name: for TLS, where it is not `host`.
    Raises NotFound (no such name), TimedOut, GwError (refused, unreachable, TLS, no such port or name).
    """
    if not 0 < port < 65536:
        raise GwError(f"not a port: {host}:{port}")
    try:
        async with asyncio.timeout(CONNECT_S):
            sock = await _race(await _resolve(host, port, addresses, families))
            try:
                return await asyncio.open_connection(
                    sock=sock, ssl=tls, server_hostname=(server_name or host) if tls else None, limit=READ_LIMIT
                )
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        raise TimedOut(f"no answer from {host}:{port}", hint="is the address right, and its port open?") from None
    except ssl.SSLCertVerificationError as error:
        raise GwError(
            f"the certificate of {host}:{port} is not trusted: {error.verify_message}",
            hint="use the server's real name, or install its CA",
        ) from error
    except ssl.SSLError as error:
        raise GwError(f"no TLS with {host}:{port}: {error.reason}", hint="is it `http://` rather?") from error
    except OSError as error:
        raise GwError(
            f"cannot reach {host}:{port}: {error.strerror or error}", hint="is the server running?"
        ) from error
    except (ValueError, TypeError) as error:  # what ssl and the resolver say of names that can be none
        raise GwError(f"not a host name: {host!r}: {error}") from error


async def dial(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket, for who does the rest itself. Raises NotFound, TimedOut, GwError."""
    try:
        async with asyncio.timeout(CONNECT_S):
            return await _race(await _resolve(host, port, None, (socket.AF_INET, socket.AF_INET6)))
    except TimeoutError:
        raise TimedOut(f"no answer from {host}:{port}") from None
    except OSError as error:
        raise GwError(f"cannot reach {host}:{port}: {error.strerror or error}") from error


Target = tuple[socket.AddressFamily, tuple[str, int]]


async def _race(targets: Sequence[Target]) -> socket.socket:
    """The first connection made; the others are closed. Raises the OSError of the last that failed."""
    won: list[socket.socket] = []
    failures: list[OSError] = []
    give_way = asyncio.Event()  # one of them failed: the next one begins at once

    async def attempt(family: socket.AddressFamily, address: tuple[str, int]) -> None:
        try:
            sock = await _dial(family, address)
        except OSError as error:
            failures.append(error)
        else:
            if won:
                sock.close()
            else:
                won.append(sock)
        give_way.set()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for family, address in targets:
                give_way.clear()
                tasks.append(group.create_task(attempt(family, address)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STAGGER_S):
                        await give_way.wait()
                if won:
                    break
            while not won and len(failures) < len(tasks):
                give_way.clear()
                await give_way.wait()
            for task in tasks:
                task.cancel()
    except BaseException:
        for sock in won:
            sock.close()
        raise
    if not won:
        raise failures[-1] if failures else OSError("no address")
    return won[0]


async def _dial(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        bypass(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolve(
    host: str, port: int, addresses: list[str] | None, families: Container[socket.AddressFamily]
) -> Sequence[Target]:
    if addresses:
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, port)) for each in addresses]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a name"
        raise NotFound(f"no such host: `{host}`: {reason}", hint="check the name, or the host's DNS") from None
    entries = [(entry[0], (str(entry[4][0]), int(entry[4][1]))) for entry in found if entry[0] in families]
    six = [entry for entry in entries if entry[0] == socket.AF_INET6]
    four = [entry for entry in entries if entry[0] == socket.AF_INET]
    mixed = [entry for pair in zip(six, four, strict=False) for entry in pair]
    return mixed + six[len(four) :] + four[len(six) :]
