"""The demo: a mesh comes up, is pinged by name through its NATs, and carries traffic. Every step is checked."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from gw.errors import GwError, TimedOut
from gw.lab.lab import Lab
from gw.lab.topology import Nat, NodeSpec

NODES: Final = (
    NodeSpec("ann", Nat.NONE),
    NodeSpec("bob", Nat.ENDPOINT_INDEPENDENT),
    NodeSpec("cat", Nat.SYMMETRIC),
)
NAMES_S: Final = 10.0
PATH_S: Final = 12.0
FLOW_S: Final = 3.0


def demo(say: Callable[[str], None], nodes: tuple[NodeSpec, ...] = NODES) -> None:
    """Run it all. Raises GwError at the first step that does not hold; then the logs stay where the error says."""
    began = time.monotonic()
    lab = Lab(nodes, say=lambda text: say(f"[{time.monotonic() - began:4.1f} s] {text}"))
    try:
        with lab:
            step = lab.say
            step("names and pings between all pairs")
            for line in ping_all(lab):
                say(f"    {line}")
            step("peers as the first node sees them")
            for line in lab.run(nodes[0].name, "gw", "status").splitlines():
                say(f"    {line}")
            step(f"throughput, one TCP flow of {FLOW_S:.0f} s")
            for one, other in ((nodes[0].name, nodes[1].name), (nodes[1].name, nodes[0].name)):
                say(f"    {one} -> {other}: {measure(lab, one, other):.2f} Gb/s")
            step("taking everything down")
    except GwError as error:
        if lab.folder.exists():
            error.hint = f"{error.hint + '; ' if error.hint else ''}logs: {lab.folder}"
        raise
    say(f"[{time.monotonic() - began:4.1f} s] done: every step held, nothing is left behind")


def ping_all(lab: Lab) -> list[str]:
    """Every node finds every other by the system's resolver and pings it, both ways. Raises GwError."""
    lines: list[str] = []
    for one in lab.nodes:
        for other in lab.nodes:
            if one is other:
                continue
            address = resolve(lab, one.name, other.name)
            lab.run(one.name, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", other.name)
            path, latency = settled_path(lab, one.name, other.name)
            lines.append(f"{one.name:8} -> {other.name:8} {address:16} {path:32} {latency * 1000:6.1f} ms")
    return lines


def resolve(lab: Lab, one: str, other: str) -> str:
    """The address that `getent hosts` gives, retried while the name spreads. Raises TimedOut."""
    deadline = time.monotonic() + NAMES_S
    while True:
        try:
            lab.run(one, "getent", "hosts", other)
            return lab.run(one, "getent", "ahostsv4", other).split()[0]
        except GwError:
            if time.monotonic() > deadline:
                raise TimedOut(f"{one} does not resolve `{other}`") from None
            time.sleep(0.2)


def settled_path(lab: Lab, one: str, other: str) -> tuple[str, float]:
    """How the peer is reached: the direct path if one is found soon, else a relay; (words, seconds)."""
    deadline = time.monotonic() + (PATH_S if can_be_direct(lab, one, other) else 0.0)
    while True:
        result = json.loads(lab.run(one, "gw", "ping", "--json", "-c", "1", other))
        if result.get("Endpoint"):
            return f"direct {result['Endpoint']}", float(result["LatencySeconds"])
        if time.monotonic() >= deadline and result.get("PeerRelay"):
            return f"peer-relay {result['PeerRelay']}", float(result["LatencySeconds"])
        if time.monotonic() >= deadline:
            return f"relay {result.get('DERPRegionCode', '')}", float(result["LatencySeconds"])
        time.sleep(0.3)


def can_be_direct(lab: Lab, one: str, other: str) -> bool:
    """False where both NATs together allow no direct path: each side would have to guess the other's port."""
    kinds = {node.nat for node in lab.nodes if node.name in (one, other)}
    if Nat.UDP_BLOCKED in kinds:
        return False
    hard = [node for node in lab.nodes if node.name in (one, other) and node.nat is Nat.SYMMETRIC]
    return not hard or Nat.NONE in kinds


def measure(lab: Lab, one: str, other: str) -> float:
    """Gb/s of one TCP flow from one node to another, inside the tunnel. Raises GwError."""
    address = resolve(lab, one, other)
    module = [sys.executable, "-P", "-m", "gw.lab.throughput"]
    server = subprocess.Popen(
        lab.argv(other, *module, "serve", address),
        env=lab.environment(other),
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        if server.stdout.readline().strip() != "ready":
            raise GwError(f"{other} cannot receive")
        lab.run(one, *module, "send", address, str(FLOW_S))
        report = json.loads(server.stdout.readline() or "{}")
    if not report.get("bytes"):
        raise GwError(f"nothing arrived at {other}")
    return float(report["bytes"]) * 8 / float(report["seconds"]) / 1e9
