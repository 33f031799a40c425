"""The certificate in force: read at start, again when its files change or SIGHUP comes, and watched for its end.

A bad new file never replaces a good one: the error is said once, and what was there stays. Connections that stand keep
theirs. While an authority checks a name by TLS-ALPN-01, handshakes for that name get the certificate it looks for.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, final

from gw.errors import GwError
from gw.net import certificates
from gw.net.certificates import Certificate

logger = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 12 * 3600.0
LOOK_MS: Final = 5000  # where the file system tells nothing
SETTLE_MS: Final = 500  # certificate and key are written one after the other


@final
class CertificateHolder:
    """Files of a certificate and what was read of them. hostname: that clients ask for; clock: wall, UTC."""

    def __init__(self, cert_file: str, key_file: str, hostname: str, clock: Callable[[], datetime]) -> None:
        self.cert_file, self.key_file = cert_file, key_file
        self.current: Certificate | None = None
        self.context = certificates.server_context()  # the same one for ever; without a certificate handshakes fail
        self._challenges: dict[str, ssl.SSLContext] = {}
        self._hostname = hostname
        self._clock = clock
        self._seen: list[tuple[int, int, int]] = []

    def now(self) -> datetime:
        return self._clock()

    def load(self) -> None:
        """Read the files. Raises ConfigError, and then nothing has changed."""
        self._seen = self._marks()
        fresh = certificates.read(self.cert_file, self.key_file)
        self.context.load_cert_chain(self.cert_file, self.key_file or None)
        is_new = self.current is None or self.current.leaf != fresh.leaf
        self.current = fresh
        if is_new:
            self._say_doubts()
            logger.info(
                "certificate for %s until %s", ", ".join(fresh.names[:5]), fresh.leaf.not_valid_after_utc.date()
            )

    def _marks(self) -> list[tuple[int, int, int]]:
        """What tells whether the files are others, also behind links that were turned."""
        found = []
        for path in (self.cert_file, self.key_file):
            try:
                status = Path(path).stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found

    def reload(self) -> None:
        """Read the files again; what cannot be used is said, and the last good certificate stays."""
        try:
            self.load()
        except GwError as error:
            logger.error("the certificate stays as it was: %s", error.message)

    def show(self, name: str, context: ssl.SSLContext) -> None:
        """Answer handshakes for this name with another certificate until `hide`. Ref: RFC 8737

        An authority asks within seconds; who else connects by this name meanwhile is refused by its own checks, and
        tries again.
        """
        self._challenges[name.lower()] = context
        self.context.sni_callback = self._choose

    def hide(self, name: str) -> None:
        self._challenges.pop(name.lower(), None)
        if not self._challenges:
            self.context.sni_callback = None

    def _choose(self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        challenge = self._challenges.get((name or "").lower())
        if challenge is not None:
            tls.context = challenge

    async def follow(self) -> None:
        """Take over new files as they appear, and warn before the certificate ends; until cancelled."""
        from watchfiles import awatch

        folders = {str(Path(path).parent) for path in (self.cert_file, self.key_file) if path}
        while True:
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    async for _ in awatch(
                        *folders, step=SETTLE_MS, recursive=False, rust_timeout=LOOK_MS, yield_on_timeout=True
                    ):
                        if self._marks() != self._seen:
                            self.reload()
            except TimeoutError:
                self.reload()
                self._say_doubts()
            except OSError as error:
                logger.warning("the certificate's folder cannot be watched, SIGHUP works: %s", error)
                await asyncio.sleep(LOOK_AGAIN_S)

    def _say_doubts(self) -> None:
        if self.current is None:
            return
        for doubt in self.current.doubts(self._hostname, self._clock()):
            logger.warning("certificate %s: %s", self.cert_file, doubt)
        if certificates.is_open_to_others(self.key_file or self.cert_file):
            logger.warning("the key is readable by everybody: chmod 640 %s", self.key_file or self.cert_file)
