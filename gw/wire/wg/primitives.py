"""The hashes, ciphers and clock stamp that WireGuard's Noise is made of.

Ref: whitepaper §5.4; RFC 7693 (BLAKE2s), RFC 8439 (ChaCha20-Poly1305)
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from gw.errors import WireError

HASH_BYTES: Final = 32
TAG_BYTES: Final = 16
MAC_BYTES: Final = 16
TAI64_EPOCH: Final = 0x400000000000000A
WHITENING: Final = (1 << 24) - 1  # low bits of the nanoseconds, cleared: about 16.8 ms


def blake2s(*parts: bytes) -> bytes:
    """32 bytes: BLAKE2s-256 of the parts joined."""
    return hashlib.blake2s(b"".join(parts)).digest()


def mac(key: bytes, data: bytes) -> bytes:
    """16 bytes: keyed BLAKE2s (not HMAC)."""
    return hashlib.blake2s(data, key=key, digest_size=MAC_BYTES).digest()


def kdf(key: bytes, data: bytes, count: int) -> tuple[bytes, ...]:
    """`count` keys of 32 bytes, HKDF with HMAC-BLAKE2s. Ref: KDFn of §5.4"""
    root = hmac.digest(key, data, hashlib.blake2s)
    keys: list[bytes] = []
    last = b""
    for i in range(1, count + 1):
        last = hmac.digest(root, last + bytes([i]), hashlib.blake2s)
        keys.append(last)
    return tuple(keys)


def seal(key: bytes, counter: int, plain: bytes, extra: bytes) -> bytes:
    """ChaCha20-Poly1305: plain plus 16 bytes."""
    return ChaCha20Poly1305(key).encrypt(bytes(4) + counter.to_bytes(8, "little"), plain, extra)


def unseal(key: bytes, counter: int, sealed: bytes, extra: bytes) -> bytes:
    """The plaintext. Raises WireError where the tag is wrong."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(4) + counter.to_bytes(8, "little"), sealed, extra)
    except InvalidTag:
        raise WireError("tag does not fit") from None


def xseal(key: bytes, nonce: bytes, plain: bytes, extra: bytes) -> bytes:
    """XChaCha20-Poly1305 with a random nonce of 24 bytes."""
    return crypto_aead_xchacha20poly1305_ietf_encrypt(plain, extra, nonce, key)


def xunseal(key: bytes, nonce: bytes, sealed: bytes, extra: bytes) -> bytes:
    """The plaintext. Raises WireError where the tag is wrong."""
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, extra, nonce, key)
    except CryptoError:
        raise WireError("tag does not fit") from None


def tai64n(wall_ns: int) -> bytes:
    """12 bytes that compare as the time does. wall_ns: nanoseconds since the Unix epoch."""
    seconds, nanoseconds = divmod(wall_ns, 1_000_000_000)
    return (TAI64_EPOCH + seconds).to_bytes(8, "big") + (nanoseconds & ~WHITENING).to_bytes(4, "big")
