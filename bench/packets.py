"""What one packet costs the compiled core, kernel left out: CPU nanoseconds, against the bare cipher in the same run.

Super-packets of one TCP flow, as a TUN gives them, are cut and sealed; the trains that come of it are opened, checked,
filtered (by 100 rules) and put together again. CPU time of the process, so that a busy machine matters little.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import platform
import socket
import statistics
import struct
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

from gw.engine.filterrules import compile_rules
from gw.model.filterrule import FilterRule, NetPortRange, PortRange
from gw.native import COMPILED, counters, flows
from gw.native.coalesce import Coalescer
from gw.native.filter import Filter
from gw.native.flows import FlowTable
from gw.native.inbound import Inbound
from gw.native.outbound import Outbound
from gw.native.prefixes import PrefixMap
from gw.native.rules import RuleSet
from gw.wire import cipher

OUT = Path(__file__).resolve().parent / "out"
MTU = 1280
KEY = bytes(range(32))
CIPHER = cipher.choose()
ONE, TWO = ipaddress.ip_address("100.64.0.1").packed, ipaddress.ip_address("100.64.0.2").packed
HEADER = 40
STEP = MTU - HEADER


def super_packet(segments: int, sequence: int) -> bytes:
    """A read of the TUN: virtio_net_hdr, IPv4 and TCP headers, so many full segments."""
    payload = os.urandom(STEP) * segments
    tcp = struct.pack("!HHIIBBHHH", 5001, 5201, sequence, 1, 0x50, 0x10, 512, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, HEADER + len(payload), 1, 0x4000, 64, 6, 0, ONE, TWO)
    return struct.pack("<BBHHHH", 1, 1, HEADER, STEP, 20, 16) + ip + tcp + payload


class Catcher:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.trains: list[tuple[bytes, int]] = []
        self.keep = True

    def sendmsg(self, pieces: list[bytes], ancillary: list[tuple[int, int, bytes]], flags: int, to: object) -> int:
        if self.keep:
            size = struct.unpack("H", ancillary[0][2])[0] if ancillary else sum(map(len, pieces))
            self.trains.append((b"".join(pieces), size))
        return 0


def outbound() -> tuple[Outbound, Catcher, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, 32, 1 << 23)
        end.setblocking(False)
    core = Outbound(ours.detach(), mmap(-1, counters.SHARED_BYTES), FlowTable(mmap(-1, flows.SHARED_BYTES)), MTU, True)
    core.add_peer(0)
    core.routes.change(0, [(TWO, 32)], [])
    catcher = Catcher()
    core.set_plan(0, catcher, ("192.0.2.1", 1), False, False)
    core.numbered = CIPHER.numbered
    core.set_session(0, 1, CIPHER.seal(KEY), 1, time.monotonic_ns() + 10**12)
    return core, catcher, theirs


def inbound() -> Inbound:
    table = FlowTable(mmap(-1, flows.SHARED_BYTES))
    rules, local = RuleSet(), PrefixMap()
    wanted = [
        FilterRule(src_ips=[f"10.{n}.0.0/16"], dst_ports=[NetPortRange(ip="*", ports=PortRange(n, n))])
        for n in range(99)
    ]
    for part in compile_rules([*wanted, FilterRule(src_ips=["*"], dst_ports=[NetPortRange()])], []):
        for protocols, sources, destinations in part.rules:
            rules.add(protocols, sources, destinations)
    local.change(0, [(TWO, 32)], [])
    tun = os.open("/dev/null", os.O_WRONLY)
    core = Inbound(mmap(-1, counters.SHARED_BYTES), Filter(rules, local, table), Coalescer(tun, True, True))
    core.numbered, core.invalid_tag = CIPHER.numbered, CIPHER.refused
    core.add_peer(0)
    core.routes.change(0, [(ONE, 32)], [])
    core.add_session(0, 1, CIPHER.unseal(KEY), time.monotonic_ns() + 10**12, False)
    return core


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    before = time.process_time()
    work()
    return time.process_time() - before


def one_round(segments: int, reads: int) -> dict[str, float]:
    """Nanoseconds a packet of each part."""
    core, catcher, tun = outbound()
    feed = [super_packet(segments, n * segments * STEP & 0xFFFFFFFF) for n in range(reads)]
    spent = 0.0
    for at in range(0, reads, 32):
        for each in feed[at : at + 32]:
            tun.send(each)
        spent += timed(lambda: core.pump(64))
    total = segments * reads
    receiver = inbound()

    def receive() -> None:
        for n, (train, size) in enumerate(catcher.trains):
            receiver.receive(train, size, ("192.0.2.2", 1), time.monotonic_ns())
            if n % 8 == 7:
                receiver.flush()
        receiver.flush()

    got = timed(receive)
    assert receiver.peers[0].tally.packets == total, receiver.peers[0].tally.packets
    seal, unseal, packet = CIPHER.seal(KEY), CIPHER.unseal(KEY), os.urandom(MTU)
    nonce, also = (0, b"") if CIPHER.numbered else (bytes(12), None)
    sealed = seal(nonce, packet, also)

    def bare(call: Callable[[object, bytes, object], bytes], text: bytes) -> float:
        def work() -> None:
            for _ in range(total):
                call(nonce, text, also)

        return timed(work) / total * 1e9

    os.close(core.tun)
    tun.close()
    return {
        "cut and seal": spent / total * 1e9,
        "bare seal": bare(seal, packet),
        "open and merge": got / total * 1e9,
        "bare open": bare(unseal, sealed),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--reads", type=int, default=640)
    chosen = options.parse_args()
    found = [one_round(50, chosen.reads) for _ in range(chosen.rounds)]
    rows = []
    for name, floor in (("cut and seal", "bare seal"), ("open and merge", "bare open")):
        row = {
            "name": name, "unit": "ns/packet", "better": "lower",
            "ours": statistics.median(each[name] for each in found), "rival": floor,
            "rival_value": statistics.median(each[floor] for each in found),
            "ratio": statistics.median(each[name] / each[floor] for each in found),
        }  # fmt: skip
        rows.append(row)
        print(f"{name:<16} {row['ours']:7.0f} ns   {floor:<10} {row['rival_value']:7.0f} ns   ratio {row['ratio']:.2f}")
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"CPython {platform.python_version()}, core {'compiled' if COMPILED else 'interpreted'}"
    (OUT / "packets.json").write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
