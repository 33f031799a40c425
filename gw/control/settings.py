"""The relay map and the DNS settings that nodes get, made of documents and `config.toml`.

Ref: control protocol §6.5, §6.6
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType

from gw.model.derpmap import DERPMap, DERPRegion
from gw.model.dnsconfig import DNSConfig, DNSRecord, Resolver
from gw.state.config import Config
from gw.state.documents import RelayRegionDoc


def derp_map_of(
    regions: Iterable[RelayRegionDoc],
    policy: Mapping[int, DERPRegion | None] = MappingProxyType({}),
    others: Mapping[int, DERPRegion] = MappingProxyType({}),
) -> DERPMap:
    """The map with one region a document. policy: regions that replace others, or take them away; others: of foreign
    maps, which documents replace."""
    found = dict(others)
    found |= {doc.region_id: doc.derp_region() for doc in sorted(regions, key=lambda doc: doc.region_id)}
    for number, region in policy.items():
        if region is None:
            found.pop(number, None)
        else:
            found[number] = region
    found = dict(sorted(found.items()))
    return DERPMap(regions=found, omit_default_regions=True)


def dns_config_of(config: Config, records: Iterable[DNSRecord] = ()) -> DNSConfig:
    """DNS settings. records: of the policy and of a file, beside those of the configuration.

    With MagicDNS the reverse zones of the pools are answered locally: an empty list, never null.
    """
    dns = config.dns
    routes: dict[str, list[Resolver] | None] = {
        suffix: [Resolver(addr=each) for each in servers] for suffix, servers in dns.routes.items()
    }
    if dns.magic:
        for pool in (config.prefixes.v4, config.prefixes.v6):
            for zone in reverse_zones(pool) if pool else ():
                routes.setdefault(zone, [])
    everywhere = [Resolver(addr=each) for each in dns.nameservers] or None
    return DNSConfig(
        resolvers=everywhere if dns.override_local else None,
        fallback_resolvers=None if dns.override_local else everywhere,
        routes=routes or None,
        domains=list(dict.fromkeys([config.domain, *dns.search])) if dns.magic else dns.search or None,
        proxied=dns.magic,
        extra_records=[
            *(DNSRecord(name=each.name, type=each.type, value=each.value) for each in dns.extra_records),
            *records,
        ]
        or None,
    )


def reverse_zones(prefix: str) -> list[str]:
    """The zones under `in-addr.arpa` or `ip6.arpa` that cover a prefix exactly, without trailing dots."""
    network = ip_network(prefix)
    step = 8 if network.version == 4 else 4
    length = -(-network.prefixlen // step) * step
    parts = max(length, step) // step
    zones = []
    nets: Iterable[IPv4Network | IPv6Network] = network.subnets(new_prefix=max(length, step))
    for net in nets:
        if isinstance(net, IPv4Network):
            labels, suffix = str(net.network_address).split("."), "in-addr.arpa"
        else:
            labels, suffix = list(net.network_address.exploded.replace(":", "")), "ip6.arpa"
        zones.append(".".join([*reversed(labels[:parts]), suffix]))
    return zones
