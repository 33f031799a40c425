"""The relay's end of the handshake: open a ClientInfo, seal a ServerInfo.

Ref: tailscale derp/derpserver/derpserver.go recvClientKey, sendServerInfo
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.keys import RelaySecret
from gw.wire.derp import frames
from gw.wire.x25519 import public_key

MIN_CLIENT_INFO_BYTES: Final = 56
MESH_KEY_DIGITS: Final = 64
MAX_APP_NAME_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What a client says of itself, and the box that only its key opens. mesh_key: 64 hex digits, or empty.

    instance: the same on all connections of one process, INSTANCE_BYTES; None where it says none, as stock clients.
    """

    node: bytes
    mesh_key: str
    is_prober: bool
    can_ack_pings: bool
    app_name: str
    box: Box
    instance: bytes | None = None

    def server_info(
        self, nonce: bytes, bytes_per_second: int = 0, burst_bytes: int = 0, peer_relay: bytes = b""
    ) -> bytes:
        """The ServerInfo frame that lets the client in. A client drops what exceeds the rate; 0 = no limit.

        peer_relay: the disco key of the relay's UDP relay between nodes, in a field that stock clients pass over.
        """
        info: dict[str, object] = {"version": frames.PROTOCOL_VERSION}
        if peer_relay:
            info[frames.PEER_RELAY_FIELD] = peer_relay.hex()
        if bytes_per_second:
            info |= {"TokenBucketBytesPerSecond": bytes_per_second, "TokenBucketBytesBurst": burst_bytes}
        return frames.encode(frames.SERVER_INFO, bytes(self.box.encrypt(json.dumps(info).encode(), nonce)))


@final
class RelayIdentity:
    """The relay's key, and the frame that names it."""

    def __init__(self, secret: RelaySecret) -> None:
        self._secret = PrivateKey(secret.raw)
        self.key: Final = public_key(secret.raw)
        self.greeting: Final = frames.encode(frames.SERVER_KEY, frames.MAGIC + self.key)

    def open_client_info(self, payload: bytes) -> ClientInfo:
        """payload: 32 node key, 24 nonce, box(JSON). Absent fields are tolerated, a mesh key that is none is not.

        Raises WireError.
        """
        if not MIN_CLIENT_INFO_BYTES <= len(payload) <= frames.MAX_CLIENT_INFO_BYTES:
            raise WireError(f"client info of {len(payload)} bytes")
        node = payload[: frames.KEY_BYTES]
        try:
            box = Box(self._secret, PublicKey(node))
            info = json.loads(box.decrypt(payload[frames.KEY_BYTES :]))
        except (CryptoError, ValueError, RecursionError):
            raise WireError("client info does not open") from None
        if not isinstance(info, dict):
            raise WireError("client info is no object")
        mesh_key, app_name = info.get("meshKey"), info.get("AppName")
        return ClientInfo(
            node=node,
            mesh_key=parse_mesh_key(mesh_key) if mesh_key else "",
            is_prober=info.get("IsProber") is True,
            can_ack_pings=info.get("CanAckPings") is True,
            app_name=app_name[:MAX_APP_NAME_CHARS] if isinstance(app_name, str) else "",
            box=box,
            instance=_instance(info.get(frames.INSTANCE_FIELD)),
        )


def _instance(told: object) -> bytes | None:
    try:
        instance = bytes.fromhex(told) if isinstance(told, str) else b""
    except ValueError:
        return None
    return instance if len(instance) == frames.INSTANCE_BYTES else None


def parse_mesh_key(text: object) -> str:
    """The key of a mesh-key file or of a client: 64 hex digits, blanks around them ignored. Raises WireError."""
    key = text.strip().lower() if isinstance(text, str) else ""
    if len(key) != MESH_KEY_DIGITS or not set(key) <= set("0123456789abcdef"):
        raise WireError(f"a mesh key is {MESH_KEY_DIGITS} hex digits")
    return key
