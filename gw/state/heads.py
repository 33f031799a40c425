"""Signed heads of the event trail: who keeps one elsewhere can prove later that nothing up to it was changed.

    {"seq":12,"hash":"<64 hex>","time":"2031-05-01T10:00:00+00:00","key":"<64 hex>","signature":"<128 hex>"}

hash: of line `seq` of the trail, and through it of every line before. The signature (Ed25519) is over the ASCII text
`ghostwire event trail head v1`, seq, hash and time, each with a newline behind it.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from gw.errors import UsageError
from gw.state.files import read_secret, write_secret

CONTEXT: Final = "ghostwire event trail head v1"
KEY_FILE: Final = "events.key"


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of how far the trail went. key: the public key, hex."""

    seq: int
    hash: str
    time: str
    key: str
    signature: str

    def message(self) -> bytes:
        """What is signed."""
        return message(self.seq, self.hash, self.time)

    def is_genuine(self) -> bool:
        """Whether the signature fits the key that the head itself names."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))
            key.verify(bytes.fromhex(self.signature), self.message())
        except (InvalidSignature, ValueError):
            return False
        return True


def message(seq: int, digest: str, time: str) -> bytes:
    return f"{CONTEXT}\n{seq}\n{digest}\n{time}\n".encode()


def decode_head(raw: bytes, where: str) -> Head:
    """A head out of a file. Raises UsageError naming the place."""
    try:
        return msgspec.json.decode(raw, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"not a head of an event trail: `{where}`: {error}") from None


def signing_key(path: Path) -> Any:
    """The Ed25519 key that signs heads, made at the first use. Raises GwError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        write_secret(path, secrets.token_bytes(32).hex().encode() + b"\n")
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(read_secret(path).decode().strip()))
    except ValueError:
        raise UsageError(f"not an Ed25519 key: `{path}`", hint="move it away: the next start makes a new one") from None


def public_hex(key: Any) -> str:
    raw: bytes = key.public_key().public_bytes_raw()
    return raw.hex()


def sign(key: Any, seq: int, digest: str, wall: float) -> Head:
    """A head for line `seq`. key: from `signing_key`; wall: UTC seconds."""
    time = datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")
    signature = key.sign(message(seq, digest, time)).hex()
    return Head(seq=seq, hash=digest, time=time, key=public_hex(key), signature=signature)
