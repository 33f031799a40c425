"""Where the datagrams of one peer go. Paths decides it, the tunnel follows it."""

from __future__ import annotations

from dataclasses import dataclass

from gw.model.addresses import AddrPort


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Several of udp, quic and relay may be set: while a path is not trusted its datagrams go both ways, and
    WireGuard's replay window drops the second copy. vni: `udp` is a relay between nodes, where this is the number of
    the pair; 0 for the peer itself. quic: inside the QUIC connection with the peer. wake: report the next
    outbound packet, once."""

    udp: AddrPort | None = None
    quic: bool = False
    relay: bool = False
    wake: bool = False
    vni: int = 0
