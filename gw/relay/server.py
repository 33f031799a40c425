"""One process that forwards: sockets, certificate, admission, mesh and pages around a forwarding plane in its thread.

With one worker it is the whole of `gwrelay serve`; with more, `gw.relay.workers` runs one of these in each process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mmap
import resource
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, final
from urllib.parse import urlsplit

from gw.errors import ConfigError, Conflict, GwError, PermissionNeeded
from gw.model.keys import DiscoSecret, RelaySecret
from gw.native.relaying import Switch
from gw.net.trains import TrainSocket
from gw.relay import certificates
from gw.relay.admission import StateAdmission, UrlAdmission, allow_all
from gw.relay.allocating import Desk, OwnAddresses
from gw.relay.bootstrap import keep_names
from gw.relay.forwarding import Limits, Listener, Plane
from gw.relay.issuing import certificate_file, keep_certificate, proof_page, show_proofs
from gw.relay.meshing import Mesh, Target
from gw.relay.metrics import SLOT_BYTES, Metrics
from gw.relay.peerrelay import PeerRelay
from gw.relay.presence import Presence
from gw.relay.relaymap import enter_map
from gw.relay.session import Offer, Reception
from gw.relay.settings import Settings, mesh_key, mesh_targets, relays_peers, speaks_quic
from gw.relay.stunning import StunSocket
from gw.state.config import split_listen
from gw.state.files import make_folder, read_secret, write_secret
from gw.state.paths import StatePaths
from gw.wire.derp.buckets import MIN_BURST_BYTES, Bucket
from gw.wire.derp.handshake import RelayIdentity
from gw.wire.derp.http import HOME
from gw.wire.x25519 import clamp, public_key

if TYPE_CHECKING:  # aioquic is loaded where a relay speaks QUIC
    from gw.quic.configuration import QuicSettings
    from gw.relay.quicport import QuicPort

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096
IN_USE: Final = 98
MAP_CHECK_S: Final = 10.0
STOP_S: Final = 3.0
RESTART_NEEDED: Final = (
    "listen", "stun", "quic", "peer_relay", "http", "metrics", "workers", "admit", "admit_fail_open", "plain", "acme"
)  # fmt: skip


@dataclass(slots=True)
class Sockets:
    """What a process listens on; it closes them at the end."""

    public: socket.socket
    stun: socket.socket | None = None
    http: socket.socket | None = None
    metrics: socket.socket | None = None
    siblings: socket.socket | None = None

    def all(self) -> list[socket.socket]:
        found = (self.public, self.stun, self.http, self.metrics, self.siblings)
        return [each for each in found if each is not None]


@dataclass(frozen=True, slots=True)
class Share:
    """What the workers of one relay share. slot: of this one; sockets: paths of the others' link sockets."""

    workers: int = 1
    slot: int = 0
    shared: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, SLOT_BYTES))
    sibling_key: str = ""
    sockets: tuple[str, ...] = ()


def open_sockets(settings: Settings, *, is_shared: bool = False) -> Sockets:
    """Bind and listen. is_shared: others bind the same ports. Raises Conflict, PermissionNeeded, ConfigError."""

    def listening(listen: str) -> socket.socket | None:
        if listen == "off":
            return None
        channel = bound(listen, socket.SOCK_STREAM, is_shared=is_shared)
        channel.listen(BACKLOG)
        return channel

    public = listening(settings.listen)
    assert public is not None
    stun = None if settings.stun == "off" else bound(settings.stun, socket.SOCK_DGRAM, is_shared=is_shared)
    return Sockets(public, stun, listening(settings.http), listening(settings.metrics))


@final
class Relaying:
    """The process. `run` until cancelled; `reload` on its loop when settings changed."""

    def __init__(
        self, paths: StatePaths, load: Callable[[], Settings], sockets: Sockets, share: Share | None = None
    ) -> None:
        self._paths = paths
        self._load = load
        self._settings = load()
        self._sockets = sockets
        self._share = share or Share()
        self._secret = relay_secret(paths)
        self._names_changed = asyncio.Event()
        self._state_admission = StateAdmission()
        settings = self._settings
        is_url = settings.admit not in ("state", "all")
        self._url_admission = UrlAdmission(settings.admit, fail_open=settings.admit_fail_open) if is_url else None
        admission = self._url_admission or self._state_admission
        self._metrics = Metrics(self._share.shared, self._share.workers, self._share.slot)
        self._context, self.certificate_pin = tls(paths, settings, public_key(self._secret.raw))
        self.reception = Reception(
            identity=RelayIdentity(self._secret),
            presence=Presence(Switch()),
            admit=allow_all if settings.admit == "all" else admission.admit,
            nonce=lambda: secrets.token_bytes(24),
            sibling_key=self._share.sibling_key,
            metrics=self._metrics.render,
        )
        self.reception.pages.proof = proof_page(paths)
        self.plane = Plane(self.reception, self._listeners(), Limits(Bucket(0, 0)))
        self._mesh = Mesh(self.plane, self._secret, self._share.sibling_key)
        self._apply(settings)
        self._quic: QuicPort | None = None
        self._peers = self._open_peer_relay(settings) if relays_peers(settings) else None
        if sockets.stun is not None and speaks_quic(settings):
            self._quic = self._open_quic(sockets.stun)
            self._quic.peers = self._peers
            self.plane.attach(self._quic.fileno(), self._quic.ready)
            self.plane.transports.append(self._quic)
            self._link_over_quic(self._quic, settings)
        elif sockets.stun is not None:
            responder = StunSocket(sockets.stun)
            responder.peers = self._peers
            self.plane.attach(responder.fileno(), responder.ready)

    def _open_peer_relay(self, settings: Settings) -> PeerRelay:
        secret = DiscoSecret(clamp(secrets.token_bytes(32)))
        share = self._share
        self._own_addresses = OwnAddresses(settings.hostname, split_listen(settings.stun)[1])
        relay = PeerRelay(
            secret, secrets.token_bytes, lambda: self._own_addresses.known, slot=share.slot, workers=share.workers
        )
        relay.limit(self.reception.bytes_per_second, self.reception.burst_bytes)
        Desk(self.plane, self.reception, relay)
        return relay

    def _open_quic(self, channel: socket.socket) -> QuicPort:
        from gw.quic.connection import random_cid, worker_cid
        from gw.quic.gate import Gate
        from gw.quic.selftest import fast_path_works
        from gw.relay.quicport import QuicPort

        share = self._share
        reset_key = hashlib.sha256(b"ghostwire relay reset" + self._secret.raw).digest()
        new_cid = random_cid if share.workers == 1 else worker_cid(share.slot, share.workers)
        gate = Gate(self._quic_settings(self._settings), reset_key, new_cid)
        wire = TrainSocket(channel)
        wire.answer_from_where_asked()
        return QuicPort(wire, self.reception, self._secret, self.plane, gate, reset_key, fast=fast_path_works())

    def _link_over_quic(self, port: QuicPort, settings: Settings) -> None:
        """Other relays may link here over QUIC, and we with them."""
        from gw.relay.quicdialer import QuicDialer
        from gw.relay.quiclinks import QuicLinks

        self.reception.udp_port = split_listen(settings.stun)[1]
        self._mesh.over_quic = QuicLinks(QuicDialer(port), self.plane)

    def _quic_settings(self, settings: Settings) -> QuicSettings:
        from gw.quic.configuration import server_settings
        from gw.wire.quic.frames import RELAY_ALPN

        pem, private, _ = certificate(self._paths, settings)
        return server_settings(RELAY_ALPN, pem, private)

    def _listeners(self) -> list[Listener]:
        found, sockets = [], self._sockets
        public = Offer(derp=True, local_metrics=not self._settings.plain)  # behind a proxy everybody looks local
        found.append(Listener(sockets.public, public, lambda: self._context))
        if sockets.http is not None:
            found.append(Listener(sockets.http, Offer(derp=False)))
        if sockets.metrics is not None:
            found.append(Listener(sockets.metrics, Offer(derp=False, metrics=True)))
        if sockets.siblings is not None:
            found.append(Listener(sockets.siblings, Offer()))
        return found

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. ready: called when clients are served."""
        _more_descriptors()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def forward() -> None:
            try:
                self.plane.run()
            except Exception:
                logger.exception("forwarding failed")
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(ended.set)

        thread = threading.Thread(target=forward, name="forwarding", daemon=True)
        thread.start()
        plane = self.plane
        plane.call(lambda: self._metrics.keep(plane))
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._url_admission is not None:
                    tasks.create_task(self._url_admission.follow(plane.look_again))
                elif self._settings.admit == "state":
                    tasks.create_task(self._state_admission.follow(self._paths, plane.look_again, self._drop))
                tasks.create_task(self._mesh.run())
                tasks.create_task(self._follow_map())
                if self._peers is not None:
                    tasks.create_task(self._own_addresses.follow())
                tasks.create_task(keep_names(self.reception.pages, self._names, self._names_changed))
                ready()
                await ended.wait()
                raise GwError("forwarding ended unexpectedly", hint="the log above says why; please report it")
        finally:
            plane.stop()
            await asyncio.to_thread(thread.join, STOP_S)
            for channel in self._sockets.all():
                channel.close()

    def _drop(self, node: bytes) -> None:
        """A node is not admitted any more."""
        self.plane.drop(node)
        peers = self._peers
        if peers is not None:
            self.plane.call(lambda: peers.drop(node))

    def reload(self) -> bool:
        """Take over changed settings and a renewed certificate; False where they are refused and all stays as it was.

        Clients that are connected stay; their TLS too.
        """
        try:
            settings = self._load()
            context, pin = tls(self._paths, settings, self.reception.identity.key)
            quic = self._quic_settings(settings) if self._quic is not None else None
            self._apply(settings)
        except GwError as error:
            logger.error("the settings stay as they were: %s", error.message)
            return False
        fixed = [name for name in RESTART_NEEDED if getattr(settings, name) != getattr(self._settings, name)]
        if fixed and self._share.slot == 0:
            logger.warning("restart the relay for the new %s", ", ".join(f"`{name}`" for name in fixed))
        self._context, self.certificate_pin = context, pin
        if self._quic is not None and quic is not None:
            self._quic.gate.settings = quic
        self._settings = settings
        self._names_changed.set()
        return True

    def enter_map(self) -> None:
        enter_map(self._paths, self._settings, self.certificate_pin, self.reception.identity.key)

    def _apply(self, settings: Settings) -> None:
        """The settings that may change while the relay runs."""
        key = mesh_key(settings)
        targets = mesh_targets(self._paths, settings)
        reception, plane = self.reception, self.plane
        if key != reception.mesh_key:
            reception.mesh_key = key
            plane.call(plane.close_links)  # whoever proved the one before
        self._mesh.set_targets([*targets, *(Target(host="worker", path=path) for path in self._share.sockets)])
        reception.pages.home = settings.home or HOME
        workers = self._share.workers
        plane.limits = Limits(
            Bucket(settings.accepts_per_second / workers, max(1, settings.accepts_burst / workers)),
            -(-settings.max_clients // workers),
            settings.max_clients_per_address,
        )
        rate, burst = settings.rate_bytes_per_second, max(settings.rate_burst_bytes, MIN_BURST_BYTES)

        def limit() -> None:
            if (reception.bytes_per_second, reception.burst_bytes) != (rate, burst):
                reception.bytes_per_second, reception.burst_bytes = rate, burst
                plane.limit()
                if self._peers is not None:
                    self._peers.limit(rate, burst)

        plane.call(limit)

    async def _follow_map(self) -> None:
        """Other relays of the region enter the map, and leave it."""
        while True:
            await asyncio.sleep(MAP_CHECK_S)
            if self._settings.mesh_key_file and not self._settings.mesh_with:
                siblings = [Target(host="worker", path=path) for path in self._share.sockets]
                self._mesh.set_targets([*mesh_targets(self._paths, self._settings), *siblings])

    def _names(self) -> tuple[list[str], list[str]]:
        settings = self._settings
        control = urlsplit(settings.server_url).hostname
        own = [name for name in (control, settings.hostname) if name]
        return settings.bootstrap_dns or list(dict.fromkeys(own)), settings.bootstrap_dns_unpublished


async def serve(
    paths: StatePaths,
    load: Callable[[], Settings],
    ready: Callable[[str], None],
    on_reload: Callable[[Callable[[], None]], None] = lambda callback: None,
) -> None:
    """One process, until cancelled."""
    settings = load()
    relaying = Relaying(paths, load, open_sockets(settings))
    relaying.enter_map()
    if settings.plain:
        logger.info("no TLS here: clients are told to come to port %d of `%s`", settings.public_port, settings.hostname)

    def reload() -> None:
        if relaying.reload():
            relaying.enter_map()

    on_reload(reload)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_certificate(paths, settings, reload))
        await relaying.run(lambda: ready(status(settings)))


def status(settings: Settings) -> str:
    udp = "STUN and QUIC" if speaks_quic(settings) else "STUN"
    return f"relay `{settings.region_code}` on {settings.listen}, {udp} on {settings.stun}"


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


def bound(listen: str, kind: socket.SocketKind, *, is_shared: bool = False) -> socket.socket:
    """A bound socket. Raises Conflict, PermissionNeeded, ConfigError."""
    host, port = split_listen(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        channel = socket.socket(family, kind)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def tls(paths: StatePaths, settings: Settings, relay_key: bytes) -> tuple[ssl.SSLContext | None, str]:
    """The server's TLS and the pin for the relay map; none and empty where there is no TLS or no pin."""
    if settings.plain:
        return None, ""
    pem, private, pin = certificate(paths, settings)
    made = certificates.context(paths.relay_dir, pem, private, relay_key, datetime.now(UTC))
    show_proofs(paths, settings, made)
    return made, pin


def certificate(paths: StatePaths, settings: Settings) -> tuple[bytes, bytes, str]:
    """Certificate and key as PEM, and the pin for the relay map, empty for a certificate of an authority."""
    make_folder(paths.relay_dir, 0o700)
    if settings.tls_cert_file:
        pem = _read(settings.tls_cert_file)
        return pem, _read(settings.tls_key_file) if settings.tls_key_file else _private(pem), ""
    if settings.acme.domains and certificate_file(paths).exists():
        pem = _read(str(certificate_file(paths)))
        return pem.partition(b"-----END PRIVATE KEY-----\n")[2], _private(pem).partition(b"-----BEGIN CERT")[0], ""
    pem = certificates.self_signed(paths.relay_dir / "self-signed.pem", settings.hostname, datetime.now(UTC))
    # no pin where an authority's is on its way: nodes would refuse it
    return pem, _private(pem), "" if settings.acme.domains else certificates.pin(pem)


def _private(pem: bytes) -> bytes:
    """The key of a file that holds certificate and key."""
    mark = b"-----BEGIN PRIVATE"
    return mark + pem.partition(mark)[2]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", path=path) from error
