"""QUIC between two real nodes: asked for, chosen where UDP fails WireGuard, left again, moved, resumed.

internet ── quinn
   └─────── rosa           nftables in rosa's namespace are the box in the middle
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gw.lab import Lab, Nat, NodeSpec

from .namespaces import needs_namespaces
from .test_mesh import eventually

pytestmark = [needs_namespaces(), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    nodes = [NodeSpec("quinn", Nat.NONE), NodeSpec("rosa", Nat.NONE)]
    with Lab(nodes, folder=tmp_path_factory.mktemp("quic") / "pair") as lab:
        yield lab


@pytest.fixture
def lab(pair: Lab) -> Iterator[Lab]:
    """The pair as it was: transport `auto`, nothing in the middle."""
    yield pair
    pair.run("rosa", "nft", "flush", "ruleset")
    for name in ("quinn", "rosa"):
        pair.run(name, "gw", "set", "--transport", "auto")
    eventually(lambda: ping(pair, 1) and peer(pair)["Transport"] == "udp", 60)


def peer(lab: Lab, name: str = "quinn") -> dict[str, Any]:
    """What the node tells of the other one."""
    peers: dict[str, dict[str, Any]] = lab.status(name)["Peer"]  # type: ignore[assignment]
    return next(iter(peers.values()))


def ping(lab: Lab, count: int = 5) -> bool:
    lab.run("quinn", "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "2", "rosa")
    return True


def set_both(lab: Lab, transport: str) -> None:
    for name in ("quinn", "rosa"):
        lab.run(name, "gw", "set", "--transport", transport)


def test_who_asks_for_quic_gets_it_and_sees_it_everywhere(lab: Lab) -> None:
    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and peer(lab)["Transport"] == peer(lab, "rosa")["Transport"] == "quic")
    before = peer(lab)
    assert ping(lab, 10)
    after = peer(lab)
    assert after["QUIC"]["Sent"] - before["QUIC"]["Sent"] >= 10
    assert after["QUIC"]["Received"] - before["QUIC"]["Received"] >= 10
    assert after["TransportReason"] == "asked"
    assert "quic 198.51.100." in lab.run("quinn", "gw", "status")
    assert "via quic 198.51.100." in lab.run("quinn", "gw", "ping", "-c", "1", "rosa")
    metrics = lab.run("quinn", "gw", "metrics")
    assert 'ghostwire_active_peers{path="quic"} 1' in metrics
    sent = next(
        line for line in metrics.splitlines() if line.startswith('tailscaled_outbound_packets_total{path="quic"}')
    )
    assert float(sent.split()[-1]) >= 10


def test_bulk_arrives_whole_inside_quic(lab: Lab) -> None:
    from gw.lab.demo import measure

    set_both(lab, "quic")
    eventually(lambda: ping(lab, 1) and peer(lab)["Transport"] == "quic")
    assert measure(lab, "quinn", "rosa") > 0.0
    assert peer(lab)["QUIC"]["Sent"] > 100
    assert peer(lab)["QUIC"]["PacketBytes"] == 1452


def test_who_asks_for_udp_neither_dials_nor_answers(lab: Lab) -> None:
    lab.run("rosa", "gw", "set", "--transport", "udp")
    lab.run("quinn", "gw", "set", "--transport", "quic")
    assert ping(lab, 15)
    assert peer(lab)["Transport"] == "udp"
    assert peer(lab, "rosa")["Transport"] == "udp"
    assert peer(lab, "rosa")["QUIC"] is None
