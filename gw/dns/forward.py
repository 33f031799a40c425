"""Asking upstreams: UDP to all of them side by side, the first good answer wins, TCP where it was cut off.

Each question goes out with a random id from a random port, and only an answer that repeats id and question counts.

Ref: spec dataplane §4.4; RFC 5452
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import struct
import time
from collections import OrderedDict
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.wire import dns

log: Final = logging.getLogger(__name__)

ATTEMPT_S: Final = 2.0
OVERALL_S: Final = 6.0
TCP_S: Final = 5.0
MAX_IN_FLIGHT: Final = 256
MAX_CACHED: Final = 10_000
MAX_CACHE_S: Final = 3600
RECEIVE_BYTES: Final = 65535


class NoAnswer(Exception):
    """No upstream gave a usable answer. `raw` is the best bad one, if there was any."""

    def __init__(self, raw: bytes = b"") -> None:
        super().__init__("no upstream answered")
        self.raw = raw


@final
class Forwarder:
    """upstreams for everything, `routes` for some suffixes; the longest suffix wins."""

    def __init__(self, upstreams: list[str], routes: dict[str, list[str]]) -> None:
        self._default = [parse_upstream(text) for text in upstreams]
        self._routes = {
            suffix.strip(".").lower(): [parse_upstream(text) for text in servers] for suffix, servers in routes.items()
        }
        self._in_flight = 0
        self._cache: OrderedDict[bytes, tuple[float, float, bytes]] = OrderedDict()  # question -> put, until, answer

    async def ask(self, query: dns.Query, raw: bytes) -> bytes:
        """The answer to `raw`, with its id. Raises NoAnswer."""
        question = query.question[:-4].lower() + query.question[-4:] + raw[2:3] + (b"e" if query.edns else b"")
        cached = self._cache.get(question)
        now = time.monotonic()
        if cached is not None and now < cached[1]:
            return _aged(cached[2], int(now - cached[0]), raw[:2], query.question)
        servers = self._servers(query.name)
        if not servers or self._in_flight >= MAX_IN_FLIGHT:
            raise NoAnswer
        self._in_flight += 1
        try:
            answer = await self._race(servers, raw, query)
        finally:
            self._in_flight -= 1
        self._keep(question, answer, now)
        return raw[:2] + answer[2:]

    def _servers(self, name: str) -> list[AddrPort]:
        labels = name.split(".")
        for at in range(len(labels)):
            servers = self._routes.get(".".join(labels[at:]))
            if servers is not None:
                return servers
        return self._default

    async def _race(self, servers: list[AddrPort], raw: bytes, query: dns.Query) -> bytes:
        """The first answer that is not SERVFAIL or REFUSED; the best of the others where all are."""
        worst: bytes = b""
        results: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def one(server: AddrPort) -> None:
            try:
                results.put_nowait(await _ask_one(server, raw, query))
            except (OSError, TimeoutError, WireError) as error:
                log.debug("upstream %s: %s %s", server, type(error).__name__, error)
                results.put_nowait(None)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(server)) for server in servers]
            try:
                async with asyncio.timeout(OVERALL_S):
                    for _ in servers:
                        answer = await results.get()
                        if answer is None:
                            continue
                        if dns.response_code(answer) not in (dns.SERVFAIL, dns.REFUSED):
                            return answer
                        if not worst or dns.response_code(worst) == dns.REFUSED:
                            worst = answer
            except TimeoutError:
                pass
            finally:
                for task in tasks:
                    task.cancel()
        raise NoAnswer(worst)

    def _keep(self, question: bytes, answer: bytes, now: float) -> None:
        if dns.response_code(answer) not in (dns.NOERROR, dns.NXDOMAIN) or answer[2] & 0x02:
            return
        try:
            ttl = min(dns.lowest_ttl(answer), MAX_CACHE_S)
        except WireError:
            return
        if ttl > 0:
            self._cache[question] = (now, now + ttl, answer)
            self._cache.move_to_end(question)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)


def parse_upstream(text: str) -> AddrPort:
    """`1.1.1.1`, `1.1.1.1:53`, `::1`, `[::1]:53`. Raises WireError."""
    try:
        return AddrPort.of(text.strip("[]"), 53)
    except WireError:
        return AddrPort.parse(text)


async def _ask_one(server: AddrPort, raw: bytes, query: dns.Query) -> bytes:
    """One upstream: UDP twice, then TCP where the answer was cut off. Raises OSError, TimeoutError, WireError."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if server.is_v6 else socket.AF_INET
    for attempt in (1, 2):
        id_ = secrets.token_bytes(2)
        with socket.socket(family, socket.SOCK_DGRAM) as sock:  # a new socket: a new random port
            sock.setblocking(False)
            await loop.sock_connect(sock, (server.host, server.port))
            await loop.sock_sendall(sock, id_ + raw[2:])
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    while True:
                        answer = await loop.sock_recv(sock, RECEIVE_BYTES)
                        if _fits(answer, id_, query):
                            break
            except TimeoutError:
                if attempt == 2:
                    raise
                continue
        if answer[2] & 0x02:
            try:
                return await _ask_tcp(server, raw, query)
            except (OSError, TimeoutError, WireError):
                return answer
        return answer
    raise TimeoutError


async def _ask_tcp(server: AddrPort, raw: bytes, query: dns.Query) -> bytes:
    id_ = secrets.token_bytes(2)
    async with asyncio.timeout(TCP_S):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            writer.write(struct.pack(">H", len(raw)) + id_ + raw[2:])
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            answer = await reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise WireError("cut off") from None
        finally:
            writer.close()
    if not _fits(answer, id_, query):
        raise WireError("answer to another question")
    return answer


def _fits(answer: bytes, id_: bytes, query: dns.Query) -> bool:
    asked = query.question
    return (
        len(answer) >= dns.HEADER_BYTES + len(asked)
        and answer[:2] == id_
        and bool(answer[2] & 0x80)
        and answer[dns.HEADER_BYTES : dns.HEADER_BYTES + len(asked)].lower() == asked.lower()
    )


def _aged(answer: bytes, age: int, id_: bytes, question: bytes) -> bytes:
    """A kept answer for another asker: its id, its letter case, and TTLs that went down."""
    out = bytearray(answer)
    out[:2] = id_
    out[dns.HEADER_BYTES : dns.HEADER_BYTES + len(question)] = question
    at = dns.HEADER_BYTES + len(question)
    counts = struct.unpack_from(">3H", answer, 6)
    for _ in range(sum(counts)):
        while answer[at] and answer[at] < 0xC0:
            at += 1 + answer[at]
        at += 2 if answer[at] >= 0xC0 else 1
        kind, _, ttl, size = struct.unpack_from(">HHIH", answer, at)
        if kind != dns.OPT:
            struct.pack_into(">I", out, at + 4, max(ttl - age, 0))
        at += 10 + size
    return bytes(out)
