"""What the inbound plane tells the engine of QUIC packets that it has opened."""

from __future__ import annotations

import socket

from gw.engine.inbound import MAX_RUNS, InboundPlane
from gw.engine.link import BUFFER_BYTES, MESSAGE_BYTES, QuicOpened, Sender, pair, read_from_worker
from gw.native.quicpackets import Keys
from gw.native.quicsealing import OpeningLine


def plane_of(link: socket.socket) -> InboundPlane:
    made = object.__new__(InboundPlane)  # without a TUN
    made.sender = Sender(link)
    return made


def line_of(frames: list[bytes]) -> OpeningLine:
    keys = Keys(lambda number, data, head: data, lambda samples: samples, 0)
    line = OpeningLine(3, 7, keys, [b"c" * 8], 0)
    line.frames, line.runs, line.count, line.source = frames, [5, 9], len(frames), ("192.0.2.1", 9)
    return line


def heard(link: socket.socket) -> list[QuicOpened]:
    found = []
    while True:
        try:
            raw = link.recv(BUFFER_BYTES)
        except BlockingIOError:
            return found
        assert len(raw) <= MESSAGE_BYTES
        message = read_from_worker(raw)
        assert isinstance(message, QuicOpened)
        found.append(message)


def test_large_datagrams_are_told_in_messages_that_the_engine_reads() -> None:
    engine, worker = pair()
    with engine, worker:
        frames = [bytes([number]) * 60_000 for number in range(10)] + [bytes([number]) for number in range(200)]
        assert plane_of(worker)._tell_opened(line_of(list(frames)))
        told = heard(engine)
        assert [(each.count, each.runs) for each in told if each.count] == [(210, [5, 9])]
        assert [frame for each in told for frame in each.frames] == frames


def test_numbers_and_acknowledgments_wait_while_the_engine_is_behind() -> None:
    """Lost, they would be packets that the other side thinks lost."""
    engine, worker = pair()
    with engine, worker:
        plane, line = plane_of(worker), line_of([b"frame"])
        line.acks = [[0, 1, 4]]
        plane.sender._waiting.append(b"first")
        assert not plane._tell_opened(line)
        line.runs += list(range(20, 20 + 2 * MAX_RUNS))
        assert not plane._tell_opened(line)
        assert len(line.runs) == MAX_RUNS
        plane.sender._waiting.clear()
        assert plane._tell_opened(line)
        (told,) = heard(engine)
        assert (told.count, told.acks, len(told.runs)) == (1, [[0, 1, 4]], MAX_RUNS)
        assert (line.count, line.runs, line.acks) == (0, [], [])
