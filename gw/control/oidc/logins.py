"""Logins under way in browsers. Two steps, each bound to one browser by a cookie, each good for once and ten minutes.

    /register/ID        → Attempt: state, nonce, verifier        → the provider
    /oidc/callback      Attempt spent → Confirmation: token      → a page that shows device and person
    /register/confirm   Confirmation spent                       → the device is in

An AuthURL that somebody else sent begins a login of *their* device; the page in between is what stops it.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, final

from gw.control.oidc.identity import Identity

LIFETIME_S: Final = 600.0
MAX_UNDER_WAY: Final = 4096
MAX_FOR_ONE_DEVICE: Final = 8
RANDOM_BYTES: Final = 32


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """A person on the way to the provider and back."""

    auth_id: str
    nonce: str
    verifier: str  # RFC 7636: 43 characters


@final
@dataclass(frozen=True, slots=True)
class Confirmation:
    """A person who came back and has not said yet that the device is theirs."""

    auth_id: str
    identity: Identity


T = TypeVar("T", Attempt, Confirmation)


@final
@dataclass(frozen=True, slots=True)
class Ticket:
    """What a browser is given: `token` travels in the URL or form, `cookie` stays in the browser."""

    token: str
    cookie: str

    @property
    def cookie_name(self) -> str:
        return cookie_name(self.token)


def cookie_name(token: str) -> str:
    """Several logins in one browser do not disturb one another."""
    return f"gw-login-{token[:8]}"


@final
class Tickets(Generic[T]):
    """Things that wait for a browser to come back. now: monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._waiting: OrderedDict[str, tuple[T, str, float]] = OrderedDict()  # by token: what, cookie, until

    def __len__(self) -> int:
        return len(self._waiting)

    def issue(self, waiting: T) -> Ticket:
        """A ticket for it. Of one device, and of all, the oldest go where there are too many."""
        self._drop_old()
        same = [token for token, (other, _, _) in self._waiting.items() if other.auth_id == waiting.auth_id]
        for token in same[: max(0, len(same) + 1 - MAX_FOR_ONE_DEVICE)]:
            del self._waiting[token]
        while len(self._waiting) >= MAX_UNDER_WAY:
            self._waiting.popitem(last=False)
        ticket = Ticket(secrets.token_urlsafe(RANDOM_BYTES), secrets.token_urlsafe(RANDOM_BYTES))
        self._waiting[ticket.token] = waiting, ticket.cookie, self._now() + LIFETIME_S
        return ticket

    def redeem(self, token: str, cookie: str | None) -> T | None:
        """What waits under the token, for the browser with its cookie, once. A wrong cookie spends nothing."""
        self._drop_old()
        found = self._waiting.get(token)
        if found is None or cookie is None or not hmac.compare_digest(found[1].encode(), cookie.encode()):
            return None
        del self._waiting[token]
        return found[0]

    def _drop_old(self) -> None:
        while self._waiting:
            token, (_, _, until) = next(iter(self._waiting.items()))
            if until > self._now():
                return
            del self._waiting[token]
