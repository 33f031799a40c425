"""What status says of a peer's QUIC connection, and of the routes that the peer offers in it."""

from __future__ import annotations

import ipaddress

import pytest

from gw.engine.peerlines import LineView
from gw.engine.quicpeers import QuicView
from gw.engine.transport import Way
from gw.node.statusview import _quic

ROUTES = tuple(map(ipaddress.ip_network, ("10.0.0.0/24", "10.0.1.0/24", "fd00::/64")))


def view(routes: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]) -> QuicView:
    line = LineView(
        rtt_s=0.01, jitter_s=0.001, sent=1, received=2, dropped=0, udp_bytes=1452, is_fast=True, is_resumed=False,
        is_dialer=True, report=None, routes=routes,
    )  # fmt: skip
    return QuicView(next(iter(Way)), "", line)


@pytest.mark.parametrize(
    ("routed", "unrouted"),
    [
        (["100.64.0.2/32"], ["10.0.0.0/24", "10.0.1.0/24", "fd00::/64"]),
        (["100.64.0.2/32", "10.0.1.0/24"], ["10.0.0.0/24", "fd00::/64"]),
        (["10.0.0.0/24", "10.0.1.0/24", "fd00::/64", "10.9.0.0/16"], None),
    ],
)
def test_offered_routes_are_held_against_the_map(routed: list[str], unrouted: list[str] | None) -> None:
    found = _quic(view(ROUTES), routed)
    assert found is not None
    assert found.routes == ["10.0.0.0/24", "10.0.1.0/24", "fd00::/64"]
    assert found.unrouted == unrouted


def test_who_offers_none_has_none() -> None:
    found = _quic(view(()), ["10.0.0.0/24"])
    assert found is not None
    assert (found.routes, found.unrouted) == (None, None)
