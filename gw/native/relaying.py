"""Forwarding of a relay: DERP frames of one client in, frames for other clients out, by node key.

    feed(port, bytes) ──▶ local[destination].out      RecvPacket      the client is here
                      ──▶ remote[destination].out     ForwardPacket   another relay or worker has it, one hop away
                      ──▶ returned to the caller      everything that is not a packet

A `Port` is a client whatever carries its bytes: who owns it takes `out`, whole frames in order, once a turn for every
port in `Switch.dirty`. Where the carrier took less than all, or `out` grew large, packets wait in a queue that is fair
by source: when it is full the oldest packet of the greediest source gives way. Such a port is in `Switch.crowded`, so
that its senders can be told.

Ref: tailscale derp/derp.go, derp/derpserver/derpserver.go
"""

from __future__ import annotations

from typing import Final, Protocol, final

from librt.strings import read_i32_be, read_i64_be
from mypy_extensions import i64, mypyc_attr

HEADER_BYTES: Final = 5
KEY_BYTES: Final = 32
MAX_PACKET_BYTES: Final = 65536
SEND_PACKET: Final = 0x04
RECV_PACKET: Final = 0x05
FORWARD_PACKET: Final = 0x0A
NOTE_PREFERRED: Final = 0x07
WATCH_CONNS: Final = 0x10
CLOSE_PEER: Final = 0x11
PING: Final = 0x12
PONG: Final = 0x13
FLOW_STATE: Final = 0x46
MAX_FLOW_STATE_BYTES: Final = 256
MAX_PING_BYTES: Final = 1000
DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"
MIN_DISCO_BYTES: Final = 62

# What `feed` returns beside frame types
NOT_HERE: Final = 0x100  # a disco packet was for a key that nobody has; payload: the key
SPOKE: Final = 0x101  # a connection that was not the active one of its key sent something

DISCO_QUEUE_PACKETS: Final = 32
QUEUE_PACKETS: Final = 128
LINK_QUEUE_PACKETS: Final = 4096
OUT_BYTES: Final = 512 << 10  # more than this is not put out in one turn
LINK_OUT_BYTES: Final = 4 << 20

DATAGRAM_BY_NUMBER: Final = 0x00
DATAGRAM_BY_KEY: Final = 0x01
DATAGRAM_FORWARD_BY_NUMBER: Final = 0x05
DATAGRAM_FORWARD: Final = 0x07
DATAGRAM_HEAD_BYTES: Final = 34  # frame type, kind, key
FLOW_HEAD_BYTES: Final = 5  # frame type, kind, number
FORWARD_FLOW_HEAD_BYTES: Final = 8
FLOW_AFTER: Final = 8  # packets with a key, before a number is asked for
MAX_COUNTED: Final = 512

_RECV_HEAD: Final = b"\x05"
_DATAGRAM_HEAD: Final = b"0\x01"
_FLOW_HEAD: Final = b"0\x00"
_FORWARD_FLOW_HEAD: Final = b"0\x05"
_DATAGRAM_FORWARD_HEAD: Final = b"0\x07"
_FORWARD_HEAD: Final = b"\x0a"


@final
@mypyc_attr(native_class=True)
class FairQueue:
    """Frames that wait for one client, by source. A full one drops the oldest of the source that has most, at a cost
    that does not grow with the number of sources."""

    def __init__(self, limit: i64) -> None:
        self.limit: i64 = limit
        self.count: i64 = 0
        self.sources: dict[bytes, list[bytes]] = {}  # none of them empty
        self.ranks: dict[int, dict[bytes, bool]] = {}  # frames → sources that have so many; since it was full
        self.most: int = 0  # frames of one source
        self.loser: bytes = b""  # whose frame was the last to go

    def put(self, source: bytes, frame: bytes) -> int:
        """Queue a frame; returns the bytes of the one that had to go for it, 0 for none."""
        dropped: int = 0
        if self.count >= self.limit:
            if not self.ranks:
                self._rank()
            dropped = self._drop()
        mine = self.sources.get(source)
        if mine is None:
            mine = []
            self.sources[source] = mine
        if self.ranks:
            self._move(source, len(mine), len(mine) + 1)
        mine.append(frame)
        self.count += 1
        return dropped

    def _rank(self) -> None:
        for source, queue in self.sources.items():
            self._move(source, 0, len(queue))

    def _move(self, source: bytes, before: int, now: int) -> None:
        """It has `now` frames instead of `before`."""
        if before > 0:
            left = self.ranks[before]
            del left[source]
            if not left:
                del self.ranks[before]
        if now > 0:
            rank = self.ranks.get(now)
            if rank is None:
                self.ranks[now] = {source: True}
            else:
                rank[source] = True
        if now > self.most:
            self.most = now

    def _drop(self) -> int:
        source = next(iter(self.ranks[self.most]))
        queue = self.sources[source]
        dropped = len(queue[0])
        del queue[0]
        self.count -= 1
        self.loser = source
        self._move(source, len(queue) + 1, len(queue))
        if not queue:
            del self.sources[source]
        if self.most not in self.ranks:
            self.most -= 1  # its last one has one less now
        return dropped

    def take_all(self) -> list[bytes]:
        """Everything, one frame of each source in turn, and each source in order."""
        taken: list[bytes] = []
        queues = list(self.sources.values())
        self.sources = {}
        self.ranks = {}
        self.most = 0
        self.count = 0
        if len(queues) == 1:
            return queues[0]
        at: i64 = 0
        while queues:
            left: list[list[bytes]] = []
            for queue in queues:
                if at < len(queue):
                    taken.append(queue[at])
                    left.append(queue)
            queues = left
            at += 1
        return taken


class Owner(Protocol):
    """Who carries a port's bytes: a connection of any transport, or the relay itself."""

    @property
    def drained(self) -> int:
        """Bytes that the other end has taken so far; less than before when the path is another."""

    def flush(self) -> None:
        """`Port.out` has something: take it (`Switch.take`), once a turn."""

    def close(self) -> None:
        """Write what is out, then end the connection. The port leaves when that is done."""


@final
@mypyc_attr(native_class=True)
class Port:
    """One connection of a client, or of another relay or worker that takes packets for many keys."""

    def __init__(self, owner: Owner) -> None:
        self.owner: Owner = owner
        self.key: bytes = b""
        self.is_active: bool = False  # of the connections with its key, the one that receives
        self.is_closed: bool = False
        self.is_mesh: bool = False  # another relay of the region
        self.is_sibling: bool = False  # another worker of this relay
        self.is_quic: bool = False  # of a link: preferred to the one over TLS beside it
        self.relay: bytes = b""  # key of the relay at the other end of a link
        self.is_listed: bool = False  # in `Switch.dirty`
        self.is_blocked: bool = False  # the carrier took less than all
        self.hears_flow: bool = False  # its client understands FLOW_STATE
        self.is_crowded: bool = False  # in `Switch.crowded`, or looked after by whom that gave it to
        self.crowd: dict[bytes, int] = {}  # sources whose packets had to wait → how many of them were dropped
        self.keys: dict[bytes, bytes] = {}  # by flow number, of datagrams that it sends
        self.numbers: dict[bytes, bytes] = {}  # by key, flow numbers for datagrams to it
        self.numberless: dict[bytes, int] = {}  # key → packets to it that had to carry the key
        self.wants: list[bytes] = []  # keys that should have a number
        self.out: list[bytes] = []
        self.out_bytes: i64 = 0
        self.out_limit: i64 = OUT_BYTES  # above it packets wait in the queues
        self.queue: FairQueue | None = None
        self.disco: FairQueue | None = None
        self.rest: bytes = b""
        self.skip: i64 = 0
        self.head: bytes = b""  # of the RecvPacket frames made of its packets
        self.head_length: i64 = -1
        self.last_source: bytes = b""
        self.last_destination: bytes = b""

    def become_link(self, is_sibling: bool) -> None:
        """It leads to another relay of the region, or to another worker of this one."""
        self.is_mesh = True
        self.is_sibling = is_sibling
        self.out_limit = LINK_OUT_BYTES


@final
@mypyc_attr(native_class=True)
class Switch:
    """All ports of one process, by key, and what was counted."""

    def __init__(self) -> None:
        self.local: dict[bytes, Port] = {}
        self.remote: dict[bytes, Port] = {}
        self.reached: dict[bytes, set[bytes]] = {}  # source → local keys that got packets from it
        self.dirty: list[Port] = []
        self.crowded: list[Port] = []  # clients for whom packets began to wait
        self.packets_received: i64 = 0
        self.bytes_received: i64 = 0
        self.packets_sent: i64 = 0
        self.bytes_sent: i64 = 0
        self.forwarded_in: i64 = 0
        self.forwarded_out: i64 = 0
        self.dropped_unknown: i64 = 0
        self.dropped_unknown_forwarded: i64 = 0
        self.dropped_queue: i64 = 0
        self.dropped_bytes: i64 = 0
        self.dropped_disco: i64 = 0

    def feed(self, port: Port, data: bytes) -> list[tuple[int, bytes]]:
        """Take bytes of a client after its handshake; forward packets, return other frames as (type, payload).

        Payloads of unknown types are discarded as they stream in. Raises ValueError where the protocol is broken.
        """
        control: list[tuple[int, bytes]] = []
        self.bytes_received += len(data)
        if not port.is_active and not port.is_mesh:
            control.append((SPOKE, b""))
        if port.skip > 0:
            taken: i64 = len(data)
            if taken > port.skip:
                taken = port.skip
            port.skip -= taken
            data = data[taken:]
        if port.rest:
            data = port.rest + data
            port.rest = b""
        at: i64 = 0
        size: i64 = len(data)
        while size - at >= HEADER_BYTES:
            kind: i64 = data[at]
            length: i64 = i64(read_i32_be(data, at + 1)) & 0xFFFFFFFF
            start: i64 = at + HEADER_BYTES
            end: i64 = start + length
            if kind == SEND_PACKET:
                if length < KEY_BYTES or length > KEY_BYTES + MAX_PACKET_BYTES:
                    raise ValueError(f"packet frame of {length} bytes")
                if end > size:
                    break
                destination = data[start : start + KEY_BYTES]
                self.packets_received += 1
                if not self.forward(port, destination, data[start + KEY_BYTES : end]) and is_disco(
                    data, start + KEY_BYTES, end
                ):
                    control.append((NOT_HERE, destination))
            elif kind == FORWARD_PACKET:
                if not port.is_mesh:
                    raise ValueError("mesh frame from a client")
                if length < 2 * KEY_BYTES or length > 2 * KEY_BYTES + MAX_PACKET_BYTES:
                    raise ValueError(f"forward frame of {length} bytes")
                if end > size:
                    break
                self._forwarded(port, data[at:end])
            elif kind == PING:
                if length < 8 or length > MAX_PING_BYTES:
                    raise ValueError("ping of a strange length")
                if end > size:
                    break
                control.append((PING, data[start:end]))
            elif kind == PONG and length <= MAX_PING_BYTES:
                if end > size:
                    break
                control.append((PONG, data[start:end]))
            elif kind == NOTE_PREFERRED:
                if length != 1:
                    raise ValueError("note preferred of a strange length")
                if end > size:
                    break
                control.append((NOTE_PREFERRED, data[start:end]))
            elif kind == WATCH_CONNS or kind == CLOSE_PEER:
                if not port.is_mesh:
                    raise ValueError("mesh frame from a client")
                if length > KEY_BYTES or (kind == CLOSE_PEER and length < KEY_BYTES):
                    raise ValueError("mesh frame of a strange length")
                if end > size:
                    break
                control.append((kind, data[start:end]))
            elif kind == FLOW_STATE and port.is_mesh and length <= MAX_FLOW_STATE_BYTES:
                if end > size:
                    break
                control.append((FLOW_STATE, data[start:end]))
            elif end > size:
                port.skip = end - size
                at = size
                break
            at = end
        if at < size:
            port.rest = data[at:]
        return control

    def feed_datagrams(self, port: Port, frames: list[bytes]) -> tuple[list[bytes], list[tuple[int, bytes]]]:
        """Take QUIC datagrams of a client: 0x30, 0x01, 32 destination, packet; of another relay: 0x30, 0x07, 32 source,
        32 destination, packet; or with numbers of 3 bytes for keys, 0x00 and 0x05. Forward them.

        Returns datagrams of other kinds, and what `feed` would return.
        """
        others: list[bytes] = []
        control: list[tuple[int, bytes]] = []
        is_link = port.is_mesh
        if not port.is_active and not is_link:
            control.append((SPOKE, b""))
        for frame in frames:
            size: i64 = len(frame)
            self.bytes_received += size
            if is_link:
                if size >= FORWARD_FLOW_HEAD_BYTES and frame[1] == DATAGRAM_FORWARD_BY_NUMBER:
                    source = port.keys.get(frame[2:5])
                    target = port.keys.get(frame[5:FORWARD_FLOW_HEAD_BYTES])
                    if source is None or target is None:
                        self.dropped_unknown_forwarded += 1
                    else:
                        self.forwarded(port, source + target, frame[FORWARD_FLOW_HEAD_BYTES:])
                elif size >= DATAGRAM_HEAD_BYTES + KEY_BYTES and frame[1] == DATAGRAM_FORWARD:
                    self._forwarded(port, _FORWARD_HEAD + _u32(size - 2) + frame[2:])
                else:
                    others.append(frame)
                continue
            head: i64
            if size >= FLOW_HEAD_BYTES and frame[1] == DATAGRAM_BY_NUMBER:
                named = port.keys.get(frame[2:FLOW_HEAD_BYTES])
                if named is None:
                    self.dropped_unknown += 1
                    continue
                destination = named
                head = FLOW_HEAD_BYTES
            elif size >= DATAGRAM_HEAD_BYTES and frame[1] == DATAGRAM_BY_KEY:
                destination = frame[2:DATAGRAM_HEAD_BYTES]
                head = DATAGRAM_HEAD_BYTES
            else:
                others.append(frame)
                continue
            self.packets_received += 1
            if not self.forward(port, destination, frame[head:]) and is_disco(frame, head, size):
                control.append((NOT_HERE, destination))
        return others, control

    def take_datagrams(self, port: Port, limit: i64) -> tuple[list[bytes], bytes, list[bytes]]:
        """What goes out now to a client or relay on QUIC: datagrams of at most `limit` bytes (0x30 before each), frames
        for its control stream, and packets that are too large (32 source, to a relay 32 destination too, packet).
        """
        small: list[bytes] = []
        control: list[bytes] = []
        large: list[bytes] = []
        source = b""
        flow_head = b""  # of packets of `source`
        for frame in port.out:
            size: i64 = len(frame)
            if size == 0:
                continue
            self.bytes_sent += size
            kind: i64 = frame[0]
            if kind != RECV_PACKET and kind != FORWARD_PACKET:
                control.append(frame)
                continue
            named = b""
            if kind == FORWARD_PACKET:
                named = self._numbered(port, frame)
            else:
                told = frame[HEADER_BYTES : HEADER_BYTES + KEY_BYTES]
                if told != source:
                    source = told
                    number = port.numbers.get(source)
                    flow_head = b"" if number is None else _FLOW_HEAD + number
                if flow_head:
                    named = flow_head + frame[HEADER_BYTES + KEY_BYTES :]
                else:
                    self._numberless(port, source)
            if named and len(named) - 1 <= limit:
                small.append(named)
            elif size - HEADER_BYTES + 1 <= limit:
                head = _DATAGRAM_HEAD if kind == RECV_PACKET else _DATAGRAM_FORWARD_HEAD
                small.append(head + frame[HEADER_BYTES:])
            else:
                large.append(frame[HEADER_BYTES:])
        port.out.clear()
        port.out_bytes = 0
        port.is_listed = False
        return small, b"".join(control), large

    def forward(self, port: Port, destination: bytes, packet: bytes) -> bool:
        """Send a packet of `port` to whoever has the key; False where nobody has."""
        length: i64 = len(packet) + KEY_BYTES
        target = self.local.get(destination)
        if target is not None:
            if destination != port.last_destination:
                self._reach(port.key, destination)
                port.last_destination = destination
            if length != port.head_length:
                port.head_length = length
                port.head = _RECV_HEAD + _u32(length) + port.key
            self.deliver(target, port.key, port.head + packet, is_disco(packet, 0, length - KEY_BYTES))
            return True
        target = self.remote.get(destination)
        if target is not None:
            frame = _FORWARD_HEAD + _u32(length + KEY_BYTES) + port.key + destination + packet
            self.forwarded_out += 1
            self.deliver(target, port.key, frame, is_disco(packet, 0, length - KEY_BYTES))
            return True
        self.dropped_unknown += 1
        self.dropped_bytes += len(packet)
        return False

    def _numbered(self, port: Port, frame: bytes) -> bytes:
        """A packet for another relay as a datagram with flow numbers, b"" where its keys have none yet."""
        source = frame[HEADER_BYTES : HEADER_BYTES + KEY_BYTES]
        number = port.numbers.get(source)
        if number is None:
            self._numberless(port, source)
        destination = frame[HEADER_BYTES + KEY_BYTES : HEADER_BYTES + 2 * KEY_BYTES]
        other = port.numbers.get(destination)
        if other is None:
            self._numberless(port, destination)
        if number is None or other is None:
            return b""
        return _FORWARD_FLOW_HEAD + number + other + frame[HEADER_BYTES + 2 * KEY_BYTES :]

    def _numberless(self, port: Port, key: bytes) -> None:
        counts = port.numberless
        count = counts.get(key, 0) + 1
        if count == 1 and len(counts) >= MAX_COUNTED:
            counts.clear()
        counts[key] = count
        if count % FLOW_AFTER == 0:  # again and again: the number may have made room for another, or its key been away
            port.wants.append(key)

    def forwarded(self, port: Port, keys: bytes, packet: bytes) -> None:
        """A packet of another relay that came in parts. keys: 32 source, 32 destination."""
        self._forwarded(port, _FORWARD_HEAD + _u32(len(keys) + len(packet)) + keys + packet)

    def _forwarded(self, port: Port, frame: bytes) -> None:
        """A packet that another relay or worker has for a client of ours. It takes no second hop between relays."""
        source = frame[HEADER_BYTES : HEADER_BYTES + KEY_BYTES]
        destination = frame[HEADER_BYTES + KEY_BYTES : HEADER_BYTES + 2 * KEY_BYTES]
        size: i64 = len(frame)
        disco = is_disco(frame, HEADER_BYTES + 2 * KEY_BYTES, size)
        self.forwarded_in += 1
        target = self.local.get(destination)
        if target is not None:
            if destination != port.last_destination or source != port.last_source:
                self._reach(source, destination)
                port.last_destination = destination
                port.last_source = source
            made = _RECV_HEAD + _u32(size - HEADER_BYTES - KEY_BYTES) + source + frame[HEADER_BYTES + 2 * KEY_BYTES :]
            self.deliver(target, source, made, disco)
            return
        target = self.remote.get(destination)
        if target is not None and target.is_sibling and not port.is_sibling:
            self.deliver(target, source, frame, disco)
            return
        self.dropped_unknown_forwarded += 1
        self.dropped_bytes += size

    def _reach(self, source: bytes, destination: bytes) -> None:
        known = self.reached.get(source)
        if known is None:
            self.reached[source] = {destination}
        else:
            known.add(destination)

    def deliver(self, port: Port, source: bytes, frame: bytes, disco: bool) -> None:
        """A frame that may be dropped where the client does not keep up."""
        is_link = port.is_mesh
        if port.is_blocked or port.out_bytes > port.out_limit:
            queue = port.disco if disco else port.queue
            if queue is None:
                if disco:
                    queue = port.disco = FairQueue(DISCO_QUEUE_PACKETS)
                else:
                    queue = port.queue = FairQueue(LINK_QUEUE_PACKETS if is_link else QUEUE_PACKETS)
            dropped: i64 = queue.put(source, frame)
            if dropped > 0:
                self.dropped_queue += 1
                self.dropped_bytes += dropped
                if disco:
                    self.dropped_disco += 1
            if not is_link and not disco:
                self._crowd(port, source, queue.loser if dropped > 0 else b"")
            return
        self.packets_sent += 1
        self.push(port, frame)

    def _crowd(self, port: Port, source: bytes, loser: bytes) -> None:
        """A packet of `source` has to wait, and one of `loser` went for it."""
        if not port.is_crowded:
            port.is_crowded = True
            self.crowded.append(port)
        if source not in port.crowd:
            port.crowd[source] = 0
        if loser:
            port.crowd[loser] = port.crowd.get(loser, 0) + 1

    def push(self, port: Port, frame: bytes) -> None:
        """A frame that is not dropped."""
        if not port.is_listed:
            port.is_listed = True
            self.dirty.append(port)
        port.out.append(frame)
        port.out_bytes += len(frame)

    def take(self, port: Port) -> bytes:
        """What is to be written now. Call it once for each port in `dirty`, then `taken` when the carrier took it."""
        data = b"".join(port.out)
        port.out.clear()
        port.out_bytes = 0
        port.is_listed = False
        self.bytes_sent += len(data)
        return data

    def taken(self, port: Port) -> None:
        """The carrier has room again: what waited goes out next."""
        port.is_blocked = False
        for queue in (port.disco, port.queue):
            if queue is not None and queue.count > 0:
                for frame in queue.take_all():
                    self.packets_sent += 1
                    self.push(port, frame)
        if port.out and not port.is_listed:
            port.is_listed = True
            self.dirty.append(port)

    def waits(self, port: Port) -> bool:
        """Whether packets of the queue wait for `taken`."""
        return (port.queue is not None and port.queue.count > 0) or (port.disco is not None and port.disco.count > 0)

    def set_aside(self, port: Port) -> None:
        """The carrier takes nothing now: the port is listed again by `taken`."""
        port.is_blocked = True
        port.is_listed = False

    def clear_dirty(self) -> list[Port]:
        dirty = self.dirty
        self.dirty = []
        return dirty

    def clear_crowded(self) -> list[Port]:
        crowded = self.crowded
        self.crowded = []
        return crowded


def is_disco(data: bytes, start: i64, end: i64) -> bool:
    """Whether the packet in [start, end) sets up paths (disco)."""
    return end - start >= MIN_DISCO_BYTES and data[start] == 0x54 and data[start : start + 6] == DISCO_MAGIC


def same_head(data: bytes, step: i64, offset: i64 = 0) -> bool:
    """Whether all datagrams of `step` bytes each (the last may be shorter) have the same eight bytes at `offset`."""
    size: i64 = len(data)
    if size < offset + 8 or step < offset + 8:
        return False
    head: i64 = read_i64_be(data, offset)
    at: i64 = step + offset
    while at < size + offset:
        if at + 8 > size or read_i64_be(data, at) != head:
            return False
        at += step
    return True


def _u32(value: i64) -> bytes:
    return bytes([(value >> 24) & 0xFF, (value >> 16) & 0xFF, (value >> 8) & 0xFF, value & 0xFF])
