"""Every offload may be missing: packets pass whole and both ways all the same, and the status says what is used.

one (10.9.0.1, inner 100.64.9.1) ──veth── two (10.9.0.2, inner 100.64.9.2), both our tunnel
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gw.wire.x25519 import clamp, public_key
from tests.interop.wireguardpair import PORT, End

from .namespaces import Namespaces, needs_namespaces

pytestmark = [needs_namespaces(), pytest.mark.timeout(120)]

NAMES = ("one", "two")
SETTLED = {"tso": "tcp_offload", "uso": "udp_offload", "gso": "udp_gso", "gro": "udp_gro"}

# Sends so many bytes of a known pattern by TCP, or datagrams by UDP, and tells what arrived.
SERVE = """
import hashlib, socket, sys
kind, host = sys.argv[1:]
if kind == 'tcp':
    s = socket.create_server((host, 7000), family=socket.AF_INET6 if ':' in host else socket.AF_INET)
    print('ready', flush=True)
    c, _ = s.accept()
    seen = hashlib.sha256()
    while data := c.recv(1 << 16):
        seen.update(data)
    print(seen.hexdigest())
else:
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((host, 7000)); s.setsockopt(socket.SOL_SOCKET, 33, 1 << 23); s.settimeout(5)
    print('ready', flush=True)
    got = set()
    while True:
        try:
            data = s.recv(2000)
        except TimeoutError:
            break
        if data == b'end':
            break
        assert data[4:] == hashlib.sha256(data[:4]).digest() * 30, 'broken'
        got.add(data[:4])
    print(len(got))
"""
SEND = """
import hashlib, random, socket, sys, time
kind, host, size = sys.argv[1:]
family = socket.AF_INET6 if ':' in host else socket.AF_INET
if kind == 'tcp':
    block = random.Random(1).randbytes(1 << 20)
    c = socket.create_connection((host, 7000))
    for _ in range(int(size)):
        c.sendall(block)
else:
    c = socket.socket(family, socket.SOCK_DGRAM); c.connect((host, 7000))
    c.setsockopt(17, 103, 964)  # UDP_SEGMENT: the TUN gets trains
    n = 0
    for _ in range(int(size)):
        train = b''
        for _ in range(20):
            head = n.to_bytes(4, 'big'); n += 1
            train += head + hashlib.sha256(head).digest() * 30
        c.send(train); time.sleep(0.002)
    c.setsockopt(17, 103, 0)
    try:
        for _ in range(3):
            time.sleep(0.2); c.send(b'end')
    except ConnectionRefusedError:
        pass  # it heard the one before
"""


class Ends:
    """Two tunnels that know each other."""

    def __init__(self, spaces: Namespaces, ends: dict[str, End]) -> None:
        self.spaces = spaces
        self.ends = ends

    def carry(self, source: str, kind: str, size: int, *, v6: bool = False) -> str:
        """What the other end says of what it got."""
        other = NAMES[1 - NAMES.index(source)]
        number = NAMES.index(other) + 1
        host = f"fd7a::{number}" if v6 else f"100.64.9.{number}"
        server = subprocess.Popen(
            self.spaces.argv(other, sys.executable, "-c", SERVE, kind, host), stdout=subprocess.PIPE, text=True
        )
        with server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            self.spaces.run(source, sys.executable, "-c", SEND, kind, host, str(size))
            return server.stdout.read().strip()


@contextmanager
def tunnels(folder: Path, **options: object) -> Iterator[Ends]:
    """options: of both, as `tunnelend.py` takes them."""
    secrets = {name: clamp(os.urandom(32)) for name in NAMES}
    with Namespaces("off", list(NAMES)) as spaces, ExitStack() as stack:
        spaces.link("one", "10.9.0.1/24", "two", "10.9.0.2/24")
        ends: dict[str, End] = {}
        for number, name in enumerate(NAMES, 1):
            other = NAMES[2 - number]
            peer = {
                "key": public_key(secrets[other]).hex(),
                "allowed": [f"100.64.9.{3 - number}/32", f"fd7a::{3 - number}/128"],
                "endpoint": f"10.9.0.{3 - number}:{PORT}",
            }
            config = {
                "secret": secrets[name].hex(), "tun": "gw0", "port": PORT, "address": f"100.64.9.{number}/24",
                "address6": f"fd7a::{number}/64", "peers": [peer], **options,
            }  # fmt: skip
            ends[name] = End(spaces, name, config, folder)
            stack.callback(ends[name].close)
        yield Ends(spaces, ends)


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


WITHOUT_CHECKSUMS = """
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack('II', 0x17, 0))  # ETHTOOL_STXCSUM, off
request = struct.pack('16sP16x', sys.argv[1].encode(), ctypes.addressof(value))
fcntl.ioctl(socket.socket(), 0x8946, request)  # SIOCETHTOOL
"""
