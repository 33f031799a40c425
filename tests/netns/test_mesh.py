"""A whole mesh, four NATs: names, paths, traffic, and what happens when parts of it die.

internet ── ann                 (no NAT)
   ├─ router ── bob             (endpoint-independent)
   ├─ router ── cat             (symmetric)
   └─ router ── dan             (UDP blocked)
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gw.errors import GwError
from gw.lab import Lab
from gw.lab.demo import measure, ping_all, resolve, settled_path
from gw.lab.topology import HUB, HUB_ADDRESS

from .namespaces import needs_namespaces

pytestmark = [needs_namespaces(), pytest.mark.timeout(180)]


def eventually(wanted: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Until `wanted` is true and raises no GwError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if wanted():
                return
            problem: object = "not true"
        except GwError as error:
            problem = error
        assert time.monotonic() < deadline, problem
        time.sleep(0.2)


def ping(lab: Lab, one: str, other: str, count: int = 2) -> bool:
    lab.run(one, "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "2", other)
    return True


def test_every_node_resolves_and_pings_every_other(mesh: Lab) -> None:
    lines = ping_all(mesh)
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("one", "other", "way"),
    [("ann", "bob", "direct"), ("bob", "ann", "direct"), ("ann", "cat", "direct"), ("cat", "ann", "direct")],
)
def test_a_direct_path_is_found_where_there_can_be_one(mesh: Lab, one: str, other: str, way: str) -> None:
    assert settled_path(mesh, one, other)[0].startswith(way)


@pytest.mark.parametrize(("one", "other"), [("bob", "cat"), ("cat", "bob"), ("ann", "dan"), ("dan", "cat")])
def test_the_relay_carries_what_finds_no_direct_path(mesh: Lab, one: str, other: str) -> None:
    assert settled_path(mesh, one, other)[0].startswith(("relay", "peer-relay"))


def test_ipv6_passes_inside_the_tunnel(mesh: Lab) -> None:
    address = mesh.run("ann", "getent", "ahostsv6", "bob").split()[0]
    assert address.startswith("fd7a:115c:a1e0:")
    mesh.run("ann", "ping", "-6", "-n", "-c", "2", "-i", "0.2", "-W", "2", address)


@pytest.mark.parametrize(("one", "other"), [("ann", "bob"), ("bob", "cat")])
def test_bulk_arrives_whole_by_either_way(mesh: Lab, one: str, other: str, tmp_path: Path) -> None:
    data = os.urandom(8 << 20)
    (tmp_path / "data").write_bytes(data)
    address = resolve(mesh, one, other)
    receiver = (
        f"import socket,hashlib,sys\ns=socket.create_server(('{address}',7777));print('ready',flush=True)\n"
        "c,_=s.accept();h=hashlib.sha256()\nwhile d:=c.recv(1<<16):h.update(d)\nprint(h.hexdigest())"
    )
    sender = (
        f"import socket\nc=socket.create_connection(('{address}',7777));c.sendall(open('{tmp_path}/data','rb').read())"
    )
    process = subprocess.Popen(mesh.argv(other, sys.executable, "-c", receiver), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        mesh.run(one, sys.executable, "-c", sender)
        assert process.stdout.readline().strip() == hashlib.sha256(data).hexdigest()


def test_throughput_is_measured(mesh: Lab) -> None:
    assert measure(mesh, "ann", "bob") > 0.0  # how fast is for bench/: other programs share this machine


def test_status_has_tailscales_field_names(mesh: Lab) -> None:
    ping(mesh, "ann", "bob")
    status = mesh.status("ann")
    assert status["BackendState"] == "Running"
    assert status["MagicDNSSuffix"] == "ghost.internal"
    own = status["Self"]
    assert isinstance(own, dict)
    assert own["DNSName"] == "ann.ghost.internal."
    peers = status["Peer"]
    assert isinstance(peers, dict)
    bob = next(peer for key, peer in peers.items() if peer["DNSName"].startswith("bob.") and key.startswith("nodekey:"))
    assert bob["TailscaleIPs"][0].startswith("100.64.")
    assert bob["RxBytes"] > 0
    assert bob["LastHandshake"] > "2020"
    assert bob["Online"]


def test_with_shields_up_nobody_begins_anything_and_answers_pass(mesh: Lab) -> None:
    address = mesh.run("bob", "gw", "ip", "-4").strip()
    mesh.run("ann", "ping", "-n", "-c", "1", "-W", "5", address)
    mesh.run("bob", "gw", "up", "--shields-up")
    try:
        with pytest.raises(GwError):
            mesh.run("ann", "ping", "-n", "-c", "2", "-W", "1", address)
        mesh.run("bob", "ping", "-n", "-c", "1", "-W", "5", mesh.run("ann", "gw", "ip", "-4").strip())
        assert mesh.status("bob")["DataPlane"]["drops"]["acl"] >= 2
    finally:
        mesh.run("bob", "gw", "up", "--no-shields-up")
    mesh.run("ann", "ping", "-n", "-c", "1", "-W", "5", address)


def test_down_takes_names_and_routes_away_and_up_brings_them_back(mesh: Lab) -> None:
    ping(mesh, "ann", "bob")
    mesh.run("bob", "gw", "down")
    try:
        assert "100.64" not in mesh.run("bob", "ip", "-4", "addr", "show", "dev", "gw0")
        assert mesh.run("bob", "ip", "route", "show", "table", "52").strip() == ""
        assert HUB_ADDRESS not in mesh.run("bob", "cat", "/etc/resolv.conf")
        with pytest.raises(GwError):
            ping(mesh, "ann", "bob", 1)
    finally:
        mesh.run("bob", "gw", "up", "--timeout", "30")
    eventually(lambda: ping(mesh, "ann", "bob"), 10)
    eventually(lambda: ping(mesh, "bob", "ann"), 10)


def test_a_node_killed_without_warning_comes_back_as_itself(mesh: Lab) -> None:
    before = mesh.run("bob", "gw", "ip").split()
    process = mesh._running["gwd-bob"]
    process.kill()
    process.wait()
    eventually(lambda: "gw0" not in mesh.run("bob", "ip", "link"), 5)
    (mesh.folder / "gwd-bob.log").write_text("")
    mesh.start("bob", "gwd-bob", "gwd", "run", "--log-level", "debug")
    mesh.await_ready("gwd-bob")
    eventually(lambda: mesh.status("bob")["BackendState"] == "Running", 15)
    assert mesh.run("bob", "gw", "ip").split() == before
    rules = mesh.run("bob", "ip", "rule").splitlines()
    assert sum("lookup 52" in rule for rule in rules) == 1
    eventually(lambda: ping(mesh, "ann", "bob"), 10)
    eventually(lambda: ping(mesh, "bob", "ann"), 10)


def test_sigterm_leaves_nothing_on_the_node(mesh: Lab) -> None:
    process = mesh._running["gwd-cat"]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=6)
    assert time.monotonic() - began < 5
    assert "gw0" not in mesh.run("cat", "ip", "link")
    assert "lookup 52" not in mesh.run("cat", "ip", "rule")
    assert "lookup 52" not in mesh.run("cat", "ip", "-6", "rule")
    assert mesh.run("cat", "cat", "/etc/resolv.conf") == "nameserver 127.0.0.1\n"
    (mesh.folder / "gwd-cat.log").write_text("")
    mesh.start("cat", "gwd-cat", "gwd", "run", "--log-level", "debug")
    mesh.await_ready("gwd-cat")
    eventually(lambda: ping(mesh, "cat", "ann"), 15)


def test_the_mesh_goes_on_while_the_control_server_is_dead(mesh: Lab) -> None:
    process = mesh._running["gwctl"]
    process.kill()
    process.wait()
    ping(mesh, "ann", "bob")
    ping(mesh, "bob", "cat")
    (mesh.folder / "gwctl.log").write_text("")
    mesh.start(HUB, "gwctl", "gwctl", "serve", "--log-level", "debug")
    mesh.await_ready("gwctl")
    eventually(lambda: not mesh.status("ann").get("Health"), 45)
    nodes = json.loads(mesh.run(HUB, "gwctl", "nodes", "list", "-o", "json"))
    assert sorted(node["givenName"] for node in nodes) == ["ann", "bob", "cat", "dan"]
    eventually(
        lambda: all(node["online"] for node in json.loads(mesh.run(HUB, "gwctl", "nodes", "list", "-o", "json"))),
        45,
    )


def test_relayed_traffic_comes_back_with_the_relay(mesh: Lab) -> None:
    eventually(lambda: ping(mesh, "bob", "cat"))
    process = mesh._running["gwrelay"]
    process.kill()
    process.wait()
    (mesh.folder / "gwrelay.log").write_text("")
    mesh.start(HUB, "gwrelay", "gwrelay", "serve", "--hostname", HUB_ADDRESS, "--self-signed")
    mesh.await_ready("gwrelay")
    eventually(lambda: ping(mesh, "bob", "cat"), 20)


def test_another_users_node_is_neither_seen_nor_reached(mesh: Lab) -> None:
    mesh.run("dan", "gw", "logout")
    nodes = json.loads(mesh.run(HUB, "gwctl", "nodes", "list", "-o", "json"))
    number = next(str(node["id"]) for node in nodes if node["givenName"] == "dan")
    assert next(node for node in nodes if node["givenName"] == "dan")["expiry"] is not None
    mesh.run(HUB, "gwctl", "nodes", "delete", "-i", number, "--force")
    eventually(lambda: "dan" not in mesh.run("ann", "gw", "status"), 10)
    mesh.run(HUB, "gwctl", "users", "create", "eve")
    key = json.loads(mesh.run(HUB, "gwctl", "preauthkeys", "create", "-u", "eve", "-o", "json"))["key"]
    path = mesh.folder / "eve.key"
    path.write_text(key)
    path.chmod(0o600)
    mesh.run("dan", "gw", "up", "--auth-key", f"file:{path}", "--hostname", "dan", "--timeout", "20")
    address = mesh.run("dan", "gw", "ip", "-4").strip()
    assert "dan" not in mesh.run("ann", "gw", "status")
    assert "ann" not in mesh.run("dan", "gw", "status")
    with pytest.raises(GwError):
        mesh.run("ann", "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address)


def test_a_deleted_node_is_gone_from_names_and_map(mesh: Lab) -> None:
    nodes = json.loads(mesh.run(HUB, "gwctl", "nodes", "list", "-o", "json"))
    number = next(str(node["id"]) for node in nodes if node["givenName"] == "cat")
    mesh.run(HUB, "gwctl", "nodes", "delete", "-i", number, "--force")
    eventually(lambda: "cat" not in mesh.run("ann", "gw", "status"), 10)
    with pytest.raises(GwError):
        mesh.run("ann", "getent", "hosts", "cat.ghost.internal")
    eventually(lambda: mesh.status("cat")["BackendState"] == "NeedsLogin", 10)
