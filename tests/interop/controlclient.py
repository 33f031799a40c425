"""A blocking node for tests: registers and reads maps over a real socket with our own wire cores."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import time
import urllib.request
from typing import Any

from gw.model.gojson import encode
from gw.model.hostinfo import Hostinfo, NetInfo, Service
from gw.model.keys import MachineKey, MachineSecret, NodeKey
from gw.model.mapping import MapRequest
from gw.model.registration import RegisterAuth, RegisterRequest
from gw.wire.ts2021.client import BodyData, ControlConnection, ResponseStarted, StreamEnded
from gw.wire.ts2021.mapframes import MapFrames
from gw.wire.ts2021.noise import ClientHandshake
from gw.wire.x25519 import clamp, fresh_pair, public_key

VERSION = 116


opened: list[Node] = []


class Node:
    """One machine with one node key and one connection."""

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name
        self.socket = socket.socket()
        self.machine = MachineSecret(clamp(os.urandom(32)))
        self.key = NodeKey(public_key(clamp(os.urandom(32))))
        self.disco = f"discokey:{os.urandom(32).hex()}"
        self.frames = MapFrames(compressed=True)
        self.routes: list[str] = []  # that it advertises
        self.services: list[Service] = []
        self.messages: list[dict[str, Any]] = []
        self.stream = 0
        opened.append(self)
        self.connect()

    def connect(self) -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/key?v={VERSION}", timeout=5) as answer:
                server = MachineKey.parse(json.load(answer)["publicKey"])
        except http.client.HTTPException as error:  # killed in the middle of its answer
            raise ConnectionError(str(error)) from error
        hello = ClientHandshake(self.machine, server, fresh_pair(), VERSION)
        self.socket.close()
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.socket.sendall(
            b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n"
            b"Content-Length: 0\r\nX-Tailscale-Handshake: " + base64.b64encode(hello.initiation()) + b"\r\n\r\n"
        )
        data = b""
        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < 51:
            data += self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.http = ControlConnection(hello.finish(rest[:51]))
        self.bodies: dict[int, bytearray] = {}
        self.statuses: dict[int, int] = {}
        self.ended: set[int] = set()
        self._take(rest[51:])

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        return data

    def _take(self, data: bytes) -> None:
        for event in self.http.feed(data):
            if isinstance(event, ResponseStarted):
                self.statuses[event.stream] = event.status
            elif isinstance(event, BodyData):
                if event.stream == self.stream:
                    self.messages += map(json.loads, self.frames.feed(event.data))
                else:
                    self.bodies.setdefault(event.stream, bytearray()).extend(event.data)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream)
        out = self.http.data_to_send()
        if out:
            self.socket.sendall(out)

    def call(self, path: str, body: bytes, method: str = "POST") -> tuple[int, bytes]:
        stream = self.http.request(path, body, authority="x", method=method)
        self.socket.sendall(self.http.data_to_send())
        while stream not in self.ended:
            self._take(self._receive())
        return self.statuses[stream], bytes(self.bodies.get(stream, b""))

    def hostinfo(self) -> Hostinfo:
        return Hostinfo(
            hostname=self.name,
            os="linux",
            backend_log_id="x",
            net_info=NetInfo(preferred_derp=900),
            routable_ips=self.routes or None,
            services=self.services or None,
        )

    def register(self, auth_key: str = "", **fields: Any) -> dict[str, Any]:
        auth = RegisterAuth(auth_key=auth_key) if auth_key else None
        request = RegisterRequest(
            version=VERSION, node_key=str(self.key), auth=auth, hostinfo=self.hostinfo(), **fields
        )
        status, body = self.call("/machine/register", encode(request))
        assert status == 200, body
        answer = json.loads(body)
        assert isinstance(answer, dict)
        return answer

    def request(self, **fields: Any) -> bytes:
        who = {"version": VERSION, "node_key": str(self.key), "disco_key": self.disco}
        return encode(MapRequest(**who, compress="zstd", hostinfo=self.hostinfo(), **fields))

    def open_stream(self) -> dict[str, Any]:
        """Start the map stream; returns its first message."""
        body = self.request(stream=True, keep_alive=True)
        self.stream = self.http.request("/machine/map", body, authority="x")
        self.socket.sendall(self.http.data_to_send())
        return self.until(lambda message: "Node" in message)

    def until(self, wanted: Any, timeout_s: float = 10.0) -> dict[str, Any]:
        """The first message not looked at yet for which `wanted` is true; earlier ones are dropped."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self.messages:
                message = self.messages.pop(0)
                if wanted(message):
                    return message
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            self._take(self._receive())
            self.socket.settimeout(10)

    def close(self) -> None:
        self.socket.close()
