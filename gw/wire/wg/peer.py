"""One peer: its three keypairs, its handshake under way, and the timers that follow from traffic.

    previous   may still be received with
    current    is sent and received with
    next       a responder's new keypair, until the initiator's first packet proves that it has it too

Traffic is sealed elsewhere, so the peer learns of it from `Activity`, four time stamps sampled now and then.

Ref: whitepaper §6; wireguard-go device/timers.go, keypair.go
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from gw.wire.wg.cookies import CookieJar
from gw.wire.wg.handshake import NO_PSK, Initiated, Keypair

REKEY_AFTER_S: Final = 120.0
REJECT_AFTER_S: Final = 180.0
REKEY_ATTEMPT_S: Final = 90.0
REKEY_TIMEOUT_S: Final = 5.0
REKEY_JITTER_S: Final = 0.333
KEEPALIVE_S: Final = 10.0
NEW_HANDSHAKE_S: Final = KEEPALIVE_S + REKEY_TIMEOUT_S
REKEY_ON_RECEIVE_S: Final = REJECT_AFTER_S - KEEPALIVE_S - REKEY_TIMEOUT_S
MAX_ATTEMPTS: Final = 18  # further tries after the first two: 90 s of them
FLOOD_S: Final = 0.02

NEVER: Final = float("-inf")


class Activity(NamedTuple):
    """When traffic last passed, monotonic seconds, NEVER if not yet. `any` counts keepalives, `data` does not."""

    sent_data: float = NEVER
    sent_any: float = NEVER
    received_data: float = NEVER
    received_any: float = NEVER


@final
class Peer:
    """State of one peer; `Device` moves it."""

    __slots__ = (
        "attempts",
        "current",
        "initiated_at",
        "jar",
        "key",
        "last_initiation_at",
        "last_timestamp",
        "latest_handshake",
        "next",
        "owed_since",
        "pending",
        "previous",
        "psk",
        "rekeyed",
        "retry_at",
        "static_shared",
        "unanswered_since",
    )

    def __init__(self, key: bytes, psk: bytes = NO_PSK) -> None:
        self.key: Final = key
        self.psk: Final = psk
        self.jar: Final = CookieJar(key)
        self.static_shared = b""
        self.previous: Keypair | None = None
        self.current: Keypair | None = None
        self.next: Keypair | None = None
        self.pending: Initiated | None = None
        self.attempts = 0
        self.initiated_at = NEVER
        self.retry_at: float | None = None
        self.last_timestamp = b""
        self.last_initiation_at = NEVER
        self.latest_handshake = NEVER  # a keypair came up
        self.rekeyed = False  # a new handshake was begun because `current` is old
        self.unanswered_since: float | None = None
        self.owed_since: float | None = None

    def keypairs(self) -> list[Keypair]:
        return [keypair for keypair in (self.previous, self.current, self.next) if keypair is not None]

    def is_usable(self, now: float) -> bool:
        """True where data may be sent now."""
        return self.current is not None and now - self.current.created < REJECT_AFTER_S

    def install_initiated(self, keypair: Keypair) -> list[Keypair]:
        """Our handshake was answered: the new keypair is current. Returns those to forget."""
        forget = [self.previous] if self.previous is not None else []
        if self.next is not None:
            forget += [self.current] if self.current is not None else []
            self.previous = self.next
            self.next = None
        else:
            self.previous = self.current
        self.current = keypair
        self._fresh(keypair)
        return forget

    def install_responded(self, keypair: Keypair) -> list[Keypair]:
        """We answered: the new keypair waits as next. Returns those to forget."""
        forget = [old for old in (self.previous, self.next) if old is not None]
        self.previous = None
        self.next = keypair
        return forget

    def confirm(self, local_index: int) -> tuple[Keypair | None, list[Keypair]]:
        """The first packet on `next` came: (the keypair now current, those to forget)."""
        if self.next is None or self.next.local_index != local_index:
            return None, []
        forget = [self.previous] if self.previous is not None else []
        self.previous, self.current, self.next = self.current, self.next, None
        self._fresh(self.current)
        return self.current, forget

    def observe(self, activity: Activity, now: float) -> tuple[bool, bool]:
        """Follow traffic: (begin a handshake, send a keepalive)."""
        self.unanswered_since = _waiting_since(self.unanswered_since, activity.sent_data, activity.received_any)
        self.owed_since = _waiting_since(self.owed_since, activity.received_data, activity.sent_any)
        begin = False
        if self.unanswered_since is not None and now - self.unanswered_since >= NEW_HANDSHAKE_S:
            self.unanswered_since = None
            begin = True
        current = self.current
        if current is not None and current.initiator and not self.rekeyed:
            age = now - current.created
            sent = age > REKEY_AFTER_S and activity.sent_data - current.created > REKEY_AFTER_S
            heard = age >= REKEY_ON_RECEIVE_S and activity.received_data - current.created >= REKEY_ON_RECEIVE_S
            if sent or heard:
                self.rekeyed = True
                begin = True
        keepalive = self.owed_since is not None and now - self.owed_since >= KEEPALIVE_S
        if keepalive:
            self.owed_since = None
        return begin, keepalive

    def expire(self, now: float) -> list[Keypair]:
        """Take out keypairs too old to be received with."""
        old = [keypair for keypair in self.keypairs() if now - keypair.created >= REJECT_AFTER_S]
        for keypair in old:
            if keypair is self.previous:
                self.previous = None
            if keypair is self.current:
                self.current = None
            if keypair is self.next:
                self.next = None
        return old

    def _fresh(self, keypair: Keypair) -> None:
        self.latest_handshake = keypair.created
        self.rekeyed = False
        self.unanswered_since = None


def _waiting_since(since: float | None, asked: float, answered: float) -> float | None:
    """Since when something has waited for an answer, None for nothing. An answer ends the waiting for all before."""
    if since is not None and answered < since:
        return since
    return asked if asked > answered else None
