"""The relay's certificate from an authority. One process asks, every worker shows the proofs.

relay/acme/certificate.pem    key and chain (0600); until it is there the relay has one of its own making
relay/acme/proofs/            what the authority wants to see, for a minute or so
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, final

from gw.acme import proofs
from gw.errors import GwError
from gw.net import certificates
from gw.net.certificates import Certificate
from gw.relay.settings import Settings
from gw.state.files import make_folder
from gw.state.paths import StatePaths

logger = logging.getLogger(__name__)

FOLDER: Final = "acme"


def certificate_file(paths: StatePaths) -> Path:
    """Key and chain, where an authority has given one."""
    return paths.relay_dir / FOLDER / "certificate.pem"


def show_proofs(paths: StatePaths, settings: Settings, context: ssl.SSLContext) -> None:
    """Have handshakes with these settings look for proofs, where the authority checks names so."""
    if settings.acme.domains and settings.acme.challenge == "tls-alpn-01":
        context.sni_callback = proofs.chooser(_proofs(paths))


def proof_page(paths: StatePaths) -> Callable[[str], str]:
    """A function token -> page that an authority wants to read now, empty for none."""
    folder = _proofs(paths)
    return lambda token: proofs.page(folder, token)


@final
class _Held:
    """The certificate's file. taken: called when there is another one."""

    def __init__(self, path: Path, taken: Callable[[], None]) -> None:
        self.cert_file = str(path)
        self.current: Certificate | None = None
        self._taken = taken

    def now(self) -> datetime:
        return datetime.now(UTC)

    def read(self) -> None:
        self.current = certificates.read(self.cert_file, "")

    def load(self) -> None:
        self.read()
        assert self.current is not None
        ends = self.current.leaf.not_valid_after_utc.date()
        logger.info("certificate for %s until %s", ", ".join(self.current.names[:5]), ends)
        self._taken()


async def keep_certificate(paths: StatePaths, settings: Settings, taken: Callable[[], None]) -> None:
    """Ask for a certificate and renew it in time; until cancelled, at once where none is wanted. Raises ConfigError."""
    acme = settings.acme
    if not acme.domains:
        return
    from gw.acme.authority import Authority, require_library
    from gw.acme.challenges import Challenger, DnsChallenger, HookPublisher
    from gw.acme.renewal import Renewal

    require_library()
    path = certificate_file(paths)
    make_folder(path.parent, 0o700)
    held = _Held(path, taken)
    try:
        held.read()
    except GwError as error:
        logger.info("a certificate for %s is asked for: %s", ", ".join(acme.domains), error.message)
    if acme.challenge == "dns-01":
        challenger: Challenger = DnsChallenger(HookPublisher(acme.dns_hook))
    else:
        challenger = proofs.ProofFolder(_proofs(paths), acme.challenge)
    await Renewal(held, Authority(acme, path.parent), challenger, list(acme.domains)).run()


def _proofs(paths: StatePaths) -> Path:
    return paths.relay_dir / FOLDER / "proofs"
