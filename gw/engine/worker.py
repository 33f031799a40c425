"""A packet worker's process: a plane of packets in one lane, on a core of its own, or both planes where there is one.

`python -P -m gw.engine SETUP`, where SETUP is JSON and names inherited descriptors. It lives as long as its
links: when the engine is gone, so is the worker.

    outbound   TUN -> route -> seal -> UDP      gw.engine.outbound
    inbound    UDP -> open -> filter -> TUN     gw.engine.inbound

A lane's inbound worker serves the outbound plane too while there is little to do (`gw.native.turn`).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from mmap import mmap
from typing import Final, Protocol

import msgspec

from gw.engine.link import MESSAGE_BYTES, Sender, ToWorker, read_to_worker
from gw.native import counters, flows
from gw.native.inbound import Inbound
from gw.native.loop import Home, carry
from gw.native.outbound import Outbound
from gw.native.turn import BUSY_READER, CALM_READER, Turn

COUNTER_BYTES: Final = counters.SHARED_BYTES
FLOW_BYTES: Final = flows.SHARED_BYTES
BEHIND_MS: Final = 50
LISTEN_NS: Final = 2_000_000


class Setup(msgspec.Struct, frozen=True):
    """Descriptors by number, and how the device and sockets may be used.

    outbound, inbound: links of the planes that this process serves, -1 for one that it does not. lane: which of the
    `lanes` it belongs to; tun, udp4 and udp6 are that lane's. sealer: which of the `sealers` that share keypairs it is.
    core: CPU to keep to when busy, -1 for any. bell, other_bell: eventfds of this worker and of the lane's other one,
    -1 where there is no other.
    cipher: as in `gw.wire.cipher`.
    """

    outbound: int
    inbound: int
    tun: int
    udp4: int
    udp6: int  # -1 where there is no IPv6
    counters: int
    flows: int
    mtu: int
    gso: bool
    tcp_offload: bool
    udp_offload: bool
    cipher: str = "openssl"
    core: int = -1
    lane: int = 0
    lanes: int = 1
    sealer: int = 0
    sealers: int = 1
    bell: int = -1
    other_bell: int = -1

    def descriptors(self) -> list[int]:
        all_ = (self.outbound, self.inbound, self.tun, self.udp4, self.udp6, self.counters, self.flows)
        return [descriptor for descriptor in (*all_, self.bell, self.other_bell) if descriptor >= 0]


class Plane(Protocol):
    """One direction of packets. sender: its end of the link to the engine."""

    sender: Sender

    def descriptors(self) -> list[int]:
        """What to wake for, besides the link."""

    def apply(self, message: ToWorker) -> None:
        """Do what the engine says."""

    def tell(self) -> None:
        """Tell the engine what it should know."""


def main() -> None:
    from gw.engine.inbound import InboundPlane
    from gw.engine.outbound import OutboundPlane

    setup = msgspec.json.decode(sys.argv[1].encode(), type=Setup)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the engine ends us in order
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    planes: dict[int, tuple[socket.socket, Plane]] = {}
    outbound = inbound = None
    if setup.outbound >= 0:
        link = socket.socket(fileno=setup.outbound)
        outbound = OutboundPlane(setup, link)
        planes[setup.outbound] = (link, outbound)
    if setup.inbound >= 0:
        link = socket.socket(fileno=setup.inbound)
        inbound = InboundPlane(setup, link)
        planes[setup.inbound] = (link, inbound)
    gc.freeze()
    gc.disable()  # packets make no cycles, and a collection would make them wait
    cores = (outbound.core if outbound is not None else None, inbound.core if inbound is not None else None)
    poller = select.poll()
    run(planes, *cores, Home(setup.core), poller, turn(setup, poller))


def run(
    planes: dict[int, tuple[socket.socket, Plane]],
    outbound: Outbound | None,
    inbound: Inbound | None,
    home: Home,
    poller: select.poll,
    turn: Turn | None,
) -> None:
    """Until the engine is gone. planes: by the descriptors of their links; the cores are theirs. The TUN is in the
    poller when it is this worker's turn, or always."""
    links = list(planes)
    for link, plane in planes.values():
        poller.register(link, select.POLLIN)
        for descriptor in plane.descriptors():
            if turn is None or descriptor != turn.tun:
                poller.register(descriptor, select.POLLIN)
    while True:
        is_behind = any(plane.sender.is_behind for _, plane in planes.values())
        for descriptor in carry(poller.poll, BEHIND_MS if is_behind else None, links, outbound, inbound, home, turn):
            link, plane = planes[descriptor]
            if not listen(link, plane):
                return
        for _, plane in planes.values():
            plane.tell()


def turn(setup: Setup, poller: select.poll) -> Turn | None:
    """Who reads the TUN, where two may."""
    if setup.bell < 0:
        return None
    me = CALM_READER if setup.inbound >= 0 else BUSY_READER
    shared, _ = share(setup)
    return Turn(shared, setup.lane, me, setup.tun, setup.bell, setup.other_bell, poller)


def listen(link: socket.socket, plane: Plane) -> bool:
    """Do what the engine has said; False when it is gone. A large filter is taken in bites: packets go between."""
    enough_ns = time.monotonic_ns() + LISTEN_NS
    while time.monotonic_ns() < enough_ns:
        try:
            raw = link.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not raw:
            return False
        plane.apply(read_to_worker(raw))
    return True


def share(setup: Setup) -> tuple[mmap, mmap]:
    """The two shared tables, mapped: counters and flows."""
    return mmap(setup.counters, COUNTER_BYTES), mmap(setup.flows, FLOW_BYTES)


def udp_socket(descriptor: int, family: socket.AddressFamily) -> socket.socket | None:
    """The inherited socket, as a descriptor of our own: two planes of one process may both hold it."""
    return None if descriptor < 0 else socket.socket(family, socket.SOCK_DGRAM, 0, os.dup(descriptor))
