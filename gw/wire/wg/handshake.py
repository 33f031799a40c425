"""Noise_IKpsk2 as WireGuard uses it: message 1 and message 2, from both ends.

Each step is a function of bytes; randomness and time come in as arguments. The macs are added by `cookies`.

Ref: whitepaper §5.4.2, §5.4.3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gw.errors import WireError
from gw.wire.wg.messages import Initiation, Response, initiation_body, parse_initiation, parse_response, response_body
from gw.wire.wg.primitives import blake2s, kdf, seal, unseal
from gw.wire.x25519 import clamp, exchange, public_key

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
CHAIN_START: Final = blake2s(CONSTRUCTION)
HASH_START: Final = blake2s(CHAIN_START, IDENTIFIER)
NO_PSK: Final = bytes(32)


@dataclass(frozen=True, slots=True, repr=False)
class StaticKey:
    """Our identity: a clamped secret of 32 bytes and its public half."""

    secret: bytes
    public: bytes

    @classmethod
    def of(cls, secret: bytes) -> StaticKey:
        return cls(clamp(secret), public_key(secret))


@dataclass(frozen=True, slots=True, repr=False)
class Keypair:
    """What a finished handshake gives. Times are monotonic seconds; indices are the receivers' names for it."""

    local_index: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    created: float
    initiator: bool


@dataclass(frozen=True, slots=True, repr=False)
class Initiated:
    """What the initiator keeps until the response."""

    local_index: int
    ephemeral: bytes
    chain: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Received:
    """An initiation that opened: who sent it and what the response needs."""

    sender: bytes  # static public key
    sender_index: int
    ephemeral: bytes
    timestamp: bytes  # TAI64N, 12 bytes
    chain: bytes
    hash: bytes


def initiate(
    ours: StaticKey, theirs: bytes, *, static_shared: bytes, index: int, ephemeral: bytes, timestamp: bytes
) -> tuple[bytes, Initiated]:
    """Message 1 without its macs (116 bytes). ephemeral: 32 fresh random bytes; static_shared: DH(ours, theirs)."""
    ephemeral = clamp(ephemeral)
    ephemeral_public = public_key(ephemeral)
    hashed = blake2s(HASH_START, theirs)
    (chain,) = kdf(CHAIN_START, ephemeral_public, 1)
    hashed = blake2s(hashed, ephemeral_public)
    chain, key = kdf(chain, exchange(ephemeral, theirs), 2)
    static = seal(key, 0, ours.public, hashed)
    hashed = blake2s(hashed, static)
    chain, key = kdf(chain, static_shared, 2)
    stamp = seal(key, 0, timestamp, hashed)
    hashed = blake2s(hashed, stamp)
    body = initiation_body(Initiation(index, ephemeral_public, static, stamp))
    return body, Initiated(index, ephemeral, chain, hashed)


def identify(ours: StaticKey, datagram: bytes) -> tuple[bytes, bytes, bytes]:
    """Who says it sent message 1: (static public key, chain, hash), nothing of it proven yet. Raises WireError."""
    message = parse_initiation(datagram)
    hashed = blake2s(HASH_START, ours.public)
    (chain,) = kdf(CHAIN_START, message.ephemeral, 1)
    hashed = blake2s(hashed, message.ephemeral)
    chain, key = kdf(chain, exchange(ours.secret, message.ephemeral), 2)
    static = unseal(key, 0, message.static, hashed)
    return static, chain, blake2s(hashed, message.static)


def receive_initiation(datagram: bytes, sender: bytes, chain: bytes, hashed: bytes, static_shared: bytes) -> Received:
    """Prove the sender of message 1 from what `identify` returned. Raises WireError."""
    message = parse_initiation(datagram)
    chain, key = kdf(chain, static_shared, 2)
    timestamp = unseal(key, 0, message.timestamp, hashed)
    hashed = blake2s(hashed, message.timestamp)
    return Received(sender, message.sender, message.ephemeral, timestamp, chain, hashed)


def respond(
    received: Received, *, index: int, ephemeral: bytes, now: float, psk: bytes = NO_PSK
) -> tuple[bytes, Keypair]:
    """Message 2 without its macs (60 bytes), and the keypair. Raises WireError for keys of small order."""
    ephemeral = clamp(ephemeral)
    ephemeral_public = public_key(ephemeral)
    (chain,) = kdf(received.chain, ephemeral_public, 1)
    hashed = blake2s(received.hash, ephemeral_public)
    (chain,) = kdf(chain, exchange(ephemeral, received.ephemeral), 1)
    (chain,) = kdf(chain, exchange(ephemeral, received.sender), 1)
    chain, tau, key = kdf(chain, psk, 3)
    hashed = blake2s(hashed, tau)
    empty = seal(key, 0, b"", hashed)
    receive_key, send_key = kdf(chain, b"", 2)
    body = response_body(Response(index, received.sender_index, ephemeral_public, empty))
    return body, Keypair(index, received.sender_index, send_key, receive_key, now, initiator=False)


def finish(ours: StaticKey, pending: Initiated, datagram: bytes, *, now: float, psk: bytes = NO_PSK) -> Keypair:
    """The initiator's keypair from message 2. Raises WireError."""
    message = parse_response(datagram)
    if message.receiver != pending.local_index:
        raise WireError("response to another handshake")
    (chain,) = kdf(pending.chain, message.ephemeral, 1)
    hashed = blake2s(pending.hash, message.ephemeral)
    (chain,) = kdf(chain, exchange(pending.ephemeral, message.ephemeral), 1)
    (chain,) = kdf(chain, exchange(ours.secret, message.ephemeral), 1)
    chain, tau, key = kdf(chain, psk, 3)
    hashed = blake2s(hashed, tau)
    unseal(key, 0, message.empty, hashed)
    send_key, receive_key = kdf(chain, b"", 2)
    return Keypair(pending.local_index, message.sender, send_key, receive_key, now, initiator=True)
