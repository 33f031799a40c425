"""Which ChaCha20-Poly1305 the packet workers seal and open with.

    aws-lc   that of AWS-LC, by `qh3`, where it is installed: half the time on a full packet, a third on a small one
    openssl  that of OpenSSL, by `cryptography`: always there

`qh3` makes it for QUIC, whose nonce is a number, big-endian, over an initialisation vector. WireGuard's nonce is four
zeros and a counter, little-endian: so the vector is zero and the number is the counter with its bytes reversed. Its
module is not a promise of theirs, so it is used only if it seals and opens as `cryptography` does; and it is loaded
without the package around it, which would take a quarter of a second.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

AWS_LC: Final = "aws-lc"
OPENSSL: Final = "openssl"
_MODULE: Final = "qh3._hazmat"
_ZERO_IV: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class Cipher:
    """How keys become what the packet core calls.

    numbered: `seal(number, packet, b"")` with the counter's bytes reversed, else `seal(nonce, packet, None)`; `unseal`
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
    module = _load()
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
    """The number of a numbered cipher."""
    return int.from_bytes(counter.to_bytes(8, "little"), "big")


def _load() -> ModuleType | None:
    """The extension module, without the package that it lies in."""
    known = sys.modules.get(_MODULE)
    if known is not None:
        return known
    try:
        package = importlib.util.find_spec("qh3")
        if package is None or not package.submodule_search_locations:
            return None
        spec = importlib.machinery.PathFinder.find_spec("_hazmat", package.submodule_search_locations)
        if spec is None or spec.origin is None:
            return None
        spec = importlib.util.spec_from_file_location(_MODULE, spec.origin)
        if spec is None or spec.loader is None:
            return None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception:  # built for another system, or broken
        return None
    sys.modules[_MODULE] = module  # it can be loaded once a process
    return module


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
