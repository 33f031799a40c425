"""What the engine and its packet workers say to each other: one message a packet of a SOCK_SEQPACKET pair.

Each message is a msgpack array that begins with its letter. A peer is named by its slot, a small number that the
engine gives and that is also its place in the shared counters.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import Final, final

import msgspec

from gw.errors import StateError

MESSAGE_BYTES: Final = 1 << 18
BUFFER_BYTES: Final = 4 << 20
_SO_SNDBUFFORCE: Final = 32


class _Message(msgspec.Struct, array_like=True, gc=False):
    pass


# Engine -> worker


class AddPeer(_Message, tag="p"):
    slot: int


class RemovePeer(_Message, tag="q"):
    slot: int


class Routes(_Message, tag="r"):
    """Allowed IPs of one peer: those to add and those to take away, as (network, prefix length)."""

    slot: int
    add: list[tuple[bytes, int]]
    remove: list[tuple[bytes, int]]


class SendSession(_Message, tag="s"):
    """To the outbound worker: seal with this key. session is the keypair's local index."""

    slot: int
    session: int
    key: bytes
    remote_index: int
    expires_ns: int


class ReceiveSession(_Message, tag="o"):
    """To the inbound worker: open with this key; confirm: tell of the first packet."""

    slot: int
    session: int
    key: bytes
    expires_ns: int
    confirm: bool


class EndSession(_Message, tag="e"):
    slot: int
    session: int


class Plan(_Message, tag="l"):
    slot: int
    host: str  # "" for no UDP
    port: int
    relay: bool  # sealed datagrams go to the engine (too), for a relay or QUIC
    wake: bool
    head: bytes = b""  # before each datagram to host and port
    quic: bool = False  # inside QUIC and nowhere else


class SendKeepalive(_Message, tag="k"):
    slot: int


class DropStaged(_Message, tag="d"):
    slot: int


class Inject(_Message, tag="i"):
    """Send an inner packet of the engine's own."""

    slot: int
    packet: bytes


class Jail(_Message, tag="j"):
    """To the inbound worker: the peer may answer us and nothing else, or is free again."""

    slot: int
    jailed: bool


class SealQuic(_Message, tag="S"):
    """To all that may seal: how packets of the QUIC connection with a peer are made, by numbers that come with
    `QuicNumbers`; those of before are not used any more. secrets: of `gw.quic.protection`; without a key the connection
    is not theirs any more. limit: the largest WireGuard message."""

    slot: int
    line: int
    secrets: tuple[int, bytes, bytes, bytes, int]
    cid: bytes
    host: str
    port: int
    limit: int


class QuicNumbers(_Message, tag="N"):
    """Packet numbers first … stop - 1 are this sealer's; fresh: instead of those that it has. room: bytes that may
    wait for numbers."""

    slot: int
    line: int
    first: int
    stop: int
    fresh: bool
    room: int


class OpenQuic(_Message, tag="O"):
    """To the inbound worker: how packets of a QUIC connection are opened. cids: by which it is known, none for not any
    more. expected: the number that comes next."""

    slot: int
    line: int
    secrets: tuple[int, bytes, bytes, bytes, int]
    cids: list[bytes]
    expected: int


class FilterRules(_Message, tag="f"):
    """rules: (protocols, sources, destinations) as `gw.native.rules.RuleSet.add` takes them.

    A filter too large for one message comes in several; it takes effect as a whole with the last.
    """

    rules: list[tuple[list[int], list[tuple[bool, bytes, bytes]], list[tuple[bool, bytes, bytes, int, int]]]]
    local: list[tuple[bytes, int]]
    last: bool


class Relayed(_Message, tag="R"):
    """To the inbound worker: transport datagrams that a relay or QUIC brought, or host and port to another lane."""

    datagrams: list[bytes]
    host: str = ""
    port: int = 0


# Worker -> engine


class Note(_Message, tag="n"):
    """kind as in `gw.native.outbound`: need a session, active, wake, send failed, confirmed."""

    kind: int
    slot: int
    detail: int


class Heard(_Message, tag="h"):
    """Authentic datagrams of the peer now come from here; host is "" where a relay brings them."""

    slot: int
    host: str
    port: int


class Foreign(_Message, tag="u"):
    """UDP datagrams that are not transport data."""

    datagrams: list[tuple[bytes, str, int]]


class Quic(_Message, tag="c"):
    """QUIC packets that came on UDP: datagrams of one size in a row (the last may be shorter), the size, host, port."""

    trains: list[tuple[bytes, int, str, int]]


class QuicSent(_Message, tag="a"):
    """QUIC packets that leave now: the first number, the size of each. Told before they leave. None: some wait, and
    there are no numbers left."""

    line: int
    sealer: int
    first: int
    sizes: list[int]
    at_ns: int


class QuicOpened(_Message, tag="b"):
    """What was opened of a QUIC connection's packets: how many datagrams, those that are not WireGuard's bulk, numbers
    and acknowledgments as `gw.native.quicpackets.open_train` gives them; and where the newest came from."""

    slot: int
    line: int
    count: int
    frames: list[bytes]
    runs: list[int]
    acks: list[list[int]]
    host: str
    port: int


class RelayOut(_Message, tag="w"):
    """Sealed datagrams for a peer that is reached by relay or QUIC."""

    slot: int
    datagrams: list[bytes]


class Rejected(_Message, tag="x"):
    """The head of an IPv4 SYN that no rule allows, up to its ports."""

    slot: int
    head: bytes


class Tsmp(_Message, tag="t"):
    slot: int
    packet: bytes


ToWorker = (
    AddPeer
    | RemovePeer
    | Routes
    | SendSession
    | ReceiveSession
    | EndSession
    | Plan
    | SendKeepalive
    | DropStaged
    | Inject
    | Jail
    | FilterRules
    | Relayed
    | SealQuic
    | QuicNumbers
    | OpenQuic
)
FromWorker = Note | Heard | Foreign | Quic | QuicSent | QuicOpened | RelayOut | Rejected | Tsmp

_encoder: Final = msgspec.msgpack.Encoder()
_to_worker: Final[msgspec.msgpack.Decoder[ToWorker]] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends; the first is the engine's and does not block."""
    engine, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (engine, worker):
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        except OSError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    engine.setblocking(False)
    return engine, worker


def read_to_worker(raw: bytes) -> ToWorker:
    return _to_worker.decode(raw)


def read_from_worker(raw: bytes) -> FromWorker:
    return _from_worker.decode(raw)


@final
class Sender:
    """The sending end of a link. Control messages wait in order while the other end is slow; bulk is dropped."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: deque[bytes] = deque()
        self.dropped = 0  # bulk messages

    @property
    def is_behind(self) -> bool:
        """True while control messages wait; call `flush` when the socket can be written."""
        return bool(self._waiting)

    def control(self, message: _Message) -> None:
        """Send in order, now or later."""
        raw = _encoder.encode(message)
        if len(raw) > MESSAGE_BYTES:
            raise StateError(f"link message of {len(raw)} bytes")
        self._waiting.append(raw)
        self.flush()

    def bulk(self, message: _Message) -> bool:
        """Send now or not at all; whether it was sent."""
        if self._waiting or not self._send(_encoder.encode(message)):
            self.dropped += 1
            return False
        return True

    def flush(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()

    def _send(self, raw: bytes) -> bool:
        try:
            self._sock.send(raw, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.EMSGSIZE):
                return error.errno == errno.EMSGSIZE  # too large to ever pass: drop
            return True  # the other end is gone: its death is noticed elsewhere
        return True
