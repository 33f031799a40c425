"""Two of our tunnels that know each other, each in a namespace of its own.

one (10.9.0.1, inner 100.64.9.1) ──veth v1a, v1b── two (10.9.0.2, inner 100.64.9.2)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gw.wire.x25519 import clamp, public_key
from tests.interop.wireguardpair import PORT, End

from .namespaces import Namespaces

NAMES = ("one", "two")

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
def tunnels(
    folder: Path, *, before: Callable[[Namespaces], None] = lambda spaces: None, **options: object
) -> Iterator[Ends]:
    """options: of both, as `tunnelend.py` takes them. before: what is done to the namespaces before they begin."""
    secrets = {name: clamp(os.urandom(32)) for name in NAMES}
    with Namespaces("off", list(NAMES)) as spaces, ExitStack() as stack:
        spaces.link("one", "10.9.0.1/24", "two", "10.9.0.2/24")
        before(spaces)
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
