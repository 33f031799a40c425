"""What both packet workers have in common: how the engine starts them, and their descriptors.

A worker is `python -P -m gw.engine.outbound` (or `inbound`) with one JSON argument that names inherited descriptors.
It lives as long as its link: when the engine is gone, so is the worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from mmap import mmap
from typing import Final

import msgspec

from gw.native import counters, flows

COUNTER_BYTES: Final = counters.SHARED_BYTES
FLOW_BYTES: Final = flows.SHARED_BYTES


class Setup(msgspec.Struct, frozen=True):
    """Descriptors by number, and how the device and sockets may be used. core: CPU to be pinned to, -1 for any."""

    link: int
    tun: int
    udp4: int
    udp6: int  # -1 where there is no IPv6
    counters: int
    flows: int
    mtu: int
    gso: bool
    tcp_offload: bool
    udp_offload: bool
    core: int = -1

    def descriptors(self) -> list[int]:
        return [fd for fd in (self.link, self.tun, self.udp4, self.udp6, self.counters, self.flows) if fd >= 0]


def read_setup() -> Setup:
    """The worker's own, from its argument; also takes the signals that are the engine's business out of the way."""
    setup = msgspec.json.decode(sys.argv[1].encode(), type=Setup)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the engine ends us in order
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if setup.core >= 0:
        try:
            os.sched_setaffinity(0, {setup.core})
        except OSError:
            pass  # a core that was taken from us since
    return setup


def share(setup: Setup) -> tuple[mmap, mmap]:
    """The two shared tables, mapped: counters and flows."""
    return mmap(setup.counters, COUNTER_BYTES), mmap(setup.flows, FLOW_BYTES)


def udp_socket(descriptor: int, family: socket.AddressFamily) -> socket.socket | None:
    return None if descriptor < 0 else socket.socket(family, socket.SOCK_DGRAM, 0, descriptor)
