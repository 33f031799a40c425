"""The congestion controller behind a bottleneck, on a virtual clock: figures of the controller, not of the machine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from aioquic.quic.congestion.base import create_congestion_control

from gw.quic.congestion import NAME, Sent

PACKET = 1200


class Bottleneck:
    """A path of a rate, a delay and a buffer; every packet is acknowledged, or noticed as lost a round trip later."""

    def __init__(
        self, name: str, *, rate: float, rtt_s: float, buffer: int, lose: Callable[[], bool] = lambda: False
    ) -> None:
        self.cc = create_congestion_control(name, max_datagram_size=PACKET)
        self.now, self.free = 100.0, 100.0
        self.rate, self.rtt_s, self.buffer, self.lose = rate, rtt_s, buffer, lose
        self.under_way: list[tuple[float, bool, Sent]] = []
        self.delivered = 0
        self.backlog = 0.0

    def run(self, seconds: float) -> float:
        """Send all that the window allows; the share of the rate that was delivered."""
        end, before = self.now + seconds, self.delivered
        while self.now < end:
            while self.cc.bytes_in_flight + PACKET <= self.cc.congestion_window:
                sent = Sent(PACKET, self.now)
                self.cc.on_packet_sent(packet=sent)  # type: ignore[arg-type]
                waiting = max(0.0, self.free - self.now) * self.rate
                self.backlog = max(self.backlog, waiting)
                if self.lose() or waiting + PACKET > self.buffer:
                    self.under_way.append((self.now + self.rtt_s * 1.25, False, sent))
                    continue
                self.free = max(self.free, self.now) + PACKET / self.rate
                self.under_way.append((self.free + self.rtt_s, True, sent))
            self.under_way.sort(key=lambda each: each[0])
            self.now, is_acked, sent = self.under_way.pop(0)
            if is_acked:
                self.delivered += PACKET
                self.cc.on_packet_acked(now=self.now, packet=sent)  # type: ignore[arg-type]
                self.cc.on_rtt_measurement(now=self.now, rtt=self.now - sent.sent_time)
            else:
                self.cc.on_packets_lost(now=self.now, packets=[sent])  # type: ignore[list-item]
        return (self.delivered - before) / (seconds * self.rate)

    def drain(self) -> None:
        """What is under way arrives, and nothing follows."""
        for at, is_acked, sent in sorted(self.under_way, key=lambda each: each[0]):
            self.now = max(self.now, at)
            if is_acked:
                self.cc.on_packet_acked(now=self.now, packet=sent)  # type: ignore[arg-type]
            else:
                self.cc.on_packets_lost(now=self.now, packets=[sent])  # type: ignore[list-item]
        self.under_way.clear()


def test_random_loss_does_not_slow_it_where_it_slows_reno() -> None:
    """Spec quic §7: 50 Mb/s, 40 ms, 0.5 % lost by the path itself."""
    shares = {}
    for name in (NAME, "reno"):
        dice = random.Random(3)
        path = Bottleneck(name, rate=50e6 / 8, rtt_s=0.04, buffer=250_000, lose=lambda dice=dice: dice.random() < 0.005)
        path.run(3)
        shares[name] = path.run(5)
    assert shares[NAME] > 0.85
    assert shares[NAME] > 2 * shares["reno"]


@pytest.mark.parametrize("rtt_s", [0.0005, 0.02, 0.1])
def test_the_path_is_filled_and_the_buffer_is_not(rtt_s: float) -> None:
    path = Bottleneck(NAME, rate=50e6 / 8, rtt_s=rtt_s, buffer=4_000_000)
    path.run(3)
    path.backlog = 0.0
    assert path.run(3) > 0.9
    assert path.backlog < 0.6 * path.rate * rtt_s + 0.02 * path.rate


def test_a_path_that_drops_a_tenth_is_yielded_to() -> None:
    dice = random.Random(3)
    path = Bottleneck(NAME, rate=50e6 / 8, rtt_s=0.02, buffer=60_000, lose=lambda: dice.random() < 0.1)
    path.run(3)
    assert path.cc._scale < 0.8  # type: ignore[attr-defined]


def test_nothing_stays_in_flight() -> None:
    path = Bottleneck(NAME, rate=1e6, rtt_s=0.02, buffer=20_000)
    path.run(2)
    path.drain()
    assert path.cc.bytes_in_flight == 0


def test_little_traffic_does_not_forget_what_the_path_can_do() -> None:
    path = Bottleneck(NAME, rate=50e6 / 8, rtt_s=0.02, buffer=4_000_000)
    path.run(3)
    path.drain()
    before = path.cc.congestion_window
    for _ in range(200):
        path.now += 0.05
        sent = Sent(PACKET, path.now)
        path.cc.on_packet_sent(packet=sent)  # type: ignore[arg-type]
        path.now += path.rtt_s
        path.cc.on_packet_acked(now=path.now, packet=sent)  # type: ignore[arg-type]
    assert path.cc.congestion_window > before / 2
