"""Sending by the train where the kernel refuses some: for their target, or because it has no such thing."""

from __future__ import annotations

import errno
import socket
from typing import Any

from gw.net.trains import TrainSocket


class Channel:
    """A socket whose kernel refuses what `refuses` says; sent: datagrams a call."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.refuses_trains = False
        self.sent: list[list[bytes]] = []

    def setblocking(self, on: bool) -> None: ...

    def sendto(self, packet: bytes, target: Any) -> None:
        if target[1] == 0:
            raise OSError(errno.EINVAL, "refused")
        self.sent.append([packet])

    def sendmsg(self, packets: list[bytes], ancillary: Any, flags: int, target: Any) -> None:
        if self.refuses_trains or target[1] == 0:
            raise OSError(errno.EINVAL, "refused")
        self.sent.append(packets)


def _socket() -> tuple[Channel, TrainSocket]:
    channel = Channel()
    return channel, TrainSocket(channel, shared=True, gso=True)  # type: ignore[arg-type]


def test_a_target_that_is_refused_costs_nobody_trains() -> None:
    """One train to port 0 turned them off for all, for good."""
    channel, trains = _socket()
    for _ in range(20):
        assert trains.send([(b"x" * 27, 9, ("192.0.2.1", 0))]) == errno.EINVAL
    assert trains.send([(b"y" * 27, 9, ("192.0.2.1", 7))]) == 0
    assert channel.sent == [[b"y" * 27]]


def test_a_host_without_trains_sends_singly_from_then_on() -> None:
    channel, trains = _socket()
    channel.refuses_trains = True
    for _ in range(5):
        assert trains.send([(b"y" * 27, 9, ("192.0.2.1", 7))]) == 0
    assert channel.sent == [[b"y" * 9]] * 15
    assert not trains.gso


def test_a_train_that_is_too_long_goes_in_parts_and_costs_nobody_trains() -> None:
    """The kernel joins up to 65,507 bytes of one sender; what is relayed goes out as it came in."""
    channel, trains = _socket()
    for segment, count in ((1000, 65), (1000, 64), (9, 200), (40_000, 1), (65_100, 1)):
        channel.sent.clear()
        data = b"".join(bytes([at % 251]) * segment for at in range(count)) + b"end"
        for _ in range(4):
            assert trains.send_train(data, segment, ("192.0.2.1", 7)) == 0
        assert b"".join(piece for call in channel.sent for piece in call) == data * 4
        assert all(len(call[0]) % segment in (0, 3) for call in channel.sent)
        assert all(len(call[0]) <= max(65_000, segment) and -(-len(call[0]) // segment) <= 64 for call in channel.sent)
    assert trains.gso
