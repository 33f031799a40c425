"""The relay's end of DERP: HTTP entry, handshake, and forwarding by node key, for all clients of one relay. No I/O.

    bytes → Client.feed → other clients' out lists → whoever owns the sockets writes them once a turn

A client whose socket took less than all is `is_blocked`: packets for it wait in a queue of 32, the oldest dropped
first, so that latency stays bounded and one slow reader never holds up another.

Ref: tailscale derp/derpserver/derpserver.go, handler.go
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.keys import RelaySecret
from gw.wire.derp import frames
from gw.wire.x25519 import public_key

MAX_HEAD_BYTES: Final = 16 << 10
MAX_REQUESTS: Final = 64  # on one connection before it becomes DERP: netcheck needs a few
MAX_SEND_BYTES: Final = frames.MAX_PACKET_BYTES + frames.KEY_BYTES
MIN_CLIENT_INFO_BYTES: Final = 56
MAX_PING_BYTES: Final = 1000
DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"
MIN_DISCO_BYTES: Final = 62
GONE_BURST: Final = 3.0
MAX_CHALLENGE_CHARS: Final = 64
_CHALLENGE_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


class Admission(Enum):
    """Whether a node key may use the relay. UNKNOWN: it has to wait until somebody knows."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown"


class Owner(Protocol):
    """Who holds a client's socket."""

    def wants_to_write(self) -> None:
        """`out` has something; called once until it was taken."""

    def must_close(self) -> None:
        """Write what is out, then close."""


@final
class Relay:
    """All clients of one relay, by node key."""

    def __init__(
        self, secret: RelaySecret, admit: Callable[[bytes, str], Admission], nonce: Callable[[], bytes]
    ) -> None:
        """admit: asked for a node key and the address it comes from. nonce: 24 fresh random bytes a call."""
        self.key: Final = public_key(secret.raw)
        self.admit = admit
        self.nonce = nonce
        self._secret = PrivateKey(secret.raw)
        self.active: dict[bytes, Client] = {}
        self.clients: dict[bytes, list[Client]] = {}
        self.greeting: Final = frames.encode(frames.SERVER_KEY, frames.MAGIC + self.key)
        self.packets = 0
        self.dropped = 0

    def open_info(self, node: bytes, sealed: bytes) -> bytes:
        """Check a ClientInfo and return the sealed ServerInfo. Raises WireError."""
        try:
            box = Box(self._secret, PublicKey(node))
            info = json.loads(box.decrypt(sealed))
        except (CryptoError, ValueError, RecursionError):
            raise WireError("client info does not open") from None
        if not isinstance(info, dict):
            raise WireError("client info is no object")
        return bytes(box.encrypt(json.dumps({"version": frames.PROTOCOL_VERSION}).encode(), self.nonce()))

    def enter(self, client: Client) -> None:
        self.clients.setdefault(client.key, []).append(client)
        self.active[client.key] = client

    def leave(self, client: Client) -> None:
        """A socket is gone. Who got packets from its key hears of it when no other connection has the key."""
        client.is_closed = True
        others = self.clients.get(client.key)
        if others is None or client not in others:
            return
        others.remove(client)
        if others:
            if self.active.get(client.key) is client:
                self.active[client.key] = others[-1]
            return
        del self.clients[client.key], self.active[client.key]
        for key in client.reached:
            peer = self.active.get(key)
            if peer is not None:
                peer.push(frames.encode(frames.PEER_GONE, client.key + bytes([frames.GONE_DISCONNECTED])))


@final
class Client:
    """One connection, from its first byte."""

    def __init__(self, relay: Relay, owner: Owner, now: float, source: str = "") -> None:
        """source: the address that the connection comes from."""
        self._relay = relay
        self.owner: Final = owner
        self._source = source
        self.key = b""
        self.out: list[bytes] = []
        self.queue: deque[bytes] = deque()
        self.is_blocked = False
        self.is_closed = False
        self.is_waiting = False  # for admission
        self.reached: set[bytes] = set()  # keys that got packets from this one
        self._is_http = True
        self._requests = 0
        self._rest = b""
        self._skip = 0
        self._pending_info = b""
        self._gone_tokens = GONE_BURST
        self._gone_at = now

    # What comes in

    def feed(self, data: bytes, now: float) -> None:
        """Take decrypted bytes. Raises WireError where the client breaks the protocol."""
        if self._is_http:
            data = self._feed_http(data)
        if data:
            self._feed_frames(data, now)

    def decide(self, now: float) -> None:
        """Ask again whether this client may come in; call it when admission learned something."""
        if self.is_waiting:
            self.is_waiting = False
            self._introduce(self._pending_info)
            if not self.is_waiting and not self.is_closed and self._rest:
                rest, self._rest = self._rest, b""
                self._feed_frames(rest, now)

    def _feed_frames(self, data: bytes, now: float) -> None:
        if self._skip:
            taken = min(self._skip, len(data))
            self._skip -= taken
            data = data[taken:]
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.is_waiting:
            self._rest = data
            if len(data) > MAX_SEND_BYTES * 4:
                raise WireError("too much before admission")
            return
        offset, size = 0, len(data)
        while size - offset >= frames.HEADER_BYTES and not self.is_waiting:
            kind = data[offset]
            length = int.from_bytes(data[offset + 1 : offset + 5], "big")
            start, end = offset + frames.HEADER_BYTES, offset + frames.HEADER_BYTES + length
            if kind == frames.SEND_PACKET:
                if not frames.KEY_BYTES <= length <= MAX_SEND_BYTES or not self.key:
                    raise WireError(f"packet frame of {length} bytes")
                if end > size:
                    break
                self._forward(data[start : start + 32], data[start + 32 : end], now)
            elif kind in (frames.CLIENT_INFO, frames.NOTE_PREFERRED, frames.PING):
                self._check_control(kind, length)
                if end > size:
                    break
                self._control(kind, data[start:end])
            elif kind in (frames.FORWARD_PACKET, frames.WATCH_CONNS, frames.CLOSE_PEER):
                raise WireError("mesh frame from a client")
            elif end > size:
                self._skip = end - size
                return
            offset = end
        self._rest = data[offset:]

    def _check_control(self, kind: int, length: int) -> None:
        """Before the payload is there, so that nobody makes us wait for a gigabyte."""
        if kind == frames.CLIENT_INFO and not MIN_CLIENT_INFO_BYTES <= length <= frames.MAX_CLIENT_INFO_BYTES:
            raise WireError(f"client info of {length} bytes")
        if kind != frames.CLIENT_INFO and not self.key:
            raise WireError("frame before client info")
        if kind == frames.NOTE_PREFERRED and length != 1:
            raise WireError("note preferred of a strange length")
        if kind == frames.PING and not 8 <= length <= MAX_PING_BYTES:
            raise WireError("ping of a strange length")

    def _control(self, kind: int, payload: bytes) -> None:
        if kind == frames.CLIENT_INFO:
            if not self.key:
                self._introduce(payload)
        elif kind == frames.PING and not self.is_blocked:  # who does not read gets no pongs piled up
            self.push(frames.encode(frames.PONG, payload[:8]))

    def _introduce(self, payload: bytes) -> None:
        node = payload[: frames.KEY_BYTES]
        answer = self._relay.open_info(node, payload[frames.KEY_BYTES :])
        verdict = self._relay.admit(node, self._source)
        if verdict is Admission.UNKNOWN:
            self._pending_info, self.is_waiting = payload, True
            return
        if verdict is Admission.DENIED:
            raise WireError("node key is not admitted")
        self.key = node
        self._relay.enter(self)
        self.push(frames.encode(frames.SERVER_INFO, answer))

    def _forward(self, destination: bytes, packet: bytes, now: float) -> None:
        relay = self._relay
        if relay.active.get(self.key) is not self:
            relay.active[self.key] = self  # of several connections with one key, the last that spoke receives
        peer = relay.active.get(destination)
        if peer is None:
            relay.dropped += 1
            if len(packet) >= MIN_DISCO_BYTES and packet[:6] == DISCO_MAGIC:
                self._tell_gone(destination, now)
            return
        relay.packets += 1
        self.reached.add(destination)
        peer.deliver(bytes([frames.RECV_PACKET]) + (len(packet) + 32).to_bytes(4, "big") + self.key + packet)

    def _tell_gone(self, destination: bytes, now: float) -> None:
        self._gone_tokens = min(GONE_BURST, self._gone_tokens + now - self._gone_at)
        self._gone_at = now
        if self._gone_tokens >= 1.0:
            self._gone_tokens -= 1.0
            self.push(frames.encode(frames.PEER_GONE, destination + bytes([frames.GONE_NOT_HERE])))

    # What goes out

    def push(self, data: bytes) -> None:
        """Control bytes: never dropped."""
        if not self.out:
            self.owner.wants_to_write()
        self.out.append(data)

    def deliver(self, frame: bytes) -> None:
        """A packet: dropped, the oldest first, where the client does not read."""
        if not self.is_blocked:
            self.push(frame)
            return
        if len(self.queue) >= frames.SEND_QUEUE_PACKETS:
            self.queue.popleft()
            self._relay.dropped += 1
        self.queue.append(frame)

    def unblock(self) -> None:
        """The socket takes bytes again."""
        self.is_blocked = False
        while self.queue:
            self.push(self.queue.popleft())

    # HTTP

    def _feed_http(self, data: bytes) -> bytes:
        data = self._rest + data
        self._rest = b""
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start)
            if (len(data) if end < 0 else end) - start > MAX_HEAD_BYTES:
                raise WireError("request head too large")
            if end < 0:
                self._rest = data[start:]
                return b""
            self._requests += 1
            if self.is_blocked or self._requests > MAX_REQUESTS:
                raise WireError("too many requests")
            head, start = data[start:end], end + 4
            if self._request(head):
                self._is_http = False
                return data[start:]

    def _request(self, head: bytes) -> bool:
        """Answer one request; True if the connection is DERP from now on."""
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3:
            raise WireError("not HTTP")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        method, path = words[0], words[1].partition("?")[0]
        if path == "/derp" and fields.get("upgrade", "").lower() == "derp":
            if fields.get("derp-fast-start") != "1":
                self.push(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"
                    b"Derp-Version: 2\r\nDerp-Public-Key: " + self._relay.key.hex().encode() + b"\r\n\r\n"
                )
            self.push(self._relay.greeting)
            return True
        self.push(page(method, path, fields))
        if fields.get("connection", "").lower() == "close" or fields.get("content-length", "0") != "0":
            self.owner.must_close()
        return False


def page(method: str, path: str, fields: dict[str, str]) -> bytes:
    """What a relay answers to anything but an upgrade."""
    status, body, extra = "200 OK", "", ""
    if path == "/derp":
        status, body = "426 Upgrade Required", "DERP requires connection upgrade\n"
    elif path in ("/derp/probe", "/derp/latency-check"):
        if method in ("GET", "HEAD"):
            extra = "Access-Control-Allow-Origin: *\r\n"
        else:
            status, body = "405 Method Not Allowed", "bogus probe method\n"
    elif path == "/generate_204":
        status = "204 No Content"
        extra = "Cache-Control: no-cache, no-store, must-revalidate, no-transform, max-age=0\r\n"
        challenge = fields.get("x-tailscale-challenge", "")
        if 0 < len(challenge) <= MAX_CHALLENGE_CHARS and _CHALLENGE_CHARS.issuperset(challenge):
            extra += f"X-Tailscale-Response: response {challenge}\r\n"
    elif path == "/robots.txt":
        body = "User-agent: *\nDisallow: /\n"
    elif path == "/":
        body = "A relay of a private mesh.\n"
    else:
        status, body = "404 Not Found", "not found\n"
    length = "" if status.startswith("204") else f"Content-Length: {len(body)}\r\n"
    return f"HTTP/1.1 {status}\r\n{extra}{length}\r\n{'' if method == 'HEAD' else body}".encode()
