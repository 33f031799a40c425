"""Session tickets over QUIC, a file each (0600): after a restart the first packets go with the handshake.

A ticket is worth the node key towards one relay or peer, for two hours, once. It is gone from the disk before it is
used. It is written whole but not made durable: packets would wait for the disk, and one that is lost costs a handshake.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final, final

from gw.errors import GwError
from gw.state.files import SECRET_MODE, make_folder, read_secret, write_temporary

log: Final = logging.getLogger(__name__)

MAX_BYTES: Final = 16 << 10


@final
class TicketFolder:
    """Implements the engine's `Tickets`. Without a disk to write to there is a full handshake, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, whose: str) -> bytes | None:
        path = self._path(whose)
        try:
            if not path.exists():
                return None
            raw = read_secret(path)
            path.unlink()
        except (OSError, GwError) as error:
            log.debug("no session ticket for `%s`: %s", whose, error)
            return None
        return raw if len(raw) <= MAX_BYTES else None

    def keep(self, whose: str, ticket: bytes) -> None:
        try:
            make_folder(self._folder, 0o700)
            path = self._path(whose)
            temporary = write_temporary(path, ticket, SECRET_MODE, durable=False)
            try:
                temporary.rename(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except (OSError, GwError) as error:
            log.debug("session ticket for `%s` not kept: %s", whose, error)

    def _path(self, whose: str) -> Path:
        return self._folder / hashlib.sha256(whose.encode()).hexdigest()[:32]
