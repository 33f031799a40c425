"""Pre-auth keys: `hskey-auth-<12 hex>-<64 hex>`, Headscale's form.

The prefix finds the key, the secret proves it. The secret has 256 random bits, so one fast hash guards it as well as a
slow one would: there is nothing to guess. Only the hash is stored, and it is compared in constant time.

Keys that were imported from Headscale stay good: its bcrypt hashes are checked as such, once, and replaced by ours when
a key proves itself; its older keys without a prefix (48 hex digits) are found by a hash of their text.

Ref: control protocol §4.4
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from gw.errors import AuthRequired

if TYPE_CHECKING:
    from gw.state.documents import ApiKeyDoc, PreauthKeyDoc

KEY_PREFIX: Final = "hskey-auth-"
PREFIX_BYTES: Final = 6
SECRET_BYTES: Final = 32
MAX_KEY_CHARS: Final = 1024
_LEGACY: Final = re.compile(r"[0-9a-f]{48}", re.ASCII)
_BCRYPT: Final = "$2"
_FORM: Final = re.compile(r"hskey-auth-([A-Za-z0-9_-]{12})-([A-Za-z0-9_-]{64})", re.ASCII)


def compose(prefix: bytes, secret: bytes) -> tuple[str, str, str]:
    """The whole key, its prefix id and the hash to store. prefix: 6 random bytes, secret: 32."""
    key = f"{KEY_PREFIX}{prefix.hex()}-{secret.hex()}"
    return key, prefix.hex(), hash_secret(secret.hex())


def hash_secret(secret: str) -> str:
    """64 hex digits: BLAKE2b-256 of the secret's text."""
    return hashlib.blake2b(secret.encode(), digest_size=32).hexdigest()


def split(key: str) -> tuple[str, str]:
    """Prefix id and secret of a key. Raises AuthRequired if the text is none; the text is not repeated."""
    text = key[:MAX_KEY_CHARS].strip()
    text = text.partition("--TL")[0]  # stock clients strip the tailnet-lock part themselves
    match = _FORM.fullmatch(text)
    if match is None and legacy_prefix(text):
        return legacy_prefix(text), text
    if match is None:
        raise AuthRequired("handling register with auth key: not a pre-auth key")
    return match[1], match[2]


def legacy_prefix(text: str) -> str:
    """What stands for the prefix of one of Headscale's older keys; "" for any other text."""
    return f"hs-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}" if _LEGACY.fullmatch(text) else ""


def is_slow(doc: PreauthKeyDoc | ApiKeyDoc) -> bool:
    """Whether the hash is Headscale's: `matches_slowly` takes some 60 ms of CPU."""
    return doc.hash.startswith(_BCRYPT)


def matches_slowly(doc: PreauthKeyDoc | ApiKeyDoc, secret: str) -> bool:
    """The same for Headscale's bcrypt hash. Blocks; releases the interpreter meanwhile."""
    import bcrypt

    try:
        return bcrypt.checkpw(secret.encode()[:72], doc.hash.encode())
    except ValueError:
        return False


def matches(doc: PreauthKeyDoc, secret: str) -> bool:
    return hmac.compare_digest(doc.hash, hash_secret(secret))


def check_usable(doc: PreauthKeyDoc, now: datetime) -> None:
    """Raise AuthRequired, in Headscale's words, for a key that may not admit another node."""
    if doc.revoked:
        raise AuthRequired("authkey revoked")
    if doc.expiration is not None and doc.expiration <= now:
        raise AuthRequired("authkey expired")
    if doc.used and not doc.reusable:
        raise AuthRequired("authkey already used")
