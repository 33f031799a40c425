"""What the network map means for the engine and the host: peers, routes, filter, resolver.

Ref: control protocol §6; spec dataplane §3.6, §4.2
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from gw.engine.engine import PeerConfig
from gw.engine.filterrules import Address, Network, ranges
from gw.errors import WireError
from gw.model.addresses import EXIT_ROUTES, TAILNET_V4, TAILNET_V6, AddrPort
from gw.model.dnsconfig import DNSConfig, Resolver
from gw.model.filterrule import FilterRule
from gw.model.hostinfo import QUIC_PEER
from gw.model.keys import DiscoKey, NodeKey
from gw.model.node import QUIC_PEER_CAP, Node
from gw.net.resolv import ResolvConfig

log: Final = logging.getLogger(__name__)

DEFAULT_ROUTES: Final = tuple(map(ipaddress.ip_network, EXIT_ROUTES))
CAP_PREFIX: Final = "cap:"
DISABLE_RELAY_CLIENT: Final = "disable-relay-client"  # of the node itself
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")  # nothing else may reach resolv.conf or an argv


def peer_config(node: Node) -> PeerConfig | None:
    """The peer as the engine needs it; None for one whose key makes no sense."""
    try:
        key = NodeKey.parse(node.key)
        disco = DiscoKey.parse(node.disco_key) if node.disco_key else None
    except WireError:
        log.warning("control names a peer without a usable key: %s", node.name or node.id)
        return None
    endpoints: list[AddrPort] = []
    for text in node.endpoints or ():
        try:
            endpoints.append(AddrPort.parse(text))
        except WireError:
            continue
    return PeerConfig(
        key,
        disco if disco else None,
        home_region(node),
        tuple(endpoints),
        frozenset(allowed_networks(node)),
        tuple(addresses(node)),
        node.is_jailed,
        speaks_quic(node),
    )


def speaks_quic(node: Node) -> bool:
    """Whether the node speaks gw-peer/1: our control server says so, others pass on what the node says of itself."""
    services = node.hostinfo.services if node.hostinfo is not None else None
    return QUIC_PEER_CAP in (node.cap_map or {}) or any(service.proto == QUIC_PEER for service in services or ())


def may_use_peer_relays(own: Node) -> bool:
    """Whether control lets this node reach peers through UDP relays."""
    return DISABLE_RELAY_CLIENT not in {*(own.cap_map or {}), *(own.capabilities or ())}


def home_region(node: Node) -> int:
    """The relay region a node is reached at, 0 if it has none."""
    if node.home_derp:
        return node.home_derp
    _, _, region = node.derp.rpartition(":")
    return int(region) if region.isascii() and region.isdigit() and len(region) < 10 else 0


def addresses(node: Node) -> list[Address]:
    """A node's own tailnet addresses."""
    found: list[Address] = []
    for text in node.addresses or ():
        try:
            found.append(ipaddress.ip_interface(text).ip)
        except ValueError:
            continue
    return found


def allowed_networks(node: Node) -> list[Network]:
    """What a peer may send from and is sent to: its addresses and, once routes are taken, its routes.

    Default routes (exit nodes) count only when chosen, which is not part of this.
    """
    own: set[Network] = {ipaddress.ip_network(address) for address in addresses(node)}
    if node.allowed_ips is None:
        return list(own)
    found: list[Network] = []
    for text in node.allowed_ips:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if network not in DEFAULT_ROUTES:
            found.append(network)
    return found


def keep_known(new: PeerConfig, old: PeerConfig | None) -> PeerConfig:
    """The peer with what an older map said of it where the new one is silent.

    A control server that was restarted knows no endpoints, relay or disco key of a node until that node is back; the
    peer itself has not changed.
    """
    if old is None or old.key != new.key:
        return new
    return PeerConfig(
        new.key,
        new.disco or old.disco,
        new.home or old.home,
        new.endpoints or old.endpoints,
        new.allowed,
        new.addresses,
        new.jailed,
        new.quic or (old.quic and new.disco is None),
    )


def engine_allowed(config: PeerConfig, *, accept_routes: bool) -> PeerConfig:
    """The peer without subnet routes where the person does not take them."""
    if accept_routes:
        return config
    own = frozenset(network for network in config.allowed if _is_node(network, config.addresses))
    return replace(config, allowed=own)


def _is_node(network: Network, addresses: Iterable[Address]) -> bool:
    """True for a node's address, its own or another tailnet one; a single host elsewhere is a subnet route too."""
    if network.prefixlen != network.max_prefixlen:
        return False
    address = network.network_address
    return address in addresses or address in (TAILNET_V4 if address.version == 4 else TAILNET_V6)


def resolved_filter(rules: Iterable[FilterRule], peers: Iterable[Node]) -> list[FilterRule]:
    """The packet filter with `cap:` sources replaced by the addresses of the peers that have the capability."""
    resolved: list[FilterRule] = []
    by_cap: dict[str, list[str]] | None = None
    for rule in rules:
        sources = rule.src_ips or []
        if any(source.startswith(CAP_PREFIX) for source in sources):
            if by_cap is None:
                by_cap = _by_capability(peers)
            expanded = [source for source in sources if not source.startswith(CAP_PREFIX)]
            for source in sources:
                if source.startswith(CAP_PREFIX):
                    expanded += by_cap.get(source.removeprefix(CAP_PREFIX), [])
            rule = FilterRule(
                src_ips=expanded, dst_ports=rule.dst_ports, ip_proto=rule.ip_proto, cap_grant=rule.cap_grant
            )
        resolved.append(rule)
    return resolved


def capabilities(rules: Iterable[FilterRule], source: Address, own: Iterable[Address]) -> dict[str, list[msgspec.Raw]]:
    """What the policy's `app` grants give `source` at this node: capability -> values.

    Ref: tailscale filter.CapsWithValues
    """
    found: dict[str, list[msgspec.Raw]] = {}
    ours = list(own)
    for rule in rules:
        if not any(_holds(text, source) for text in rule.src_ips or ()):
            continue
        for grant in rule.cap_grant or ():
            if any(_holds(text, address) for text in grant.dsts or () for address in ours):
                for name in grant.caps or ():
                    found.setdefault(name, [])
                for name, values in (grant.cap_map or {}).items():
                    found.setdefault(name, []).extend(values or ())
    return found


def _holds(text: str, address: Address) -> bool:
    """True where an entry of a filter rule holds the address; what cannot be read holds nothing."""
    try:
        return any(v6 == (address.version == 6) and first <= address.packed <= last for v6, first, last in ranges(text))
    except ValueError:
        return False


def resolv_config(dns: DNSConfig, *, accept: bool) -> ResolvConfig:
    """The host's resolver: control's servers and search domains, nothing where the person does not want them."""
    if not accept:
        return ResolvConfig()
    servers = tuple(server for each in dns.resolvers or () if (server := _plain_server(each)))
    domains = [domain.rstrip(".") for domain in dns.domains or ()]
    return ResolvConfig(servers, tuple(domain for domain in domains if _DOMAIN.fullmatch(domain)))


def _plain_server(resolver: Resolver) -> str:
    """The address of a resolver on port 53, "" for one that resolv.conf cannot say."""
    text = resolver.addr
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        server = AddrPort.parse(text)
    except WireError:
        return ""
    return server.host if server.port == 53 else ""


def _by_capability(peers: Iterable[Node]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in peers:
        for name in {*(node.cap_map or {}), *(node.capabilities or [])}:
            found.setdefault(name, []).extend(str(address) for address in addresses(node))
    return found
