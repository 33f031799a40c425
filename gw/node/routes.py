"""Which routes the tunnel needs for the allowed IPs of all peers.

Peers' own addresses are many and lie in Tailscale's two ranges. IPv6 ones are always covered by one route of the whole
range, IPv4 ones by one as soon as there are MANY of them, as stock clients do.

Ref: tailscale ipn/ipnlocal peerRoutes
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from typing import Final, final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MANY: Final = 10_000
CGNAT: Final = ipaddress.IPv4Network("100.64.0.0/10")
ULA: Final = ipaddress.IPv6Network("fd7a:115c:a1e0::/48")


@final
class TunnelRoutes:
    """Counts who needs each network, so that a route that two peers serve stays when one of them goes."""

    def __init__(self, many: int = MANY) -> None:
        """many: more IPv4 addresses than these are summed up."""
        self._many = many
        self._needed: Counter[Network] = Counter()
        self._addresses: set[Network] = set()  # IPv4 addresses of peers within CGNAT
        self._summed_up = False
        self._given: set[Network] = set()
        self._touched: set[Network] = set()

    def add(self, networks: Iterable[Network]) -> None:
        """Allowed IPs that a peer has from now on."""
        for network in networks:
            key = _covered_by(network)
            self._needed[key] += 1
            if self._needed[key] == 1:
                self._touched.add(key)
                if _is_address(key):
                    self._addresses.add(key)

    def remove(self, networks: Iterable[Network]) -> None:
        """Allowed IPs that a peer no longer has; the same ones that were added for it."""
        for network in networks:
            key = _covered_by(network)
            self._needed[key] -= 1
            if self._needed[key] == 0:
                del self._needed[key]
                self._touched.add(key)
                self._addresses.discard(key)

    def take(self) -> tuple[set[Network], set[Network]]:
        """Routes to add and to remove since the last call."""
        count = len(self._addresses)
        if (count > self._many) if not self._summed_up else (count < self._many // 2):
            self._summed_up = not self._summed_up
            self._touched |= self._addresses | {CGNAT}
        touched, self._touched = self._touched, set()
        wanted = {network for network in touched if self._is_wanted(network)}
        add = wanted - self._given
        remove = (touched - wanted) & self._given
        self._given |= add
        self._given -= remove
        return add, remove

    def _is_wanted(self, network: Network) -> bool:
        if self._summed_up and network in self._addresses:
            return False
        return network in self._needed or (self._summed_up and network == CGNAT)


def _covered_by(network: Network) -> Network:
    if network.version == 6 and network.prefixlen == 128 and network.network_address in ULA:
        return ULA
    return network


def _is_address(network: Network) -> bool:
    return network.version == 4 and network.prefixlen == 32 and network.network_address in CGNAT
