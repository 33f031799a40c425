"""An internet in memory: hosts, NATs, a relay, and a clock that only moves when told to.

Host ── Nat ── [latency, loss] ── Nat ── Host          relay: reaches everybody who has it as home
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field

from gw.engine.paths import NeedEndpoints, PathChanged, PathFinder, PingResult, PlanChanged
from gw.engine.peerpath import ToUdp
from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, DiscoSecret, NodeKey
from gw.model.sendplan import SendPlan

REGION = 1
PORT = 41641
FLIGHT_S = 0.02
RELAY_FLIGHT_S = 0.05


@dataclass
class Nat:
    """symmetric: another outer port for each destination. Inbound passes only from where was sent to."""

    outer: str
    symmetric: bool = False
    blocked: bool = False
    ports: dict[object, int] = field(default_factory=dict)
    opened: dict[int, set[AddrPort]] = field(default_factory=dict)
    fresh: itertools.count[int] = field(default_factory=lambda: itertools.count(20000))

    def out(self, to: AddrPort) -> AddrPort | None:
        if self.blocked:
            return None
        port = self.ports.setdefault(to if self.symmetric else "all", next(self.fresh))
        self.opened.setdefault(port, set()).add(to)
        return AddrPort(self.outer, port)

    def lets_in(self, port: int, source: AddrPort) -> bool:
        return not self.blocked and source in self.opened.get(port, ())


class Host:
    """One node: a real PathFinder, driven as the engine drives it."""

    def __init__(self, net: Internet, name: str, address: str, nat: Nat | None = None) -> None:
        self.net, self.name, self.nat = net, name, nat
        self.inner = AddrPort(address, PORT)
        self.key = NodeKey(net.random.randbytes(32))
        self.plans: dict[NodeKey, SendPlan] = {}
        self.direct: dict[NodeKey, AddrPort | None] = {}
        self.changed_at: dict[NodeKey, float] = {}
        self.pongs: list[PingResult] = []
        self.sent = 0
        self.silent = False
        self.restart()
        net.hosts.append(self)

    def restart(self) -> None:
        """A new process: a new disco key, nothing known."""
        secret = bytearray(self.net.random.randbytes(32))
        self.paths = PathFinder(DiscoSecret(bytes(secret)), self.key, self.net.random.randbytes)

    @property
    def disco(self) -> DiscoKey:
        return self.paths.disco_key

    def public(self) -> AddrPort:
        """What STUN tells."""
        if self.nat is None:
            return self.inner
        seen = self.nat.out(AddrPort("192.0.2.200", 3478))
        return seen if seen is not None else self.inner

    def knows(self, other: Host) -> None:
        endpoints = [] if other.nat is not None and other.nat.blocked else [other.public()]
        self.paths.set_peer(other.key, other.disco, REGION, [*endpoints, other.inner], self.net.now)
        self.pump()

    def pump(self) -> None:
        out, events = self.paths.poll(self.net.now)
        for event in events:
            match event:
                case PlanChanged(peer, plan):
                    self.plans[peer] = plan
                case PathChanged(peer, direct, _):
                    self.direct[peer] = direct
                    self.changed_at[peer] = self.net.now
                case PingResult():
                    self.pongs.append(event)
                case NeedEndpoints():
                    self.paths.set_own_endpoints([self.public(), self.inner], self.net.now)
                    self.net.at(self.net.now, self.pump)
        for outgoing in out:
            self.sent += 1
            if isinstance(outgoing, ToUdp):
                self.net.udp(self, outgoing.datagram, outgoing.to)
            else:
                self.net.relay(self, outgoing.datagram, outgoing.peer)
        due = self.paths.deadline()
        if due is not None:
            self.net.at(due, self.pump)


class Internet:
    def __init__(self, seed: int, *, loss: float = 0.0, jitter_s: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.hosts: list[Host] = []
        self.loss, self.jitter_s = loss, jitter_s
        self.udp_works = True
        self._events: list[tuple[float, int, object]] = []
        self._order = itertools.count()

    def at(self, when: float, action: object) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        end = self.now + seconds
        steps = 0
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            assert callable(action)
            action()
            steps += 1
            assert steps < 200_000, "the path finder is spinning"
        self.now = end

    def talk(self, one: Host, other: Host, seconds: float) -> None:
        """Data flows both ways, as the engine notes it: once a second."""
        for _ in range(int(seconds)):
            for sender, receiver in ((one, other), (other, one)):
                if not sender.silent:
                    sender.paths.active(receiver.key, self.now)
                    sender.pump()
            self.run(1.0)

    def udp(self, sender: Host, datagram: bytes, to: AddrPort) -> None:
        source: AddrPort | None = sender.inner
        receiver = next((host for host in self.hosts if host.inner == to and host.nat is None), None)
        if sender.nat is not None:
            source = sender.nat.out(to)
        if source is None or not self.udp_works:
            return
        if receiver is None:
            behind = next((h for h in self.hosts if h.nat is not None and h.nat.outer == to.host), None)
            if behind is None or behind.nat is None or not behind.nat.lets_in(to.port, source):
                return
            receiver = behind
        self._deliver(receiver, lambda: receiver.paths.feed_udp(datagram, source, self.now), FLIGHT_S)

    def relay(self, sender: Host, datagram: bytes, peer: NodeKey) -> None:
        receiver = next((host for host in self.hosts if host.key == peer), None)
        if receiver is not None:
            feed = lambda: receiver.paths.feed_relay(datagram, REGION, sender.key, self.now)  # noqa: E731
            self._deliver(receiver, feed, RELAY_FLIGHT_S, reliable=True)

    def _deliver(self, receiver: Host, feed: object, flight_s: float, *, reliable: bool = False) -> None:
        if not reliable and self.random.random() < self.loss:
            return

        def arrive() -> None:
            assert callable(feed)
            feed()
            receiver.pump()

        self.at(self.now + flight_s + self.random.random() * self.jitter_s, arrive)
