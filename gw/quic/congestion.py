"""The congestion controller: a window of what the path delivered lately times its shortest round trip.

Packets of a tunnel are lost by radio and policers as much as by full queues, and the flows inside react to loss
themselves. So a single loss changes nothing here; what counts is the rate at which bytes arrive. Above 5 % of loss in a
round the window shrinks.

Ref: spec quic §7; BBR (Cardwell and others, 2016) for rate and gains; RFC 9002 §7
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, final

from aioquic.quic.congestion.base import K_INITIAL_WINDOW, QuicCongestionControl, register_congestion_control

NAME: Final = "ghostwire"
START_GAIN: Final = 2.0
CYCLE: Final = (1.25, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
HEADROOM: Final = 1.15
RATE_ROUNDS: Final = 10
MIN_RTT_S: Final = 10.0  # how long the shortest round trip is believed
FULL_GROWTH: Final = 1.25
FULL_ROUNDS: Final = 3
LOSS_SHARE: Final = 0.05
LOSS_CUT: Final = 0.85
MIN_SCALE: Final = 0.5
REGAIN: Final = 1.05
MIN_WINDOW_PACKETS: Final = 10
SPARE_PACKETS: Final = 8  # beyond it: what lets connections that share a path come to equal rates
ACK_SLACK_S: Final = 0.010  # that acknowledgments gather, and wait for a turn on a busy host


@final
class Sent:
    """Packets that are told of together; stands for aioquic's `QuicSentPacket` here."""

    __slots__ = ("delivered", "delivered_at", "filled", "in_flight", "sent_bytes", "sent_time")

    def __init__(self, sent_bytes: int, sent_time: float) -> None:
        self.sent_bytes = sent_bytes
        self.sent_time = sent_time
        self.in_flight = True
        self.delivered = 0
        self.delivered_at = sent_time
        self.filled = False

    def part(self, size: int) -> Sent:
        """So many bytes of it."""
        made = Sent(size, self.sent_time)
        made.delivered, made.delivered_at, made.filled = self.delivered, self.delivered_at, self.filled
        return made


@final
class RateControl(QuicCongestionControl):
    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._size = max_datagram_size
        self.congestion_window = K_INITIAL_WINDOW * max_datagram_size
        self._delivered = 0
        self._delivered_at = 0.0
        self._rates: deque[tuple[int, float]] = deque()  # falling, by round
        self._round = 0
        self._round_ends = 0
        self._min_rtt: float | None = None
        self._min_rtt_at = 0.0
        self._is_starting = True
        self._best_start = 0.0
        self._flat_rounds = 0
        self._scale = 1.0
        self._acked_in_round = 0
        self._lost_in_round = 0
        self._is_filled = False  # whether the window was used in this round

    @property
    def delivered(self) -> int:
        """Bytes acknowledged so far."""
        return self._delivered

    @property
    def rate(self) -> float:
        """Bytes a second that the path has delivered lately, 0 before anything is known."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def is_starting(self) -> bool:
        """Whether more may be delivered than ever was: what the path carries was not found out yet."""
        return self._is_starting

    def on_packet_sent(self, *, packet: Any) -> None:
        if self.bytes_in_flight == 0:
            self._delivered_at = packet.sent_time  # nothing was under way: the pause says nothing of the path
        self.bytes_in_flight += packet.sent_bytes
        packet.delivered, packet.delivered_at = self._delivered, self._delivered_at or packet.sent_time
        packet.filled = 2 * self.bytes_in_flight >= self.congestion_window

    def on_packet_acked(self, *, now: float, packet: Any) -> None:
        self.bytes_in_flight -= packet.sent_bytes
        self._delivered += packet.sent_bytes
        self._delivered_at = now
        self._acked_in_round += packet.sent_bytes
        before = getattr(packet, "delivered", None)
        if before is None or before > self._delivered:  # sent under the controller of another path
            return
        took = max(now - packet.delivered_at, now - packet.sent_time, 1e-4)
        rate = (self._delivered - before) / took
        self._is_filled = self._is_filled or packet.filled
        if packet.filled or not self._rates or rate >= self._rates[0][1]:  # little to send says little of the path
            while self._rates and self._rates[-1][1] <= rate:
                self._rates.pop()
            self._rates.append((self._round, rate))
        if before >= self._round_ends:
            self._end_round()
        self._resize()

    def on_packets_lost(self, *, now: float, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._lost_in_round += packet.sent_bytes

    def on_packets_expired(self, *, packets: Iterable[Any]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_persistent_congestion(self) -> None:
        self._rates.clear()
        self._is_starting, self._best_start, self._flat_rounds = True, 0.0, 0
        self.congestion_window = MIN_WINDOW_PACKETS * self._size

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        if self._min_rtt is None or rtt <= self._min_rtt or now - self._min_rtt_at > MIN_RTT_S:
            self._min_rtt, self._min_rtt_at = rtt, now

    def _end_round(self) -> None:
        self._round += 1
        self._round_ends = self._delivered
        if self._is_filled:
            while len(self._rates) > 1 and self._rates[0][0] < self._round - RATE_ROUNDS:
                self._rates.popleft()
        if self._is_starting and self._is_filled:
            best = self._rates[0][1] if self._rates else 0.0
            if best > self._best_start * FULL_GROWTH:
                self._best_start, self._flat_rounds = best, 0
            else:
                self._flat_rounds += 1
                self._is_starting = self._flat_rounds < FULL_ROUNDS
        total = self._acked_in_round + self._lost_in_round
        if total and self._lost_in_round > LOSS_SHARE * total:
            self._scale = max(MIN_SCALE, self._scale * LOSS_CUT)
            self._is_starting = False
        else:
            self._scale = min(1.0, self._scale * REGAIN)
        self._acked_in_round = self._lost_in_round = 0
        self._is_filled = False

    def _resize(self) -> None:
        if self._min_rtt is None or not self._rates:
            return
        gain = START_GAIN if self._is_starting else HEADROOM * CYCLE[self._round % len(CYCLE)]
        product = self._rates[0][1] * (self._min_rtt + ACK_SLACK_S)
        window = int(gain * self._scale * product) + SPARE_PACKETS * self._size
        self.congestion_window = max(MIN_WINDOW_PACKETS * self._size, window)


register_congestion_control(NAME, RateControl)
