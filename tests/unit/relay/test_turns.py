"""The UDP port in the forwarding plane's own loop: what one turn looks at."""

from __future__ import annotations

import os
from typing import Any

from gw.model.addresses import AddrPort
from gw.model.keys import RelaySecret
from gw.native.relaying import Port
from gw.quic.configuration import client_settings, server_settings
from gw.quic.connection import Connection
from gw.quic.gate import Gate
from gw.quic.link import Link
from gw.relay.forwarding import Plane
from gw.relay.quicport import CLIENTS_A_TURN, READS_A_TURN, STRANGER_READS, QuicClient, QuicPort
from gw.relay.quicsession import Stage
from gw.wire.quic.frames import RELAY_ALPN

from .ends import House
from .street import CERTIFICATE

SOURCE = AddrPort("192.0.2.1", 1)


class Wire:
    """What arrives, and what becomes of it, in order."""

    is_ipv6 = False

    def __init__(self) -> None:
        self.arriving: list[tuple[bytes, int, Any]] = []
        self.log: list[str] = []

    def fileno(self) -> int:
        return 99

    def receive(self) -> tuple[bytes, int, Any]:
        if not self.arriving:
            raise BlockingIOError
        self.log.append("read")
        return self.arriving.pop(0)

    def send(self, trains: Any) -> int:
        return 0

    def send_train(self, data: bytes, segment: int, target: Any) -> int:
        return 0


class Session:
    """Only says when it is called."""

    patient_until = float("inf")
    moves = limited = 0
    was_faulty = is_waiting = is_up = False
    stage = Stage.UP
    source = SOURCE
    node = b""

    def __init__(self, owner: QuicClient, log: list[str]) -> None:
        self.port = Port(owner)
        self.link = Link(Connection(configuration=client_settings(RELAY_ALPN, "", verify=False)), self, fast=False)  # type: ignore[arg-type]
        self.link.is_closed = True
        self._log = log

    def receive(self, train: bytes, segment: int, address: Any, now: float) -> None:
        self._log.append("look")

    def wants_turn(self, now: float) -> bool:
        return True

    def pour(self, now: float) -> None:
        self._log.append("flush")
        self.port.out.clear()
        self.port.is_listed = False

    def poured(self) -> None:
        pass


def _plane(clients: int) -> tuple[Plane, Wire, QuicPort]:
    house, wire = House(), Wire()
    plane = Plane(house.reception, [])
    plane._gathers = True  # no turn is about one thing, however late the kernel answers
    gate = Gate(server_settings(RELAY_ALPN, *CERTIFICATE), b"r" * 32)
    port = QuicPort(wire, house.reception, RelaySecret(house.secret.raw), plane, gate, b"r" * 32, fast=False)
    for number in range(clients):
        cid = number.to_bytes(8, "big")
        port.welcome(QuicClient(port, SOURCE, {cid}, lambda owner: Session(owner, wire.log)))  # type: ignore[arg-type, return-value]
    number = os.eventfd(1)
    plane.attach(number, port.ready)
    plane._epoll.register(number)
    return plane, wire, port


def _took(plane: Plane, wire: Wire) -> dict[str, int]:
    wire.log.clear()
    plane._turn()
    return {word: wire.log.count(word) for word in ("read", "look", "flush")}


def test_some_clients_have_their_turn_then_what_they_sent_goes_out() -> None:
    plane, wire, port = _plane(64)
    for _ in range(2):
        for number in range(64):
            train = (b"\x40" + number.to_bytes(8, "big") + bytes(1291)) * 48
            wire.arriving.append((train, 1300, ("192.0.2.1", number + 1)))
    assert _took(plane, wire) == {"read": 128, "look": CLIENTS_A_TURN, "flush": CLIENTS_A_TURN}
    looked = CLIENTS_A_TURN
    while port._inboxes.cost:
        took = _took(plane, wire)
        assert 0 < took["look"] <= CLIENTS_A_TURN
        assert took["flush"] == took["look"]
        looked += took["look"]
    assert looked == 128
    assert _took(plane, wire)["look"] == 0


def test_strangers_do_not_keep_clients_waiting() -> None:
    plane, wire, _ = _plane(1)
    for _ in range(100):
        wire.arriving.append((b"\xc0" + bytes(1199), 1200, ("203.0.113.1", 9)))
    wire.arriving.insert(3, (b"\x40" + bytes(60), 61, ("192.0.2.1", 1)))
    took = _took(plane, wire)
    assert took["read"] <= 2 + READS_A_TURN // STRANGER_READS
    assert took["look"] == 1


def test_what_came_for_a_client_that_ends_is_forgotten() -> None:
    plane, wire, port = _plane(1)
    (client,) = port._all
    head = b"\x40" + bytes(8)
    for size in (1300, 1400, 1500):  # each a train of its own
        wire.arriving.append((head + bytes(size - 9), size, ("192.0.2.1", 1)))
    wire.arriving += [(head + bytes(1291), 1300, ("192.0.2.1", 1))] * 100
    client.session.stage = Stage.GONE  # it ends by the first
    assert _took(plane, wire)["look"] == 1
    assert port._inboxes.cost == 0
    assert not port._all
    assert _took(plane, wire)["look"] == 0


def test_what_came_alone_is_not_followed_by_another_read() -> None:
    plane, wire, port = _plane(1)
    wire.arriving += [(b"\x40" + bytes(60), 61, ("192.0.2.1", 1)), (b"\x05" * 61, 61, ("192.0.2.9", 1))] * 2
    plane.came_alone = True
    for _ in range(4):
        port.ready()
    assert wire.log == ["read", "look", "read", "read", "look", "read"]
