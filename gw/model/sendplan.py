"""Where the datagrams of one peer go. Paths decides it, the tunnel follows it."""

from __future__ import annotations

from dataclasses import dataclass

from gw.model.addresses import AddrPort


@dataclass(frozen=True, slots=True)
class SendPlan:
    """udp and relay may both be set: while a path is not trusted its datagrams go both ways, and WireGuard's replay
    window drops the second copy. wake: report the next outbound packet, once."""

    udp: AddrPort | None = None
    relay: bool = False
    wake: bool = False
