"""One connection of a client from its first byte: HTTP, the upgrade, the handshake, then frames. No I/O.

    HTTP ──upgrade──▶ HELLO ──ClientInfo──▶ WAITING (for admission) ──▶ UP: packets to the Switch, others here
      └─ other pages

What comes in: decrypted bytes. What goes out: `take`, which wraps WebSocket frames around them where the client came
that way. A transport that authenticates otherwise begins with `Port` and `Presence.enter`.

Ref: tailscale derp/derpserver/derpserver.go accept, recvClientKey, run; handler.go
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, final

from gw.errors import WireError
from gw.model.addresses import AddrPort
from gw.native import relaying
from gw.native.relaying import Owner, Port, Switch
from gw.relay.admission import Admission
from gw.relay.flowstates import tell
from gw.relay.peerrelay import PeerRelay
from gw.relay.presence import Presence
from gw.wire import websocket
from gw.wire.derp import frames
from gw.wire.derp.handshake import ClientInfo, RelayIdentity
from gw.wire.derp.http import MAX_HEAD_BYTES, Pages, parse_request, response, switching

MAX_EARLY_BYTES: Final = 512 << 10  # that a client may send before it is admitted
MAX_REQUESTS: Final = 64  # on one connection
MAX_MESSAGE_BYTES: Final = 16 << 10  # of WebSocket: stock clients refuse more than 32 KiB


class Stage(Enum):
    HTTP = "http"
    HELLO = "hello"
    WAITING = "waiting"
    UP = "up"


@dataclass(slots=True)
class Reception:
    """What every newcomer of a relay meets; the settings in it may change while the relay runs."""

    identity: RelayIdentity
    presence: Presence
    admit: Callable[[bytes, str], Admission]
    nonce: Callable[[], bytes]  # 24 fresh random bytes a call
    pages: Pages = field(default_factory=Pages)
    mesh_key: str = ""  # empty: no mesh
    sibling_key: str = ""  # of the workers of this relay among themselves
    bytes_per_second: int = 0  # what a client may send; 0 = as much as it likes
    burst_bytes: int = 0
    peers: PeerRelay | None = None  # what nodes may have relayed by UDP
    metrics: Callable[[], str] | None = None
    homes: int = 0  # clients that have their home here
    home_moves_in: int = 0
    home_moves_out: int = 0
    pings: int = 0
    gone_not_here: int = 0
    websockets: int = 0
    refused: int = 0
    udp_port: int = 0  # where other relays may link over QUIC, 0 = nowhere
    quic_links: dict[bytes, int] = field(default_factory=dict)  # by relay key

    @property
    def switch(self) -> Switch:
        return self.presence.switch

    @property
    def peer_relay(self) -> bytes:
        """The disco key of the relay between nodes, which clients are told; empty where there is none."""
        return self.peers.key.raw if self.peers is not None else b""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a listener has beside the pages: DERP; metrics for everybody; metrics for this host alone."""

    derp: bool = True
    metrics: bool = False
    local_metrics: bool = False


GONE_BURST: Final = 3.0
MAX_UNSENT_BYTES: Final = 1 << 20


@final
class Attendance:
    """A client that was let in: what it says beside packets, whatever carries it."""

    def __init__(self, reception: Reception, port: Port, now: float) -> None:
        self._reception = reception
        self._port = port
        self._since = now
        self._is_home = False
        self._gone_tokens = GONE_BURST
        self._gone_at = now

    def control(self, kind: int, payload: bytes, now: float) -> None:
        """A frame that is no packet, or what `Switch.feed` has to say."""
        reception, port = self._reception, self._port
        if kind == relaying.SPOKE:
            reception.presence.spoke(port)
        elif kind == relaying.NOT_HERE:
            self._tell_gone(payload, now)
        elif kind == frames.PING:
            reception.pings += 1
            if not port.is_blocked and port.out_bytes < MAX_UNSENT_BYTES:
                reception.switch.push(port, frames.encode(frames.PONG, payload[:8]))
        elif kind == frames.NOTE_PREFERRED:
            self._prefer(payload[0] != 0, now)
        elif kind == frames.WATCH_CONNS:
            reception.presence.watch(port)
        elif kind == relaying.FLOW_STATE:
            tell(reception.switch, payload[: frames.KEY_BYTES], payload[frames.KEY_BYTES :], by=port)
        elif kind == frames.CLOSE_PEER:
            for peer in reception.presence.ports_of(payload):
                peer.owner.close()
            if not port.is_sibling:
                for watcher in reception.presence.links():
                    if watcher.is_sibling:
                        reception.switch.push(watcher, frames.encode(frames.CLOSE_PEER, payload))

    def _prefer(self, is_home: bool, now: float) -> None:
        if is_home == self._is_home:
            return
        self._is_home = is_home
        reception = self._reception
        reception.homes += 1 if is_home else -1
        if now - self._since > 5.0:  # not the first choice of a client that has just come
            if is_home:
                reception.home_moves_in += 1
            else:
                reception.home_moves_out += 1

    def _tell_gone(self, destination: bytes, now: float) -> None:
        self._gone_tokens = min(GONE_BURST, self._gone_tokens + now - self._gone_at)
        self._gone_at = now
        if self._gone_tokens >= 1.0:
            self._gone_tokens -= 1.0
            self._reception.gone_not_here += 1
            self._reception.switch.push(
                self._port, frames.encode(frames.PEER_GONE, destination + bytes([frames.GONE_NOT_HERE]))
            )

    def leave(self) -> None:
        """The connection is gone."""
        if self._is_home:
            self._is_home = False
            self._reception.homes -= 1
        self._reception.presence.leave(self._port)


@final
class Session:
    """Feed it decrypted bytes; write what `take` gives whenever its port is in `Switch.dirty`."""

    def __init__(self, reception: Reception, owner: Owner, source: AddrPort, now: float, offer: Offer) -> None:
        """source: where the connection comes from."""
        self._reception = reception
        self._owner = owner
        self._source = source
        self._offer = offer
        self.port: Final = Port(owner)
        self.stage = Stage.HTTP
        self._requests = 0
        self._rest = b""
        self._head = b""  # goes out before any WebSocket frame
        self._websocket: websocket.Stream | None = None
        self._is_ideal = True
        self._info: ClientInfo | None = None
        self._attendance = Attendance(reception, self.port, now)

    @property
    def is_up(self) -> bool:
        """Whether the handshake is over."""
        return self.stage is Stage.UP

    @property
    def node(self) -> bytes:
        """The key that waits for `decide`."""
        return self._info.node if self._info is not None else b""

    @property
    def is_waiting(self) -> bool:
        """Whether `decide` is to be called when admission learned something."""
        return self.stage is Stage.WAITING

    # What comes in

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes. Raises WireError where the client breaks the protocol."""
        if self.stage is Stage.UP and self._websocket is None:
            self._frames(data, now)
            return
        if self.stage is Stage.HTTP:
            data = self._http(data)
        if self._websocket is not None and data:
            data = self._unwrap(data)
        if data:
            self._after_upgrade(data, now)

    def _unwrap(self, data: bytes) -> bytes:
        stream = self._websocket
        assert stream is not None
        data = stream.feed(data)
        if stream.replies:
            self._wants_to_write()
        if stream.is_closed:
            self._owner.close()
        return data

    def _after_upgrade(self, data: bytes, now: float) -> None:
        if self.stage is Stage.UP:
            self._frames(data, now)
            return
        self._rest += data
        if self.stage is Stage.HELLO:
            self._hello(now)
        elif len(self._rest) > MAX_EARLY_BYTES:
            raise WireError("too much before admission")

    def _hello(self, now: float) -> None:
        if len(self._rest) < frames.HEADER_BYTES:
            return
        length = int.from_bytes(self._rest[1:5], "big")
        if self._rest[0] != frames.CLIENT_INFO or length > frames.MAX_CLIENT_INFO_BYTES:
            raise WireError("frame before client info")
        end = frames.HEADER_BYTES + length
        if len(self._rest) < end:
            return
        self._info = self._reception.identity.open_client_info(self._rest[frames.HEADER_BYTES : end])
        self._rest = self._rest[end:]
        self.stage = Stage.WAITING
        self.decide(now)

    def decide(self, now: float) -> None:
        """Ask whether this client may come in; again when admission learned something. Raises WireError."""
        info = self._info
        if self.stage is not Stage.WAITING or info is None:
            return
        reception = self._reception
        if info.mesh_key:
            is_sibling = _is(info.mesh_key, reception.sibling_key)
            if is_sibling or _is(info.mesh_key, reception.mesh_key):
                self.port.become_link(is_sibling)
        if not self.port.is_mesh:
            verdict = reception.admit(info.node, self._source.host)
            if verdict is Admission.UNKNOWN:
                return
            if verdict is Admission.DENIED:
                reception.refused += 1
                raise WireError("node key is not admitted")
        self.stage = Stage.UP
        self.port.key = info.node
        self._info = None
        limits = (0, 0) if self.port.is_mesh else (reception.bytes_per_second, reception.burst_bytes)
        reception.switch.push(self.port, info.server_info(reception.nonce(), *limits, reception.peer_relay))
        if reception.udp_port and self.port.is_mesh and not self.port.is_sibling:
            udp_port = reception.udp_port.to_bytes(2, "big")
            reception.switch.push(self.port, frames.encode(frames.RELAY_UDP, udp_port))
        if not self.port.is_mesh:
            reception.presence.enter(self.port, self._source, self._flags(info), info.instance)
        rest, self._rest = self._rest, b""
        if rest:
            self._frames(rest, now)

    def _flags(self, info: ClientInfo) -> int:
        flags = frames.PRESENT_PROBER if info.is_prober else 0
        if not self._is_ideal:
            flags |= frames.PRESENT_NOT_IDEAL
        return flags or frames.PRESENT_REGULAR

    def _frames(self, data: bytes, now: float) -> None:
        try:
            control = self._reception.switch.feed(self.port, data)
        except ValueError as error:
            raise WireError(str(error)) from None
        for kind, payload in control:
            self._attendance.control(kind, payload, now)

    # What goes out

    def _wants_to_write(self) -> None:
        self._reception.switch.push(self.port, b"")

    def take(self) -> bytes:
        """What is to be written now."""
        data = self._reception.switch.take(self.port)
        stream = self._websocket
        if stream is not None:
            wrapped = [self._head]
            wrapped += [
                websocket.encode(websocket.BINARY, data[at : at + MAX_MESSAGE_BYTES])
                for at in range(0, len(data), MAX_MESSAGE_BYTES)
            ]
            wrapped += stream.replies
            stream.replies.clear()
            data = b"".join(wrapped)
            self._head = b""
        return data

    def leave(self) -> None:
        """The connection is gone."""
        self._attendance.leave()

    # HTTP

    def _http(self, data: bytes) -> bytes:
        """Answer requests; returns what follows an upgrade."""
        self._rest += data
        while True:
            end = self._rest.find(b"\r\n\r\n")
            if end < 0:
                if len(self._rest) > MAX_HEAD_BYTES:
                    raise WireError("request head too large")
                return b""
            head, self._rest = self._rest[:end], self._rest[end + 4 :]
            self._requests += 1
            if self._requests > MAX_REQUESTS:
                raise WireError("too many requests on one connection")
            if self._request(head):
                self.stage = Stage.HELLO
                rest, self._rest = self._rest, b""
                return rest

    def _request(self, head: bytes) -> bool:
        """Answer one request; True if the connection is DERP from now on."""
        request = parse_request(head)
        reception = self._reception
        if request.wants_derp and self._offer.derp:
            self._is_ideal = "ideal-node" not in request.fields
            answer = switching(request, reception.identity.key)
            if request.is_websocket:
                reception.websockets += 1
                self._websocket = websocket.Stream()
                self._head = answer
            elif answer:
                reception.switch.push(self.port, answer)
            reception.switch.push(self.port, reception.identity.greeting)
            return True
        if request.path in ("/metrics", "/debug/varz") and reception.metrics is not None and self._may_see_metrics:
            kind = "text/plain; version=0.0.4; charset=utf-8"
            answer = response("200 OK", reception.metrics(), kind=kind, is_head=request.method == "HEAD")
        else:
            answer = reception.pages.answer(request)
        reception.switch.push(self.port, answer)
        if (
            request.has_body
            or request.fields.get("connection", "").lower() == "close"
            or b"\nConnection: close" in answer
        ):
            self._owner.close()
        return False

    @property
    def _may_see_metrics(self) -> bool:
        is_local = self._source.host.startswith("127.") or self._source.host == "::1"
        return self._offer.metrics or (self._offer.local_metrics and is_local)


def _is(key: str, wanted: str) -> bool:
    """Whether a mesh key (`parse_mesh_key`) is the one wanted, in constant time; an empty one never is."""
    return bool(wanted) and hmac.compare_digest(key, wanted)
