"""Clients of a relay over QUIC, beside `derpclients.py`: one process, one epoll loop, the same words and output.

A client of QUIC has to open what it receives, for it has to acknowledge it: that is part of the load's own cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import statistics
import sys
import time
from typing import Any, Final

from gw.model.keys import NodeKey, NodeSecret
from gw.net.trains import TrainSocket
from gw.quic.configuration import client_settings
from gw.quic.connection import Connection
from gw.quic.link import Link
from gw.wire.quic.client import Connected, RelayClient
from gw.wire.quic.datagrams import DATA, FLOW_HEAD_BYTES
from gw.wire.quic.frames import RELAY_ALPN
from gw.wire.x25519 import clamp, public_key

LOST_S: Final = 0.1  # a pair that moved nothing for so long has lost what was in flight
SETTLE_S: Final = 0.5
HEAD_BYTES: Final = 34  # frame type, kind, key
FLOW_HEAD: Final = 1 + FLOW_HEAD_BYTES
TRAINS_A_TURN: Final = 1  # more of one are not looked at before the others' first
KEEP_QUEUED: Final = 96


class Peer:
    """One client; implements `LinkHandler`."""

    def __init__(self, address: tuple[str, int]) -> None:
        secret = NodeSecret(clamp(os.urandom(32)))
        self.key = public_key(secret.raw)
        self.client = RelayClient(secret, lambda: os.urandom(24))
        channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        channel.bind(("127.0.0.1", 0))
        self.sock = TrainSocket(channel)
        self.address = address
        self.link = Link(
            Connection(configuration=client_settings(RELAY_ALPN, "127.0.0.1", verify=False)), self, fast=True
        )
        self.link.connect(address, time.monotonic())
        self.is_connected = False
        self.is_filled = False  # whether something was given to the link since it was polled
        self.received = self.sent = 0  # bytes of packets
        self.received_at = 0.0
        self.other: Peer | None = None

    def pump(self) -> None:
        self.is_filled = False
        said = self.client.data_to_send()
        if said:
            self.link.send_stream(said)
        trains = self.link.poll(time.monotonic())
        if trains:
            self.sock.send(trains)

    def take(self) -> None:
        now = time.monotonic()
        for _ in range(TRAINS_A_TURN):
            try:
                train, segment, _ = self.sock.receive()
            except BlockingIOError:
                return
            self.link.receive(train, segment, self.address, now)

    # LinkHandler

    def up(self) -> None:
        self.client.begin(self.link.bind, int(time.time() * 1000), is_resumed=False)

    def datagrams(self, batch: list[bytes], now: float) -> None:
        self.received_at = time.perf_counter()
        for frame in batch:
            self.received += len(frame) - (FLOW_HEAD if frame[1] == DATA else HEAD_BYTES)

    def stream(self, data: bytes, now: float) -> None:
        for event in self.client.feed(data, int(time.time() * 1000)):
            if isinstance(event, Connected):
                self.is_connected = True

    def moved(self, address: Any) -> None: ...

    def closed(self, code: int, reason: str) -> None:
        sys.exit(f"the relay closed: {code:#x} {reason}")


def connect(address: tuple[str, int], count: int) -> list[Peer]:
    """Connected clients, one after the other."""
    peers = []
    for _ in range(count):
        peer = Peer(address)
        until = time.monotonic() + 20
        while not peer.is_connected:
            peer.pump()
            if time.monotonic() > until:
                sys.exit("the relay does not answer")
            wait = max(0.0, min(0.05, peer.link.deadline() - time.monotonic()))
            select.select([peer.sock.fileno()], [], [], wait)
            peer.take()
        peer.pump()
        peers.append(peer)
    return peers


class Loop:
    """All of them, until a time."""

    def __init__(self, peers: list[Peer]) -> None:
        self.epoll = select.epoll()
        self.peers = {peer.sock.fileno(): peer for peer in peers}
        for number in self.peers:
            self.epoll.register(number, select.EPOLLIN)
        self.swept = 0.0

    def turn(self, busy: list[Peer]) -> list[Peer]:
        """One turn; who received something. busy: those that may have to send without being spoken to."""
        now = time.monotonic()
        wait = 0.01
        wanting = set()
        for peer in busy:
            due = peer.link.deadline()
            if due <= now or peer.is_filled:
                wanting.add(peer)
            wait = min(wait, max(0.0, due - now))
        if wanting:
            wait = 0.0
        for peer in wanting:
            peer.pump()
        heard = []
        for number, _ in self.epoll.poll(wait, 1024):
            peer = self.peers[number]
            peer.take()
            heard.append(peer)
        for peer in heard:
            peer.pump()
        now = time.monotonic()
        if now - self.swept > 1.0:  # the idle ones have timers too
            self.swept = now
            for peer in self.peers.values():
                if peer.link.deadline() <= now:
                    peer.pump()
        return heard


def settle(peers: list[Peer]) -> None:
    """Until the path's size is known."""
    loop = Loop(peers)
    until = time.monotonic() + 10
    while time.monotonic() < until and any(peer.link.udp_bytes < 1452 for peer in peers):
        loop.turn(peers[:64])


def flow(peers: list[Peer], active: int, size: int, window: int, seconds: float) -> dict[str, float]:
    """Send from the first of each pair to the second."""
    pairs = [(peers[2 * index], peers[2 * index + 1]) for index in range(active)]
    for one, other in pairs:
        one.other, other.other = other, one
    payload = bytes(size)
    loop = Loop(peers)
    seen = [0] * len(pairs)
    both = [peer for pair in pairs for peer in pair]

    def fill(one: Peer) -> None:
        other = one.other
        assert other is not None
        room = min((window - one.sent + other.received) // size, KEEP_QUEUED - one.link.waiting)
        if room > 0:
            one.sent += room * size
            one.is_filled = True
            frame = one.client.wrap(NodeKey(other.key), payload, one.link.limit)[0]  # by number, once there is one
            one.link.send_frames([b"0" + frame] * room)

    def turn(until: float) -> None:
        check = time.monotonic() + LOST_S
        while (now := time.monotonic()) < until:
            if now >= check:
                for place, (one, other) in enumerate(pairs):
                    if other.received == seen[place] and not one.link.waiting:
                        one.sent = other.received
                    seen[place] = other.received
                check = now + LOST_S
            for one, _ in pairs:
                fill(one)
            loop.turn(both)

    turn(time.monotonic() + SETTLE_S)
    before = [other.received for _, other in pairs]
    print("start", flush=True)
    began = time.monotonic()
    turn(began + seconds)
    elapsed = time.monotonic() - began
    print("end", flush=True)
    counts = [other.received - earlier for (_, other), earlier in zip(pairs, before, strict=True)]
    packets = sum(counts) / size
    jain = sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts)) if any(counts) else 0.0
    return {"pps": packets / elapsed, "gbps": sum(counts) * 8 / elapsed / 1e9, "packets": packets, "fairness": jain}


def ping(peers: list[Peer], size: int, seconds: float) -> dict[str, float]:
    """One packet at a time, from before it is wrapped until the other client has it in the clear."""
    one, other = peers[:2]
    loop = Loop(peers)
    times: list[float] = []

    def pass_on(source: Peer, target: Peer) -> None:
        before = target.received
        sent = time.perf_counter()
        for datagram in source.client.wrap(NodeKey(target.key), bytes(size), source.link.limit):
            source.link.send(datagram)
        source.pump()
        until = time.monotonic() + 1
        while target.received == before and time.monotonic() < until:
            loop.turn([one, other])
        times.append((target.received_at if target.received > before else time.perf_counter()) - sent)

    print("start", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        pass_on(one, other)
        pass_on(other, one)
    print("end", flush=True)
    cuts = statistics.quantiles(times, n=100)
    return {"p50_us": cuts[49] * 1e6, "p99_us": cuts[98] * 1e6, "packets": len(times)}


def idle(address: tuple[str, int], count: int) -> None:
    print("start", flush=True)
    began = time.monotonic()
    peers = connect(address, count)
    elapsed = time.monotonic() - began
    print("end", flush=True)
    print(json.dumps({"connects": count / elapsed}), flush=True)
    sys.stdin.read()
    del peers


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=["flow", "ping", "idle"])
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--connected", type=int, default=2)
    options.add_argument("--active", type=int, default=1, help="pairs that send")
    options.add_argument("--size", type=int, default=1312, help="a WireGuard message of the tunnel's MTU")
    options.add_argument("--window", type=int, default=256 << 10)
    options.add_argument("--seconds", type=float, default=2.0)
    chosen = options.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address = ("127.0.0.1", chosen.port)
    if chosen.mode == "idle":
        idle(address, chosen.connected)
        return
    peers = connect(address, chosen.connected)
    settle(peers)
    if chosen.mode == "ping":
        print(json.dumps(ping(peers, chosen.size, chosen.seconds)))
    else:
        print(json.dumps(flow(peers, chosen.active, chosen.size, chosen.window, chosen.seconds)))


if __name__ == "__main__":
    main()
