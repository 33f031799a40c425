"""What the packet filter costs a packet, with one rule, a hundred and ten thousand, of which one matches.

    known flow   a TCP SYN between addresses and a port that were asked for before
    new flow     the same with a source, and so an answer, that was never asked for
    refused      a new flow that no rule allows

The whole filter is also built from what the engine sends, which is what a change of the policy costs a packet worker.
"""

from __future__ import annotations

import ipaddress
import json
import platform
import random
import statistics
import struct
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

from gw.engine.filterrules import compile_rules
from gw.model.filterrule import FilterRule, NetPortRange, PortRange
from gw.native import COMPILED
from gw.native.filter import ACCEPT, Filter
from gw.native.flows import SHARED_BYTES, FlowTable
from gw.native.prefixes import PrefixMap
from gw.native.rules import RuleSet

OUT = Path(__file__).resolve().parent / "out"
OWN = ipaddress.IPv4Address("100.64.0.1")
FRIENDS = ipaddress.IPv4Network("100.65.0.0/16")
PACKETS = 20_000


def rules(count: int, chance: random.Random) -> list[FilterRule]:
    """One rule lets FRIENDS reach port 443; the others are about other sources, targets and ports."""
    found = [
        FilterRule(
            src_ips=[f"100.{chance.randrange(70, 127)}.{chance.randrange(256)}.{chance.randrange(256)}"],
            dst_ports=[
                NetPortRange(
                    ip=chance.choice([str(OWN), f"10.{chance.randrange(256)}.0.0/16", "*"]),
                    ports=PortRange(*sorted((chance.randrange(1, 65536), chance.randrange(1, 65536)))),
                )
            ],
        )
        for _ in range(count - 1)
    ]
    ours = FilterRule(src_ips=[str(FRIENDS)], dst_ports=[NetPortRange(ip=str(OWN), ports=PortRange(443, 443))])
    return [*found, ours]


def built(wanted: list[FilterRule]) -> Filter:
    index, local = RuleSet(), PrefixMap()
    for message in compile_rules(wanted, [OWN]):
        for protocols, sources, targets in message.rules:
            index.add(protocols, sources, targets)
        for network, length in message.local:
            local.put(network, length, 1)
    return Filter(index, local, FlowTable(mmap(-1, SHARED_BYTES)))


def syn(source: int, port: int) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
    tcp = struct.pack(">HHIIBBHHH", 40000, port, 0, 0, 0x50, 0x02, 0, 0, 0)
    return head + source.to_bytes(4, "big") + OWN.packed + tcp


def cost(decide: Callable[[bytes], int], packets: list[bytes], verdict: bool) -> float:
    """Seconds a packet."""
    began = time.perf_counter()
    for packet in packets:
        if (decide(packet) == ACCEPT) is not verdict:
            raise AssertionError("the filter decides otherwise")
    return (time.perf_counter() - began) / len(packets)


def main() -> None:
    rows = []
    base = int(FRIENDS.network_address)
    for count in (1, 100, 10_000):
        wanted = rules(count, random.Random(3))
        began = time.perf_counter()
        filter_ = built(wanted)
        build = time.perf_counter() - began

        def decide(packet: bytes, filter_: Filter = filter_) -> int:
            return int(filter_.decide(packet, 40, 1))

        decide(syn(base, 443))
        new = cost(decide, [syn(base + 1 + n, 443) for n in range(PACKETS)], True)
        refused = cost(decide, [syn(base + n, 444 + n % 1000) for n in range(PACKETS)], False)
        known = statistics.median(cost(decide, [syn(base + 1, 443)] * PACKETS, True) for _ in range(3))
        for name, value in (("known flow", known), ("new flow", new), ("refused", refused)):
            rows.append({"name": f"{name}, {count:,} rules", "unit": "us", "ours": value * 1e6, "better": "lower"})
        rows.append({"name": f"built, {count:,} rules", "unit": "ms", "ours": build * 1e3, "better": "lower"})
    for row in rows:
        print(f"{row['name']:<30} {row['ours']:>10.3f} {row['unit']}")
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, Linux {platform.release()}"
    versions = f"CPython {platform.python_version()}, core {'compiled' if COMPILED else 'interpreted'}"
    report = {"machine": machine, "versions": versions, "rows": rows}
    (OUT / "filter.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
