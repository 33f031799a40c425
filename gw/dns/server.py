"""The server: UDP and TCP on one port, each query answered from memory or forwarded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from gw.dns.clients import Clients
from gw.dns.forward import Forwarder, NoAnswer
from gw.dns.udp import Reply, UdpSocket
from gw.dns.zone import NEGATIVE_TTL_S, Zone
from gw.errors import ConfigError, Conflict, GwError, PermissionNeeded, WireError
from gw.state.config import Config, load_config, split_listen
from gw.state.feed import follow
from gw.state.paths import StatePaths
from gw.wire import dns

log: Final = logging.getLogger(__name__)

TCP_IDLE_S: Final = 45.0
MAX_TCP: Final = 256
MAX_WAITING: Final = 512
FIRST_FEED_S: Final = 10.0
RESOLV_CONF: Final = Path("/etc/resolv.conf")
WRITTEN_BY_NODE: Final = "# written by gwd"


@dataclass(frozen=True, slots=True)
class Settings:
    """listen: `host:port`."""

    listen: str


@final
class Answers:
    """What is said to each query. Replaceable parts, so that a reload needs no new sockets."""

    def __init__(self, config: Config) -> None:
        self.zone = Zone([config.prefixes.v4, config.prefixes.v6], config.dns_server.ttl, config.dns.extra_records)
        self.forwarder = _forwarder(config)
        self.clients = _clients(config)

    def reload(self, config: Config) -> None:
        self.forwarder = _forwarder(config)
        self.clients = _clients(config)
        self.zone.set_extra(config.dns.extra_records)

    def local(self, raw: bytes, host: str, *, limit: int) -> tuple[bytes, dns.Query | None]:
        """(answer, None) from memory, or (b"", the query) for one to forward.

        host: the asker's address. limit: bytes over TCP, 0 for UDP.
        """
        try:
            query = dns.read_query(raw)
        except WireError:
            return dns.refusal(raw, dns.FORMERR), None
        if not self.clients.admits(host):
            return dns.answer(query, [], code=dns.REFUSED, authoritative=False), None
        name = query.name
        if "." not in name and name and self.zone.domain:
            name = f"{name}.{self.zone.domain}"  # a bare host name can only be one of ours
        if not self.zone.is_ours(name):
            return b"", query
        found = self.zone.lookup(name, query.kind)
        soa = (found.soa, NEGATIVE_TTL_S) if found.soa is not None else None
        return dns.answer(query, found.records, code=found.code, soa=soa, limit=limit or query.udp_bytes), None

    async def forwarded(self, query: dns.Query, raw: bytes, *, limit: int) -> bytes:
        """The upstreams' answer, or SERVFAIL."""
        try:
            answer = await self.forwarder.ask(query, raw)
        except NoAnswer as error:
            if not error.raw:
                return dns.answer(query, [], code=dns.SERVFAIL, authoritative=False)
            answer = raw[:2] + error.raw[2:]
        return dns.truncated(answer, limit or query.udp_bytes)


async def serve(
    paths: StatePaths, settings: Settings, ready: Callable[[str], None], on_reload: Callable[[Callable[[], None]], None]
) -> None:
    """Run until cancelled. Raises GwError where the configuration or the host does not allow it."""
    config = load_config(paths.config_file)
    try:
        answers = Answers(config)
    except WireError as error:
        raise ConfigError(
            f"not a DNS server: {error}", path=str(paths.config_file), key="dns_server.upstreams"
        ) from None
    host, port = split_listen(settings.listen)
    udp = _bind(host, port, socket.SOCK_DGRAM)
    tcp = _bind(host, port, socket.SOCK_STREAM)
    has_names = asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def follow_names() -> None:
            async for message in follow(paths):
                answers.zone.apply(message)
                if not has_names.is_set():
                    has_names.set()

        def reload() -> None:
            try:
                answers.reload(load_config(paths.config_file))
            except (GwError, WireError) as error:
                log.error("the configuration stays as it was: %s", error)

        on_reload(reload)
        group.create_task(follow_names())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_FEED_S):
                await has_names.wait()
        datagrams = UdpSocket(udp, _Udp(answers, group).heard)
        server = await asyncio.start_server(_Tcp(answers).handle, sock=tcp, limit=1 << 17)
        try:
            ready(f"gwdns listens on {settings.listen}: {len(answers.zone)} nodes of {answers.zone.domain}")
            await asyncio.Event().wait()
        finally:
            datagrams.close()
            server.close()


@final
class _Udp:
    def __init__(self, answers: Answers, group: asyncio.TaskGroup) -> None:
        self._answers = answers
        self._group = group
        self._waiting = 0

    def heard(self, data: bytes, host: str, reply: Reply) -> None:
        answer, query = self._answers.local(data, host, limit=0)
        if query is None:
            if answer:
                reply(answer)
        elif self._waiting < MAX_WAITING:
            self._waiting += 1
            self._group.create_task(self._forward(query, data, reply))

    async def _forward(self, query: dns.Query, data: bytes, reply: Reply) -> None:
        try:
            reply(await self._answers.forwarded(query, data, limit=0))
        except Exception:
            log.exception("a query failed")  # a bug of ours must not end the server
        finally:
            self._waiting -= 1


@final
class _Tcp:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._open = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if peer is None or self._open >= MAX_TCP:
            writer.close()
            return
        self._open += 1
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_S):
                    (size,) = struct.unpack(">H", await reader.readexactly(2))
                    if size > dns.MAX_QUERY_BYTES:
                        return
                    raw = await reader.readexactly(size)
                answer, query = self._answers.local(raw, peer[0], limit=65535)
                if query is not None:
                    answer = await self._answers.forwarded(query, raw, limit=65535)
                if not answer:
                    return
                writer.write(struct.pack(">H", len(answer)) + answer)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        except asyncio.CancelledError:
            return  # the server stops
        finally:
            self._open -= 1
            writer.close()


def _clients(config: Config) -> Clients:
    return Clients([config.prefixes.v4, config.prefixes.v6, *config.dns_server.clients])


def _forwarder(config: Config) -> Forwarder:
    upstreams = config.dns_server.upstreams or host_servers(RESOLV_CONF, not_these=set(config.dns.nameservers))
    if not upstreams:
        log.warning("no upstreams: names outside the mesh have no answer; set `upstreams` of `[dns_server]`")
    return Forwarder(upstreams, config.dns.routes)


def host_servers(path: Path, not_these: set[str]) -> list[str]:
    """The host's own name servers, without those that are this server or one of the mesh (`not_these`)."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    if text.startswith(WRITTEN_BY_NODE):
        return []  # the host is a node of the mesh: its resolver leads back here
    words = [line.split() for line in text.splitlines() if line.startswith("nameserver")]
    return [word[1] for word in words if len(word) > 1 and word[1] not in not_these and "%" not in word[1]]


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """host: an address, or "" and 0.0.0.0 for all of both families where there is IPv6."""
    everywhere = host in ("", "0.0.0.0", "::")  # noqa: S104
    attempts = (
        [(socket.AF_INET6, "::"), (socket.AF_INET, "")]
        if everywhere
        else [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]
    )
    last: OSError | None = None
    for family, address in attempts:
        try:
            sock = socket.socket(family, kind)
        except OSError as error:
            last = error
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if kind == socket.SOCK_STREAM else 0)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if everywhere else 1)
            sock.bind((address, port))
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            last = error
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                break
            continue
        return sock
    if last is not None and last.errno == errno.EADDRINUSE:
        raise Conflict(f"port {port} is in use", hint="another DNS server? give gwdns an address: --listen ADDRESS:53")
    if last is not None and last.errno in (errno.EACCES, errno.EPERM):
        raise PermissionNeeded(f"may not listen on port {port}", hint="run as root, or: --listen 127.0.0.1:5353")
    raise GwError(f"cannot listen on {host}:{port}: {last.strerror if last else 'no address'}")
