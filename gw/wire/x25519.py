"""Curve25519 as every protocol here uses it. Randomness comes from the caller; a pair that is used for one handshake
alone may come from `fresh_pair`, which the caller of that handshake calls.

Ref: RFC 7748 §5, §6.1
"""

from __future__ import annotations

import functools
import secrets
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gw.errors import WireError
from gw.wire import awslc


def clamp(secret: bytes) -> bytes:
    """The 32 random bytes of a private key with the bits that RFC 7748 fixes."""
    return bytes([secret[0] & 248]) + secret[1:31] + bytes([(secret[31] & 127) | 64])


class Pair(Protocol):
    """A secret and its public key."""

    @property
    def public(self) -> bytes:
        """32 bytes."""

    def exchange(self, public: bytes) -> bytes:
        """The 32-byte shared secret. Raises WireError where it would be all zero (a small-order public key)."""


class KeyPair:
    """A secret that is used more than once: its public key is worked out when it is made, and not with every use."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes) -> None:
        self._secret = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._secret.public_key().public_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """The 32-byte shared secret. Raises WireError where it would be all zero (a small-order public key)."""
        try:
            return self._secret.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise WireError("public key of small order") from None


def public_key(secret: bytes) -> bytes:
    """The 32-byte public key of a 32-byte secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def exchange(secret: bytes, public: bytes) -> bytes:
    """The 32-byte shared secret. Raises WireError where it would be all zero (a small-order public key)."""
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise WireError("public key of small order") from None


def fresh_pair() -> Pair:
    """A pair that nobody knew before. AWS-LC's where it is there: less than half of the time."""
    make = _awslc_pair()
    return KeyPair(secrets.token_bytes(32)) if make is None else _AwsLcPair(make())


class _AwsLcPair:
    __slots__ = ("_secret", "public")

    def __init__(self, secret: Any) -> None:
        self._secret = secret
        self.public: bytes = secret.public_key()

    def exchange(self, public: bytes) -> bytes:
        try:
            shared: bytes = self._secret.exchange(public)
        except Exception:  # an error of a module that does not name it
            raise WireError("public key of small order") from None
        return shared


@functools.cache
def _awslc_pair() -> Any:
    """What makes secrets, if it is right."""
    module = awslc.load()
    try:
        if module is None:
            return None
        make, ours = module.X25519KeyExchange, KeyPair(bytes(range(32)))
        one, other = _AwsLcPair(make()), _AwsLcPair(make())
        if one.public == other.public or not one.exchange(ours.public) == ours.exchange(one.public) != bytes(32):
            return None
        if one.exchange(ours.public) != ours.exchange(one.public):  # a second time
            return None
        try:
            one.exchange(bytes(32))
        except WireError:
            return make
    except Exception:  # whatever another version of it may do
        return None
    return None
