"""One peer as a target for datagrams: its candidate endpoints, what their pongs said, and the best of them.

Ref: spec relay-and-path §3.4 to §3.6; tailscale wgengine/magicsock/endpoint.go
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final

from gw.model.addresses import AddrPort
from gw.model.keys import DiscoKey, NodeKey
from gw.model.sendplan import SendPlan

SESSION_ACTIVE_S: Final = 45.0
HEARTBEAT_S: Final = 3.0
TRUST_S: Final = 6.5
PING_TIMEOUT_S: Final = 5.0
PING_INTERVAL_S: Final = 5.0
UPGRADE_S: Final = 60.0
GOOD_LATENCY_S: Final = 0.005
MAX_CANDIDATES: Final = 100
IDLE_PLAN: Final = SendPlan(wake=True)
NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Via:
    """A UDP relay between us and a peer, and the number that it has given the pair."""

    address: AddrPort
    vni: int

    def __str__(self) -> str:
        return f"{self.address}:vni:{self.vni}"


@dataclass(frozen=True, slots=True)
class ToUdp:
    datagram: bytes
    to: AddrPort


@dataclass(frozen=True, slots=True)
class ToRelay:
    """By DERP."""

    datagram: bytes
    peer: NodeKey
    region: int


Outgoing = ToUdp | ToRelay


class Source(Enum):
    """How a candidate became known."""

    NETMAP = "netmap"
    CALL_ME_MAYBE = "call-me-maybe"
    PING = "ping"


@dataclass(slots=True)
class Candidate:
    """An endpoint at which the peer may be."""

    sources: set[Source]
    last_ping: float = NEVER
    last_heard: float = NEVER
    latency: float = NEVER  # seconds of the last pong
    last_ping_tx: bytes = b""  # of the peer's own ping, to drop a repeated one


@dataclass(slots=True)
class SentPing:
    """A ping that waits for its pong. asked_by: a `gw ping` that wants to know, 0 for none. sent: the data packets that
    it told of, None where it did not."""

    to: AddrPort | None  # None: by relay
    at: float
    asked_by: int = 0
    sent: int | None = None


@dataclass(slots=True, eq=False)
class PeerPath:
    """All that is known of the way to one peer."""

    key: NodeKey
    disco: DiscoKey | None
    home: int
    candidates: dict[AddrPort, Candidate] = field(default_factory=dict)
    sent: dict[bytes, SentPing] = field(default_factory=dict)
    best: AddrPort | None = None
    best_latency: float = 0.0
    trust_until: float = NEVER
    last_send: float = NEVER
    last_full_ping: float = NEVER
    heartbeat_at: float | None = None
    call_me_maybe_at: float = NEVER
    plan: SendPlan = IDLE_PLAN
    shown: AddrPort | None = None  # the direct path last told of
    shown_latency: float = 0.0
    counts: bool = False  # pings to it tell what was sent, pongs what was received
    seeking_since: float = NEVER  # without a direct path while there is data; NEVER: not
    shown_via: Via | None = None  # the UDP relay last told of
    follow: tuple[AddrPort, float] | None = None  # where it has moved to, if a pong says so until then

    def is_trusted(self, now: float) -> bool:
        return self.best is not None and now <= self.trust_until

    def is_active(self, now: float) -> bool:
        return now - self.last_send <= SESSION_ACTIVE_S

    def learn(self, endpoint: AddrPort, source: Source) -> Candidate:
        """The candidate of this endpoint, new or known."""
        candidate = self.candidates.get(endpoint)
        if candidate is None:
            candidate = self.candidates[endpoint] = Candidate(set())
        candidate.sources.add(source)
        return candidate

    def replace(self, endpoints: list[AddrPort], source: Source) -> None:
        """These and no others are known from this source; a candidate without any source goes."""
        wanted = set(endpoints)
        for endpoint in [each for each, candidate in self.candidates.items() if source in candidate.sources]:
            if endpoint not in wanted:
                self.candidates[endpoint].sources.discard(source)
                if not self.candidates[endpoint].sources and endpoint != self.best:
                    del self.candidates[endpoint]
        for endpoint in endpoints:
            if endpoint in self.candidates or len(self.candidates) < MAX_CANDIDATES:
                self.learn(endpoint, source)

    def prune(self, now: float) -> None:
        """With too many candidates drop those that only pinged us and fell silent."""
        if len(self.candidates) <= MAX_CANDIDATES:
            return
        for endpoint, candidate in list(self.candidates.items()):
            is_silent = candidate.sources <= {Source.PING} and now - candidate.last_heard > SESSION_ACTIVE_S
            if is_silent and endpoint != self.best:
                del self.candidates[endpoint]
        while len(self.candidates) > MAX_CANDIDATES:
            oldest = min(
                (endpoint for endpoint in self.candidates if endpoint != self.best),
                key=lambda endpoint: self.candidates[endpoint].last_heard,
            )
            del self.candidates[oldest]

    def wants_full_ping(self, now: float) -> bool:
        """True where all candidates should be tried: no trusted path, or one that might be better."""
        if self.best is None or not self.is_trusted(now):
            return True
        return self.best_latency > GOOD_LATENCY_S and now - self.last_full_ping >= UPGRADE_S


def is_better(endpoint: AddrPort, latency: float, than: AddrPort | None, than_latency: float) -> bool:
    """True where `endpoint` should replace `than`: faster by more than a little, or nearer in kind."""
    if than is None:
        return True
    if endpoint == than:
        return False
    points, other = _points(endpoint), _points(than)
    if latency > than_latency and latency > 0:
        other += 100 - int(100 * than_latency / latency)
    elif than_latency > 0:
        points += 100 - int(100 * latency / than_latency)
    if points <= 1 and other == 0:
        return False
    return points > other


@lru_cache(maxsize=4096)
def _points(endpoint: AddrPort) -> int:
    address = ipaddress.ip_address(endpoint.host)
    points = 10 if address.version == 6 else 0
    if address.is_loopback:
        points += 50
    elif address.is_link_local:
        points += 30
    elif address.is_private:
        points += 20
    return points
