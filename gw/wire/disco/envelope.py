"""The sealed datagram around a message, and the shared keys, computed once a peer.

Ref: tailscale disco/disco.go; NaCl box (X25519, XSalsa20-Poly1305)
"""

from __future__ import annotations

from typing import Final, final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.keys import DiscoKey, DiscoSecret
from gw.wire.x25519 import public_key

MAGIC: Final = b"TS\xf0\x9f\x92\xac"
HEADER_BYTES: Final = 6 + 32 + 24
NONCE_BYTES: Final = 24


def is_disco(datagram: bytes) -> bool:
    """True for a datagram that can only be disco: WireGuard's first byte is 1 to 4."""
    return len(datagram) >= HEADER_BYTES and datagram[:6] == MAGIC


def sender(datagram: bytes) -> DiscoKey:
    """Who claims to have sent it; `Envelopes.open` proves it. Raises WireError."""
    if not is_disco(datagram):
        raise WireError("not disco")
    return DiscoKey(datagram[6:38])


@final
class Envelopes:
    """Seals and opens for one disco key of our own."""

    def __init__(self, secret: DiscoSecret) -> None:
        self._secret = PrivateKey(secret.raw)
        self.key: Final = DiscoKey(public_key(secret.raw))
        self._boxes: dict[DiscoKey, Box] = {}

    def seal(self, peer: DiscoKey, nonce: bytes, plain: bytes) -> bytes:
        """A whole datagram for `peer`. nonce: 24 random bytes."""
        return MAGIC + self.key.raw + bytes(self._box(peer).encrypt(plain, nonce))

    def open(self, datagram: bytes) -> bytes:
        """The plaintext. Raises WireError where it is not for us or not by its sender.

        Look the sender up first: only boxes with peers of the netmap should be computed.
        """
        peer = sender(datagram)
        try:
            return self._box(peer).decrypt(datagram[38:])
        except CryptoError:
            raise WireError("disco box does not open") from None

    def forget(self, peer: DiscoKey) -> None:
        """Drop the shared key of a peer that left."""
        self._boxes.pop(peer, None)

    def _box(self, peer: DiscoKey) -> Box:
        box = self._boxes.get(peer)
        if box is None:
            try:
                box = Box(self._secret, PublicKey(peer.raw))
            except CryptoError as error:
                raise WireError(f"disco key: {error}") from None
            self._boxes[peer] = box
        return box
