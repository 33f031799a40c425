"""Streams at the edge, in one process and at the far end of a link."""

from __future__ import annotations

import asyncio
import socket

from gw.control.edge import Edge, Switchboard
from gw.control.link import RemoteDesk, WorkerEdge
from gw.wire.ts2021.mapframes import MapFrames
from gw.wire.ts2021.server import Request


class Desk:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.edge: Edge | None = None

    def ask(self, edge: Edge, connection: int, machine: str, request: Request) -> None:
        self.edge = edge
        self.heard.append(("ask", connection, machine, request))

    def cancel(self, edge: Edge, connection: int, stream: int) -> None:
        self.heard.append(("cancel", connection, stream))

    def lost(self, edge: Edge, connection: int) -> None:
        self.heard.append(("lost", connection))

    def behind(self, edge: Edge, number: int) -> None:
        self.heard.append(("behind", number))

    def drained(self, edge: Edge, number: int) -> None:
        self.heard.append(("drained", number))


class Pipe:
    """A client that may stop reading."""

    def __init__(self) -> None:
        self.slow = False
        self.replies: list[tuple[int, int, bytes, str]] = []
        self.begun: list[int] = []
        self.finished: list[int] = []
        self.frames = MapFrames(compressed=True)
        self.messages: list[bytes] = []

    def reply(self, stream: int, status: int, body: bytes, content_type: str) -> None:
        self.replies.append((stream, status, body, content_type))

    def begin(self, stream: int) -> bool:
        self.begun.append(stream)
        return True

    def push(self, stream: int, data: bytes) -> bool:
        if not self.slow:
            self.messages += self.frames.feed(data)
        return not self.slow

    def make_room(self, stream: int, size: int) -> None: ...

    def finish(self, stream: int) -> None:
        self.finished.append(stream)

    def is_slow(self, stream: int) -> bool:
        return self.slow


def test_who_does_not_read_misses_deltas_and_nobody_else_does() -> None:
    desk, board = Desk(), None
    board = Switchboard(desk)
    pipes = [Pipe(), Pipe()]
    for number, pipe in enumerate(pipes, 1):
        board.open(board.connect(pipe), 1, number, True)
    pipes[0].slow = True
    board.deliver(b'{"a":1}', [1, 2], is_whole=False)
    board.deliver(b'{"a":2}', [1, 2], is_whole=False)
    assert desk.heard == [("behind", 1)]
    assert pipes[1].messages == [b'{"a":1}', b'{"a":2}']
    board.drained(1)
    assert desk.heard == [("behind", 1)]  # it is still full
    pipes[0].slow = False
    board.drained(1)
    board.deliver(b'{"a":3}', [1, 2], is_whole=False)  # sent before the desk heard: it must not be seen alone
    board.deliver(b'{"whole":1}', [1], is_whole=True)
    board.deliver(b'{"a":4}', [1, 2], is_whole=False)
    assert pipes[0].messages == [b'{"whole":1}', b'{"a":4}']
    assert desk.heard[1] == ("drained", 1)


def test_streams_of_a_lost_connection_are_gone() -> None:
    desk = Desk()
    board, pipe = Switchboard(desk), Pipe()
    number = board.connect(pipe)
    board.open(number, 1, 7, True)
    board.open(number, 3, 8, True)
    board.cancel(number, 1)
    board.disconnect(number)
    board.disconnect(number)
    board.deliver(b"{}", [7, 8], is_whole=True)
    assert desk.heard == [("cancel", number, 1), ("lost", number)]
    assert pipe.messages == []
    assert len(board) == 0


async def test_what_crosses_a_link_is_what_was_meant() -> None:
    ours, theirs = socket.socketpair()
    desk = Desk()
    lost: list[str] = []
    told: list[bytes] = []
    near = WorkerEdge(desk, lambda: lost.append("near"))
    far = RemoteDesk(lambda: lost.append("far"), told.append)
    loop = asyncio.get_running_loop()
    for sock, frames in ((ours, near.frames), (theirs, far.frames)):
        sock.setblocking(False)
        await loop.create_connection(lambda frames=frames: frames, sock=sock)  # type: ignore[misc]
    board, pipe = Switchboard(far), Pipe()
    far.edge = board
    machine = "mkey:" + "ab" * 32
    connection = board.connect(pipe)
    request = Request(5, "POST", "/machine/map", b"x" * 300_000)
    board.ask(connection, machine, request)
    await until(lambda: bool(desk.heard))
    assert desk.heard == [("ask", connection, machine, request)]
    near.frames.send(1, b"settings")
    near.reply(connection, 5, 404, b"no", "text/plain")
    near.open(connection, 7, 9, True)
    near.deliver(b'{"x":"' + b"y" * 500_000 + b'"}', [9, 10], is_whole=True)
    near.end(9)
    await until(lambda: bool(pipe.finished))
    assert told == [b"settings"]
    assert pipe.replies == [(5, 404, b"no", "text/plain")]
    assert pipe.begun == [7]
    assert len(pipe.messages[0]) == 500_008
    board.disconnect(connection)
    await until(lambda: ("lost", connection) in desk.heard)
    near.frames.close()
    await until(lambda: len(lost) == 2)
    far.frames.close()


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
