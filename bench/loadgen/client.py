"""One simulated client: bytes in, bytes out, and what the map stream told it.

The HTTP/2 here is the client's half alone, with windows so wide that it never has to open them again: h2 would cost ten
times the memory and five times the time of everything else in this file.

Ref: control protocol §2 to §6; RFC 9113, RFC 7541
"""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import hpack
import msgspec
import zstandard

from gw.model.keys import MachineKey, MachineSecret
from gw.wire.ts2021.noise import RESPONSE_BYTES, ClientHandshake, Session
from gw.wire.x25519 import clamp, fresh_pair, public_key

VERSION: Final = 116
WINDOW: Final = (1 << 31) - 1
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CACHEABLE_BYTES: Final = 16 << 10
_PREFACE: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + b"\0\0\x06\x04\0\0\0\0\0" + struct.pack(">HI", 4, WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
    + b"\0\0\x04\x08\0\0\0\0\0" + struct.pack(">I", WINDOW - 65535)
)  # fmt: skip
_STATUS: Final = {0x88: 200, 0x89: 204, 0x8C: 400, 0x8D: 404, 0x8E: 500}
_EARLY_MAGIC: Final = b"\xff\xff\xffTS"

REGISTER: Final = """{"Version":%d,"NodeKey":"%s","OldNodeKey":"nodekey:%s","NLKey":"nlpub:%s",%s\
"Expiry":"0001-01-01T00:00:00Z","Followup":"","Hostinfo":%s,"NodeKeySignature":null}"""
MAP: Final = """{"Version":%d,"Compress":"zstd","KeepAlive":true,"NodeKey":"%s","DiscoKey":"%s",%s"Hostinfo":%s,\
"Endpoints":[%s],"EndpointTypes":[1,2]}"""
HOSTINFO: Final = """{"IPNVersion":"1.86.2-t0123456789","BackendLogID":"%s","OS":"linux","OSVersion":"6.12.38",\
"Container":false,"Distro":"debian","DistroVersion":"13","DistroCodeName":"trixie","Desktop":false,"Package":"tsnet",\
"Hostname":"%s","Machine":"x86_64","GoArch":"amd64","GoArchVar":"v1","GoVersion":"go1.25.1",\
"Services":[{"Proto":"peerapi4","Port":46001},{"Proto":"peerapi6","Port":46001},{"Proto":"peerapi-dns-proxy","Port":1}],\
"NetInfo":{"MappingVariesByDestIP":false,"WorkingIPv6":false,"OSHasIPv6":true,"WorkingUDP":true,"UPnP":false,"PMP":false,\
"PCP":false,"PreferredDERP":900,"DERPLatency":{"900-v4":0.0123},"FirewallMode":"ipt-default"},"Userspace":true,\
"UserspaceRouter":true,"AppConnector":false,"StateEncrypted":false}"""


class _Peer(msgspec.Struct, rename="pascal"):
    id: int = msgspec.field(name="ID")
    online: bool | None = None
    endpoints: list[str] | None = None


class _Patch(msgspec.Struct, rename="pascal"):
    node_id: int = msgspec.field(name="NodeID")
    online: bool | None = None
    endpoints: list[str] | None = None


class _Message(msgspec.Struct, rename="pascal"):
    node: _Peer | None = None
    keep_alive: bool = False
    peers: list[_Peer] | None = None
    peers_changed: list[_Peer] | None = None
    peers_removed: list[int] | None = None
    peers_changed_patch: list[_Patch] | None = None
    online_change: dict[int, bool] | None = None


_read = msgspec.json.Decoder(_Message).decode


@dataclass(slots=True)
class Told:
    """What one map message says. is_first: it carries the self node. changes: numbers of endpoint changes seen."""

    is_first: bool
    is_full: bool
    online: set[int]
    gone: set[int]
    changes: list[int]


def endpoint_of(change: int) -> str:
    """An address that carries the number of a change; 198.18.0.0/15 is for benchmarks."""
    return f"198.{18 + (change >> 16 & 1)}.{change >> 8 & 255}.{change & 255}:41641"


def _change_in(endpoints: list[str] | None) -> list[int]:
    found = []
    for text in endpoints or ():
        first, second, third, fourth = text.partition(":")[0].split(".") if "." in text else ("", "", "", "")
        if first == "198" and second in ("18", "19"):
            found.append((int(second) - 18) << 16 | int(third) << 8 | int(fourth))
    return found


def _understand(payload: bytes) -> Told:
    size = zstandard.frame_content_size(payload)
    opener = zstandard.ZstdDecompressor()
    raw = opener.decompress(payload, max_output_size=size if size > 0 else 256 << 20)
    message = _read(raw)
    online: set[int] = set()
    gone: set[int] = set(message.peers_removed or ())
    changes: list[int] = []
    for peer in (*(message.peers or ()), *(message.peers_changed or ())):
        (online if peer.online else gone).add(peer.id)
        changes += _change_in(peer.endpoints)
    for patch in message.peers_changed_patch or ():
        if patch.online is not None:
            (online if patch.online else gone).add(patch.node_id)
        changes += _change_in(patch.endpoints)
    for node_id, is_online in (message.online_change or {}).items():
        (online if is_online else gone).add(node_id)
    return Told(message.node is not None, bool(message.peers), online, gone, changes)


_understand_shared = lru_cache(maxsize=256)(_understand)  # most recipients get the same bytes


def understand(payload: bytes) -> Told:
    return _understand_shared(payload) if len(payload) < CACHEABLE_BYTES else _understand(payload)


@dataclass(slots=True)
class Identity:
    """Who a client is, made of its number alone, so that a later run is the same machines."""

    machine: MachineSecret
    node_key: str
    disco_key: str
    hostname: str

    @classmethod
    def of(cls, index: int, salt: str) -> Identity:
        def derive(what: str) -> bytes:
            return hashlib.blake2b(f"{salt} {index} {what}".encode(), digest_size=32).digest()

        return cls(
            MachineSecret(clamp(derive("machine"))),
            f"nodekey:{derive('node').hex()}",
            f"discokey:{derive('disco').hex()}",
            f"load-{index}",
        )


@dataclass(slots=True)
class Client:
    """One client over one connection at a time. `out` is what to send; `feed` says what arrived."""

    index: int
    identity: Identity
    auth_key: str
    authority: str
    known: set[int] = field(default_factory=set)  # peers that are online
    change: int = 0  # the last change of its own endpoints
    handshake: ClientHandshake | None = None
    session: Session | None = None
    out: bytes = b""
    raw: bytes = b""
    plain: bytes = b""
    body: bytes = b""  # of the map stream, cut at message bounds
    next_stream: int = 1
    map_stream: int = 0
    replies: dict[int, list[Any]] = field(default_factory=dict)  # stream -> [what, status, body]
    is_early: bool = True

    def begin(self, server: MachineKey) -> None:
        """Start a connection."""
        self.handshake = ClientHandshake(self.identity.machine, server, fresh_pair(), VERSION)
        self.session, self.raw, self.plain, self.body = None, b"", b"", b""
        self.next_stream, self.map_stream, self.is_early = 1, 0, True
        self.replies.clear()
        hello = base64.b64encode(self.handshake.initiation()).decode()
        self.out = (
            f"POST /ts2021 HTTP/1.1\r\nHost: {self.authority}\r\nUpgrade: tailscale-control-protocol\r\n"
            f"Connection: upgrade\r\nContent-Length: 0\r\nX-Tailscale-Handshake: {hello}\r\n\r\n"
        ).encode()

    def feed(self, data: bytes) -> list[tuple[str, Any]]:
        """What happened: ("up", None), ("reply", [what, status, body]), ("told", Told), ("end", why)."""
        happened: list[tuple[str, Any]] = []
        if self.session is None:
            self.raw += data
            head, found, rest = self.raw.partition(b"\r\n\r\n")
            if not found or len(rest) < RESPONSE_BYTES:
                if found and not head.startswith(b"HTTP/1.1 101 "):
                    return [("end", head[:60].decode("latin-1"))]
                return happened
            assert self.handshake is not None
            self.session = self.handshake.finish(rest[:RESPONSE_BYTES])
            self.handshake, self.raw = None, b""
            self.out += self.session.seal(_PREFACE)
            happened.append(("up", None))
            data = rest[RESPONSE_BYTES:]
        plain = self.session.feed(data)
        if self.plain:
            plain = self.plain + plain
        self.plain = b""
        if self.is_early and len(plain) >= 9:
            self.is_early = False
            if plain[:5] == _EARLY_MAGIC:
                size = 9 + int.from_bytes(plain[5:9], "big")
                if len(plain) < size:
                    self.is_early, self.plain = True, plain
                    return happened
                plain = plain[size:]
        self._frames(plain, happened)
        return happened

    def _frames(self, plain: bytes, happened: list[tuple[str, Any]]) -> None:
        offset, end = 0, len(plain)
        while end - offset >= 9:
            size = plain[offset] << 16 | plain[offset + 1] << 8 | plain[offset + 2]
            if end - offset - 9 < size:
                break
            kind, flags = plain[offset + 3], plain[offset + 4]
            stream = int.from_bytes(plain[offset + 5 : offset + 9], "big")
            start, offset = offset + 9, offset + 9 + size
            if kind == DATA:
                if stream == self.map_stream:
                    self._take(plain[start:offset], happened)
                elif stream in self.replies:
                    self.replies[stream][2] += plain[start:offset]
                if flags & END_STREAM:
                    self._ended(stream, happened)
            elif kind == HEADERS:
                status = _STATUS.get(plain[start], 0) or _status(plain[start:offset])
                if stream in self.replies:
                    self.replies[stream][1] = status
                if flags & END_STREAM or (stream == self.map_stream and status != 200):
                    self._ended(stream, happened, f"status {status}")
            elif kind == SETTINGS and not flags & ACK:
                self._send(b"\0\0\0\x04\x01\0\0\0\0")
            elif kind == PING and not flags & ACK:
                self._send(b"\0\0\x08\x06\x01\0\0\0\0" + plain[start:offset])
            elif kind == RST_STREAM:
                self._ended(stream, happened, "reset")
            elif kind == GOAWAY:
                happened.append(("end", "GOAWAY"))
        self.plain = plain[offset:] if offset < end else b""

    def _take(self, data: bytes, happened: list[tuple[str, Any]]) -> None:
        body = self.body + data if self.body else data
        offset = 0
        while len(body) - offset >= 4:
            size = int.from_bytes(body[offset : offset + 4], "little")
            if len(body) - offset - 4 < size:
                break
            told = understand(body[offset + 4 : offset + 4 + size])
            offset += 4 + size
            if told.is_full:
                self.known = set(told.online)
            elif told.online:
                self.known |= told.online
            if told.gone:
                self.known -= told.gone
            happened.append(("told", told))
        self.body = body[offset:] if offset < len(body) else b""

    def _ended(self, stream: int, happened: list[tuple[str, Any]], why: str = "end of stream") -> None:
        if stream == self.map_stream:
            self.map_stream = 0
            happened.append(("end", why))
        elif stream in self.replies:
            happened.append(("reply", self.replies.pop(stream)))

    def _send(self, frames: bytes) -> None:
        assert self.session is not None
        self.out += self.session.seal(frames)

    def _post(self, path: bytes, text: str) -> int:
        body = text.encode()
        length, authority = str(len(body)).encode(), self.authority.encode()
        block = b"".join(
            (b"\x83\x87\x04", bytes([len(path)]), path, b"\x01", bytes([len(authority)]), authority,
             b"\x0f\x0d", bytes([len(length)]), length)
        )  # fmt: skip
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        head = struct.pack(">IBI", len(block) << 8 | HEADERS, END_HEADERS, stream)
        data = struct.pack(">IBI", len(body) << 8 | DATA, END_STREAM, stream)
        self._send(head + block + data + body)
        return stream

    # Requests

    def register(self, *, with_auth: bool = True) -> None:
        auth = f'"Auth":{{"AuthKey":"{self.auth_key}"}},' if with_auth else ""
        zero = "0" * 64
        text = REGISTER % (VERSION, self.identity.node_key, zero, zero, auth, self._hostinfo())
        self.replies[self._post(b"/machine/register", text)] = ["register", 0, b""]

    def stream(self) -> None:
        self.known = set()
        self.map_stream = self._post(b"/machine/map", self._map('"Stream":true,'))

    def update(self) -> None:
        """A lite update with everything, as clients send at login and at each change."""
        self.replies[self._post(b"/machine/map", self._map('"OmitPeers":true,'))] = ["update", 0, b""]

    def _map(self, kind: str) -> str:
        low = f"192.0.2.{self.index % 250 + 1}:{20000 + self.index % 40000}"
        points = f'"{low}","{endpoint_of(self.change)}"' if self.change else f'"{low}"'
        return MAP % (VERSION, self.identity.node_key, self.identity.disco_key, kind, self._hostinfo(), points)

    def _hostinfo(self) -> str:
        return HOSTINFO % (self.identity.disco_key[9:73], self.identity.hostname)

    def public_machine(self) -> bytes:
        return public_key(self.identity.machine.raw)


def _status(block: bytes) -> int:
    try:
        for name, value in hpack.Decoder().decode(block):
            if name in (":status", b":status"):
                return int(value)
    except hpack.HPACKError:
        pass  # it leans on headers of before: the number is not worth keeping a table for each client
    return -1
