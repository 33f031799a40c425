"""Which certificate `gwctl serve` has: files of its own, one from an authority, or none."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, final
from urllib.parse import urlsplit

from gw.acme.challenges import Publisher
from gw.control.tls.holder import CertificateHolder
from gw.errors import ConfigError, GwError
from gw.state.config import Config
from gw.state.files import make_folder
from gw.state.paths import StatePaths

logger = logging.getLogger(__name__)


@final
@dataclass(slots=True)
class Tls:
    """holder: None = plain HTTP. work: what has to run beside the server. proofs: for the plain listener.

    proof_folder: where connection workers find what an authority wants to see in a handshake; "" = nowhere.
    """

    holder: CertificateHolder | None = None
    work: list[Coroutine[Any, Any, None]] = field(default_factory=list)
    proofs: Mapping[str, str] = field(default_factory=dict)
    proof_folder: str = ""

    @property
    def context(self) -> ssl.SSLContext | None:
        return None if self.holder is None else self.holder.context

    def reload(self) -> None:
        """SIGHUP: read the files again."""
        if self.holder is not None:
            self.holder.reload()


def set_up(
    paths: StatePaths,
    config: Config,
    clock: Callable[[], datetime],
    publisher: Publisher | None = None,
    workers: int = 0,
) -> Tls:
    """What the settings ask for. workers: processes that hold the connections; 0 = this one.

    Raises ConfigError for files that cannot be used and a library that is missing.
    """
    hostname = urlsplit(config.server_url).hostname or ""
    if config.tls_cert_file:
        holder = CertificateHolder(config.tls_cert_file, config.tls_key_file, hostname, clock)
        holder.load()
        return Tls(holder, [holder.follow()])
    if config.acme.domains:
        return _from_authority(paths, config, hostname, clock, publisher, workers)
    return Tls()


def _from_authority(
    paths: StatePaths,
    config: Config,
    hostname: str,
    clock: Callable[[], datetime],
    publisher: Publisher | None,
    workers: int,
) -> Tls:
    from gw.acme.authority import Authority, require_library
    from gw.acme.challenges import AlpnChallenger, Challenger, DnsChallenger, HookPublisher, HttpChallenger
    from gw.acme.proofs import ProofFolder
    from gw.acme.renewal import Renewal

    require_library()
    folder = paths.keys_dir / "acme"
    make_folder(folder, 0o700)
    file = str(folder / "certificate.pem")  # key and chain together, so that one never goes without the other
    holder = CertificateHolder(file, file, hostname, clock)
    try:
        holder.load()
    except GwError as error:
        logger.info("a certificate for %s is asked for: %s", ", ".join(config.acme.domains), error.message)
    pages = HttpChallenger()
    challenger: Challenger = pages
    proof_folder = ""
    if config.acme.challenge == "tls-alpn-01" and workers:
        proof_folder = str(folder / "proofs")
        challenger = ProofFolder(folder / "proofs", "tls-alpn-01")
    elif config.acme.challenge == "tls-alpn-01":
        challenger = AlpnChallenger(holder)
    elif config.acme.challenge == "dns-01":
        chosen = HookPublisher(config.acme.dns_hook) if config.acme.dns_hook else publisher
        if chosen is None:
            raise ConfigError("dns-01 needs `dns_hook`, or a DNS backend", key="acme.challenge")
        challenger = DnsChallenger(chosen)
    renewal = Renewal(holder, Authority(config.acme, folder), challenger, list(config.acme.domains))
    return Tls(holder, [renewal.run()], pages.pages, proof_folder)
