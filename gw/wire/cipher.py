"""Which ChaCha20-Poly1305 seals and opens the many: packets of the data plane, records of control connections.

    aws-lc   that of AWS-LC, by `qh3`, where it is installed: half the time on a full packet, a third on a small one
    openssl  that of OpenSSL, by `cryptography`: always there

`qh3` makes it for QUIC, whose nonce is a number, big-endian, over an initialisation vector. With a vector of zeros that
is the nonce of control connections: four zeros and a big-endian counter. WireGuard's counter is little-endian: there
the number is the counter with its bytes reversed. It is used only if it seals and opens as `cryptography` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gw.wire import awslc

AWS_LC: Final = "aws-lc"
OPENSSL: Final = "openssl"
_ZERO_IV: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class Cipher:
    """How keys become what the packet core calls.

    numbered: `seal(number, packet, b"")`, the number being the nonce, else `seal(nonce, packet, None)`; `unseal`
    likewise. refused: what `unseal` raises for a wrong tag.
    """

    name: str
    numbered: bool
    refused: type[Exception]
    make: Callable[[bytes], Any]

    def seal(self, key: bytes) -> Any:
        """Bound to a key of 32 bytes."""
        return self.make(key).encrypt

    def unseal(self, key: bytes) -> Any:
        """Bound to a key of 32 bytes."""
        return self.make(key).decrypt


_OPENSSL: Final = Cipher(OPENSSL, False, InvalidTag, ChaCha20Poly1305)


@functools.cache
def choose() -> Cipher:
    """The fastest that is here and right."""
    module = awslc.load()
    if module is None:
        return _OPENSSL
    try:
        aead = module.AeadChaCha20Poly1305
        fast = Cipher(AWS_LC, True, module.CryptoError, lambda key: aead(key, _ZERO_IV))
        return fast if _is_right(fast) else _OPENSSL
    except Exception:  # whatever another version of it may do
        return _OPENSSL


def named(name: str) -> Cipher:
    """The one that the engine has chosen."""
    return choose() if name == AWS_LC else _OPENSSL


def reversed_counter(counter: int) -> int:
    """The number of a numbered cipher for a counter of WireGuard."""
    return int.from_bytes(counter.to_bytes(8, "little"), "big")


def _is_right(cipher: Cipher) -> bool:
    """Does it what `cryptography` does, and refuse a broken tag?"""
    key = bytes(range(32))
    ours, seal, unseal = ChaCha20Poly1305(key), cipher.seal(key), cipher.unseal(key)
    for counter, size in ((0, 0), (1, 64), (0x80, 1280), (0xFFFF_FFFF, 31), (0x0123_4567_89AB_CDEF, 1420)):
        packet = bytes(n & 0xFF for n in range(size))
        sealed = ours.encrypt(bytes(4) + counter.to_bytes(8, "little"), packet, None)
        number = reversed_counter(counter)
        if seal(number, packet, b"") != sealed or unseal(number, sealed, b"") != packet:
            return False
        try:
            unseal(number, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"")
        except cipher.refused:
            continue
        return False
    return True
