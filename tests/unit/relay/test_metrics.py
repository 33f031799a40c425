"""What a relay counts stands under its own name."""

from __future__ import annotations

import mmap
from typing import Any

from gw.relay.forwarding import Plane
from gw.relay.metrics import SLOT_BYTES, Metrics

from .ends import House


class Transport:
    """Counts 101, 102, …"""

    def __len__(self) -> int:
        return 101

    def counts(self) -> tuple[int, ...]:
        return tuple(range(101, 110))


def test_each_figure_is_told_under_its_name() -> None:
    house = House()
    plane = Plane(house.reception, [])
    transport: Any = Transport()
    plane.transports.append(transport)
    house.reception.quic_links = {b"a": 1, b"b": 2}
    plane.flow_states.told = 77
    house.switch.dropped_queue = 55
    metrics = Metrics(mmap.mmap(-1, SLOT_BYTES), 1, 0)
    metrics.keep(plane)
    told = dict(line.rsplit(" ", 1) for line in metrics.render().splitlines() if not line.startswith("#"))
    wanted = {
        "quic_connections": 101,
        "quic_accepts_total": 102,
        "quic_packets_limited_total": 106,
        "quic_faults_total": 107,
        "quic_broken_total": 108,
        "quic_crowded_total": 109,
        "quic_links": 3,
        "peer_relay_pairs": 0,
        "flow_states_total": 77,
        'packets_dropped_total{reason="queue_head"}': 55,
    }
    assert {name: int(told[f"gwrelay_{name}"]) for name in wanted} == wanted
