"""Packet filter rules as control sends them (text), turned into the numbers that the inbound worker compares.

Ref: tailcfg.FilterRule; spec dataplane §3.1
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from gw.engine.link import FilterRules
from gw.model.filterrule import FilterRule

log: Final = logging.getLogger(__name__)

ENTRIES: Final = 1000  # address ranges of one kind in a message
DEFAULT_PROTOCOLS: Final = [6, 17, 1, 58]
_ALL: Final = [(False, bytes(4), b"\xff" * 4), (True, bytes(16), b"\xff" * 16)]

Range = tuple[bool, bytes, bytes]  # IPv6?, first address, last address
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def compile_rules(rules: Iterable[FilterRule], local: Sequence[Address | Network]) -> list[FilterRules]:
    """The messages for the worker, the last one marked. local: our own addresses and the routes we serve.

    A rule that cannot be read is left out, which denies, and is logged. A rule with more addresses than one message
    should hold becomes several, which allow the same.
    """
    prefixes = [_prefix(entry) for entry in local]
    messages = [FilterRules([], prefixes[at : at + ENTRIES], last=False) for at in range(0, len(prefixes), ENTRIES)]
    part = FilterRules([], [], last=False)
    size = 0
    for rule in rules:
        try:
            sources = [entry for text in rule.src_ips or () for entry in ranges(text)]
            targets = [
                (*entry, port.ports.first, port.ports.last)
                for port in rule.dst_ports or ()
                for entry in ranges(port.ip)
            ]
        except ValueError as error:
            log.warning("a packet filter rule of the control server is left out: %s", error)
            continue
        for at in range(0, len(sources), ENTRIES):
            for to in range(0, len(targets), ENTRIES):
                piece = (rule.ip_proto or DEFAULT_PROTOCOLS, sources[at : at + ENTRIES], targets[to : to + ENTRIES])
                size += len(piece[1]) + len(piece[2])
                if size > 2 * ENTRIES:
                    messages.append(part)
                    part, size = FilterRules([], [], last=False), len(piece[1]) + len(piece[2])
                part.rules.append(piece)
    part.last = True
    return [*messages, part]


def ranges(text: str) -> list[Range]:
    """`*`, an address, a prefix, `first-last`; nothing for `cap:…`, which the node resolves before.

    Raises ValueError.
    """
    if text == "*":
        return list(_ALL)
    if text.startswith("cap:"):
        return []
    first_text, dash, last_text = text.partition("-")
    if dash:
        first, last = ipaddress.ip_address(first_text), ipaddress.ip_address(last_text)
        if first.version != last.version or first.packed > last.packed:
            raise ValueError(f"not a range: {text!r}")
        return [(first.version == 6, first.packed, last.packed)]
    network = ipaddress.ip_network(text, strict=False)
    return [(network.version == 6, network.network_address.packed, network.broadcast_address.packed)]


def _prefix(entry: Address | Network) -> tuple[bytes, int]:
    if isinstance(entry, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return entry.network_address.packed, entry.prefixlen
    return entry.packed, entry.max_prefixlen
