"""What the kernel says of a UDP port where nobody listens, and that it is said once."""

from __future__ import annotations

import select
import socket

import pytest

from gw.net.trains import TrainSocket

from .scripts import free_port


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
@pytest.mark.parametrize("sends", [1, 2])
def test_a_refusal_is_heard_and_the_descriptor_is_quiet_again(
    family: socket.AddressFamily, host: str, sends: int
) -> None:
    """The second `send` takes the error itself: what is kept of it made the descriptor readable for ever."""
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.bind((host, 0))
        trains = TrainSocket(channel)
        trains.hear_refusals()
        target = (host, free_port())
        for _ in range(sends):
            trains.send([(b"x", 1, target)])
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        assert poll.poll(20_000)
        heard = 0
        for _ in range(10):
            if not poll.poll(100):
                break
            with pytest.raises(OSError):
                trains.receive()
            heard += trains.take_refusals()
        assert heard >= 1
        assert not poll.poll(100)
        trains.send([(b"to ourselves", 12, channel.getsockname()[:2])])
        assert trains.receive()[0] == b"to ourselves"
