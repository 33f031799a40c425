"""Node addresses: one IPv4 and one IPv6 a node, handed out in sequence from the tailnet's pools.

Each pool remembers where it stopped, so an address costs O(1) over any run of calls, and a freed address rests until
the pool has been walked once. Left out: the pool's first address, IPv4's last, Tailscale's service addresses, and the
range ChromeOS gives to its own virtual machines.

Ref: control protocol §9.5
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, final

from gw.errors import Conflict, UsageError
from gw.model.addresses import CHROMEOS_VM_V4, SERVICE_V4, SERVICE_V6
from gw.policy.spans import V6, address_text, is_v6, number

_RESERVED: Final[dict[int, tuple[tuple[int, int], ...]]] = {
    4: (
        (int(SERVICE_V4), int(SERVICE_V4)),
        (int(CHROMEOS_VM_V4.network_address), int(CHROMEOS_VM_V4.broadcast_address)),
    ),
    6: ((int(SERVICE_V6), int(SERVICE_V6)),),
}


@final
class Pool:
    """The free and taken addresses of one prefix."""

    def __init__(self, network: IPv4Network | IPv6Network) -> None:
        self.network: Final = network
        self.version: Final = network.version
        self._first = int(network.network_address) + (1 if network.num_addresses > 1 else 0)
        self._last = int(network.broadcast_address) - (1 if network.version == 4 and network.num_addresses > 2 else 0)
        self._reserved = [span for span in _RESERVED[network.version] if span[1] >= self._first]
        self._taken: set[int] = set()
        self._next = self._first

    def __contains__(self, value: int) -> bool:
        return self._first <= value <= self._last

    def may_give(self, value: int) -> bool:
        """Whether a node may have this address, were it free."""
        return value in self and self._past_reserved(value) == value

    def take(self) -> int:
        """The next free address, now taken. Raises Conflict when none is left."""
        value = self._next
        for wrapped in (False, True):
            while value <= self._last:
                value = self._past_reserved(value)
                if value > self._last:
                    break
                if value not in self._taken:
                    self._taken.add(value)
                    self._next = value + 1
                    return value
                value += 1
            if not wrapped:
                value = self._first
        raise Conflict(f"no free address left in `{self.network}`", hint="delete nodes, or widen [prefixes]")

    def claim(self, value: int) -> bool:
        """Mark an address as taken; False if it already was. Reserved addresses may be claimed: they are in a file."""
        if value in self._taken:
            return False
        self._taken.add(value)
        return True

    def release(self, value: int) -> None:
        self._taken.discard(value)

    def _past_reserved(self, value: int) -> int:
        for first, last in self._reserved:
            if first <= value <= last:
                return last + 1
        return value


@final
class Allocator:
    """Addresses of the whole tailnet. prefixes: at most one of each family."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        networks = [ip_network(text) for text in prefixes if text]
        self._pools = [Pool(network) for network in sorted(networks, key=lambda network: network.version)]
        self._outside: set[str] = set()  # addresses of older pools, still in use

    def allocate(self, families: Collection[int] = (4, 6)) -> list[str]:
        """A fresh address of each of these families, IPv4 first; they are taken at once.

        Raises Conflict, having taken none.
        """
        taken: list[str] = []
        try:
            for pool in self._pools:
                if pool.version not in families:
                    continue
                taken.append(address_text(pool.take() + (V6 if pool.version == 6 else 0)))
        except Conflict:
            self.release(taken)
            raise
        return taken

    def check_chosen(self, chosen: Iterable[str]) -> list[str]:
        """Addresses that a person chose for a node, in canonical form, IPv4 first. Raises UsageError."""
        found: dict[int, str] = {}
        for text in chosen:
            try:
                address = ip_address(text.strip())
            except ValueError:
                raise UsageError(
                    f"not an address: `{text[:80]}`", hint="write `100.64.0.7` or `fd7a:115c:a1e0::7`"
                ) from None
            pool = next((each for each in self._pools if each.version == address.version), None)
            if pool is None or not pool.may_give(int(address)):
                pools = " or ".join(str(each.network) for each in self._pools)
                raise UsageError(
                    f"no node may have `{address}`", hint=f"choose inside {pools}; some there are reserved"
                )
            if address.version in found:
                raise UsageError(f"two addresses of one family: `{found[address.version]}`, `{address}`")
            found[address.version] = str(address)
        return [found[version] for version in sorted(found)]

    @property
    def families(self) -> list[int]:
        """The families of the pools: 4, 6 or both."""
        return [pool.version for pool in self._pools]

    def claim(self, address: str) -> bool:
        """Mark an address as in use; False if another node has it."""
        pool, value = self._find(address)
        if pool is not None:
            return pool.claim(value)
        if address in self._outside:
            return False
        self._outside.add(address)
        return True

    def release(self, addresses: Iterable[str]) -> None:
        """Give addresses back."""
        for address in addresses:
            pool, value = self._find(address)
            if pool is None:
                self._outside.discard(address)
            else:
                pool.release(value)

    def _find(self, address: str) -> tuple[Pool | None, int]:
        place = number(address)
        version, value = (6, place - V6) if is_v6(place) else (4, place)
        for pool in self._pools:
            if version == pool.version and value in pool:
                return pool, value
        return None, 0
