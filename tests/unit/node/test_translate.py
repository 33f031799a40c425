"""What the map means for the engine."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from gw.model.addresses import AddrPort
from gw.model.dnsconfig import DNSConfig, Resolver
from gw.model.filterrule import CapGrant, FilterRule, NetPortRange
from gw.model.node import Node
from gw.node.translate import (
    capabilities,
    engine_allowed,
    keep_known,
    may_use_peer_relays,
    peer_config,
    resolv_config,
    resolved_filter,
)

KEY, OTHER = "nodekey:" + "1" * 64, "nodekey:" + "2" * 64
DISCO = "discokey:" + "3" * 64


def node(**fields: object) -> Node:
    values: dict[str, object] = {"id": 1, "key": KEY, "addresses": ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"], **fields}
    return Node(**values)  # type: ignore[arg-type]


def test_a_peer_without_a_usable_key_is_no_peer() -> None:
    assert peer_config(node(key="nodekey:zz")) is None


def test_a_map_that_is_silent_takes_nothing_away() -> None:
    old = peer_config(node(disco_key=DISCO, home_derp=900, endpoints=["192.0.2.1:5", "nonsense"]))
    new = peer_config(node())
    assert old is not None
    assert new is not None
    kept = keep_known(new, old)
    assert (kept.disco, kept.home, kept.endpoints) == (old.disco, 900, (AddrPort("192.0.2.1", 5),))
    other = peer_config(node(key=OTHER))
    assert other is not None
    assert keep_known(other, old) == other


def test_subnet_routes_are_taken_only_when_wanted_and_default_routes_never() -> None:
    config = peer_config(node(allowed_ips=["100.64.0.1/32", "10.0.0.0/8", "0.0.0.0/0"]))
    assert config is not None
    assert sorted(map(str, config.allowed)) == ["10.0.0.0/8", "100.64.0.1/32"]
    assert sorted(map(str, engine_allowed(config, accept_routes=False).allowed)) == ["100.64.0.1/32"]


@pytest.mark.parametrize(
    ("fields", "may_use"),
    [
        ({}, True),
        ({"cap_map": {"disable-relay-server": None}}, True),
        ({"cap_map": {"disable-relay-client": None}}, False),
        ({"capabilities": ["disable-relay-client"]}, False),
    ],
)
def test_an_attribute_of_our_own_forbids_peer_relays(fields: dict[str, object], may_use: bool) -> None:
    assert may_use_peer_relays(node(**fields)) is may_use


def test_capability_sources_become_addresses() -> None:
    rule = FilterRule(src_ips=["cap:x", "100.64.0.9"], dst_ports=[NetPortRange()])
    (found,) = resolved_filter([rule], [node(cap_map={"x": None}), node(id=2, addresses=["100.64.0.2/32"])])
    assert found.src_ips == ["100.64.0.9", "100.64.0.1", "fd7a:115c:a1e0::1"]


def test_only_plain_servers_on_port_53_reach_resolv_conf() -> None:
    dns = DNSConfig(
        resolvers=[Resolver(addr="192.0.2.1"), Resolver(addr="192.0.2.2:5353"), Resolver(addr="https://dns.example")],
        domains=["ghost.internal."],
    )
    assert resolv_config(dns, accept=True).nameservers == ("192.0.2.1",)
    assert resolv_config(dns, accept=True).search == ("ghost.internal",)
    assert resolv_config(dns, accept=False).nameservers == ()


def test_a_single_host_elsewhere_is_a_subnet_route_too() -> None:
    """A router that serves one host must not get our traffic to it unless routes are taken."""
    peer = node(
        addresses=["100.64.0.2/32"],
        allowed_ips=["100.64.0.2/32", "100.64.0.9/32", "192.0.2.53/32", "fd7a:115c:a1e0::2/128", "2001:db8::1/128"],
    )
    config = peer_config(peer)
    assert config is not None
    taken = {str(network) for network in engine_allowed(config, accept_routes=False).allowed}
    assert taken == {"100.64.0.2/32", "100.64.0.9/32", "fd7a:115c:a1e0::2/128"}
    assert len(engine_allowed(config, accept_routes=True).allowed) == 5


@pytest.mark.parametrize("derp", ["127.3.3.40:²", "127.3.3.40:" + "9" * 5000, "127.3.3.40:-1", "x"])
def test_a_relay_region_that_is_no_number_is_none(derp: str) -> None:
    config = peer_config(node(derp=derp))
    assert config is not None
    assert config.home == 0


def test_no_search_domain_can_write_a_line_of_resolv_conf_or_an_option() -> None:
    names = ["mesh.example.", "x\nnameserver 192.0.2.1", "--help", "a b", "", "sub_net.example"]
    config = resolv_config(DNSConfig(resolvers=[Resolver(addr="100.64.0.1")], domains=names), accept=True)
    assert config.search == ("mesh.example", "sub_net.example")


def test_app_grants_give_a_peer_what_its_address_and_ours_are_in() -> None:
    grant = CapGrant(dsts=["100.64.0.9/32"], caps=["old"], cap_map={"x.y/z": [msgspec.Raw(b'{"a":1}')], "bare": None})
    rules = [
        FilterRule(src_ips=["100.64.0.0-100.64.0.3"], cap_grant=[grant]),
        FilterRule(src_ips=["*"], cap_grant=[CapGrant(dsts=["100.64.0.8"], cap_map={"other": None})]),
        FilterRule(src_ips=["nonsense"], cap_grant=[grant]),
    ]
    ours = [ipaddress.ip_address("100.64.0.9")]
    assert capabilities(rules, ipaddress.ip_address("100.64.0.2"), ours) == {
        "old": [], "bare": [], "x.y/z": [msgspec.Raw(b'{"a":1}')],
    }  # fmt: skip
    assert capabilities(rules, ipaddress.ip_address("100.64.0.4"), ours) == {}
