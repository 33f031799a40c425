"""Node keys bound to a TLS session: a NaCl box over its exporter value, by either side.

TLS alone proves the key of a certificate. A box that holds the exporter value of this very session, made with the node
key, cannot be carried into another session by whoever sits between. The box of one direction opens the other way round
as well, so each says whose it is: a reflected box fails.

    box    {"v": 1, "role": "client" | "relay" | "dialer" | …, "bind": <64 hex>, "at": unix ms, …}

Two relays of a region prove in it the mesh key as well, over the same value and both relay keys.

Ref: spec quic §9; RFC 8446 §7.5
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError

VERSION: Final = 1
BIND_BYTES: Final = 32
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
MAX_SKEW_MS: Final = 300_000
MAX_CLAIM_BYTES: Final = 4096
EXPORTER_LABEL: Final = b"EXPORTER-ghostwire-quic"

CLIENT: Final = "client"
RELAY: Final = "relay"
DIALER: Final = "dialer"  # of two peers
ANSWERER: Final = "answerer"
MESH_DIALER: Final = "mesh-dialer"  # of two relays
MESH_ANSWERER: Final = "mesh-answerer"


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one side says of itself inside its box.

    at: unix milliseconds. rate, burst: bytes that it takes, 0 = any. mesh: `mesh_proof`, of a relay to another.
    peer_relay: the disco key, as hex, of a relay's UDP relay between nodes.
    """

    role: str
    bind: str
    at: int
    v: int = VERSION
    features: int = 0
    rate: int = 0
    burst: int = 0
    tunnel_mtu: int = 0
    mesh: str = ""
    peer_relay: str = ""


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Claim)


def seal_claim(secret: bytes, peer: bytes, nonce: bytes, claim: Claim) -> bytes:
    """nonce and box. secret: ours; peer: the 32-byte public key it is for; nonce: 24 fresh bytes. Raises WireError."""
    try:
        return bytes(Box(PrivateKey(secret), PublicKey(peer)).encrypt(_encoder.encode(claim), nonce))
    except CryptoError as error:
        raise WireError(f"key: {error}") from None


def mesh_proof(mesh_key: str, role: str, bind: bytes, dialer: bytes, answerer: bytes) -> str:
    """Proof that `role` of two relays with these keys has the mesh key, for the session with this exporter value."""
    said = b"ghostwire mesh " + role.encode() + bind + dialer + answerer
    return hmac.new(mesh_key.encode(), said, hashlib.sha256).hexdigest()


def check_mesh(claim: Claim, mesh_key: str, bind: bytes, dialer: bytes, answerer: bytes) -> bool:
    """Whether a claim that was opened proves the mesh key. An empty one is proven by nobody."""
    wanted = mesh_proof(mesh_key, claim.role, bind, dialer, answerer)
    return bool(mesh_key) and hmac.compare_digest(claim.mesh.encode(), wanted.encode())


def open_claim(
    secret: bytes, peer: bytes, sealed: bytes, *, role: str | tuple[str, ...], bind: bytes, now_ms: int
) -> Claim:
    """The claim of `peer`, who has to be `role` in the session with this exporter value. Raises WireError."""
    if not NONCE_BYTES + 16 <= len(sealed) <= MAX_CLAIM_BYTES:
        raise WireError(f"claim of {len(sealed)} bytes")
    try:
        claim = _decoder.decode(Box(PrivateKey(secret), PublicKey(peer)).decrypt(sealed))
    except (CryptoError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise WireError("claim does not open") from None
    if not hmac.compare_digest(claim.bind.encode(), bind.hex().encode()):
        raise WireError("claim for another session")
    if claim.role not in ((role,) if isinstance(role, str) else role) or claim.v != VERSION:
        raise WireError("claim of another role or version")
    if abs(claim.at - now_ms) > MAX_SKEW_MS:
        raise WireError("claim from another time: are both clocks right?")
    if claim.rate < 0 or claim.burst < 0:
        raise WireError("claim makes no sense")
    return claim
