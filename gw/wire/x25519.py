"""Curve25519 as every protocol here uses it. Randomness comes from the caller.

Ref: RFC 7748 §5, §6.1
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from gw.errors import WireError


def clamp(secret: bytes) -> bytes:
    """The 32 random bytes of a private key with the bits that RFC 7748 fixes."""
    return bytes([secret[0] & 248]) + secret[1:31] + bytes([(secret[31] & 127) | 64])


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
