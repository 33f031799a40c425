"""The names of the mesh and their addresses, both ways. A change costs what it changes.

Ref: spec dataplane §4.3
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, TypeVar, final

from gw.state.config import ExtraRecord
from gw.state.feed import FeedMessage, FeedNode
from gw.wire import dns

NEGATIVE_TTL_S: Final = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What the zone says. soa: the zone to name where the answer is "no"."""

    records: list[dns.Record]
    code: int = dns.NOERROR
    soa: str | None = None


@final
class Zone:
    """Answers for the tailnet's domain and the reverse zones of its prefixes."""

    def __init__(self, prefixes: list[str], ttl: int, extra: list[ExtraRecord]) -> None:
        """prefixes: of the tailnet, whose reverse look-ups are ours. ttl: seconds."""
        self._ttl = ttl
        self._networks = [ipaddress.ip_network(text) for text in prefixes]
        self._domain = ""
        self._nodes: dict[int, FeedNode] = {}
        self._names: dict[str, dict[int, FeedNode]] = {}  # name -> nodes by id (one, unless hand-edited)
        self._reverse: dict[str, dict[int, str]] = {}  # reversed address name -> node name by id
        self._extra: dict[str, list[dns.Record]] = {}
        self._configured = extra
        self._of_policy: list[ExtraRecord] = []
        self._index_extra()

    @property
    def domain(self) -> str:
        return self._domain

    def __len__(self) -> int:
        return len(self._nodes)

    def set_extra(self, extra: list[ExtraRecord]) -> None:
        """Records of the configuration, beside the nodes' and the policy's."""
        self._configured = extra
        self._index_extra()

    def apply(self, message: FeedMessage) -> None:
        """Take a message of the feed."""
        if message.full:
            self._nodes.clear()
            self._names.clear()
            self._reverse.clear()
        if message.domain:
            self._domain = message.domain.rstrip(".").lower()
        for id_ in message.removed:
            self._remove(id_)
        for node in message.nodes:
            self._remove(node.id)
            self._add(node)
        if message.records is not None:
            self._of_policy = message.records
            self._index_extra()

    def is_ours(self, name: str) -> bool:
        """True for the domain and below, the reverse zones, and names of configuration and policy."""
        domain = self._domain
        if domain and (name == domain or name.endswith(f".{domain}")):
            return True
        return name in self._extra or self._reverse_zone(name) is not None

    def lookup(self, name: str, kind: int) -> Answer:
        """The answer for a name that is ours."""
        zone = self._reverse_zone(name)
        if zone is None:
            zone = self._domain
        if kind in (dns.AXFR, dns.IXFR, dns.HINFO):
            return Answer([], dns.NOTIMP)
        found = [*self._extra.get(name, ())]
        found += [
            dns.Record("", dns.AAAA if ":" in text else dns.A, self._ttl, text)
            for node in self._names.get(name, {}).values()
            for text in node.addresses
        ]
        found += [dns.Record("", dns.PTR, self._ttl, target) for target in self._reverse.get(name, {}).values()]
        if not found and not self._has_below(name):
            return Answer([], dns.NXDOMAIN, zone)
        matching = [record for record in found if kind in (record.kind, dns.ANY) or record.kind == dns.CNAME]
        return Answer(matching, dns.NOERROR, None if matching else zone)

    def _index_extra(self) -> None:
        kinds = {"A": dns.A, "AAAA": dns.AAAA, "TXT": dns.TXT, "CNAME": dns.CNAME}
        self._extra = {}
        for each in (*self._configured, *self._of_policy):
            kind = kinds.get((each.type or ("AAAA" if ":" in each.value else "A")).upper())
            if kind is not None:
                name = each.name.rstrip(".").lower()
                self._extra.setdefault(name, []).append(dns.Record("", kind, self._ttl, each.value))

    def _has_below(self, name: str) -> bool:
        """True for a name that exists only because longer ones do."""
        return name == self._domain or any(zone == name for zone in map(reverse_zone, self._networks))

    def _reverse_zone(self, name: str) -> str | None:
        if not name.endswith(".arpa"):
            return None
        address = reversed_address(name)
        for network in self._networks:
            zone = reverse_zone(network)
            is_below = name == zone or name.endswith(f".{zone}")
            if is_below and (address is None or (address.version == network.version and address in network)):
                return zone
        return None

    def _add(self, node: FeedNode) -> None:
        self._nodes[node.id] = node
        name = node.name.rstrip(".").lower()
        self._names.setdefault(name, {})[node.id] = node
        for text in node.addresses:
            self._reverse.setdefault(ipaddress.ip_address(text).reverse_pointer, {})[node.id] = name

    def _remove(self, id_: int) -> None:
        node = self._nodes.pop(id_, None)
        if node is None:
            return
        name = node.name.rstrip(".").lower()
        _discard(self._names, name, id_)
        for text in node.addresses:
            _discard(self._reverse, ipaddress.ip_address(text).reverse_pointer, id_)


def reverse_zone(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """The smallest reverse zone on a label boundary that holds the network."""
    pointer = network.network_address.reverse_pointer.split(".")
    step, labels = (8, 4) if network.version == 4 else (4, 32)
    return ".".join(pointer[labels - network.prefixlen // step :])


def reversed_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of a whole reverse name, or None."""
    labels = name.split(".")
    try:
        if name.endswith(".in-addr.arpa") and len(labels) == 6:
            return ipaddress.IPv4Address(".".join(reversed(labels[:4])))
        if name.endswith(".ip6.arpa") and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            return ipaddress.IPv6Address(int(digits, 16))
    except ValueError:
        pass
    return None


T = TypeVar("T")


def _discard(table: dict[str, dict[int, T]], name: str, id_: int) -> None:
    entry = table.get(name)
    if entry is not None:
        entry.pop(id_, None)
        if not entry:
            del table[name]
