"""Traffic is booked to the path that a peer had while it moved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import mmap

import pytest

from gw.engine.pathtotals import PathTotals, Total
from gw.engine.tallies import Tallies
from gw.model.addresses import AddrPort
from gw.model.sendplan import SendPlan
from gw.native.counters import INBOUND, OUTBOUND, SHARED_BYTES, Tally, block_at, region_at

SLOT = 7
RELAY = SendPlan(relay=True)
DIRECT4 = SendPlan(udp=AddrPort("192.0.2.1", 5))
DIRECT6 = SendPlan(udp=AddrPort("2001:db8::1", 5))
BOTH = SendPlan(udp=AddrPort("192.0.2.1", 5), relay=True)


class Peer:
    """The workers' side of one slot."""

    def __init__(self, shared: mmap) -> None:
        self.out = Tally(shared, block_at(region_at(OUTBOUND, 0), SLOT))
        self.into = Tally(shared, block_at(region_at(INBOUND, 0), SLOT))

    def moves(self, sent: int, received: int) -> None:
        for tally, packets in ((self.out, sent), (self.into, received)):
            tally.packets += packets
            tally.size += 100 * packets
            tally.store()


@pytest.fixture
def world() -> Iterator[tuple[PathTotals, Peer, Tallies]]:
    descriptor = os.memfd_create("counters")
    os.ftruncate(descriptor, SHARED_BYTES)
    shared = mmap(descriptor, SHARED_BYTES)
    tallies = Tallies(descriptor, 1)
    yield PathTotals(tallies), Peer(shared), tallies
    tallies.close()
    shared.close()
    os.close(descriptor)


def test_what_moved_before_a_change_belongs_to_the_old_path(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, _ = world
    totals.heard(SLOT, RELAY, None)
    peer.moves(2, 3)
    totals.settle(SLOT, RELAY)
    totals.heard(SLOT, DIRECT4, AddrPort("192.0.2.1", 5))
    peer.moves(10, 20)
    totals.settle(SLOT, DIRECT4)
    totals.heard(SLOT, DIRECT6, AddrPort("2001:db8::1", 5))
    peer.moves(1, 1)
    totals.settle(SLOT, DIRECT6)
    totals.settle(SLOT, DIRECT6)  # nothing moved: nothing is booked twice
    assert _moved(totals.sent) == {
        "direct_ipv4": Total(10, 1000), "direct_ipv6": Total(1, 100), "derp": Total(2, 200),
    }  # fmt: skip
    assert _moved(totals.received) == {
        "direct_ipv4": Total(20, 2000), "direct_ipv6": Total(1, 100), "derp": Total(3, 300),
    }  # fmt: skip


def _moved(totals: dict[str, Total]) -> dict[str, Total]:
    return {path: total for path, total in totals.items() if total.packets}


def test_what_goes_inside_quic_is_told_from_what_a_relay_brings(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, _ = world
    totals.heard(SLOT, RELAY, None)
    peer.moves(1, 1)
    totals.carried(SLOT, RELAY, "quic")
    peer.moves(5, 7)
    totals.settle(SLOT, SendPlan(quic=True))
    assert _moved(totals.sent) == {"derp": Total(1, 100), "quic": Total(5, 500)}
    assert _moved(totals.received) == {"derp": Total(1, 100), "quic": Total(7, 700)}
    assert totals.sent_direct(SLOT) == Total()
    peer.moves(3, 0)
    totals.settle(SLOT, SendPlan(udp=DIRECT4.udp, quic=True))
    assert totals.sent_direct(SLOT) == Total(3, 300)


def test_what_goes_through_a_udp_relay_is_no_direct_path(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, _ = world
    via = SendPlan(udp=DIRECT4.udp, vni=5)
    totals.heard(SLOT, RELAY, None)
    peer.moves(1, 1)
    totals.settle(SLOT, RELAY)
    totals.carried(SLOT, RELAY, "peer_relay_ipv4")
    peer.moves(5, 7)
    totals.settle(SLOT, via)
    totals.carried(SLOT, via, "derp")
    peer.moves(2, 3)
    totals.settle(SLOT, SendPlan(udp=DIRECT6.udp, vni=5))
    assert _moved(totals.sent) == {
        "derp": Total(1, 100), "peer_relay_ipv4": Total(5, 500), "peer_relay_ipv6": Total(2, 200),
    }  # fmt: skip
    assert _moved(totals.received) == {"derp": Total(4, 400), "peer_relay_ipv4": Total(7, 700)}
    assert totals.sent_direct(SLOT) == Total()


def test_what_goes_both_ways_counts_on_both(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, _ = world
    peer.moves(4, 0)
    totals.settle(SLOT, BOTH)
    assert totals.sent["direct_ipv4"] == totals.sent["derp"] == Total(4, 400)


def test_what_came_before_its_path_was_told_waits_for_it(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, _ = world
    peer.moves(0, 5)
    totals.settle(SLOT, RELAY)
    assert not any(total.packets for total in totals.received.values())
    totals.heard(SLOT, RELAY, None)
    totals.settle(SLOT, RELAY)
    assert totals.received["derp"] == Total(5, 500)


def test_a_slot_that_is_given_to_another_peer_begins_at_zero(world: tuple[PathTotals, Peer, Tallies]) -> None:
    totals, peer, tallies = world
    totals.heard(SLOT, RELAY, None)
    peer.moves(5, 5)
    totals.settle(SLOT, RELAY)
    totals.forget(SLOT)
    tallies.clear(SLOT)
    peer.out.packets = peer.out.size = peer.into.packets = peer.into.size = 0
    totals.heard(SLOT, RELAY, None)
    peer.moves(1, 2)
    totals.settle(SLOT, RELAY)
    assert totals.sent["derp"] == Total(6, 600)
    assert totals.received["derp"] == Total(7, 700)
