"""Between the state's owner and a connection worker: an edge at one end of a socket pair, the desk at the other.

    u32 length | u8 kind | payload                                                little-endian, in order, both ways

    to the worker                                          from the worker
      HELLO     JSON settings, secrets among them            ASK      u64 connection, u32 stream, 32 machine key,
      REPLY     u64 connection, u32 stream, u16 status,               u8+method, u16+path, body
                u8+content type, body                        CANCEL   u64 connection, u32 stream
      OPEN      u64 connection, u32 stream, u64 number,      LOST     u64 connection
                u8 zstd                                      BEHIND   u64 number
      DELIVER   u8 whole, u32 n, n × u64 number, message     DRAINED  u64 number
      END       u64 number

A change crosses once for each worker, as JSON bytes with the numbers of all the streams it is for; what a worker sends
in one turn of its loop goes in one write. Both ends are ours and of one version: nothing here is parsed as hostile.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from array import array
from collections.abc import Callable, Iterable
from typing import Final, final

from gw.control.edge import Desk, Edge
from gw.wire.ts2021.server import Request

HELLO, REPLY, OPEN, DELIVER, END = range(1, 6)
ASK, CANCEL, LOST, BEHIND, DRAINED = range(11, 16)
HEAD: Final = struct.Struct("<IB")
PLACE: Final = struct.Struct("<QI")
NUMBER: Final = struct.Struct("<Q")
OPENING: Final = struct.Struct("<QIQB")
DELIVERY: Final = struct.Struct("<BI")
FULL_BYTES: Final = 8 << 20  # queued to one worker: whole maps wait, so that deltas do not wait behind all of them
STUCK_BYTES: Final = 1 << 30
_IS_BIG: Final = sys.byteorder == "big"
_MACHINE: Final = "mkey:"


class Frames(asyncio.Protocol):
    """One end: cuts frames, and gathers what is sent in a turn. take: kind, payload. lost: the other end is gone."""

    def __init__(self, take: Callable[[int, bytes], None], lost: Callable[[], None]) -> None:
        self._take, self._lost = take, lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._out_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._out:
            self._flush()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= HEAD.size:
            size, kind = HEAD.unpack_from(buffer, start)
            end = start + HEAD.size + size
            if len(buffer) < end:
                break
            self._take(kind, bytes(memoryview(buffer)[start + HEAD.size : end]))
            start = end
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def send(self, kind: int, *parts: bytes) -> None:
        size = sum(map(len, parts))
        if not self._out and self._transport is not None:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(HEAD.pack(size, kind))
        self._out += parts
        self._out_bytes += size

    def _flush(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    def queued_bytes(self) -> int:
        return self._out_bytes + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()


@final
class WorkerEdge:
    """A worker as the state's owner sees it: an `Edge`. lost: what to do when the worker is gone."""

    def __init__(self, desk: Desk, lost: Callable[[], None]) -> None:
        self._desk = desk
        self.frames = Frames(self._take, lost)

    def reply(self, connection: int, stream: int, status: int, body: bytes, content_type: str) -> None:
        kind = content_type.encode()
        head = PLACE.pack(connection, stream) + struct.pack("<HB", status, len(kind))
        self.frames.send(REPLY, head + kind, body)

    def open(self, connection: int, stream: int, number: int, compress: bool) -> None:
        self.frames.send(OPEN, OPENING.pack(connection, stream, number, compress))

    def deliver(self, message: bytes, numbers: Iterable[int], *, is_whole: bool) -> None:
        listed = array("Q", numbers)
        if _IS_BIG:
            listed.byteswap()
        self.frames.send(DELIVER, DELIVERY.pack(is_whole, len(listed)), listed.tobytes(), message)

    def end(self, number: int) -> None:
        self.frames.send(END, NUMBER.pack(number))

    def is_full(self) -> bool:
        return self.frames.queued_bytes() > FULL_BYTES

    def is_stuck(self) -> bool:
        """Whether it has not read for so long that it has to be replaced."""
        return self.frames.queued_bytes() > STUCK_BYTES

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == ASK:
            connection, stream = PLACE.unpack_from(payload)
            machine = payload[12:44].hex()
            method_end = 45 + payload[44]
            path_start = method_end + 2
            path_end = path_start + int.from_bytes(payload[method_end:path_start], "little")
            request = Request(
                stream, payload[45:method_end].decode(), payload[path_start:path_end].decode(), payload[path_end:]
            )
            self._desk.ask(self, connection, _MACHINE + machine, request)
        elif kind == CANCEL:
            self._desk.cancel(self, *PLACE.unpack(payload))
        elif kind == LOST:
            self._desk.lost(self, *NUMBER.unpack(payload))
        elif kind == BEHIND:
            self._desk.behind(self, *NUMBER.unpack(payload))
        elif kind == DRAINED:
            self._desk.drained(self, *NUMBER.unpack(payload))


@final
class RemoteDesk:
    """The state's owner as a worker sees it: a `Desk`. What comes back is for `edge`."""

    def __init__(self, lost: Callable[[], None], hello: Callable[[bytes], None]) -> None:
        self.frames = Frames(self._take, lost)
        self._hello = hello
        self.edge: Edge | None = None

    def ask(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        method, path = request.method.encode()[:255], request.path.encode()[:65535]
        head = PLACE.pack(connection, request.stream) + bytes.fromhex(machine.removeprefix(_MACHINE))
        head += bytes([len(method)]) + method + len(path).to_bytes(2, "little") + path
        self.frames.send(ASK, head, request.body)

    def cancel(self, edge: Edge, connection: int, stream: int) -> None:
        self.frames.send(CANCEL, PLACE.pack(connection, stream))

    def lost(self, edge: Edge, connection: int) -> None:
        self.frames.send(LOST, NUMBER.pack(connection))

    def behind(self, edge: Edge, number: int) -> None:
        self.frames.send(BEHIND, NUMBER.pack(number))

    def drained(self, edge: Edge, number: int) -> None:
        self.frames.send(DRAINED, NUMBER.pack(number))

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == HELLO:
            self._hello(payload)
            return
        edge = self.edge
        assert edge is not None
        if kind == DELIVER:
            is_whole, count = DELIVERY.unpack_from(payload)
            end = DELIVERY.size + 8 * count
            numbers = array("Q", payload[DELIVERY.size : end])
            if _IS_BIG:
                numbers.byteswap()
            edge.deliver(payload[end:], numbers, is_whole=bool(is_whole))
        elif kind == REPLY:
            connection, stream = PLACE.unpack_from(payload)
            status, size = struct.unpack_from("<HB", payload, PLACE.size)
            end = PLACE.size + 3 + size
            edge.reply(connection, stream, status, payload[end:], payload[PLACE.size + 3 : end].decode())
        elif kind == OPEN:
            connection, stream, number, compress = OPENING.unpack(payload)
            edge.open(connection, stream, number, bool(compress))
        elif kind == END:
            edge.end(*NUMBER.unpack(payload))
