"""`gwrelay serve`: the relay's key and certificate, its place in the relay map, the forwarding plane and admission."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gw.errors import ConfigError, Conflict, GwError, PermissionNeeded, UsageError
from gw.model.keys import RelaySecret
from gw.relay import certificates
from gw.relay.admission import StateAdmission, UrlAdmission, allow_all
from gw.relay.forwarding import Plane
from gw.state.codec import encode
from gw.state.config import split_listen
from gw.state.documents import RelayNode, RelayRegionDoc
from gw.state.files import make_folder, read_secret, write_atomic, write_secret
from gw.state.paths import StatePaths
from gw.wire.derp.server import Relay
from gw.wire.x25519 import clamp, public_key

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
IN_USE: Final = 98


@dataclass(frozen=True)
class Settings:
    """listen, stun: `host:port`; stun may be `off`. certificate, key: PEM files, empty = self-signed. plain: no TLS."""

    listen: str
    stun: str
    hostname: str
    region_id: int
    region_code: str
    region_name: str
    admit: str = "state"
    certificate: str = ""
    key: str = ""
    plain: bool = False


async def serve(
    paths: StatePaths,
    settings: Settings,
    ready: Callable[[str], None],
    on_reload: Callable[[Callable[[], None]], None] = lambda callback: None,
) -> None:
    """Serve until cancelled."""
    secret = relay_secret(paths)
    url_admission = None if settings.admit in ("state", "all") else UrlAdmission(settings.admit)
    state_admission = StateAdmission()
    admit = allow_all if settings.admit == "all" else (url_admission or state_admission).admit
    listener = bound(settings.listen, socket.SOCK_STREAM)
    listener.listen(BACKLOG)
    stun_sockets = [] if settings.stun == "off" else [bound(settings.stun, socket.SOCK_DGRAM)]
    context, certificate_pin = _tls(paths, settings, public_key(secret.raw))
    relay = Relay(secret, admit, lambda: secrets.token_bytes(24))
    plane = Plane(relay, listener, context, stun_sockets)
    _enter_map(paths, settings, certificate_pin)

    def reload() -> None:
        """A renewed certificate, for connections from now on; those that stand keep theirs."""
        try:
            plane.context, pin = _tls(paths, settings, public_key(secret.raw))
            _enter_map(paths, settings, pin)
        except GwError as error:
            logger.error("the certificate stays as it was: %s", error.message)

    on_reload(reload)
    _more_descriptors()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def forward() -> None:
        try:
            plane.run()
        except Exception:
            logger.exception("forwarding failed")
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=forward, name="forwarding", daemon=True)
    thread.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            if settings.admit == "state":
                tasks.create_task(state_admission.follow(paths, plane.look_again, plane.drop))
            elif url_admission is not None:
                tasks.create_task(url_admission.follow(plane.look_again))
            ready(f"relay `{settings.region_code}` on {settings.listen}, STUN on {settings.stun}")
            await ended.wait()
            raise GwError("forwarding ended unexpectedly", hint="the log above says why; please report it")
    finally:
        plane.stop()
        await asyncio.to_thread(thread.join, 3.0)
        for channel in (listener, *stun_sockets):
            channel.close()


def _more_descriptors() -> None:
    """A client is a descriptor: take as many as the host allows without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def relay_secret(paths: StatePaths) -> RelaySecret:
    """The relay's key, made at the first start."""
    path = paths.relay_dir / "relay.key"
    if path.exists():
        return RelaySecret.parse(read_secret(path).decode().strip())
    secret = RelaySecret(clamp(secrets.token_bytes(32)))
    write_secret(path, f"{secret.text()}\n".encode())
    return secret


def bound(listen: str, kind: socket.SocketKind) -> socket.socket:
    """A bound socket. Raises Conflict, PermissionNeeded, ConfigError."""
    host, port = split_listen(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        channel = socket.socket(family, kind)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        channel.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"no such address: `{listen}`", key="listen") from error
    except PermissionError as error:
        raise PermissionNeeded(f"may not listen on `{listen}`", hint="use a port above 1023, or run as root") from error
    except OSError as error:
        if error.errno == IN_USE:
            raise Conflict(
                f"address is in use: `{listen}`", hint="stop what listens there, or choose another"
            ) from error
        raise GwError(f"cannot listen on `{listen}`: {error.strerror}") from error
    return channel


def _tls(paths: StatePaths, settings: Settings, relay_key: bytes) -> tuple[ssl.SSLContext | None, str]:
    if settings.plain:
        return None, ""
    now = datetime.now(UTC)
    make_folder(paths.relay_dir, 0o700)
    if settings.certificate:
        pem = _read(settings.certificate)
        private = (
            _read(settings.key) if settings.key else b"-----BEGIN PRIVATE" + pem.partition(b"-----BEGIN PRIVATE")[2]
        )
        return certificates.context(paths.relay_dir, pem, private, relay_key, now), ""
    pem = certificates.self_signed(paths.relay_dir / "self-signed.pem", settings.hostname, now)
    private = _private(pem)
    return certificates.context(paths.relay_dir, pem, private, relay_key, now), certificates.pin(pem)


def _private(pem: bytes) -> bytes:
    """The key of a file that holds certificate and key."""
    mark = b"-----BEGIN PRIVATE"
    return mark + pem.partition(mark)[2]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", path=path) from error


def _enter_map(paths: StatePaths, settings: Settings, certificate_pin: str) -> None:
    """Write this relay's region document, where the control server finds it."""
    if not settings.hostname:
        raise UsageError("the relay has no name", hint="--hostname NAME, or server_url in config.toml")
    _, port = split_listen(settings.listen)
    version = _version(settings.hostname)
    node = RelayNode(
        name=f"{settings.region_id}a",
        region_id=settings.region_id,
        host_name=settings.hostname,
        cert_name=certificate_pin,
        ipv4=settings.hostname if version == 4 else "none" if version == 6 else "",
        ipv6=settings.hostname if version == 6 else "none" if version == 4 else "",
        derpport=0 if port == 443 else port,
        stunport=-1 if settings.stun == "off" else split_listen(settings.stun)[1],
    )
    region = RelayRegionDoc(
        region_id=settings.region_id, code=settings.region_code, name=settings.region_name, nodes=[node]
    )
    make_folder(paths.relays_dir, 0o755)
    write_atomic(paths.relays_dir / f"{settings.region_id}.toml", encode(region))


def _version(hostname: str) -> int:
    """4 or 6 for a literal address, 0 for a name."""
    try:
        return int(ipaddress.ip_address(hostname).version)
    except ValueError:
        return 0
