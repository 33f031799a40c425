"""What protects 1-RTT packets of the fast path: sealing, opening and header masks of one direction and key phase.

    aws-lc   AES-GCM of AWS-LC, by `qh3`, where it is installed and right: a third of the time on a full packet
    openssl  by `cryptography`: always there

Packet workers use it too, so nothing here loads aioquic.

Ref: RFC 9001 §5
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from gw.native.quicpackets import SAMPLE_BYTES, Keys
from gw.wire import awslc

if TYPE_CHECKING:
    from aioquic.quic.crypto import CryptoContext

AES_128_GCM: Final = 0x1301  # TLS's numbers of suites
AES_256_GCM: Final = 0x1302
CHACHA20_POLY1305: Final = 0x1303
_FAST: Final = {
    AES_128_GCM: "AeadAes128Gcm",
    AES_256_GCM: "AeadAes256Gcm",
    CHACHA20_POLY1305: "AeadChaCha20Poly1305",
}


class Secrets(NamedTuple):
    """All that sealing or opening of one direction and phase takes, to be handed to another process."""

    suite: int
    key: bytes
    iv: bytes
    header_key: bytes
    phase: int

    def __repr__(self) -> str:
        return f"Secrets(suite={self.suite:#x}, phase={self.phase})"


def secrets_of(context: CryptoContext) -> Secrets:
    from aioquic.quic.crypto import derive_key_iv_hp

    suite, secret, version = context.cipher_suite, context.secret, context.version
    assert suite is not None and secret is not None and version is not None
    key, iv, header_key = derive_key_iv_hp(cipher_suite=suite, secret=secret, version=version)
    return Secrets(int(suite), key, iv, header_key, context.key_phase)


def make_keys(context: CryptoContext, *, sealing: bool, mask: Callable[[bytes], bytes] | None = None) -> Keys:
    """mask: of the phase before; header protection outlives a key update."""
    return keys_of(secrets_of(context), sealing=sealing, mask=mask)


def keys_of(secrets: Secrets, *, sealing: bool, mask: Callable[[bytes], bytes] | None = None) -> Keys:
    """mask: as for `make_keys`."""
    suite, key, iv, header_key, phase = secrets
    if mask is None:
        mask = _chacha_mask(header_key) if suite == CHACHA20_POLY1305 else _aes_mask(header_key)
    module = _awslc()
    aead = _stock(suite, key, iv) if module is None else getattr(module, _FAST[suite])(key, iv)
    return Keys(aead.encrypt if sealing else aead.decrypt, mask, phase)


class _Stock:
    """`cryptography`'s, called as `qh3`'s: (packet number, data, associated data)."""

    __slots__ = ("_aead", "_iv")

    def __init__(self, aead: AESGCM | ChaCha20Poly1305, iv: bytes) -> None:
        self._aead = aead
        self._iv = int.from_bytes(iv, "big")

    def encrypt(self, number: int, data: bytes, head: bytes) -> bytes:
        return self._aead.encrypt((self._iv ^ number).to_bytes(12, "big"), data, head)

    def decrypt(self, number: int, data: bytes, head: bytes) -> bytes:
        return self._aead.decrypt((self._iv ^ number).to_bytes(12, "big"), data, head)


def _stock(suite: int, key: bytes, iv: bytes) -> _Stock:
    return _Stock(ChaCha20Poly1305(key) if suite == CHACHA20_POLY1305 else AESGCM(key), iv)


@functools.cache
def _awslc() -> ModuleType | None:
    """AWS-LC's module, if it does what `cryptography` does."""
    module = awslc.load()
    try:
        if module is not None and all(_is_right(module, suite) for suite in _FAST):
            return module
    except Exception:  # whatever another version of it may do
        return None
    return None


def _is_right(module: Any, suite: int) -> bool:
    """Does it seal and open as `cryptography` does, and refuse a broken tag and another header?"""
    key, iv, head = bytes(range(16 if suite == AES_128_GCM else 32)), bytes(range(12)), bytes(13)
    ours, fast = _stock(suite, key, iv), getattr(module, _FAST[suite])(key, iv)
    for number, size in ((0, 1), (1, 64), (0xFFFF_FFFF, 1313), (1 << 61, 1453)):
        data = bytes(at & 0xFF for at in range(size))
        sealed = ours.encrypt(number, data, head)
        if fast.encrypt(number, data, head) != sealed or fast.decrypt(number, sealed, head) != data:
            return False
        for wrong in ((number, sealed[:-1] + bytes([sealed[-1] ^ 1]), head), (number, sealed, b"\1" + head[1:])):
            try:
                fast.decrypt(*wrong)
            except module.CryptoError:
                continue
            return False
    return True


def _aes_mask(key: bytes) -> Callable[[bytes], bytes]:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305  as RFC 9001 §5.4.3 has it


def _chacha_mask(key: bytes) -> Callable[[bytes], bytes]:
    def mask(samples: bytes) -> bytes:
        out = []
        for at in range(0, len(samples), SAMPLE_BYTES):
            cipher = Cipher(algorithms.ChaCha20(key, samples[at : at + SAMPLE_BYTES]), mode=None)
            out.append(cipher.encryptor().update(bytes(SAMPLE_BYTES)))
        return b"".join(out)

    return mask
