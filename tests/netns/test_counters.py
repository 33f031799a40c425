"""Counters tell the truth: of pings that came through, by which path, and of packets that the policy dropped.

ann ── direct ── bob        the policy lets all in, then bob nothing but ICMP
ann ── relay ─── dan
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gw.lab import Lab
from gw.lab.demo import resolve, settled_path
from gw.lab.topology import HUB

from .namespaces import needs_namespaces

pytestmark = [needs_namespaces(), pytest.mark.timeout(180)]

ONLY_PINGS = '{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:*"]}]}'


def metrics(lab: Lab, name: str) -> dict[tuple[str, ...], float]:
    """Every series of a node, by name and label values."""
    page = lab.run(name, "gw", "metrics", "--peers")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def peer(lab: Lab, name: str, other: str) -> dict[str, Any]:
    """The other as `gw top` of a node has it."""
    found = json.loads(lab.run(name, "gw", "top", "--once", "--json", "-d", "1"))["Peers"]
    return next(each for each in found if each["Name"].startswith(f"{other}."))


def eventually(wanted: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.parametrize(("other", "way", "path"), [("bob", "direct", "direct_ipv4"), ("dan", "relay", "derp")])
def test_a_ping_is_counted_once_on_its_path(mesh: Lab, other: str, way: str, path: str) -> None:
    assert settled_path(mesh, "ann", other)[0].startswith(way)
    before, top = metrics(mesh, "ann"), peer(mesh, "ann", other)
    mesh.run("ann", "ping", "-n", "-c", "20", "-i", "0.05", "-s", "972", other)  # 1000 bytes of IPv4
    after, top_after = metrics(mesh, "ann"), peer(mesh, "ann", other)
    assert top_after["Path"].startswith(way)
    assert top_after["LastHandshake"] > "2020"
    for direction, letter in (("inbound", "R"), ("outbound", "T")):
        moved = top_after[f"{letter}xPackets"] - top[f"{letter}xPackets"]
        size = top_after[f"{letter}xBytes"] - top[f"{letter}xBytes"]
        assert 20 <= moved <= 30  # a handshake and names may come on top
        assert 20_000 <= size <= 22_000
        key = (f"tailscaled_{direction}_bytes_total", path)
        assert 20_000 <= after[key] - before[key] <= 24_000
    name = next(key[1] for key in after if key[0] == "ghostwire_peer_online" and key[1].startswith(other))
    assert after["ghostwire_peer_received_packets_total", name] == top_after["RxPackets"]
    assert after["ghostwire_peer_direct", name] == (way == "direct")
    assert after["ghostwire_running",] == 1


def test_rates_are_those_of_the_traffic(mesh: Lab) -> None:
    """50 packets of 1000 bytes a second, give or take what this machine makes of it."""
    pinging = subprocess.Popen(
        mesh.argv("ann", "ping", "-q", "-n", "-i", "0.02", "-s", "972", "bob"), stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(1.0)
        found = json.loads(mesh.run("ann", "gw", "top", "--once", "--json", "-d", "4"))["Peers"]
    finally:
        pinging.terminate()
        pinging.wait(timeout=20)
    assert found[0]["Name"].startswith("bob.")
    assert 10_000 < found[0]["TxRate"] < 60_000


def test_a_drop_by_the_policy_is_counted_at_the_peer_that_sent(mesh: Lab) -> None:
    earlier = peer(mesh, "bob", "ann")["Drops"].get("acl", 0)
    assert metrics(mesh, "bob")["tailscaled_inbound_dropped_packets_total", "acl"] == earlier
    policy = mesh.state(HUB) / "policy.hujson"
    old = policy.read_bytes()
    policy.write_text(ONLY_PINGS)
    try:
        mesh.run("ann", "ping", "-n", "-c", "1", "-W", "5", "bob")
        address = resolve(mesh, "ann", "bob")
        sender = (
            "import socket,time\ns=socket.socket(type=socket.SOCK_DGRAM)\n"
            f"for _ in range(10): s.sendto(b'x',('{address}',4242)); time.sleep(0.02)"
        )

        def dropped() -> bool:
            mesh.run("ann", "python3", "-c", sender)
            return peer(mesh, "bob", "ann")["Drops"].get("acl", 0) >= earlier + 10

        eventually(dropped)  # once the policy has arrived
        counted = peer(mesh, "bob", "ann")["Drops"]["acl"]
        after = metrics(mesh, "bob")
        assert after["tailscaled_inbound_dropped_packets_total", "acl"] == counted
        assert after["ghostwire_dropped_packets_total", "inbound", "acl"] == counted
        name = next(key[1] for key in after if key[0] == "ghostwire_peer_online" and key[1].startswith("ann"))
        assert after["ghostwire_peer_dropped_packets_total", name, "acl"] == counted
        told = subprocess.run(mesh.argv("bob", "gw", "status"), capture_output=True, text=True, check=True,
                              env=mesh.environment("bob")).stderr  # fmt: skip
        assert f"dropped by the policy since gwd began, packets: ann {counted}" in told
        assert peer(mesh, "ann", "bob")["Drops"] == {}
    finally:
        policy.write_bytes(old)
