"""The two macs of a handshake message, and the cookies that make a sender prove its address under load.

`CookieChecker` is the receiver's end: cheap tests before any elliptic curve. `CookieJar` is the sender's, one a peer.

Ref: whitepaper §5.4.4, §5.4.7, §6.6
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, final

from gw.errors import WireError
from gw.wire.wg.messages import MACS_BYTES, CookieReply, cookie_reply
from gw.wire.wg.primitives import MAC_BYTES, blake2s, mac, xseal, xunseal

LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"
COOKIE_LIFE_S: Final = 120.0
UNDER_LOAD_S: Final = 1.0
BUSY_HANDSHAKES: Final = 128  # initiations in one second: more is load
SOURCE_RATE: Final = 20.0  # handshakes a second that one address may cost us under load
SOURCE_BURST: Final = 5.0
MAX_SOURCES: Final = 4096
IPV6_BYTES: Final = 16
IPV6_PREFIX_BYTES: Final = 8
_NO_MAC: Final = bytes(MAC_BYTES)


@final
class CookieJar:
    """The macs of what we send to one peer, and the cookie it gave us."""

    __slots__ = ("_cookie", "_cookie_at", "_cookie_key", "_last_mac1", "_mac1_key")

    def __init__(self, theirs: bytes) -> None:
        self._mac1_key = blake2s(LABEL_MAC1, theirs)
        self._cookie_key = blake2s(LABEL_COOKIE, theirs)
        self._last_mac1 = b""
        self._cookie = b""
        self._cookie_at = 0.0

    def sign(self, body: bytes, now: float) -> bytes:
        """The whole message: body, mac1, and mac2 where a fresh cookie is there."""
        self._last_mac1 = mac(self._mac1_key, body)
        signed = body + self._last_mac1
        if self._cookie and now - self._cookie_at < COOKIE_LIFE_S:
            return signed + mac(self._cookie, signed)
        return signed + _NO_MAC

    def keep(self, reply: CookieReply, now: float) -> None:
        """Take a cookie that answers our last message. Raises WireError."""
        if not self._last_mac1:
            raise WireError("cookie for nothing we sent")
        self._cookie = xunseal(self._cookie_key, reply.nonce, reply.sealed, self._last_mac1)
        self._cookie_at = now
        self._last_mac1 = b""


@final
class CookieChecker:
    """Decides which handshake messages are worth a curve operation."""

    def __init__(self, ours: bytes, random_bytes: Callable[[int], bytes]) -> None:
        """ours: our static public key."""
        self._mac1_key = blake2s(LABEL_MAC1, ours)
        self._cookie_key = blake2s(LABEL_COOKIE, ours)
        self._random = random_bytes
        self._secret = b""
        self._secret_at = 0.0
        self._window_start = 0.0
        self._in_window = 0
        self._loaded_until = 0.0
        self._tokens: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # address -> tokens, when

    def is_for_us(self, datagram: bytes) -> bool:
        """True where mac1 is right: the sender knows our public key."""
        body = datagram[:-MACS_BYTES]
        return hmac.compare_digest(mac(self._mac1_key, body), datagram[-MACS_BYTES:-MAC_BYTES])

    def note(self, now: float) -> bool:
        """Count one handshake message; True while there are so many that senders must prove their address."""
        if now - self._window_start >= 1.0:
            self._window_start, self._in_window = now, 0
        self._in_window += 1
        if self._in_window > BUSY_HANDSHAKES:
            self._loaded_until = now + UNDER_LOAD_S
        return now < self._loaded_until

    def has_cookie(self, datagram: bytes, source: bytes, now: float) -> bool:
        """True where mac2 was made with the cookie of `source` (address and port, any fixed encoding)."""
        if not self._secret or now - self._secret_at >= COOKIE_LIFE_S:
            return False
        cookie = mac(self._secret, source)
        return hmac.compare_digest(mac(cookie, datagram[:-MAC_BYTES]), datagram[-MAC_BYTES:])

    def may_pass(self, address: bytes, now: float) -> bool:
        """Take one token of this address; False where it asks too often. An IPv6 host has a whole /64 to ask from."""
        if len(address) == IPV6_BYTES:
            address = address[:IPV6_PREFIX_BYTES]
        tokens, at = self._tokens.pop(address, (SOURCE_BURST, now))
        tokens = min(SOURCE_BURST, tokens + (now - at) * SOURCE_RATE)
        allowed = tokens >= 1.0
        self._tokens[address] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._tokens) > MAX_SOURCES:
            self._tokens.popitem(last=False)
        return allowed

    def reply(self, datagram: bytes, sender_index: int, source: bytes, now: float) -> bytes:
        """The cookie reply to a handshake message that was turned away."""
        if not self._secret or now - self._secret_at >= COOKIE_LIFE_S:
            self._secret, self._secret_at = self._random(32), now
        nonce = self._random(24)
        sealed = xseal(self._cookie_key, nonce, mac(self._secret, source), datagram[-MACS_BYTES:-MAC_BYTES])
        return cookie_reply(CookieReply(sender_index, nonce, sealed))
