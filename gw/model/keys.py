"""Curve25519 keys, one type a role, so that a disco key can never be passed where a node key is meant.

Text form: a fixed prefix and 64 lower-case hex digits (`nodekey:5f…`). The secret twins never print themselves:
`str`, `repr` and `format` show only whose secret it is. Deriving a public key is `gw.wire.x25519.public_key`.

Ref: tailscale types/key/*.go
"""

from __future__ import annotations

import base64
import hmac
from typing import ClassVar, Final, Self, final

from gw.errors import WireError

KEY_BYTES: Final = 32


class _Key:
    prefix: ClassVar[str] = ""
    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        """raw: exactly 32 bytes. Raises WireError on any other length."""
        if len(raw) != KEY_BYTES:
            raise WireError(f"{type(self).__name__} of {len(raw)} bytes")
        self.raw: Final = bytes(raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; upper-case hex is accepted. Raises WireError."""
        if not text.startswith(cls.prefix) or len(text) != len(cls.prefix) + 2 * KEY_BYTES:
            raise WireError(f"not a {cls.__name__}")
        try:
            return cls(bytes.fromhex(text[len(cls.prefix) :]))
        except ValueError:
            raise WireError(f"not a {cls.__name__}") from None

    @classmethod
    def zero(cls) -> Self:
        """The all-zero key, which stands for "absent" on the wire."""
        return cls(bytes(KEY_BYTES))

    def __bool__(self) -> bool:
        """False for the zero key."""
        return any(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and type(other) is type(self) and hmac.compare_digest(self.raw, other.raw)

    def __hash__(self) -> int:
        return hash(self.raw)


class _PublicKey(_Key):
    __slots__ = ()

    def __str__(self) -> str:
        return self.prefix + self.raw.hex()

    def short(self) -> str:
        """Five base64 characters in brackets, as Tailscale prints keys: `[AbCdE]`."""
        return f"[{base64.b64encode(self.raw).decode()[:5]}]"

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.short()}"


class _SecretKey(_Key):
    __slots__ = ()

    def text(self) -> str:
        """The text form, for a 0600 file and nothing else."""
        return self.prefix + self.raw.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}[secret]"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> str:
        raise TypeError("secret keys do not pickle")


@final
class NodeKey(_PublicKey):
    """A node's WireGuard public key; rotates when the node logs in again."""

    prefix = "nodekey:"
    __slots__ = ()


@final
class MachineKey(_PublicKey):
    """A machine's identity towards the control server (Noise static key)."""

    prefix = "mkey:"
    __slots__ = ()


@final
class DiscoKey(_PublicKey):
    """A process's path-discovery key, new at each start."""

    prefix = "discokey:"
    __slots__ = ()


@final
class ChallengeKey(_PublicKey):
    """The key of the early Noise payload."""

    prefix = "chalpub:"
    __slots__ = ()


@final
class NodeSecret(_SecretKey):
    prefix = "privkey:"
    __slots__ = ()


@final
class MachineSecret(_SecretKey):
    prefix = "privkey:"
    __slots__ = ()


@final
class DiscoSecret(_SecretKey):
    prefix = "privkey:"
    __slots__ = ()


@final
class RelaySecret(_SecretKey):
    """A relay's own key; its public half is a `NodeKey` on the DERP wire."""

    prefix = "privkey:"
    __slots__ = ()
