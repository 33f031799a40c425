"""A node whose address changes in the middle of a TCP connection that goes by the relay, over QUIC.

internet ── hub                      control, relay
   ├─ router ── bob                  (endpoint-independent)
   └─ router ── cat                  (symmetric) first its own address changes, then that of its router
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gw.lab import Lab, Nat, NodeSpec
from gw.lab.demo import resolve, settled_path
from gw.lab.topology import HUB

from .namespaces import needs_namespaces
from .test_mesh import eventually

pytestmark = [needs_namespaces(), pytest.mark.timeout(240)]

FLOW_S = 12
RECEIVER = """
import socket,sys,time
s=socket.create_server((sys.argv[1],7777));print('ready',flush=True)
c,_=s.accept();c.settimeout(60)
want=0;worst=0.0;last=time.monotonic()
while d:=c.recv(1<<16):
    now=time.monotonic();worst=max(worst,now-last);last=now
    for at in range(0,len(d),997):
        assert d[at]==(want+at)%251
    want+=len(d)
print(want,worst,flush=True)
"""
SENDER = """
import socket,sys,time
c=socket.create_connection((sys.argv[1],7777));c.settimeout(60)
cycle=bytes(range(251));sent=0;end=time.monotonic()+float(sys.argv[2])
print('begun',flush=True)
while time.monotonic()<end:
    block=(cycle*80)[sent%251:][:16384];c.sendall(block);sent+=len(block);time.sleep(0.01)
c.close();print(sent,flush=True)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    nodes = [NodeSpec("bob", Nat.ENDPOINT_INDEPENDENT), NodeSpec("cat", Nat.SYMMETRIC)]
    with Lab(nodes, folder=tmp_path_factory.mktemp("moving") / "lab", log_level="debug", peer_relay=False) as lab:
        yield lab


def transport(lab: Lab, name: str) -> str:
    plane = lab.status(name)["DataPlane"]
    assert isinstance(plane, dict)
    return str(plane["relay_transport"])


def counted(lab: Lab, name: str) -> int:
    """A counter of the relay."""
    page = lab.run(
        HUB, sys.executable, "-c",
        "import ssl,urllib.request as u;"
        "print(u.urlopen('https://127.0.0.1/metrics',context=ssl._create_unverified_context()).read().decode())",
    )  # fmt: skip
    return int(next(line.split()[1] for line in page.splitlines() if line.startswith(f"gwrelay_{name} ")))


def test_a_tcp_connection_over_the_relay_lives_on_when_the_address_changes(lab: Lab, tmp_path: Path) -> None:
    """Both directions of the tunnel go by the QUIC relay; the relay sees no new handshake."""
    assert settled_path(lab, "bob", "cat")[0].startswith("relay")
    for name in ("bob", "cat"):
        eventually(lambda name=name: transport(lab, name) == "quic")
        assert "over QUIC" in lab.run(name, "gw", "status")
    handshakes, moves = counted(lab, "quic_accepts_total"), counted(lab, "quic_moves_total")
    address = resolve(lab, "bob", "cat")
    receiver = subprocess.Popen(
        lab.argv("cat", sys.executable, "-c", RECEIVER, address), stdout=subprocess.PIPE, text=True
    )
    with receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        sender = subprocess.Popen(
            lab.argv("bob", sys.executable, "-c", SENDER, address, str(FLOW_S)), stdout=subprocess.PIPE, text=True
        )
        with sender:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "begun\n"
            time.sleep(FLOW_S / 3)
            net = lab.run("cat", "ip", "-o", "-4", "addr", "show", "dev", "eth0").split()[3].rpartition(".")[0]
            lab.run("cat", "ip", "addr", "add", f"{net}.77/24", "dev", "eth0")
            lab.run("cat", "ip", "addr", "del", f"{net}.2/24", "dev", "eth0")
            lab.run("cat", "ip", "addr", "replace", f"{net}.77/24", "dev", "eth0")
            lab.run("cat", "ip", "route", "replace", "default", "via", f"{net}.1")
            time.sleep(FLOW_S / 3)
            lab.run("cat-nat", "ip", "addr", "add", "198.51.100.177/24", "dev", "wan")
            lab.run("cat-nat", "ip", "addr", "del", "198.51.100.102/24", "dev", "wan")
            lab.run("cat-nat", "ip", "addr", "replace", "198.51.100.177/24", "dev", "wan")
            sent = int(sender.stdout.readline())
        got, worst = receiver.stdout.readline().split()
    assert int(got) == sent > 1 << 20
    assert float(worst) < 15.0  # a machine with other work; seen: some tenths of a second
    assert counted(lab, "quic_moves_total") >= moves + 2
    assert counted(lab, "quic_accepts_total") == handshakes
    assert transport(lab, "cat") == "quic"
    print(f"longest pause {worst} s")
