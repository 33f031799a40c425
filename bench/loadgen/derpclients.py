"""Clients of a relay, light enough that the relay is what is measured: one process, one epoll loop.

    flow   pairs of clients; senders write bursts of whole frames in few TLS records, receivers read the records' heads
           and decrypt nothing; each pair has at most `--window` bytes in flight, so that little is dropped
    ping   one packet at a time there and back
    idle   clients that only hold their connection, until stdin closes

Prints `start` and `end` around what is measured, then a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import ssl
import statistics
import sys
import time
from typing import Final

from gw.model.keys import NodeSecret
from gw.wire.derp.client import Client, Connected, Received
from gw.wire.derp.frames import encode_send
from gw.wire.x25519 import clamp, public_key

UPGRADE: Final = b"GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
BURST_BYTES: Final = 15 << 10  # less than a TLS record
RECORD_HEAD_BYTES: Final = 5
RECORD_TAIL_BYTES: Final = 17  # tag and inner type, TLS 1.3
LOST_S: Final = 0.1  # a pair that moved nothing for so long has lost what was in flight
SETTLE_S: Final = 0.5
IN_HANDSHAKE: Final = 64


class Peer:
    """One client: TLS over memory, so that ten thousand fit."""

    __slots__ = (
        "bulk",
        "client",
        "incoming",
        "key",
        "other",
        "outgoing",
        "received",
        "sent",
        "skip",
        "sock",
        "stub",
        "tls",
        "unsent",
    )

    def __init__(self, context: ssl.SSLContext, address: tuple[str, int]) -> None:
        secret = NodeSecret(clamp(os.urandom(32)))
        self.key = public_key(secret.raw)
        self.client: Client | None = Client(secret, os.urandom(24))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unsent = b""
        self.received = self.sent = 0  # bytes of frames
        self.skip = 0  # of the record that is being received
        self.stub = b""  # a part of a record's head
        self.bulk = b""
        self.other: Peer | None = None

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self.push()

    def push(self) -> None:
        data = self.unsent + self.outgoing.read()
        try:
            sent = self.sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:]

    def count(self, data: memoryview) -> None:
        """Add the frames' bytes in ciphertext that has arrived, without decrypting it."""
        at, size = self.skip, len(data)
        if self.stub:
            data = memoryview(self.stub + bytes(data))
            at, size, self.stub = 0, len(data), b""
        while at + RECORD_HEAD_BYTES <= size:
            length = data[at + 3] << 8 | data[at + 4]
            self.received += length - RECORD_TAIL_BYTES
            at += RECORD_HEAD_BYTES + length
        self.skip = max(0, at - size)
        if at < size:
            self.stub = bytes(data[at:])

    def plain(self) -> bytes:
        """What has arrived, decrypted; blocks until there is something."""
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self.incoming.write(self.sock.recv(1 << 16))

    def greet(self) -> Connected:
        """From the first byte to the relay's ServerInfo, blocking."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.incoming.write(self.sock.recv(1 << 16))
        self.tls.write(UPGRADE)
        self.sock.sendall(self.outgoing.read())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.plain()
        assert data.startswith(b"HTTP/1.1 101"), data[:80]
        data = data.partition(b"\r\n\r\n")[2]
        assert self.client is not None
        while True:
            events = self.client.feed(data)
            up = self.client.data_to_send()
            if up:
                self.tls.write(up)
                self.sock.sendall(self.outgoing.read())
            for event in events:
                if isinstance(event, Connected):
                    return event
            data = self.plain()


def connect(context: ssl.SSLContext, address: tuple[str, int], count: int) -> list[Peer]:
    """Connected clients."""
    peers = []
    for _ in range(count):
        peer = Peer(context, address)
        peer.greet()
        peers.append(peer)
    return peers


def flow(peers: list[Peer], active: int, size: int, window: int, seconds: float) -> dict[str, float]:
    """Send from the first of each pair to the second."""
    epoll = select.epoll()
    receivers: dict[int, Peer] = {}
    senders: dict[int, Peer] = {}
    for index in range(active):
        one, other = peers[2 * index], peers[2 * index + 1]
        frame = encode_send(other.key, bytes(size))
        one.bulk = frame * max(1, min(BURST_BYTES, window) // len(frame))
        one.other, other.other = other, one
        receivers[other.sock.fileno()], senders[one.sock.fileno()] = other, one
        for peer in (one, other):
            peer.sock.setblocking(False)
        epoll.register(other.sock, select.EPOLLIN)
        epoll.register(one.sock, select.EPOLLOUT | select.EPOLLET)
    scratch = memoryview(bytearray(1 << 18))
    seen = dict.fromkeys(receivers, 0)

    def fill(sender: Peer) -> None:
        receiver = sender.other
        assert receiver is not None
        while not sender.unsent and sender.sent + len(sender.bulk) - receiver.received <= window:
            sender.sent += len(sender.bulk)
            sender.write(sender.bulk)

    def give_up_lost() -> None:
        for number, receiver in receivers.items():
            sender = receiver.other
            assert sender is not None
            if receiver.received == seen[number] and not sender.unsent:
                sender.sent = receiver.received
                fill(sender)
            seen[number] = receiver.received

    def turn(until: float) -> None:
        check = time.monotonic() + LOST_S
        while (now := time.monotonic()) < until:
            if now >= check:
                give_up_lost()
                check = now + LOST_S
            for number, _ in epoll.poll(0.01, 1024):
                receiver = receivers.get(number)
                if receiver is None:
                    sender = senders[number]
                    if sender.unsent:
                        sender.push()
                    fill(sender)
                    continue
                try:
                    receiver.count(scratch[: receiver.sock.recv_into(scratch)])
                except BlockingIOError:
                    continue
                assert receiver.other is not None
                fill(receiver.other)

    for sender in senders.values():
        fill(sender)
    turn(time.monotonic() + SETTLE_S)
    before = [peer.received for peer in receivers.values()]
    print("start", flush=True)
    began = time.monotonic()
    turn(began + seconds)
    elapsed = time.monotonic() - began
    print("end", flush=True)
    counts = [peer.received - earlier for peer, earlier in zip(receivers.values(), before, strict=True)]
    packets = sum(counts) / (size + 37)
    jain = sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts)) if any(counts) else 0.0
    return {"pps": packets / elapsed, "gbps": packets * size * 8 / elapsed / 1e9, "packets": packets, "fairness": jain}


def ping(peers: list[Peer], size: int, seconds: float) -> dict[str, float]:
    """One packet at a time."""
    one, other = peers[:2]
    there, back = encode_send(other.key, bytes(size)), encode_send(one.key, bytes(size))
    times: list[float] = []

    def await_packet(peer: Peer) -> None:
        assert peer.client is not None
        while not any(isinstance(event, Received) for event in peer.client.feed(peer.plain())):
            pass

    print("start", flush=True)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        sent = time.perf_counter()
        one.write(there)
        await_packet(other)
        times.append(time.perf_counter() - sent)
        sent = time.perf_counter()
        other.write(back)
        await_packet(one)
        times.append(time.perf_counter() - sent)
    print("end", flush=True)
    cuts = statistics.quantiles(times, n=100)
    return {"p50_us": cuts[49] * 1e6, "p99_us": cuts[98] * 1e6, "packets": len(times)}


def idle(context: ssl.SSLContext, address: tuple[str, int], count: int) -> None:
    print("start", flush=True)
    began = time.monotonic()
    peers = connect(context, address, count)
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
    options.add_argument("--size", type=int, default=1400)
    options.add_argument("--window", type=int, default=128 << 10)
    options.add_argument("--seconds", type=float, default=2.0)
    chosen = options.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", chosen.port)
    if chosen.mode == "idle":
        idle(context, address, chosen.connected)
        return
    peers = connect(context, address, chosen.connected)
    if chosen.mode == "ping":
        print(json.dumps(ping(peers, chosen.size, chosen.seconds)))
    else:
        print(json.dumps(flow(peers, chosen.active, chosen.size, chosen.window, chosen.seconds)))


if __name__ == "__main__":
    main()
