"""Traffic of the node by the path it took, without a word per packet.

Workers count by peer alone. What a peer has moved since it was last looked at is booked to the path that it had all
that time; so it has to be looked at before its path changes (`settle`, `heard`), and whenever somebody asks. Exact but
for the packets under way in the moment of a change.

    direct_ipv4, direct_ipv6, peer_relay_ipv4, peer_relay_ipv6, derp: the names that Tailscale's metrics have for paths
    quic: direct as well, inside QUIC
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

from gw.engine.tallies import Tallies
from gw.model.addresses import AddrPort
from gw.model.sendplan import SendPlan

DIRECT_IPV4: Final = "direct_ipv4"
DIRECT_IPV6: Final = "direct_ipv6"
RELAY: Final = "derp"
QUIC: Final = "quic"
PEER_RELAY_IPV4: Final = "peer_relay_ipv4"
PEER_RELAY_IPV6: Final = "peer_relay_ipv6"
PATHS: Final = (DIRECT_IPV4, DIRECT_IPV6, QUIC, PEER_RELAY_IPV4, PEER_RELAY_IPV6, RELAY)


@dataclass(slots=True)
class Total:
    """Inner packets, and their bytes."""

    packets: int = 0
    size: int = 0

    def add(self, packets: int, size: int) -> None:
        self.packets += packets
        self.size += size


@dataclass(slots=True)
class _Seen:
    """How far the counters of one slot are booked."""

    sent: Total
    received: Total
    source: str = ""  # the path its datagrams come by; empty before the first
    direct: Total = field(default_factory=Total)  # sent without relay and QUIC


@final
class PathTotals:
    """sent, received: by path, since the tunnel began."""

    def __init__(self, tallies: Tallies) -> None:
        self.sent = {path: Total() for path in PATHS}
        self.received = {path: Total() for path in PATHS}
        self._tallies = tallies
        self._seen: dict[int, _Seen] = {}

    def settle(self, slot: int, plan: SendPlan) -> None:
        """Book what the slot has moved. plan: by which it has sent since the last time; both ways count twice."""
        seen = self._of(slot)
        if seen.source:
            now = self._tallies.received(slot)
            self.received[seen.source].add(*_moved(seen.received, now.packets, now.size))
        now = self._tallies.sent(slot)
        packets, size = _moved(seen.sent, now.packets, now.size)
        if plan.udp is not None and plan.vni:
            self.sent[peer_relay(plan.udp)].add(packets, size)
        elif plan.udp is not None:
            self.sent[_direct(plan.udp)].add(packets, size)
            seen.direct.add(packets, size)
        if plan.quic:
            self.sent[QUIC].add(packets, size)
        if plan.relay:
            self.sent[RELAY].add(packets, size)

    def heard(self, slot: int, plan: SendPlan, source: AddrPort | None, carrier: str = RELAY) -> None:
        """The slot's datagrams come from here from now on; None: by `carrier`, a relay or QUIC."""
        seen = self._of(slot)
        if seen.source:
            self.settle(slot, plan)
        seen.source = carrier if source is None else _direct(source)

    def carried(self, slot: int, plan: SendPlan, carrier: str) -> None:
        """What does not come as it is comes by this carrier from now on."""
        if self._of(slot).source not in ("", DIRECT_IPV4, DIRECT_IPV6):
            self.heard(slot, plan, None, carrier)

    def sent_direct(self, slot: int) -> Total:
        """What was sent to the slot's UDP endpoint as they are, up to the last `settle`."""
        return self._of(slot).direct

    def forget(self, slot: int) -> None:
        """Its counters begin at zero again. What was not settled is lost."""
        self._seen.pop(slot, None)

    def _of(self, slot: int) -> _Seen:
        seen = self._seen.get(slot)
        if seen is None:
            seen = self._seen[slot] = _Seen(Total(), Total())
        return seen


def _moved(before: Total, packets: int, size: int) -> tuple[int, int]:
    """What came since `before`, which is brought up to date."""
    moved = max(packets - before.packets, 0), max(size - before.size, 0)
    before.packets, before.size = packets, size
    return moved


def peer_relay(address: AddrPort) -> str:
    """The path by a UDP relay between nodes at this address."""
    return PEER_RELAY_IPV6 if address.is_v6 else PEER_RELAY_IPV4


def _direct(address: AddrPort) -> str:
    return DIRECT_IPV6 if address.is_v6 else DIRECT_IPV4
