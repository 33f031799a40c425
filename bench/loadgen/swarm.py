"""One process of simulated clients: an epoll loop, a pipe to the parent, and the times of what happened.

    goal "registered"   connect, register
    goal "streaming"    connect if need be, open the map stream and send a lite update
    goal "joined"       both on one connection, as a client that logs in does

At most `at_once` clients are on their way to the goal at a time. A client that is cut off comes back by itself, with
the jittered, doubling wait of stock clients, once it has been told to stay.
"""

from __future__ import annotations

import errno
import gc
import heapq
import json
import os
import random
import resource
import select
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from gw.errors import WireError
from gw.model.keys import MachineKey
from loadgen.client import Client, Identity, Told

READ_BYTES: Final = 256 << 10
GIVE_UP_S: Final = 60.0  # on one attempt
FIRST_WAIT_S: Final = 0.5
MAX_WAIT_S: Final = 30.0


@dataclass(slots=True)
class Plan:
    """What a process is to simulate. clients: (number, auth key, peers that it shall see in the end)."""

    host: str
    port: int
    tls: bool
    sources: list[str]  # local addresses: each has 28,000 ports, and a closed connection keeps its own for a minute
    salt: str
    clients: list[tuple[int, str, int]]
    fetch_key: bool = True


@dataclass(slots=True)
class Life:
    """A client's connection and where it is."""

    client: Client
    expected: int
    sock: socket.socket | None = None
    goal: str = ""
    is_connecting: bool = False
    is_writing: bool = False
    is_reading: bool = True
    begun: float = 0.0
    tries: int = 0
    registered: bool = False
    registered_at: float = 0.0
    reached: bool = True  # its goal
    first_map: float = 0.0
    complete: float = 0.0
    wants_key: bool = False
    has_key: bool = False  # fetched for the connection that comes


@dataclass(slots=True)
class Report:
    """Answer to a "status"."""

    registered: int = 0
    streaming: int = 0
    complete: int = 0
    registered_at: float = 0.0  # of the last one
    first_map_at: float = 0.0
    complete_at: float = 0.0
    lost: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    missing: dict[int, int] = field(default_factory=dict)  # a few of the incomplete: number -> peers it has


class Swarm:
    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self.plan, self.pipe = plan, pipe
        authority = f"{plan.host}:{plan.port}"
        self.lives = {
            index: Life(Client(index, Identity.of(index, plan.salt), key, authority), expected)
            for index, key, expected in plan.clients
        }
        self.by_fd: dict[int, Life] = {}
        self.epoll = select.epoll()
        self.epoll.register(pipe.fileno(), select.EPOLLIN)
        self.server: MachineKey | None = None
        self.waiting: deque[Life] = deque()
        self.under_way = 0
        self.at_once = 64
        self.timers: list[tuple[float, int, Life]] = []
        self.stay = False
        self.sent: dict[int, float] = {}
        self.arrivals: dict[int, list[float]] = {}
        self.latencies: list[float] = []
        self.errors: dict[str, int] = {}
        self.lost = 0
        self.connects = 0
        self.context: ssl.SSLContext | None = None
        if plan.tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        self.running = True

    def run(self) -> None:
        while self.running:
            wait = 1.0
            if self.timers:
                wait = min(wait, max(0.0, self.timers[0][0] - time.monotonic()))
            for fd, mask in self.epoll.poll(wait, 4096):
                if fd == self.pipe.fileno():
                    self._command(self.pipe.recv())
                elif fd in self.by_fd:
                    self._ready(self.by_fd[fd], mask)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                life = heapq.heappop(self.timers)[2]
                if life.sock is None:
                    self.waiting.append(life)
            self._start_more()

    # Commands of the parent

    def _command(self, message: tuple[str, Any]) -> None:
        verb, value = message
        answer: Any = None
        if verb == "go":
            goal, self.at_once, self.stay = value
            self.latencies, self.errors, self.lost = [], {}, 0
            for life in self.lives.values():
                life.goal, life.reached, life.tries = goal, False, 0
                if goal != "registered":
                    life.first_map = life.complete = 0.0
                self.waiting.append(life)
        elif verb == "status":
            answer = self._status()
        elif verb == "change":
            index, number = value
            life = self.lives[index]
            life.client.change = number
            if life.client.session is not None:
                self.sent[number] = time.monotonic()
                life.client.update()
                self._flush(life)
            answer = None
            return
        elif verb == "arrivals":
            answer = (self.sent, self.arrivals)
            self.sent, self.arrivals = {}, {}
        elif verb == "drop":
            self.stay = False
            for life in self.lives.values():
                self._close(life)
        elif verb == "latencies":
            answer = self.latencies
        elif verb == "reading":
            index, is_reading = value
            life = self.lives[index]
            life.is_reading = is_reading
            self._watch(life)
        elif verb == "cost":
            used = resource.getrusage(resource.RUSAGE_SELF)
            with open("/proc/self/statm", encoding="ascii") as file:
                pages = int(file.read().split()[1])
            answer = (used.ru_utime + used.ru_stime, pages * resource.getpagesize())
        elif verb == "stop":
            self.running = False
        self.pipe.send(answer)

    def _status(self) -> Report:
        report = Report(errors=self.errors, lost=self.lost)
        for life in self.lives.values():
            report.registered += life.registered
            report.registered_at = max(report.registered_at, life.registered_at)
            report.pending += not life.reached
            if life.first_map:
                report.streaming += 1
                report.first_map_at = max(report.first_map_at, life.first_map)
            if life.complete:
                report.complete += 1
                report.complete_at = max(report.complete_at, life.complete)
            elif len(report.missing) < 5:
                report.missing[life.client.index] = len(life.client.known)
        return report

    # Connections

    def _start_more(self) -> None:
        while self.waiting and self.under_way < self.at_once:
            life = self.waiting.popleft()
            if life.reached:
                continue
            self.under_way += 1
            life.begun = time.monotonic()
            if life.sock is None:
                self._connect(life)
            else:
                self._proceed(life)
                self._flush(life)

    def _connect(self, life: Life) -> None:
        life.tries += 1
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
        self.connects += 1
        sock.bind((self.plan.sources[self.connects % len(self.plan.sources)], 0))
        code = sock.connect_ex((self.plan.host, self.plan.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed(life, os.strerror(code))
            return
        life.sock, life.is_connecting = sock, True
        self.by_fd[sock.fileno()] = life
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _connected(self, life: Life) -> None:
        sock = life.sock
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(life, os.strerror(code))
            return
        life.is_connecting = False
        if self.context is not None:
            self.epoll.unregister(sock.fileno())
            del self.by_fd[sock.fileno()]
            sock = life.sock = self.context.wrap_socket(sock, do_handshake_on_connect=False)
            self.by_fd[sock.fileno()] = life
            self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        client = life.client
        life.wants_key = not life.has_key and (self.plan.fetch_key or self.server is None)
        life.has_key = False
        if life.wants_key:
            client.session, client.raw = None, b""
            client.out = f"GET /key?v=116 HTTP/1.1\r\nHost: {client.authority}\r\n\r\n".encode()
        else:
            assert self.server is not None
            client.begin(self.server)
        self._flush(life)

    def _ready(self, life: Life, mask: int) -> None:
        try:
            if life.is_connecting:
                self._connected(life)
                return
            if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and life.is_reading:
                self._read(life)
            if life.sock is not None and life.client.out:
                self._flush(life)
            elif life.sock is not None and life.is_writing:
                self._watch(life)
        except (OSError, WireError) as error:
            self._failed(life, str(error) or type(error).__name__)

    def _read(self, life: Life) -> None:
        while (sock := life.sock) is not None and not life.is_connecting:
            try:
                data = sock.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                self._failed(life, "closed by the server")
                return
            if life.wants_key:
                self._take_key(life, data)
                continue
            for kind, value in life.client.feed(data):
                self._happened(life, kind, value)
            if self.context is None and len(data) < READ_BYTES:
                return

    def _take_key(self, life: Life, data: bytes) -> None:
        client = life.client
        client.raw += data
        head, found, body = client.raw.partition(b"\r\n\r\n")
        if not found or not body.rstrip().endswith(b"}"):
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self._failed(life, head[:40].decode("latin-1"))
            return
        self.server = MachineKey.parse(json.loads(body[body.find(b"{") :])["publicKey"])
        life.wants_key = False
        self._close(life)  # as stock clients do: the upgrade is made on a connection of its own
        life.has_key = True
        self._connect(life)

    def _happened(self, life: Life, kind: str, value: Any) -> None:
        if kind == "told":
            self._told(life, value)
        elif kind == "up":
            self._proceed(life)
        elif kind == "reply":
            what, status, body = value
            if what == "register":
                answer = json.loads(body) if status == 200 else {}
                if answer.get("MachineAuthorized"):
                    life.registered, life.registered_at = True, time.monotonic()
                    self.latencies.append(time.monotonic() - life.begun)
                    if life.goal == "registered":
                        self._reached(life)
                    else:
                        self._proceed(life)
                else:
                    self._failed(life, f"register: {status} {answer.get('Error') or body[:80]!r}")
            elif status != 200:
                self._count(f"update: {status} {body[:80]!r}")
        elif kind == "end":
            self._failed(life, str(value))

    def _proceed(self, life: Life) -> None:
        client = life.client
        if life.reached or client.session is None:
            return
        if life.goal in ("registered", "joined") and not life.registered:
            if not any(each[0] == "register" for each in client.replies.values()):
                client.register()
        elif life.goal == "registered":
            self._reached(life)
        elif not client.map_stream:
            client.stream()
            client.update()

    def _told(self, life: Life, told: Told) -> None:
        now = time.monotonic()
        if told.is_first and not life.first_map:
            life.first_map = now
            self._reached(life)
        if not life.complete and len(life.client.known) >= life.expected:
            life.complete = now
        for number in told.changes:
            self.arrivals.setdefault(number, []).append(now)

    def _reached(self, life: Life) -> None:
        if not life.reached:
            life.reached = True
            life.tries = 0
            self.under_way -= 1

    # Ends

    def _failed(self, life: Life, why: str) -> None:
        self._count(why)
        was_there = life.reached
        self._close(life)
        if not was_there:
            self.under_way -= 1
        else:
            self.lost += 1
        if was_there and not self.stay:
            return
        life.reached = False
        if life.goal != "registered":
            life.first_map = life.complete = 0.0
        wait = min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(life.tries, 8)) * (0.5 + random.random())
        heapq.heappush(self.timers, (time.monotonic() + wait, life.client.index, life))

    def _count(self, why: str) -> None:
        self.errors[why] = self.errors.get(why, 0) + 1

    def _close(self, life: Life) -> None:
        client = life.client
        client.session, client.out, client.map_stream, client.raw = None, b"", 0, b""
        client.known = set()
        if life.sock is not None:
            self.by_fd.pop(life.sock.fileno(), None)
            life.sock.close()
            life.sock = None
        life.is_connecting = life.is_writing = False

    # Writing

    def _flush(self, life: Life) -> None:
        client, sock = life.client, life.sock
        if sock is None:
            return
        try:
            while client.out:
                client.out = client.out[sock.send(client.out) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        self._watch(life)

    def _watch(self, life: Life) -> None:
        if life.sock is None:
            return
        wants = bool(life.client.out)
        life.is_writing = wants
        reads = select.EPOLLIN if life.is_reading else 0
        self.epoll.modify(life.sock.fileno(), reads | (select.EPOLLOUT if wants else 0))


def main(plan: Plan, pipe: Connection) -> None:
    """The process's whole life."""
    swarm = Swarm(plan, pipe)
    gc.freeze()
    swarm.run()
