"""Which cipher the packet workers take."""

from __future__ import annotations

from types import ModuleType

import pytest
from cryptography.exceptions import InvalidTag

from gw.wire import awslc, cipher


class Aead:
    """As `qh3` has it, with something else inside."""

    def __init__(self, key: bytes, iv: bytes) -> None:
        self._aead = cipher.ChaCha20Poly1305(key)

    def encrypt(self, number: int, data: bytes, also: bytes) -> bytes:
        return self._aead.encrypt(bytes(4) + number.to_bytes(8, "big"), data, also)

    def decrypt(self, number: int, data: bytes, also: bytes) -> bytes:
        return self._aead.decrypt(bytes(4) + number.to_bytes(8, "big"), data, also)


class Careless(Aead):
    """Takes any tag."""

    def decrypt(self, number: int, data: bytes, also: bytes) -> bytes:
        try:
            return super().decrypt(number, data, also)
        except InvalidTag:
            return b""


class Turned(Aead):
    """Counts in another order."""

    def encrypt(self, number: int, data: bytes, also: bytes) -> bytes:
        return super().encrypt(cipher.reversed_counter(number), data, also)


def module(aead: type) -> ModuleType:
    made = ModuleType("_hazmat")
    made.AeadChaCha20Poly1305 = aead  # type: ignore[attr-defined]
    made.CryptoError = InvalidTag  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (module(Aead), cipher.AWS_LC),
        (module(Careless), cipher.OPENSSL),
        (module(Turned), cipher.OPENSSL),
        (ModuleType("_hazmat"), cipher.OPENSSL),  # another version, with other names
        (None, cipher.OPENSSL),
    ],
)
def test_only_a_cipher_that_is_right_is_taken(
    monkeypatch: pytest.MonkeyPatch, found: ModuleType | None, name: str
) -> None:
    monkeypatch.setattr(awslc, "load", lambda: found)
    assert cipher.choose.__wrapped__().name == name


def test_the_fast_one_is_installed_with_us() -> None:
    pytest.importorskip("qh3", reason="no wheel of `qh3` for this machine")
    assert cipher.choose().name == cipher.AWS_LC
    assert cipher.named(cipher.OPENSSL).numbered is False
