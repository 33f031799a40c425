"""By which transport a peer's data goes where there is a direct path: as WireGuard over UDP, or inside QUIC. Measured.

What UDP delivers is known from heartbeats: our ping tells how many data packets we have sent, its pong how many came.

    direct ──5 sent, none came──────────▶ blocked ─┐              ┌──▶ quic ──every 30 s to 10 min──▶ probing
           ──handshakes unanswered──────▶ stalled ─┼─ connected ──┤     ▲                               │ both ways, 3 s
           ──5 % lost, twice in a row───▶ lossy ───┘              │     └──── UDP still loses ──────────┤
                                                                  │                                     │
           ◀── UDP delivers ◀─────────────────────────────────────┼─────────────────────────────────────┘
           ◀── QUIC delivers no more than UDP did (9 s) ◀─────────┘  lossy alone

Until the connection is there, data of a blocked or stalled peer goes by relay too. Only peers with something to tell
have a record here. No I/O, no clock.

Ref: spec quic §13, §15
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from gw.model.keys import NodeKey

BLOCKED_PACKETS: Final = 5
STALL_S: Final = 1.5
LOSSY_SHARE: Final = 0.05
LOSSY_PACKETS: Final = 40  # of a sample that says something
LOSSY_SAMPLES: Final = 2
FAST_BYTES_S: Final = 25e6  # what UDP delivers at this rate QUIC will not better
SETTLE_S: Final = 3.0  # until flows inside have found the new way's pace
TRIAL_S: Final = 6.0
TRIAL_GAIN: Final = 1.2
PROBE_S: Final = 3.0
PROBE_LIMIT_S: Final = 15.0
PROBE_PACKETS: Final = 10
PROBE_SHARE: Final = 0.97  # that has to arrive
FIRST_GAP_S: Final = 30.0
MAX_GAP_S: Final = 600.0
FIRST_RETRY_S: Final = 60.0
FIRST_DIAL_GAP_S: Final = 2.0
MAX_DIAL_GAP_S: Final = 120.0
STEADY_S: Final = 300.0  # on UDP for so long: gaps begin small again


class Mode(Enum):
    """What the person wants."""

    AUTO = "auto"
    QUIC = "quic"
    UDP = "udp"


class Way(Enum):
    """What is to be done with the path finder's plan."""

    DIRECT = "direct"  # nothing
    FALLBACK = "fallback"  # by relay as well
    QUIC = "quic"
    PROBING = "probing"  # in QUIC and over UDP


@dataclass(slots=True)
class _Cut:
    """Counters at one moment. size: bytes sent."""

    at: float
    sent: int
    received: int
    size: int


@dataclass(slots=True)
class _Record:
    reason: str = ""  # blocked, stalled, lossy, peer; empty: UDP is fine
    cut: _Cut | None = None
    alive: _Cut | None = None  # the last one at which something had arrived
    lossy: int = 0  # samples in a row
    udp_rate: float = 0.0  # bytes a second that arrived in the last lossy sample
    is_up: bool = False
    trial: tuple[float, int] | None = None  # when it begins, bytes that QUIC had delivered by then; -inf: it is over
    is_probing: bool = False
    probe_at: float = float("-inf")  # that is, some time after QUIC was taken
    probe_began: float = 0.0
    probe_gap: float = FIRST_GAP_S
    retry_at: float = float("-inf")
    retry_gap: float = FIRST_RETRY_S
    dial_at: float = float("-inf")
    dial_gap: float = FIRST_DIAL_GAP_S
    direct_since: float = float("-inf")  # on UDP, and it delivers


@final
class Chooser:
    """All peers of one node. Methods that return a bool say whether the peer's way is another now."""

    def __init__(self, mode: Mode = Mode.AUTO) -> None:
        self.mode = mode
        self._records: dict[NodeKey, _Record] = {}

    def set_mode(self, mode: Mode) -> None:
        """What was measured is forgotten; which connections are up is not."""
        self.mode = mode
        for record in self._records.values():
            self._to_direct(record, float("-inf"))
            record.retry_at = record.dial_at = float("-inf")

    def forget(self, peer: NodeKey) -> None:
        self._records.pop(peer, None)

    # Answers

    def way(self, peer: NodeKey) -> Way:
        record = self._records.get(peer)
        if record is None or self.mode is Mode.UDP:
            return Way.DIRECT
        if self.mode is Mode.QUIC:
            return Way.QUIC if record.is_up else Way.DIRECT
        if not record.reason:
            return Way.DIRECT
        if record.is_up:
            return Way.PROBING if record.is_probing else Way.QUIC
        return Way.FALLBACK if record.reason in ("blocked", "stalled") else Way.DIRECT

    def reason(self, peer: NodeKey) -> str:
        """Why it is not plain UDP: asked, blocked, stalled, lossy, peer; empty where it is."""
        if self.mode is Mode.QUIC:
            return "asked"
        record = self._records.get(peer)
        return record.reason if record is not None and self.mode is Mode.AUTO else ""

    def wants_line(self, peer: NodeKey, now: float) -> bool:
        """Whether a connection should be dialled now; asked once for each attempt."""
        if self.mode is Mode.UDP:
            return False
        record = self._of(peer) if self.mode is Mode.QUIC else self._records.get(peer)
        if record is None or record.is_up or now < record.dial_at:
            return False
        if self.mode is Mode.AUTO and not record.reason:
            return False
        record.dial_at = now + record.dial_gap
        record.dial_gap = min(2 * record.dial_gap, MAX_DIAL_GAP_S)
        return True

    # What happens

    def line(self, peer: NodeKey, now: float, *, is_up: bool) -> bool:
        """The connection with the peer came up, or there is none any more."""
        before = self.way(peer)
        record = self._of(peer)
        record.is_up, record.is_probing, record.trial = is_up, False, None
        if is_up:
            record.dial_gap = FIRST_DIAL_GAP_S
            record.dial_at = float("-inf")
        return self.way(peer) is not before

    def stalled(self, peer: NodeKey, unanswered_s: float) -> bool:
        """Handshakes on a direct path that is trusted had no answer for so long."""
        if unanswered_s < STALL_S or self.mode is not Mode.AUTO:
            return False
        return self._suspect(peer, "stalled")

    def brought(self, peer: NodeKey, now: float) -> bool:
        """A handshake of the peer came inside QUIC: over UDP it did not get through, or the peer wants none.

        What we have measured lately ourselves counts more.
        """
        record = self._records.get(peer)
        if self.mode is not Mode.AUTO or (record is not None and now - record.direct_since < STEADY_S):
            return False
        return self._suspect(peer, "peer")

    def delivered(self, peer: NodeKey, sent: int, received: int, size: int, now: float) -> bool:
        """A pong: of `sent` data packets over UDP so far, `size` bytes in all, the peer had got `received`."""
        if self.mode is not Mode.AUTO:
            return False
        before = self.way(peer)
        record = self._of(peer)
        cut, record.cut = record.cut, _Cut(now, sent, received, size)
        if record.is_probing:
            self._judge_probe(record, cut, now)
            return self.way(peer) is not before
        if cut is None or sent < cut.sent or received < cut.received:  # something was counted anew
            record.alive = record.cut
            record.lossy = 0
            return False
        if record.alive is None or received > record.alive.received:
            record.alive = record.cut
        packets, arrived = sent - cut.sent, received - cut.received
        if not record.reason:
            if sent - record.alive.sent >= BLOCKED_PACKETS and record.alive is not record.cut:
                record.reason = "blocked"
            else:
                self._look_at_loss(record, cut, packets, arrived, size, now)
        elif not record.is_up and packets >= PROBE_PACKETS and arrived >= PROBE_SHARE * packets:
            self._to_direct(record, now)
        if not record.reason and record.direct_since > float("-inf") and now - record.direct_since > STEADY_S:
            record.probe_gap, record.retry_gap = FIRST_GAP_S, FIRST_RETRY_S
        return self.way(peer) is not before

    def tick(self, peer: NodeKey, quic_bytes: int, now: float) -> tuple[bool, bool]:
        """Time passes; call about once a second for a peer with traffic.

        Returns whether the way is another, and whether UDP has to be measured now.

        quic_bytes: what its connection has delivered.
        """
        record = self._records.get(peer)
        if record is None or self.mode is not Mode.AUTO or not record.reason or not record.is_up:
            return False, False
        before = self.way(peer)
        if record.reason == "lossy":
            if record.trial is None:
                record.trial = now + SETTLE_S, quic_bytes
            began, bytes_then = record.trial
            if now <= began:
                record.trial = began, quic_bytes
            if began > float("-inf") and now - began >= TRIAL_S:
                rate = max(quic_bytes - bytes_then, 0) / (now - began)
                if rate < TRIAL_GAIN * record.udp_rate:
                    self._to_direct(record, now)
                    record.retry_at = now + record.retry_gap
                    record.retry_gap = min(2 * record.retry_gap, MAX_GAP_S)
                    return self.way(peer) is not before, False
                record.trial = float("-inf"), 0  # it stays
        measure = False
        if record.probe_at == float("-inf"):
            record.probe_at = now + record.probe_gap
        if not record.is_probing and now >= record.probe_at:
            record.is_probing, record.probe_began, record.cut = True, now, None
            measure = True
        elif record.is_probing:
            if now - record.probe_began > PROBE_LIMIT_S:
                self._end_probe(record, now)
            else:
                measure = record.cut is None or now - record.probe_began >= PROBE_S
        return self.way(peer) is not before, measure

    # Inside

    def _of(self, peer: NodeKey) -> _Record:
        record = self._records.get(peer)
        if record is None:
            record = self._records[peer] = _Record()
        return record

    def _suspect(self, peer: NodeKey, reason: str) -> bool:
        before = self.way(peer)
        record = self._of(peer)
        if not record.reason:
            record.reason = reason
        return self.way(peer) is not before

    def _look_at_loss(self, record: _Record, cut: _Cut, packets: int, arrived: int, size: int, now: float) -> None:
        if packets < LOSSY_PACKETS:
            return
        rate = (size - cut.size) * min(arrived / packets, 1.0) / max(now - cut.at, 0.1)
        if arrived > (1 - LOSSY_SHARE) * packets or rate > FAST_BYTES_S:
            record.lossy = 0
            return
        record.lossy += 1
        record.udp_rate, record.direct_since = rate, now
        if record.lossy >= LOSSY_SAMPLES and now >= record.retry_at:
            record.reason = "lossy"

    def _judge_probe(self, record: _Record, cut: _Cut | None, now: float) -> None:
        """Compare with the first cut of the probe, which stays until the verdict."""
        newest = record.cut
        assert newest is not None
        if cut is None or newest.sent < cut.sent or newest.received < cut.received:
            return
        packets, arrived = newest.sent - cut.sent, newest.received - cut.received
        if now - record.probe_began < PROBE_S or packets < PROBE_PACKETS:
            record.cut = cut
            return
        if arrived >= PROBE_SHARE * packets:
            self._to_direct(record, now)
            record.probe_gap = min(2 * record.probe_gap, MAX_GAP_S)  # for the next time, if that is soon
        else:
            self._end_probe(record, now)

    def _end_probe(self, record: _Record, now: float) -> None:
        record.is_probing, record.cut = False, None
        record.probe_at = now + record.probe_gap
        record.probe_gap = min(2 * record.probe_gap, MAX_GAP_S)

    def _to_direct(self, record: _Record, now: float) -> None:
        record.reason, record.is_probing, record.trial, record.probe_at = "", False, None, float("-inf")
        record.cut = record.alive = None
        record.lossy = 0
        record.direct_since = now
