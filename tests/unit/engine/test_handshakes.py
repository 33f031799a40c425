"""Handshakes by peer."""

from __future__ import annotations

from gw.engine import handshakes
from gw.engine.handshakes import Handshakes
from gw.model.keys import NodeKey


def test_one_peers_handshakes_are_not_anothers() -> None:
    budget = Handshakes()
    ann, bob = NodeKey(b"a" * 32), NodeKey(b"b" * 32)
    assert sum(budget.afford(ann, 10.0) for _ in range(100)) == handshakes.PEER_BURST
    assert budget.afford(bob, 10.0)
    assert not budget.afford(ann, 10.1)
    assert budget.afford(ann, 11.0)


def test_peers_whose_budget_is_full_again_are_forgotten() -> None:
    budget = Handshakes()
    for number in range(2000):
        budget.afford(NodeKey(number.to_bytes(32, "big")), 10.0 + number / 50)
    assert len(budget) <= 50 * (1 / handshakes.PEER_PER_S) + 2


def test_all_peers_together_have_a_budget() -> None:
    budget = Handshakes()
    keys = [NodeKey(number.to_bytes(32, "big")) for number in range(1000)]
    assert sum(budget.afford(key, 10.0) for key in keys) == handshakes.ALL_BURST
