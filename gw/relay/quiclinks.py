"""Which relays of the region are linked with over QUIC, beside the TLS links that tell where they speak it.

    TLS link up, the other end names its UDP port ──▶ the smaller relay key dials, the other after 3 s without a link
    a link ends, or does not come up ──▶ dialled again, ever more seldom while nothing answers

One link serves both directions. The TLS link stays: it carries what is sent while there is none over QUIC. A link over
QUIC that has lost the TLS link beside it for a minute is closed: the relay is none of the region any more.

Ref: spec quic §12
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, final

from gw.relay.session import Reception

LOOK_S: Final = 0.5
LEAD_S: Final = 3.0  # the smaller key's, and that of another worker of it
RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
ORPHAN_S: Final = 60.0


class Dialer(Protocol):
    """`gw.relay.quicdialer.QuicDialer`."""

    @property
    def reception(self) -> Reception: ...

    def dial(self, host: str, port: int, relay: bytes, ended: Callable[[bool], None]) -> Callable[[], None] | None:
        """Begin a link; returns what closes it, None where that address cannot be reached from here."""


@final
class _Known:
    """A relay that speaks QUIC. lines: TLS links that we dialled to it."""

    def __init__(self, host: str, port: int, due: float) -> None:
        self.host, self.port = host, port
        self.lines = 0
        self.orphaned_at = 0.0
        self.due = due  # when to dial, if there is no link then
        self.pause = RETRY_S
        self.close: Callable[[], None] | None = None


@final
class QuicLinks:
    """In the forwarding plane's thread."""

    def __init__(self, dialer: Dialer, loop: Any) -> None:
        """loop: has `now` and `arm_call`."""
        self._dialer = dialer
        self._loop = loop
        self._reception = dialer.reception
        self._known: dict[bytes, _Known] = {}
        self._is_looking = False

    def found(self, relay: bytes, host: str, port: int) -> None:
        """A TLS link to a relay tells that it speaks QUIC."""
        own = self._reception.identity.key
        if relay == own or not port:
            return
        due = self._loop.now + (0.0 if own < relay else LEAD_S)
        known = self._known.get(relay)
        if known is None:
            known = self._known[relay] = _Known(host, port, due)
        known.host, known.port = host, port
        known.due, known.pause = min(due, known.due), RETRY_S  # it may have been restarted
        known.lines += 1
        if not self._is_looking:
            self._is_looking = True
            self._look()

    def lost(self, relay: bytes) -> None:
        """The TLS link that told so has ended."""
        known = self._known.get(relay)
        if known is not None:
            known.lines -= 1
            known.orphaned_at = self._loop.now

    def _look(self) -> None:
        now = self._loop.now
        self._is_looking = bool(self._known)
        if self._is_looking:
            self._loop.arm_call(now + LOOK_S, self._look)
        for relay, known in list(self._known.items()):
            is_orphan = not known.lines and now - known.orphaned_at > ORPHAN_S
            if is_orphan and known.close is not None:
                known.close()
            if relay in self._reception.quic_links:
                known.due = now + (RETRY_S if self._reception.identity.key < relay else LEAD_S)
            elif known.close is None and is_orphan:
                del self._known[relay]
            elif known.close is None and known.lines and now >= known.due and self._reception.mesh_key:
                known.due = now + known.pause
                known.pause = min(2 * known.pause, MAX_RETRY_S)
                known.close = self._dialer.dial(known.host, known.port, relay, partial(_ended, known))


def _ended(known: _Known, was_up: bool) -> None:
    known.close = None
    if was_up:
        known.pause = RETRY_S
