"""DNS settings and reverse zones: control protocol §6.6."""

from __future__ import annotations

import pytest

from gw.control.settings import dns_config_of, reverse_zones
from gw.state.config import Config, DnsSettings, ExtraRecord


def test_magic_dns_answers_the_reverse_zones_itself() -> None:
    """An empty list, never null: null is dropped by the client and the queries leak."""
    config = dns_config_of(Config(server_url="http://x", dns=DnsSettings(routes={"corp.test": ["10.0.0.53"]})))
    assert config.proxied
    assert config.domains == ["ghost.internal"]
    assert config.routes is not None
    assert config.routes["100.100.in-addr.arpa"] == []
    assert config.routes["0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"] == []
    assert [resolver.addr for resolver in config.routes["corp.test"] or []] == ["10.0.0.53"]
    assert config.resolvers is None
    assert len(config.routes) == 64 + 1 + 1


def test_without_magic_dns_only_what_was_asked_for() -> None:
    dns = DnsSettings(magic=False, nameservers=["1.1.1.1"], extra_records=[ExtraRecord(name="a.b", value="10.0.0.1")])
    config = dns_config_of(Config(server_url="http://x", dns=dns))
    assert not config.proxied
    assert (config.routes, config.domains) == (None, None)
    assert [(record.name, record.type, record.value) for record in config.extra_records or []] == [
        ("a.b", "A", "10.0.0.1")
    ]


@pytest.mark.parametrize(
    ("prefix", "first", "count"),
    [
        ("100.64.0.0/10", "64.100.in-addr.arpa", 64),
        ("10.0.0.0/8", "10.in-addr.arpa", 1),
        ("192.168.4.0/22", "4.168.192.in-addr.arpa", 4),
        ("fd7a:115c:a1e0::/48", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", 1),
    ],
)
def test_reverse_zones_cover_the_prefix(prefix: str, first: str, count: int) -> None:
    zones = reverse_zones(prefix)
    assert (zones[0], len(zones)) == (first, count)
