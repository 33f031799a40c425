"""Two links in memory: a virtual clock, a path with delay, loss and addresses that change."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from gw.quic.configuration import client_settings, ephemeral_certificate, server_settings
from gw.quic.connection import Connection
from gw.quic.link import Link, apart
from gw.quic.tickets import TicketStore

CLIENT = ("192.0.2.1", 4000)
SERVER = ("198.51.100.1", 3478)
ALPN = "gw-relay/1"
CERTIFICATE = ephemeral_certificate()


class End:
    """Remembers what its link tells."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.control = b""
        self.ups = 0
        self.moves: list[Any] = []
        self.end: tuple[int, str] | None = None

    def up(self) -> None:
        self.ups += 1

    def datagrams(self, batch: list[bytes], now: float) -> None:
        assert all(frame[:1] == b"0" for frame in batch)
        self.got += [frame[1:] for frame in batch]

    def stream(self, data: bytes, now: float) -> None:
        self.control += data

    def moved(self, address: Any) -> None:
        self.moves.append(address)

    def closed(self, code: int, reason: str) -> None:
        assert self.end is None
        self.end = code, reason


class Net:
    """A client and, from its first packet on, a server."""

    def __init__(
        self,
        *,
        fast: tuple[bool, bool] = (True, True),
        probes: bool = False,
        mtu: int = 1500,
        delay_s: float = 0.005,
        lose: Callable[[bytes, bool], bool] = lambda packet, is_up: False,
        store: TicketStore | None = None,
        ticket: Any = None,
    ) -> None:
        self.now = 1000.0
        self.client_end, self.server_end = End(), End()
        self.client_address = CLIENT
        self.mtu, self.delay_s, self.lose = mtu, delay_s, lose
        self.tickets: list[Any] = []  # that the client got
        self.server_tickets: list[Any] = []
        self.store = store if store is not None else TicketStore()
        self.resumed_node: bytes | None = None
        self._fast, self._probes = fast, probes
        settings = client_settings(ALPN, "relay.test", verify=False)
        settings.session_ticket = ticket
        self.client = Link(
            Connection(configuration=settings, session_ticket_handler=self.tickets.append),
            self.client_end, fast=fast[0], probes=probes,
        )  # fmt: skip
        self.server: Link | None = None
        self._order = 0
        self._under_way: list[tuple[float, int, bool, bytes, Any]] = []
        self.client.connect(SERVER, self.now)

    def _take_ticket(self, name: bytes) -> Any:
        found = self.store.take(name, self.now)
        if found is None:
            return None
        self.resumed_node = found.node
        return found.ticket

    def _serve(self, packet: bytes) -> Link:
        connection = Connection(
            configuration=server_settings(ALPN, *CERTIFICATE),
            original_destination_connection_id=packet[6 : 6 + packet[5]],
            session_ticket_fetcher=self._take_ticket,
            session_ticket_handler=self.server_tickets.append,
            reset_key=b"k" * 32,
        )
        return Link(connection, self.server_end, fast=self._fast[1], probes=self._probes)

    def _put(self, to_server: bool, packets: list[tuple[bytes, Any]]) -> None:
        for packet, target in packets:
            if len(packet) > self.mtu - 28 or self.lose(packet, to_server):
                continue
            if not to_server and target != self.client_address:
                continue  # nobody is there any more
            source = self.client_address if to_server else SERVER
            self._order += 1
            heapq.heappush(self._under_way, (self.now + self.delay_s, self._order, to_server, packet, source))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; True when `until` came true."""
        end = self.now + seconds
        while self.now < end:
            self._put(True, apart(self.client.poll(self.now)))
            if self.server is not None:
                self._put(False, apart(self.server.poll(self.now)))
            if until():
                return True
            times = [self.client.deadline(), end]
            if self.server is not None:
                times.append(self.server.deadline())
            if self._under_way:
                times.append(self._under_way[0][0])
            self.now = max(self.now + 1e-6, min(times))
            while self._under_way and self._under_way[0][0] <= self.now:
                _, _, to_server, packet, source = heapq.heappop(self._under_way)
                if to_server:
                    if self.server is None:
                        if packet[0] & 0xF0 != 0xC0:
                            continue
                        self.server = self._serve(packet)
                    self.server.receive(packet, len(packet), source, self.now)
                elif source == SERVER:
                    self.client.receive(packet, len(packet), source, self.now)
        return until()

    def connected(self) -> Link:
        """The server, once the handshake is confirmed at both ends."""
        assert self.run(10, lambda: bool(self.server_end.ups and self.client.connection._handshake_confirmed))
        self.run(0.1)
        assert self.server is not None
        return self.server
