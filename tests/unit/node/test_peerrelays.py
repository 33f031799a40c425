"""Which peers may relay UDP for us: the packet filter's capability grants, nothing else."""

from __future__ import annotations

import ipaddress

import pytest

from gw.model.filterrule import CapGrant, FilterRule
from gw.model.keys import NodeKey
from gw.model.node import Node
from gw.node.peerrelays import MIN_CAP, PeerRelays

TARGET = "tailscale.com/cap/relay-target"
OWN = [ipaddress.ip_address("100.64.0.1"), ipaddress.ip_address("fd7a:115c:a1e0::1")]


def key(number: int) -> NodeKey:
    return NodeKey(bytes([number]) * 32)


def peer(number: int, **fields: object) -> Node:
    values: dict[str, object] = {
        "id": number,
        "key": str(key(number)),
        "cap": MIN_CAP,
        "addresses": [f"100.64.0.{number}/32", f"fd7a:115c:a1e0::{number}/128"],
        **fields,
    }
    return Node(**values)  # type: ignore[arg-type]


def rule(source: str, destination: str, *, in_map: bool = True) -> FilterRule:
    grant = (
        CapGrant(dsts=[destination], cap_map={TARGET: None}) if in_map else CapGrant(dsts=[destination], caps=[TARGET])
    )
    return FilterRule(src_ips=[source], cap_grant=[grant])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], set()),
        ([rule("100.64.0.2", "100.64.0.1/32")], {2}),
        ([rule("100.64.0.2", "100.64.0.1/32", in_map=False)], {2}),
        ([rule("100.64.0.2-100.64.0.3", "*")], {2, 3}),
        ([rule("fd7a:115c:a1e0::3", "fd7a:115c:a1e0::1")], {3}),
        ([rule("fd7a:115c:a1e0::3", "100.64.0.1")], set()),  # one family to the other
        ([rule("100.64.0.2", "100.64.0.9")], set()),  # for somebody else
        ([rule("nonsense", "100.64.0.1"), rule("100.64.0.3", "nonsense")], set()),
        ([FilterRule(src_ips=["*"], cap_grant=[CapGrant(dsts=["*"], caps=["tailscale.com/cap/relay"])])], set()),
        ([FilterRule(src_ips=["*"])], set()),
    ],
)
def test_who_is_granted(rules: list[FilterRule], expected: set[int]) -> None:
    relays = PeerRelays()
    peers = [(key(number), peer(number)) for number in (2, 3)]
    assert relays.set_filter(rules, OWN, peers) is bool(expected)
    assert relays.keys == {key(number) for number in expected}
    assert not relays.set_filter(rules, OWN, peers)


@pytest.mark.parametrize("fields", [{"cap": MIN_CAP - 1}, {"unsigned_peerapi_only": True}, {"addresses": ["x"]}])
def test_who_cannot_is_not(fields: dict[str, object]) -> None:
    relays = PeerRelays()
    assert not relays.set_filter([rule("*", "*")], OWN, [(key(2), peer(2, **fields))])


def test_peers_come_change_and_go() -> None:
    relays = PeerRelays()
    assert not relays.set_peer(key(2), peer(2))
    assert not relays.set_filter([rule("100.64.0.2", "*")], OWN, [])
    assert relays.set_peer(key(2), peer(2))
    assert not relays.set_peer(key(2), peer(2, online=True))
    assert not relays.set_peer(key(3), peer(3))
    assert relays.keys == {key(2)}
    assert relays.set_peer(key(2), peer(2, addresses=["100.64.0.7/32"]))
    assert relays.set_peer(key(2), peer(2))
    assert relays.remove_peer(key(2))
    assert not relays.remove_peer(key(2))
    assert not relays.keys
