"""A forwarding plane in its thread, and clients of it on loopback."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable

from gw.model.keys import NodeKey, NodeSecret, RelaySecret
from gw.native.relaying import Switch
from gw.relay.admission import Admission
from gw.relay.forwarding import Limits, Listener, Plane
from gw.relay.presence import Presence
from gw.relay.session import Offer, Reception
from gw.wire.derp import client as c
from gw.wire.derp.handshake import RelayIdentity
from gw.wire.x25519 import clamp, public_key

UPGRADE = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"


class Running:
    """A relay on a loopback port."""

    def __init__(
        self, context: ssl.SSLContext | None = None, *, limits: Limits | None = None, rate: int = 0, burst: int = 0
    ) -> None:
        self.verdicts: dict[bytes, Admission] = {}
        self.sources: set[str] = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.reception = Reception(
            RelayIdentity(RelaySecret(clamp(b"\x77" * 32))), Presence(Switch()), self._admit, lambda: os.urandom(24)
        )
        self.reception.bytes_per_second, self.reception.burst_bytes = rate, burst
        self.plane = Plane(self.reception, [Listener(self.listener, Offer(), lambda: context)], limits)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _admit(self, node: bytes, source: str) -> Admission:
        self.sources.add(source)
        return self.verdicts.get(node, Admission.ALLOWED)

    def _run(self) -> None:
        try:
            self.plane.run()
        except BaseException as error:  # a test looks at it
            self.failure = error

    def close(self) -> None:
        self.plane.stop()
        self.thread.join(5)
        self.listener.close()
        assert self.failure is None


class Flow:
    """One client of the relay over a real socket."""

    def __init__(self, running: Running, number: int, *, receive_buffer: int = 0, mesh_key: str = "") -> None:
        self.secret = NodeSecret(clamp(bytes([number]) * 32))
        self.key = NodeKey(public_key(self.secret.raw))
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(10)
        self.sock.connect(("127.0.0.1", running.port))
        self.sock.sendall(UPGRADE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.sock.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 ")
        self.client = c.Client(self.secret, os.urandom(24), mesh_key=mesh_key)
        self.events: list[c.Event] = []
        self._take(head.partition(b"\r\n\r\n")[2])

    def _take(self, data: bytes) -> None:
        self.events += self.client.feed(data)
        up = self.client.data_to_send()
        if up:
            self.sock.sendall(up)

    def until(self, wanted: Callable[[c.Event], bool]) -> c.Event:
        while True:
            for event in self.events:
                if wanted(event):
                    return event
            data = self.sock.recv(65536)
            assert data, "the relay closed"
            self._take(data)

    def connected(self) -> Flow:
        self.until(lambda event: isinstance(event, c.Connected))
        return self

    def send(self, to: NodeKey, packet: bytes) -> None:
        self.client.send(to, [packet])
        self.sock.sendall(self.client.data_to_send())

    def close(self) -> None:
        self.sock.close()


def received(packet: bytes) -> Callable[[c.Event], bool]:
    return lambda event: isinstance(event, c.Received) and event.packet == packet
