"""The first bytes of a connection decide: `/ts2021` becomes a Noise session, all else goes to the web application.

The request head is read here, bounded in size and time. An upgrade never enters the web server, and `GET /key`, which
every client asks before each login, is answered here; any other connection is handed to uvicorn's HTTP/1.1 protocol, or
to the process that has one, together with the bytes read so far.

Ref: control protocol §2.1
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Final, final

from gw.errors import WireError
from gw.model.keys import ChallengeKey, MachineKey, MachineSecret
from gw.wire.ts2021.noise import Accepted, accept
from gw.wire.ts2021.server import ServerConnection
from gw.wire.x25519 import fresh_pair, public_key

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 16 << 10
HEAD_TIMEOUT_S: Final = 10.0
UPGRADE: Final = "tailscale-control-protocol"
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"
)

_KEY_REQUEST: Final = re.compile(rb"GET /key\?v=0*(39|[4-9]\d|[1-9]\d{2,4}) HTTP/1\.1\r\n")

MakeWeb = Callable[[], asyncio.Protocol]
MakeControl = Callable[[Accepted, ServerConnection], asyncio.Protocol]


@final
class FrontDoor(asyncio.Protocol):
    """What every accepted connection meets first."""

    def __init__(self, key: MachineSecret, make_web: MakeWeb, make_control: MakeControl) -> None:
        self._key = key
        self._key_answer = _key_answer(key.raw)
        self._make_web = make_web
        self._make_control = make_control
        self._head = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._deadline = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        self._head += data
        transport = self._transport
        assert transport is not None
        target = bytes(self._head[:32]).split(b" ", 2)
        if len(self._head) < 32 and b"\r\n" not in self._head:
            return
        is_upgrade = len(target) > 1 and target[1].partition(b"?")[0] == b"/ts2021"
        if not is_upgrade:
            if self._is_unfinished():
                return
            if _KEY_REQUEST.match(self._head):
                if b"\r\n\r\n" in self._head:
                    transport.write(self._key_answer)
                    transport.close()
                    return
                if len(self._head) <= MAX_HEAD_BYTES:
                    return
            self._hand_over(transport, self._make_web(), bytes(self._head))
            return
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD_BYTES:
                self._refuse(transport, 431, "request head too large")
            return
        self._upgrade(transport, bytes(self._head[:end]), bytes(self._head[end + 4 :]))

    def _is_unfinished(self) -> bool:
        """Whether the rest of a request's head is to come: it is waited for here, where there is a time limit."""
        is_text = self._head[:1].isalpha()
        has_end = b"\r\n\r\n" in self._head or b"\n\n" in self._head
        return is_text and not has_end and len(self._head) <= MAX_HEAD_BYTES

    def _upgrade(self, transport: asyncio.Transport, head: bytes, rest: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if not lines[0].startswith("POST "):
            self._refuse(transport, 405, "use POST")
            return
        if fields.get("upgrade", "").lower() != UPGRADE:
            self._refuse(transport, 400, "missing or unknown Upgrade")
            return
        try:
            initiation = base64.b64decode(fields.get("x-tailscale-handshake", ""), validate=True)
            accepted = accept(self._key, initiation, fresh_pair())
        except (WireError, binascii.Error, ValueError) as error:
            logger.debug("handshake refused: %s", error)
            self._refuse(transport, 400, "bad handshake")
            return
        challenge = ChallengeKey(secrets.token_bytes(32))  # every 32 bytes are a public key; nobody answers to it
        http = ServerConnection(accepted.session, challenge)
        transport.write(_SWITCHING + accepted.response + http.data_to_send())
        self._hand_over(transport, self._make_control(accepted, http), rest)

    def _hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol, data: bytes) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.data_received(data)

    def _refuse(self, transport: asyncio.Transport, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        transport.close()


@lru_cache(maxsize=1)
def _key_answer(secret: bytes) -> bytes:
    """The whole answer to `GET /key`, the same for everyone."""
    keys = {"legacyPublicKey": str(MachineKey.zero()), "publicKey": str(MachineKey(public_key(secret)))}
    body = json.dumps(keys).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body
