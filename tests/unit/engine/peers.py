"""Two nodes' QUIC connections in memory: a virtual clock, a path with delay, loss and endpoints that change."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from typing import Any

from gw.engine.peerlines import Bulk, Down, Event, Moved, PeerLines, Ponged, RoutesTold, Up
from gw.model.addresses import AddrPort
from gw.model.keys import NodeKey, NodeSecret
from gw.quic.configuration import ephemeral_certificate
from gw.quic.link import apart
from gw.wire.x25519 import clamp, public_key

CERTIFICATE = ephemeral_certificate()


class Box:
    """Where a node keeps its tickets."""

    def __init__(self) -> None:
        self.kept: dict[NodeKey, bytes] = {}

    def take(self, peer: NodeKey) -> bytes | None:
        return self.kept.pop(peer, None)

    def keep(self, peer: NodeKey, ticket: bytes) -> None:
        self.kept[peer] = ticket


class Node:
    def __init__(self, net: Net, name: str, secret: bytes, address: AddrPort) -> None:
        self.net, self.name, self.address = net, name, address
        self.secret = NodeSecret(secret)
        self.key = NodeKey(public_key(secret))
        self.box = Box()
        self.allowed: set[NodeKey] = set()
        self.fast = True
        self.sealers = 0
        self.workers: Any = None  # whoever seals and opens for it
        self.start()

    def start(self) -> None:
        """A new process with the same key."""
        self.lines = PeerLines(
            self.secret, self.key, lambda key: key in self.allowed, self.box,
            random_bytes=self.net.random.randbytes, wall=lambda: time.time() + self.net.now - 1000, fast=self.fast,
            certificate=CERTIFICATE, sealers=self.sealers,
        )  # fmt: skip
        self.events: list[Event] = []
        self.got: list[bytes] = []

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def is_up(self) -> bool:
        return bool(self.of(Up)) and not self.of(Down)


class Net:
    """ann dials where her key is the smaller; tests say who dials."""

    def __init__(self, *, delay_s: float = 0.005, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.delay_s = delay_s
        self.introduced = True
        self.lose: Callable[[bytes, Node], bool] = lambda packet, sender: False
        secrets = sorted((clamp(self.random.randbytes(32)) for _ in range(2)), key=public_key)
        self.ann = Node(self, "ann", secrets[0], AddrPort("192.0.2.1", 41641))
        self.bob = Node(self, "bob", secrets[1], AddrPort("198.51.100.2", 41641))
        for one, other in ((self.ann, self.bob), (self.bob, self.ann)):
            one.allowed.add(other.key)
        self._under_way: list[tuple[float, int, bytes, AddrPort, AddrPort]] = []
        self._order = 0

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.ann, self.bob

    def other(self, node: Node) -> Node:
        return self.bob if node is self.ann else self.ann

    def pump(self, node: Node) -> None:
        out, events = node.lines.poll(self.now)
        for event in events:
            node.events.append(event)
            if isinstance(event, Bulk):
                node.got += event.datagrams
        for packet, to in apart(out):
            self.put(node, packet, to)

    def put(self, node: Node, packet: bytes, to: AddrPort) -> None:
        """On its way, if it is not lost."""
        if len(packet) <= 1472 and not self.lose(packet, node):
            self._order += 1
            heapq.heappush(self._under_way, (self.now + self.delay_s, self._order, packet, node.address, to))

    def deliver(self, node: Node, packet: bytes, source: AddrPort) -> None:
        peer = self.other(node).key if self.introduced else None
        node.lines.receive(packet, len(packet), source, peer, self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self.now < end:
            for node in self.nodes:
                self.pump(node)
            if until():
                return True
            times = [end, *(node.lines.deadline() for node in self.nodes)]
            if self._under_way:
                times.append(self._under_way[0][0])
            self.now = max(self.now + 1e-6, min(times))
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, packet, source, to = heapq.heappop(self._under_way)
                for node in self.nodes:
                    if node.address == to:
                        self.deliver(node, packet, source)
        return until()

    def dial(self, who: Node | None = None) -> None:
        one = who or self.ann
        other = self.other(one)
        one.lines.dial(other.key, other.address, self.now)

    def connected(self, who: Node | None = None) -> None:
        self.dial(who)
        assert self.run(10, lambda: self.ann.is_up and self.bob.is_up), (self.ann.events, self.bob.events)
        self.run(0.2)


def transport(number: int, size: int = 1312) -> bytes:
    """Looks like WireGuard's transport data."""
    return b"\x04\0\0\0" + number.to_bytes(4, "little") + bytes(size - 8)


__all__ = ["Bulk", "Down", "Moved", "Net", "Node", "Ponged", "RoutesTold", "Up", "transport"]
