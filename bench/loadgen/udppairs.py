"""Pairs of nodes whose UDP a relay carries, light enough that the relay is what is measured: one process, one loop.

    flow   the first of each pair sends trains to the second, with at most `--window` bytes in flight
    ping   one datagram at a time there and back

Endpoints are asked for by DERP over TLS, as nodes do. Prints `start` and `end` around what is measured, then a JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import ssl
import statistics
import sys
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))

from derpclients import Peer

from gw.model.keys import DiscoKey, DiscoSecret, NodeKey
from gw.net.trains import TrainSocket
from gw.wire import geneve
from gw.wire.derp.client import Received
from gw.wire.disco.envelope import Envelopes
from gw.wire.disco.messages import decode, encode
from gw.wire.disco.udprelay import ANSWER, BIND, AllocateRequest, AllocateResponse, Bind, RelayEndpoint, pair_of
from gw.wire.geneve import Header
from gw.wire.x25519 import clamp

HEAD_BYTES: Final = geneve.HEADER_BYTES + 32  # Geneve, and WireGuard's own
TRAIN_BYTES: Final = 60_000
LOST_S: Final = 0.1


class Node:
    """One of a pair: a disco key, a UDP socket."""

    def __init__(self) -> None:
        self.envelopes = Envelopes(DiscoSecret(clamp(os.urandom(32))))
        channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        channel.bind(("127.0.0.1", 0))
        self.wire = TrainSocket(channel)
        self.sent = self.received = self.packets = 0

    def seal(self, to: DiscoKey, message: AllocateRequest | Bind) -> bytes:
        return self.envelopes.seal(to, os.urandom(24), encode(message))


def allocate(derp: Peer, relay_disco: DiscoKey, one: Node, other: Node) -> RelayEndpoint:
    assert derp.client is not None
    request = one.seal(relay_disco, AllocateRequest(pair_of(one.envelopes.key, other.envelopes.key), 1))
    derp.client.send(NodeKey(derp.client.relay_key), [request])
    derp.tls.write(derp.client.data_to_send())
    derp.sock.sendall(derp.outgoing.read())
    while True:
        for event in derp.client.feed(derp.plain()):
            if isinstance(event, Received):
                message = decode(one.envelopes.open(event.packet))
                assert isinstance(message, AllocateResponse)
                return message.endpoint


def bind(node: Node, endpoint: RelayEndpoint, other: DiscoKey) -> None:
    head = geneve.encode(Header(geneve.DISCO, endpoint.vni, control=True))
    address = tuple(endpoint.addresses[0])
    node.wire.channel.settimeout(5)
    node.wire.channel.sendto(head + node.seal(endpoint.server, Bind(BIND, endpoint.vni, 1, other)), address)
    challenge = decode(node.envelopes.open(node.wire.channel.recv(2048)[geneve.HEADER_BYTES :]))
    assert isinstance(challenge, Bind)
    answer = Bind(ANSWER, endpoint.vni, 1, other, challenge.challenge)
    node.wire.channel.sendto(head + node.seal(endpoint.server, answer), address)
    node.wire.channel.setblocking(False)


def pairs(port: int, count: int) -> list[tuple[Node, Node, RelayEndpoint]]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    derp = Peer(context, ("127.0.0.1", port))
    told = derp.greet()
    found = []
    for _ in range(count):
        one, other = Node(), Node()
        endpoint = allocate(derp, DiscoKey(told.peer_relay), one, other)
        bind(one, endpoint, other.envelopes.key)
        bind(other, endpoint, one.envelopes.key)
        found.append((one, other, endpoint))
    return found


def flow(made: list[tuple[Node, Node, RelayEndpoint]], size: int, window: int, seconds: float) -> dict[str, float]:
    step = size + HEAD_BYTES
    count = max(1, min(TRAIN_BYTES, window) // step)
    poller = select.epoll()
    receivers = {}
    for one, other, endpoint in made:
        datagram = geneve.encode(Header(geneve.WIREGUARD, endpoint.vni)) + b"\4\0\0\0" + bytes(28 + size)
        receivers[other.wire.fileno()] = (one, other, datagram * count, tuple(endpoint.addresses[0]))
        poller.register(other.wire, select.EPOLLIN)

    def fill(one: Node, other: Node, train: bytes, target: object) -> None:
        while one.sent + len(train) - other.received <= window:
            one.sent += len(train)
            one.wire.send_train(train, step, target)

    def turn(until: float) -> None:
        check, seen = time.monotonic() + LOST_S, {}
        while (now := time.monotonic()) < until:
            if now >= check:
                for number, (one, other, *rest) in receivers.items():
                    if seen.get(number) == other.received:
                        one.sent = other.received
                        fill(one, other, *rest)
                    seen[number] = other.received
                check = now + LOST_S
            for number, _ in poller.poll(0.01, 1024):
                one, other, *rest = receivers[number]
                try:
                    data, _, _ = other.wire.receive()
                except BlockingIOError:
                    continue
                other.received += len(data)
                other.packets += len(data) // step
                fill(one, other, *rest)

    for each in receivers.values():
        fill(*each)
    turn(time.monotonic() + 0.5)
    before = [other.packets for _, other, _ in made]
    print("start", flush=True)
    began = time.monotonic()
    turn(began + seconds)
    took = time.monotonic() - began
    print("end", flush=True)
    moved = [other.packets - earlier for (_, other, _), earlier in zip(made, before, strict=True)]
    total = sum(moved)
    square = sum(each * each for each in moved)
    return {
        "packets": total, "pps": total / took, "gbps": total * size * 8 / took / 1e9,
        "fairness": total * total / (len(moved) * square) if square else 0.0,
    }  # fmt: skip


def ping(made: list[tuple[Node, Node, RelayEndpoint]], size: int, seconds: float) -> dict[str, float]:
    one, other, endpoint = made[0]
    datagram = geneve.encode(Header(geneve.WIREGUARD, endpoint.vni)) + b"\4\0\0\0" + bytes(28 + size)
    target = tuple(endpoint.addresses[0])
    for node in (one, other):
        node.wire.channel.settimeout(1)
    print("start", flush=True)
    times = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        one.wire.channel.sendto(datagram, target)
        other.wire.channel.sendto(other.wire.channel.recv(2048), target)
        one.wire.channel.recv(2048)
        times.append((time.monotonic() - began) / 2 * 1e6)
    print("end", flush=True)
    times.sort()
    return {"packets": 2 * len(times), "p50_us": statistics.median(times), "p99_us": times[int(len(times) * 0.99)]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("flow", "ping"))
    options.add_argument("--port", type=int, required=True, help="of DERP over TLS, on loopback")
    options.add_argument("--connected", type=int, default=2)
    options.add_argument("--active", type=int, default=1, help="pairs")
    options.add_argument("--size", type=int, default=1280, help="bytes inside the tunnel")
    options.add_argument("--window", type=int, default=1 << 20, help="bytes in flight, of each pair")
    options.add_argument("--seconds", type=float, default=2.0)
    chosen = options.parse_args()
    made = pairs(chosen.port, chosen.active)
    if chosen.what == "flow":
        result = flow(made, chosen.size, chosen.window, chosen.seconds)
    else:
        result = ping(made, chosen.size, chosen.seconds)
    print(json.dumps(result), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
