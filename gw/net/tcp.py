"""TCP connections of the node's own, beside the tunnel: marked, optionally TLS, every failure one clear error."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from gw.errors import GwError, NotFound, TimedOut
from gw.net.udp import bypass

CONNECT_S: Final = 10.0
ATTEMPT_S: Final = 4.0
READ_LIMIT: Final = 1 << 20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
    addresses: list[str] | None = None,
) -> Streams:
    """Connect to the first address that answers, IPv6 and IPv4 in turn.

    addresses: literal ones to use instead of a name look-up. server_name: for TLS, where it is not `host`.
    Raises NotFound (no such name), TimedOut, GwError (refused, unreachable, TLS).
    """
    try:
        async with asyncio.timeout(CONNECT_S):
            sock = await _dial(host, port, addresses)
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


async def _dial(host: str, port: int, addresses: list[str] | None) -> socket.socket:
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, address in await _resolve(host, port, addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        bypass(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(ATTEMPT_S):
                await loop.sock_connect(sock, address)
        except TimeoutError:
            sock.close()
            last = TimeoutError(110, "no answer")
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last if last is not None else OSError("no address")


async def _resolve(
    host: str, port: int, addresses: list[str] | None
) -> Sequence[tuple[socket.AddressFamily, tuple[str, int]]]:
    if addresses:
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, port)) for each in addresses]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise NotFound(f"no such host: `{host}`: {error.strerror}", hint="check the name, or the host's DNS") from None
    entries = [(entry[0], (str(entry[4][0]), int(entry[4][1]))) for entry in found]
    six = [entry for entry in entries if entry[0] == socket.AF_INET6]
    four = [entry for entry in entries if entry[0] == socket.AF_INET]
    mixed = [entry for pair in zip(six, four, strict=False) for entry in pair]
    return mixed + six[len(four) :] + four[len(six) :]
