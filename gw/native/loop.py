"""A packet worker's loop: wait, move what is there, wait. It is left only where the engine has word or is to hear some.

What runs between two waits is all that a single packet must pass, and the memory it touches is cold by then: on an idle
machine most of a packet's way is that. So the loop is compiled, short, and asks the kernel nothing twice.
"""

from __future__ import annotations

import time
from typing import Any, Final

from gw.native.inbound import Inbound
from gw.native.outbound import Outbound

READS_OUT: Final = 16  # of the TUN before the engine is listened to again
READS_IN: Final = 8  # of a socket
IDLE_S: Final = 0.001


def carry(poll: Any, wait_ms: Any, links: list[int], outbound: Outbound | None, inbound: Inbound | None) -> list[int]:
    """Move packets until something else is to be done; returns the links that can be read.

    poll: of a `select.poll` that has all descriptors; wait_ms: None to stay here, else the longest wait, after which
    this returns. The engine goes first: a packet may be waiting for what it has to say.
    """
    while True:
        heard: list[int] = []
        outside = False
        inside: list[int] = []
        for descriptor, _ in poll(wait_ms):
            if descriptor in links:
                heard.append(descriptor)
            elif outbound is not None and descriptor == outbound.tun:
                outside = True
            else:
                inside.append(descriptor)
        if heard:
            return heard
        if outside and outbound is not None and outbound.pump(READS_OUT) == 0:
            time.sleep(IDLE_S)  # an interface that is down reports ready: do not spin on it
        if inbound is not None and inside:
            for descriptor in inside:
                inbound.pump(inbound.sockets[descriptor], READS_IN)
            inbound.flush()
            if inbound.has_word():
                return heard
        if wait_ms is not None or (outbound is not None and outbound.has_word()):
            return heard
