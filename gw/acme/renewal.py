"""A certificate that renews itself: asked for at start where there is none, again when two thirds of its life are over.

Failures are tried again after one minute, then twice as long each time up to six hours, each time a little different,
so that an authority that was away is not stormed. What there is stays in force meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, final

from cryptography import x509

from gw.acme.challenges import Challenger
from gw.errors import GwError
from gw.net.certificates import Certificate
from gw.state.files import write_secret

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 60.0
MAX_RETRY_S: Final = 6 * 3600.0
LONGEST_SLEEP_S: Final = 24 * 3600.0
JITTER: Final = 0.1


class Issuer(Protocol):
    async def issue(self, challenger: Challenger) -> bytes: ...


class Holder(Protocol):
    """Who has the certificate in use, from one file."""

    cert_file: str
    current: Certificate | None

    def now(self) -> datetime: ...

    def load(self) -> None:
        """The file is another one: take it over. Raises GwError."""


@final
class Renewal:
    """Keeps the holder's file in good time. random_01: for jitter."""

    def __init__(
        self,
        holder: Holder,
        authority: Issuer,
        challenger: Challenger,
        domains: list[str],
        random_01: Callable[[], float] = random.random,
    ) -> None:
        self._holder = holder
        self._authority = authority
        self._challenger = challenger
        self._domains = domains
        self._random = random_01
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            wait_s = await self.step()
            await asyncio.sleep(min(wait_s, LONGEST_SLEEP_S))

    async def step(self) -> float:
        """Renew if it is time. Returns the seconds until the next look."""
        wait_s = self.due_in_s()
        if wait_s > 0:
            return wait_s
        try:
            pem = await self._authority.issue(self._challenger)
            await asyncio.to_thread(write_secret, self._path, pem)
            self._holder.load()
        except GwError as error:
            self._failures += 1
            retry_s: float = min(FIRST_RETRY_S * 2 ** min(self._failures - 1, 16), MAX_RETRY_S)
            retry_s *= 1 + self._random()
            logger.error(
                "no new certificate, tried again in %d min: %s%s", retry_s / 60, error.message,
                f"; {error.hint}" if error.hint else "",
            )  # fmt: skip
            return retry_s
        self._failures = 0
        return max(self.due_in_s(), FIRST_RETRY_S)

    def due_in_s(self) -> float:
        """Seconds until the certificate should be renewed; 0 where there is none that fits."""
        current = self._holder.current
        if current is None or not set(self._domains) <= set(current.names):
            return 0.0
        return max(0.0, (renew_at(current.leaf, self._spread) - self._holder.now()).total_seconds())

    @property
    def _spread(self) -> float:
        """The same for one certificate, so that a restart does not throw the dice again."""
        current = self._holder.current
        return 0.0 if current is None else (current.leaf.serial_number % 1000) / 1000

    @property
    def _path(self) -> Path:
        return Path(self._holder.cert_file)


def renew_at(leaf: x509.Certificate, spread: float) -> datetime:
    """When two thirds of the life are over, up to a tenth of it earlier. spread: 0…1."""
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return begins + (ends - begins) * (2 / 3 - JITTER * spread)
