"""A relay's UDP port without sockets, and clients of ours over QUIC: one virtual clock, addresses that change."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable
from typing import Any

from aioquic.quic.events import DatagramFrameReceived

from gw.model.keys import NodeKey, NodeSecret, RelaySecret
from gw.quic.configuration import client_settings, ephemeral_certificate, server_settings
from gw.quic.connection import Connection
from gw.quic.gate import Gate
from gw.quic.link import Link, apart
from gw.relay.flowstates import FlowStates
from gw.relay.quicport import QuicPort
from gw.wire.derp import client as c
from gw.wire.quic.client import Observed, RelayClient
from gw.wire.quic.frames import RELAY_ALPN
from gw.wire.x25519 import clamp, public_key

from .ends import House

RELAY = ("198.51.100.1", 3478)
START_MS = 1_800_000_000_000
CERTIFICATE = ephemeral_certificate()


class Street:
    """Implements the port's `Loop` and `Wire`."""

    is_ipv6 = False

    def __init__(
        self,
        house: House,
        *,
        fast: bool = True,
        room: Callable[[str], bool] = lambda host: True,
        address: tuple[str, int] = RELAY,
    ) -> None:
        self.house = house
        self.address = address
        self.others: list[Street] = []  # other relays that it reaches
        self.now = 100.0
        self.came_alone = False
        self.guests: list[QuicGuest] = []
        self.addresses: dict[str, int] = {}
        self.lose: Callable[[bytes, bool], bool] = lambda packet, up: False
        self._room = room
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.flow_states = FlowStates(house.switch, self.arm_call)
        self._arriving: list[tuple[bytes, Any]] = []
        self.strays: list[tuple[bytes, Any]] = []  # for nobody we know
        gate = Gate(server_settings(RELAY_ALPN, *CERTIFICATE), b"r" * 32)
        secret = RelaySecret(house.secret.raw)
        self.port = QuicPort(
            self, house.reception, secret, self, gate, b"r" * 32, fast=fast, unix_ms=lambda: self.unix_ms
        )

    @property
    def unix_ms(self) -> int:
        return START_MS + int(self.now * 1000)

    # Loop

    def arm_call(self, when: float, order: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, order))

    def admit_address(self, host: str) -> bool:
        return self._room(host)

    def count_address(self, host: str, change: int) -> None:
        self.addresses[host] = self.addresses.get(host, 0) + change

    def count_accepted(self) -> None:
        pass

    # Wire

    def fileno(self) -> int:
        return 99

    def receive(self) -> tuple[bytes, int, Any]:
        if not self._arriving:
            raise BlockingIOError
        packet, source = self._arriving.pop(0)
        return packet, len(packet), source

    def send(self, trains: Any) -> int:
        for packet, target in apart(trains):
            if self.lose(packet, False):
                continue
            for guest in self.guests:
                if guest.address == target:
                    guest.link.receive(packet, len(packet), RELAY, self.now)
                    break
            else:
                for other in self.others:
                    if other.address == target:
                        other._arriving.append((packet, self.address))
                        break
                else:
                    self.strays.append((packet, target))
        return 0

    def send_train(self, data: bytes, segment: int, target: Any) -> int:
        return self.send([(data, segment, target)])

    # Time

    def arrive(self, packet: bytes, source: Any) -> None:
        self._arriving.append((packet, source))
        self.port.ready()
        self.flush()

    def flush(self) -> None:
        switch = self.house.switch
        while switch.dirty:
            for port in switch.clear_dirty():
                if not port.is_closed:
                    port.owner.flush()
        if switch.crowded:
            self.flow_states.look(self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self.now < end and not until():
            self.step()
        return until()

    def step(self) -> None:
        """One millisecond."""
        for guest in self.guests:
            for packet, _ in guest.poll():
                if not self.lose(packet, True):
                    self._arriving.append((packet, guest.address))
        while self._arriving:
            self.port.ready()
            self.flush()
        self.now += 0.001
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        self.flush()


class QuicGuest:
    """A client of ours; implements LinkHandler."""

    def __init__(
        self,
        street: Street,
        number: int,
        *,
        knows_key: bool = True,
        ticket: Any = None,
        fast: bool = True,
        join: bool = True,
        instance: bytes = b"",
    ) -> None:
        self.street = street
        self.secret = NodeSecret(clamp(bytes([number]) * 32))
        self.key = NodeKey(public_key(self.secret.raw))
        self.address: Any = (f"192.0.2.{number}", 4000)
        self.events: list[Any] = []
        self.tickets: list[Any] = []
        self.end: tuple[int, str] | None = None
        settings = client_settings(RELAY_ALPN, "relay.test", verify=False)
        settings.session_ticket = ticket
        self.link = Link(
            Connection(configuration=settings, session_ticket_handler=self.tickets.append), self, fast=fast
        )
        relay_key = street.house.reception.identity.key if knows_key else b""
        self.client = RelayClient(self.secret, lambda: os.urandom(24), relay_key=relay_key, instance=instance)
        self.link.connect(RELAY, street.now)
        street.guests.append(self)
        if join:
            assert street.run(5, lambda: self.client.is_connected)
            street.run(0.05)

    def poll(self) -> list[tuple[bytes, Any]]:
        data = self.client.data_to_send()
        if data:
            self.link.send_stream(data)
        return apart(self.link.poll(self.street.now))

    def send(self, to: NodeKey, *packets: bytes) -> None:
        for packet in packets:
            for datagram in self.client.wrap(to, packet, self.link.limit):
                self.link.send(datagram)

    @property
    def packets(self) -> list[tuple[NodeKey, bytes]]:
        return [(event.source, event.packet) for event in self.events if isinstance(event, c.Received)]

    @property
    def observed(self) -> list[str]:
        return [str(event.address) for event in self.events if isinstance(event, Observed)]

    # LinkHandler

    def up(self) -> None:
        self.client.begin(self.link.bind, self.street.unix_ms, is_resumed=self.link.is_resumed)

    def datagrams(self, batch: list[bytes], now: float) -> None:
        self.events += self.client.feed_datagrams(batch, now)

    def stream(self, data: bytes, now: float) -> None:
        self.events += self.client.feed(data, self.street.unix_ms)

    def moved(self, address: Any) -> None:
        raise AssertionError("a relay does not move")

    def closed(self, code: int, reason: str) -> None:
        self.end = code, reason


class Standin:
    """A session, some of whose methods are others: classes that are compiled take none on themselves."""

    def __init__(self, session: Any, **others: Callable[..., Any]) -> None:
        self.__dict__.update(_session=session, _others=others)

    def __getattr__(self, name: str) -> Any:
        return self._others.get(name) or getattr(self._session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._session, name, value)


def hear(guest: QuicGuest, take: Callable[[bytes], bool]) -> None:
    """Show each datagram that the guest gets, probes and echoes too, to `take` first, which may keep it. Only of a
    guest without the fast path."""
    connection = guest.link.connection
    following = connection.next_event

    def next_event() -> Any:
        while isinstance(event := following(), DatagramFrameReceived) and take(event.data):
            pass
        return event

    connection.next_event = next_event  # type: ignore[method-assign]
