"""Noise_IK_25519_ChaChaPoly_BLAKE2s with Tailscale's framing, and the sealed records after it.

    initiation  101 bytes   u16 version | 01 | u16 96 | 32 ephemeral | 48 sealed machine key | 16 tag       big-endian
    response     51 bytes   02 | u16 48 | 32 ephemeral | 16 tag
    error                   03 | u16 n  | n text, unauthenticated, instead of a response
    record                  04 | u16 n  | n ciphertext (n ≤ 4093)

Record nonces count big-endian, unlike standard Noise. The version is part of the prologue.

Ref: tailscale control/controlbase/{handshake,messages,conn}.go
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gw.errors import StateError, WireError
from gw.model.keys import MachineKey, MachineSecret
from gw.wire.x25519 import KeyPair

PROTOCOL_NAME: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
PROLOGUE: Final = b"Tailscale Control Protocol v%d"
INITIATION: Final = 0x01
RESPONSE: Final = 0x02
ERROR: Final = 0x03
RECORD: Final = 0x04
INITIATION_BYTES: Final = 101
RESPONSE_BYTES: Final = 51
RECORD_HEADER_BYTES: Final = 3
MAX_CIPHERTEXT_BYTES: Final = 4093
MAX_PLAINTEXT_BYTES: Final = 4077
TAG_BYTES: Final = 16
_NONCE: Final = struct.Struct(">IQ")
_RECORD_HEAD: Final = struct.Struct(">BH")
_ZERO_NONCE: Final = bytes(12)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2s(data).digest()


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chaining_key, material, "blake2s")
    first = hmac.digest(secret, b"\x01", "blake2s")
    return first, hmac.digest(secret, first + b"\x02", "blake2s")


class _Symmetric:
    """Noise's symmetric state: the hash of all that was said, and the chaining key. Each derived key seals once."""

    def __init__(self, version: int, server: bytes) -> None:
        self.chaining_key = _hash(PROTOCOL_NAME)
        self.hash = _hash(self.chaining_key + PROLOGUE % version)
        self._key = b""
        self.mix_hash(server)

    def mix_hash(self, data: bytes) -> None:
        self.hash = _hash(self.hash + data)

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, self._key = _hkdf(self.chaining_key, material)

    def seal(self, plain: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self._key).encrypt(_ZERO_NONCE, plain, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open_untrusted(self, sealed: bytes) -> bytes:
        try:
            plain = ChaCha20Poly1305(self._key).decrypt(_ZERO_NONCE, sealed, self.hash)
        except InvalidTag:
            raise WireError("handshake does not authenticate") from None
        self.mix_hash(sealed)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """(client to server key, server to client key)."""
        return _hkdf(self.chaining_key, b"")


@final
class Session:
    """Sealed records in both directions. After one WireError from `feed` the session is dead for ever."""

    def __init__(self, send_key: bytes, receive_key: bytes, handshake_hash: bytes) -> None:
        self._send = ChaCha20Poly1305(send_key)
        self._receive = ChaCha20Poly1305(receive_key)
        self._sent = 0
        self._received = 0
        self._buffer = bytearray()
        self._dead = False
        self.handshake_hash = handshake_hash

    def seal(self, plain: bytes) -> bytes:
        """Records that carry `plain`, ready to send; nothing for nothing."""
        out = []
        for start in range(0, len(plain), MAX_PLAINTEXT_BYTES):
            chunk = plain[start : start + MAX_PLAINTEXT_BYTES]
            sealed = self._send.encrypt(struct.pack(">IQ", 0, self._sent), chunk, None)
            self._sent += 1
            out.append(struct.pack(">BH", RECORD, len(sealed)))
            out.append(sealed)
        return b"".join(out)

    def seal_one(self, plain: bytes) -> bytes:
        """One record. plain: 1 to MAX_PLAINTEXT_BYTES."""
        sealed = self._send.encrypt(_NONCE.pack(0, self._sent), plain, None)
        self._sent += 1
        return _RECORD_HEAD.pack(RECORD, len(sealed)) + sealed

    def feed(self, data: bytes) -> bytes:
        """The plaintext of all records that `data` completes. Raises WireError on a bad record."""
        if self._dead:
            raise WireError("session is dead")
        self._buffer += data
        plain = []
        buffer, offset = self._buffer, 0
        try:
            while len(buffer) - offset >= RECORD_HEADER_BYTES:
                kind, size = struct.unpack_from(">BH", buffer, offset)
                if kind != RECORD or not TAG_BYTES <= size <= MAX_CIPHERTEXT_BYTES:
                    raise WireError(f"record of type {kind} and {size} bytes")
                end = offset + RECORD_HEADER_BYTES + size
                if len(buffer) < end:
                    break
                sealed = bytes(buffer[offset + RECORD_HEADER_BYTES : end])
                plain.append(self._receive.decrypt(struct.pack(">IQ", 0, self._received), sealed, None))
                self._received += 1
                offset = end
        except (InvalidTag, WireError) as error:
            self._dead = True
            raise WireError(str(error) or "record does not authenticate") from None
        del buffer[:offset]
        return b"".join(plain)


@final
class ClientHandshake:
    """The client's side: send `initiation()`, give the answer to `finish`."""

    def __init__(self, machine: MachineSecret, server: MachineKey, ephemeral: bytes, version: int) -> None:
        """ephemeral: 32 fresh random bytes, the caller's. version: the capability version, below 65536."""
        self._machine = KeyPair(machine.raw)
        self._server = server.raw
        self._ephemeral = KeyPair(ephemeral)
        self._state = _Symmetric(version, server.raw)
        self._version = version

    def initiation(self) -> bytes:
        """The 101 bytes of the first message. Call it once."""
        state = self._state
        if state is None:
            raise StateError("handshake is over")
        public = self._ephemeral.public
        state.mix_hash(public)
        state.mix_key(self._ephemeral.exchange(self._server))
        machine = state.seal(self._machine.public)
        state.mix_key(self._machine.exchange(self._server))
        return struct.pack(">HBH", self._version, INITIATION, 96) + public + machine + state.seal(b"")

    def finish(self, response: bytes) -> Session:
        """The session. response: 51 bytes, or an error message, whose text comes as WireError."""
        if response[:1] == bytes([ERROR]):
            raise WireError(f"server refused: {response[3:].decode(errors='replace')}")
        if len(response) != RESPONSE_BYTES or response[:3] != b"\x02\x00\x30":
            raise WireError("not a handshake response")
        state = self._state
        public = response[3:35]
        state.mix_hash(public)
        state.mix_key(self._ephemeral.exchange(public))
        state.mix_key(self._machine.exchange(public))
        state.open_untrusted(response[35:])
        to_server, to_client = state.split()
        return Session(to_server, to_client, state.hash)


@dataclass(frozen=True)
class Accepted:
    """A client that proved its machine key. response: the bytes to send first."""

    version: int
    machine: MachineKey
    response: bytes
    session: Session


_server_pair = lru_cache(maxsize=1)(KeyPair)  # a server has one key, its clients many


def accept(server: MachineSecret, initiation: bytes, ephemeral: bytes) -> Accepted:
    """Answer a client's initiation. ephemeral: 32 fresh random bytes. Raises WireError."""
    if len(initiation) != INITIATION_BYTES:
        raise WireError(f"initiation of {len(initiation)} bytes")
    version, kind, size = struct.unpack_from(">HBH", initiation)
    if kind != INITIATION or size != 96:
        raise WireError(f"initiation of type {kind}")
    pair, fresh = _server_pair(server.raw), KeyPair(ephemeral)
    state = _Symmetric(version, pair.public)
    client_ephemeral = initiation[5:37]
    state.mix_hash(client_ephemeral)
    state.mix_key(pair.exchange(client_ephemeral))
    machine = state.open_untrusted(initiation[37:85])
    state.mix_key(pair.exchange(machine))
    state.open_untrusted(initiation[85:])
    state.mix_hash(fresh.public)
    state.mix_key(fresh.exchange(client_ephemeral))
    state.mix_key(fresh.exchange(machine))
    response = struct.pack(">BH", RESPONSE, 48) + fresh.public + state.seal(b"")
    to_server, to_client = state.split()
    return Accepted(version, MachineKey(machine), response, Session(to_client, to_server, state.hash))


def refusal(text: str) -> bytes:
    """An error message instead of a response."""
    raw = text.encode()[:1024]
    return struct.pack(">BH", ERROR, len(raw)) + raw
