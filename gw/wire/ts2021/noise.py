"""Noise_IK_25519_ChaChaPoly_BLAKE2s with Tailscale's framing, and the sealed records after it.

    initiation  101 bytes   u16 version | 01 | u16 96 | 32 ephemeral | 48 sealed machine key | 16 tag       big-endian
    response     51 bytes   02 | u16 48 | 32 ephemeral | 16 tag
    error                   03 | u16 n  | n text, unauthenticated, instead of a response
    record                  04 | u16 n  | n ciphertext (n ≤ 4093)

Record nonces count big-endian, unlike standard Noise. The version is part of the prologue.

Ref: tailscale control/controlbase/{handshake,messages,conn}.go
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2s
from typing import Final, final

from gw.errors import StateError, WireError
from gw.model.keys import MachineKey, MachineSecret
from gw.wire import cipher
from gw.wire.x25519 import KeyPair, Pair

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
_nonce: Final = struct.Struct(">IQ").pack
_record_head: Final = struct.Struct(">BH").pack
_ZERO_NONCE: Final = bytes(12)
_PADDING: Final = bytes(32)  # of a key of 32 bytes to a block of BLAKE2s
_INNER: Final = bytes(each ^ 0x36 for each in range(256))
_OUTER: Final = bytes(each ^ 0x5C for each in range(256))


def _hash(data: bytes) -> bytes:
    return blake2s(data).digest()


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Two outputs of HKDF with BLAKE2s, whose HMAC stands here: `hmac` takes twice the time around it."""
    block = chaining_key + _PADDING
    secret = blake2s(block.translate(_OUTER) + blake2s(block.translate(_INNER) + material).digest()).digest()
    block = secret + _PADDING
    inner, outer = block.translate(_INNER), block.translate(_OUTER)
    first = blake2s(outer + blake2s(inner + b"\x01").digest()).digest()
    return first, blake2s(outer + blake2s(inner + first + b"\x02").digest()).digest()


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
        chosen = cipher.choose()
        sealed: bytes = chosen.seal(self._key)(0 if chosen.numbered else _ZERO_NONCE, plain, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open_untrusted(self, sealed: bytes) -> bytes:
        chosen = cipher.choose()
        try:
            plain: bytes = chosen.unseal(self._key)(0 if chosen.numbered else _ZERO_NONCE, sealed, self.hash)
        except chosen.refused:
            raise WireError("handshake does not authenticate") from None
        self.mix_hash(sealed)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """(client to server key, server to client key)."""
        return _hkdf(self.chaining_key, b"")


@final
class Session:
    """Sealed records in both directions. After one WireError from `feed` the session is dead for ever."""

    __slots__ = ("_buffer", "_dead", "_numbered", "_open", "_received", "_seal", "_sent", "handshake_hash")

    def __init__(self, send_key: bytes, receive_key: bytes, handshake_hash: bytes) -> None:
        chosen = cipher.choose()
        self._numbered = chosen.numbered
        self._seal, self._open = chosen.seal(send_key), chosen.unseal(receive_key)
        self._sent = 0
        self._received = 0
        self._buffer = b""
        self._dead = False
        self.handshake_hash = handshake_hash

    def seal(self, plain: bytes) -> bytes:
        """Records that carry `plain`, ready to send; nothing for nothing."""
        starts = range(0, len(plain), MAX_PLAINTEXT_BYTES)
        out = [self.seal_one(plain[start : start + MAX_PLAINTEXT_BYTES]) for start in starts]
        return out[0] if len(out) == 1 else b"".join(out)

    def seal_one(self, plain: bytes) -> bytes:
        """One record. plain: 1 to MAX_PLAINTEXT_BYTES."""
        number = self._sent
        self._sent = number + 1
        sealed: bytes = self._seal(number, plain, b"") if self._numbered else self._seal(_nonce(0, number), plain, None)
        return _record_head(RECORD, len(sealed)) + sealed

    def feed(self, data: bytes) -> bytes:
        """The plaintext of all records that `data` completes. Raises WireError on a bad record."""
        if self._dead:
            raise WireError("session is dead")
        buffer: bytes = self._buffer + data if self._buffer else data
        plain: list[bytes] = []
        offset = 0
        try:
            while len(buffer) - offset >= RECORD_HEADER_BYTES:
                kind, size = buffer[offset], buffer[offset + 1] << 8 | buffer[offset + 2]
                if kind != RECORD or not TAG_BYTES <= size <= MAX_CIPHERTEXT_BYTES:
                    raise WireError(f"record of type {kind} and {size} bytes")
                end = offset + RECORD_HEADER_BYTES + size
                if len(buffer) < end:
                    break
                sealed, number = buffer[offset + RECORD_HEADER_BYTES : end], self._received
                if self._numbered:
                    plain.append(self._open(number, sealed, b""))
                else:
                    plain.append(self._open(_nonce(0, number), sealed, None))
                self._received = number + 1
                offset = end
        except WireError:
            self._dead = True
            raise
        except cipher.choose().refused:
            self._dead = True
            raise WireError("record does not authenticate") from None
        self._buffer = buffer[offset:] if offset < len(buffer) else b""
        return plain[0] if len(plain) == 1 else b"".join(plain)


@final
class ClientHandshake:
    """The client's side: send `initiation()`, give the answer to `finish`."""

    def __init__(self, machine: MachineSecret, server: MachineKey, ephemeral: Pair, version: int) -> None:
        """ephemeral: a fresh pair, the caller's. version: the capability version, below 65536."""
        self._machine = KeyPair(machine.raw)
        self._server = server.raw
        self._ephemeral = ephemeral
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


def accept(server: MachineSecret, initiation: bytes, ephemeral: Pair) -> Accepted:
    """Answer a client's initiation. ephemeral: a fresh pair. Raises WireError."""
    if len(initiation) != INITIATION_BYTES:
        raise WireError(f"initiation of {len(initiation)} bytes")
    version, kind, size = struct.unpack_from(">HBH", initiation)
    if kind != INITIATION or size != 96:
        raise WireError(f"initiation of type {kind}")
    pair, fresh = _server_pair(server.raw), ephemeral
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
