"""Every offload may be missing: packets pass whole and both ways all the same, and the status says what is used."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from .namespaces import Namespaces, needs_namespaces
from .tunnels import NAMES, tunnels

pytestmark = [needs_namespaces(), pytest.mark.timeout(120)]

SETTLED = {"tso": "tcp_offload", "uso": "udp_offload", "gso": "udp_gso", "gro": "udp_gro"}


def expected(size: int) -> str:
    return hashlib.sha256(random.Random(1).randbytes(1 << 20) * size).hexdigest()


@pytest.mark.parametrize(
    ("offloads", "lanes"),
    [("all", 1), ("none", 1), ("tso", 1), ("tso,uso", 1), ("gso", 1), ("gro", 1), ("all", 2), ("none", 2)],
)
def test_packets_pass_whole_whatever_is_missing(tmp_path: Path, offloads: str, lanes: int) -> None:
    with tunnels(tmp_path, offloads=offloads, lanes=lanes) as pair:
        health = pair.ends["one"].ask("stats")["health"]
        wanted = set(SETTLED) if offloads == "all" else set(offloads.split(",")) & set(SETTLED)
        used = {name for name, field in SETTLED.items() if health[field]}
        assert used <= wanted
        assert wanted - used <= {"uso"}  # older than Linux 6.2
        for source in NAMES:
            assert pair.carry(source, "tcp", 2) == expected(2)
            assert int(pair.carry(source, "udp", 25)) > 250
        assert pair.carry("one", "tcp", 2, v6=True) == expected(2)
        assert int(pair.carry("two", "udp", 25, v6=True)) > 250


def test_a_device_that_cannot_segment_is_noticed_while_sending(tmp_path: Path) -> None:
    """Without checksum offload the kernel refuses UDP_SEGMENT with EIO: datagrams go out one by one from then on."""
    with tunnels(tmp_path) as pair:
        for name, device in (("one", "v1a"), ("two", "v1b")):
            pair.spaces.run(name, sys.executable, "-c", WITHOUT_CHECKSUMS, device)
        for source in NAMES:
            assert pair.carry(source, "tcp", 2) == expected(2)


@pytest.mark.parametrize("mtu", [1300, 1340, 1500])
def test_a_cable_of_any_mtu_carries_whole_packets(tmp_path: Path, mtu: int) -> None:
    """The inner MTU of 1280 needs 1340 on the cable: on a smaller one the system makes fragments of datagrams."""
    with tunnels(tmp_path) as pair:
        for name, device in (("one", "v1a"), ("two", "v1b")):
            pair.spaces.ip(name, f"link set {device} mtu {mtu}")
        for source, other in (NAMES, NAMES[::-1]):
            assert pair.carry(source, "tcp", 2) == expected(2)
            number = NAMES.index(other) + 1
            for address in (f"100.64.9.{number}", f"fd7a::{number}"):  # inner fragments, both families
                out = pair.spaces.run(source, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", "-s", "4000", address)
                assert " 0% packet loss" in out


def test_a_device_without_queues_gets_one_lane(tmp_path: Path) -> None:
    """The kernel refuses several queues to a device that was made with one."""

    def before(spaces: Namespaces) -> None:
        spaces.run("one", "ip", "tuntap", "add", "dev", "gw0", "mode", "tun")

    with tunnels(tmp_path, before=before, lanes=2) as pair:
        lanes = {name: end.ask("stats")["health"]["lanes"] for name, end in pair.ends.items()}
        assert lanes == {"one": 1, "two": 2}
        for source in ("one", "two"):
            assert pair.carry(source, "tcp", 2) == expected(2)


def test_a_flood_of_garbage_costs_no_memory_and_stops_nobody(tmp_path: Path) -> None:
    """Every kind of datagram a stranger can make up, as fast as he can: packets of friends still pass."""

    def used(pid: int) -> tuple[int, int]:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * 4096, len(list(Path(f"/proc/{pid}/fd").iterdir()))

    with tunnels(tmp_path, lanes=2) as pair:
        assert pair.carry("two", "tcp", 1) == expected(1)
        workers = pair.ends["one"].ask("stats")["health"]["workers"]
        # the process on top is `ip netns exec`, which became the interpreter
        pids = [pair.ends["one"].process.pid, *workers.values()]
        pair.spaces.run("two", sys.executable, "-c", FLOOD, "1")
        before = [used(pid) for pid in pids]
        flood = subprocess.Popen(pair.spaces.argv("two", sys.executable, "-c", FLOOD, "6"))
        out = pair.spaces.run("two", "ping", "-n", "-c", "10", "-i", "0.2", "-W", "2", "100.64.9.1", check=False)
        assert flood.wait(timeout=60) == 0
        assert "100% packet loss" not in out
        for pid, (size, descriptors) in zip(pids, before, strict=True):
            size_after, descriptors_after = used(pid)
            assert size_after < size + (24 << 20), (pid, size, size_after)
            assert descriptors_after <= descriptors
        assert pair.carry("two", "tcp", 1) == expected(1)
        assert pair.ends["one"].ask("stats")["health"]["workers"] == workers


FLOOD = """
import os, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
kinds = [b'\\1\\0\\0\\0' + os.urandom(144), b'\\2\\0\\0\\0' + os.urandom(88), b'\\3\\0\\0\\0' + os.urandom(60),
         b'\\4\\0\\0\\0' + os.urandom(1308), os.urandom(1400), b'TS\\xf0\\x9f\\x92\\xac' + os.urandom(90), b'']
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for kind in kinds:
        for _ in range(20):
            s.sendto(kind[:4] + os.urandom(8) + kind[12:], ('10.9.0.1', 51820))
"""

WITHOUT_CHECKSUMS = """
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack('II', 0x17, 0))  # ETHTOOL_STXCSUM, off
request = struct.pack('16sP16x', sys.argv[1].encode(), ctypes.addressof(value))
fcntl.ioctl(socket.socket(), 0x8946, request)  # SIOCETHTOOL
"""
