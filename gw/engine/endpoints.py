"""Where this node may be found: its public endpoints as STUN saw them, and its own interfaces' addresses.

Ref: spec relay-and-path §3.9
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, final

from gw.engine.netcheck import Report
from gw.model.addresses import CHROMEOS_VM_V4, TAILNET_V4, TAILNET_V6, AddrPort
from gw.model.mapping import EndpointType

KEEP_S: Final = 310.0
MAX_PER_ADDRESS: Final = 6
MAX_PER_V6_SUBNET: Final = 2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Interface(Protocol):
    """What `gw.net.interfaces` tells of one."""

    @property
    def name(self) -> str: ...
    @property
    def up(self) -> bool: ...
    @property
    def loopback(self) -> bool: ...
    @property
    def addresses(self) -> Sequence[ipaddress.IPv4Interface | ipaddress.IPv6Interface]: ...


@final
class OwnEndpoints:
    """Keeps public endpoints that were seen a while ago: NAT may still map them."""

    def __init__(self) -> None:
        self._seen: dict[AddrPort, float] = {}

    def gather(
        self, interfaces: Iterable[Interface], port: int, report: Report | None, now: float, *, own_tun: str
    ) -> list[tuple[AddrPort, int]]:
        """Every endpoint with its type, public ones first. port: our UDP port."""
        found: dict[AddrPort, int] = {}
        if report is not None:
            for endpoint in report.mapped:
                self._seen[endpoint] = now
            for endpoint in sorted(report.mapped, key=lambda each: -report.mapped[each]):
                found[endpoint] = EndpointType.STUN
            if report.varies:
                for endpoint in list(found):
                    if not endpoint.is_v6:  # a router may forward the port although it maps others at random
                        found.setdefault(AddrPort(endpoint.host, port), EndpointType.STUN_LOCAL_PORT)
        self._seen = {endpoint: at for endpoint, at in self._seen.items() if now - at < KEEP_S}
        per_address: dict[str, int] = {}
        for endpoint in sorted(self._seen, key=lambda each: -self._seen[each]):
            per_address[endpoint.host] = per_address.get(endpoint.host, 0) + 1
            if per_address[endpoint.host] <= MAX_PER_ADDRESS:
                found.setdefault(endpoint, EndpointType.STUN)
        local = [AddrPort(str(address), port) for address in local_addresses(interfaces, own_tun=own_tun)]
        for endpoint in local:
            found[endpoint] = EndpointType.LOCAL  # without NAT the public one is a local one
        if not found:
            found[AddrPort("127.0.0.1", port)] = EndpointType.LOCAL
        return list(found.items())

    def forget(self) -> None:
        """Our network changed: nothing seen before counts."""
        self._seen.clear()


def local_addresses(interfaces: Iterable[Interface], *, own_tun: str) -> list[Address]:
    """Addresses that a peer might reach, regular ones if there are any."""
    regular: list[Address] = []
    poor: list[Address] = []
    for interface in interfaces:
        if not interface.up or interface.loopback or interface.name == own_tun:
            continue
        subnets: dict[ipaddress.IPv6Network, int] = {}
        for entry in interface.addresses:
            address = entry.ip
            if _is_tailnet(address) or address.is_loopback or address.is_multicast:
                continue
            if isinstance(entry, ipaddress.IPv6Interface):
                if address.is_link_local:
                    continue
                subnets[entry.network] = subnets.get(entry.network, 0) + 1
                if subnets[entry.network] > MAX_PER_V6_SUBNET:
                    continue
                (poor if address.is_private and address in _ULA else regular).append(address)
            else:
                (poor if address.is_link_local else regular).append(address)
    return sorted(regular or poor, key=lambda address: (address.version, int(address)))


_ULA: Final = ipaddress.IPv6Network("fc00::/7")


def _is_tailnet(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address in TAILNET_V4 and address not in CHROMEOS_VM_V4
    return address in TAILNET_V6
