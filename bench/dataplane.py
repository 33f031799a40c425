"""Throughput, latency and CPU through the tunnel, against other tunnels on the same cores in the same run.

Hosts on one bridge, in namespaces, in pairs:

    gwd              two nodes of a lab, a policy of 100 rules in force
    gwd inside QUIC  two more of them, which send all data inside QUIC
    wireguard-go     the one on PATH (apt's)
    $WIREGUARD_GO    another build of it, the newest perhaps
    $TAILSCALED      two stock nodes of the same lab ($TAILSCALE is its command line), under the same policy

Each figure is measured for one pair, then for the next, in turn, round after round. A ratio is the median of the
rounds' ratios, a value the median of the values. CPU is that of the processes on
the pair's hosts, the traffic generator included, which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gw.errors import GwError
from gw.lab import Lab, NodeSpec
from gw.lab.lab import URL
from gw.lab.topology import HUB
from gw.native import COMPILED
from gw.wire.x25519 import clamp, public_key

OUT = Path(__file__).resolve().parent / "out"
RULES = 100
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Pair:
    """Two hosts and the inner address of the second."""

    name: str
    one: str
    two: str
    address: str = ""


# The pairs


def policy(rules: int) -> str:
    """So many rules, the last of which allows everything among users' devices."""
    others = [
        {"action": "accept", "src": [f"10.{n}.0.0/16"], "dst": [f"100.127.{n}.0/24:{1000 + n}"]}
        for n in range(rules - 1)
    ]
    everyone = {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"]}
    return json.dumps({"acls": [*others, everyone]})


def start_wireguard(lab: Lab, pair: Pair, program: str, net: int) -> None:
    hosts = (pair.one, pair.two)
    devices = {
        name: f"{name}{os.getpid() % 10000}" for name in hosts
    }  # their sockets lie in one folder for all namespaces
    secrets = {name: clamp(os.urandom(32)) for name in hosts}
    inner = {name: f"100.127.{net}.{n + 1}" for n, name in enumerate(hosts)}
    for name in hosts:
        lab.start(name, f"rival-{name}", "env", "WG_SUDO=1", program, "-f", devices[name])
    for name, other in (hosts, hosts[::-1]):
        socket = Path(f"/var/run/wireguard/{devices[name]}.sock")
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.05)
        key = lab.state(name) / "key"
        key.write_text(base64.b64encode(secrets[name]).decode())
        key.chmod(0o600)
        peer = base64.b64encode(public_key(secrets[other])).decode()
        outer = lab.run(other, "ip", "-4", "-j", "addr", "show", "dev", "eth0")
        endpoint = json.loads(outer)[0]["addr_info"][0]["local"]
        lab.run(
            name, "wg", "set", devices[name], "listen-port", "51820", "private-key", str(key), "peer", peer,
            "allowed-ips", f"{inner[other]}/32", "endpoint", f"{endpoint}:51820",
        )  # fmt: skip
        lab.run(name, "ip", "addr", "add", f"{inner[name]}/24", "dev", devices[name])
        lab.run(name, "ip", "link", "set", devices[name], "mtu", "1280", "up")
    pair.address = inner[pair.two]


def start_quic(lab: Lab, pair: Pair) -> None:
    """Has each find the other and use QUIC before anything is measured."""
    pair.address = lab.run(pair.two, "gw", "ip", "-4").strip()
    for name in (pair.one, pair.two):
        lab.run(name, "gw", "set", "--transport", "quic")
    for _ in range(100):
        lab.run(pair.one, "ping", "-n", "-c", "1", "-W", "5", pair.address)
        peers: Any = lab.status(pair.one)["Peer"]
        if any(peer["Transport"] == "quic" for peer in peers.values()):
            return
        time.sleep(0.1)
    raise GwError(f"{pair.one} does not reach {pair.two} by QUIC")


def start_tailscaled(lab: Lab, pair: Pair, daemon: str, client: str) -> None:
    for name in (pair.one, pair.two):
        folder = lab.state(name)
        socket = folder / "ts.sock"
        lab.start(
            name, f"rival-{name}", "env", "TS_DEBUG_FIREWALL_MODE=nftables", daemon, "--no-logs-no-support",
            f"--statedir={folder}", f"--socket={socket}", "--tun=tailscale0", "--port=41641",
        )  # fmt: skip
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.1)
        lab.run(
            name, client, f"--socket={socket}", "up", f"--login-server={URL}", f"--auth-key=file:{lab.key_file}",
            f"--hostname={name}", "--accept-dns=false", "--netfilter-mode=off", "--timeout=60s",
        )  # fmt: skip
    pair.address = lab.run(pair.two, client, f"--socket={lab.state(pair.two) / 'ts.sock'}", "ip", "-4").strip()


def rivals() -> tuple[list[tuple[Pair, Callable[[Lab, Pair], None]]], list[NodeSpec]]:
    """The pairs that this machine has programs for, and how each is started."""
    found: list[tuple[Pair, Callable[[Lab, Pair], None]]] = []

    def wireguard(program: str, net: int) -> Callable[[Lab, Pair], None]:
        return lambda lab, pair: start_wireguard(lab, pair, program, net)

    apt, newest = shutil.which("wireguard-go"), os.environ.get("WIREGUARD_GO", "")
    if apt and shutil.which("wg"):
        found.append((Pair("wireguard-go (apt)", "wga", "wgb"), wireguard(apt, 0)))
    if newest and shutil.which("wg"):
        found.append((Pair("wireguard-go (newest)", "wgc", "wgd"), wireguard(newest, 1)))
    daemon, client = os.environ.get("TAILSCALED", ""), os.environ.get("TAILSCALE", "")
    if daemon and client:
        found.append((Pair("tailscaled", "tsa", "tsb"), lambda lab, pair: start_tailscaled(lab, pair, daemon, client)))
    nodes = [NodeSpec(name, daemon=False) for pair, _ in found for name in (pair.one, pair.two)]
    found.insert(0, (Pair("gwd inside QUIC", "quinn", "rosa"), start_quic))
    return found, nodes


# The figures


def cpu_s(lab: Lab, pair: Pair) -> float:
    """CPU seconds, user and system, of all that runs on the pair's two hosts, and of what this process ran there."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = used.ru_utime + used.ru_stime
    for host in (pair.one, pair.two):
        for pid in lab.pids(host):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def iperf(lab: Lab, pair: Pair, *flags: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(lab.run(pair.one, "iperf3", "-J", "-c", pair.address, *flags))["end"]
    return report


def gigabits(lab: Lab, pair: Pair, seconds: int, *flags: str) -> float:
    """Gb/s as the receivers count them; both ways together with --bidir."""
    end = iperf(lab, pair, "-t", str(seconds), *flags)
    both = ("sum_received", "sum_received_bidir_reverse")
    return sum(float(end[name]["bits_per_second"]) for name in both if name in end) / 1e9


def cpu_a_gigabit(lab: Lab, pair: Pair, seconds: int) -> float:
    before = cpu_s(lab, pair)
    end = iperf(lab, pair, "-t", str(seconds))
    return (cpu_s(lab, pair) - before) / (float(end["sum_received"]["bytes"]) * 8 / 1e9)


def small_packets(lab: Lab, pair: Pair, seconds: int) -> float:
    """Thousands of UDP packets of 64 bytes a second that arrive when as many as possible are sent."""
    end = iperf(lab, pair, "-u", "-b", "0", "-l", "64", "-t", str(seconds))["sum"]
    return float(end["packets"] - end["lost_packets"]) / float(end["seconds"]) / 1e3


def ping(lab: Lab, pair: Pair, count: int, interval_s: float) -> float:
    """Microseconds there and back, median."""
    text = lab.run(pair.one, "ping", "-n", "-i", str(interval_s), "-c", str(count), "-W", "1", pair.address)
    times = sorted(float(line.rpartition("time=")[2].split()[0]) for line in text.splitlines() if "time=" in line)
    return statistics.median(times) * 1000


def loaded_ping(lab: Lab, pair: Pair, seconds: int) -> float:
    """The same beside one TCP flow that takes what it can get."""
    load = subprocess.Popen(
        lab.argv(pair.one, "iperf3", "-c", pair.address, "-t", str(seconds + 1)), stdout=subprocess.DEVNULL
    )
    with load:
        time.sleep(0.5)
        return ping(lab, pair, seconds * 20, 0.05)


def figures(seconds: int) -> list[tuple[str, str, str, Callable[[Lab, Pair], float]]]:
    """(name, unit, which is better, how it is measured)"""

    def flow(*flags: str) -> Callable[[Lab, Pair], float]:
        return lambda lab, pair: gigabits(lab, pair, seconds, *flags)

    return [
        ("one TCP flow", "Gb/s", "higher", flow()),
        ("one TCP flow, reverse", "Gb/s", "higher", flow("-R")),
        ("four TCP flows", "Gb/s", "higher", flow("-P", "4")),
        ("four TCP flows, reverse", "Gb/s", "higher", flow("-P", "4", "-R")),
        ("down and up at once", "Gb/s", "higher", flow("--bidir")),
        ("UDP packets of 64 bytes", "kpkt/s", "higher", lambda lab, pair: small_packets(lab, pair, seconds)),
        ("CPU of a gigabit", "s", "lower", lambda lab, pair: cpu_a_gigabit(lab, pair, seconds)),
        ("ping, idle", "us", "lower", lambda lab, pair: ping(lab, pair, 100, 0.01)),
        ("ping beside a TCP flow", "us", "lower", lambda lab, pair: loaded_ping(lab, pair, seconds)),
    ]


def measure(lab: Lab, pairs: list[Pair], rounds: int, seconds: int, only: str) -> list[dict[str, object]]:
    for pair in pairs:
        lab.start(pair.two, f"iperf-{pair.two}", "iperf3", "-s", "-B", pair.address)
        for _ in range(100):
            try:
                lab.run(pair.one, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", pair.address)
                break
            except GwError:
                time.sleep(0.1)
    time.sleep(2)  # direct paths are found
    rows: list[dict[str, object]] = []
    for name, unit, better, how in figures(seconds):
        if only not in name:
            continue
        found: dict[str, list[float]] = {pair.name: [] for pair in pairs}
        for _ in range(rounds):
            for pair in pairs:
                found[pair.name].append(how(lab, pair))
        ours = found["gwd"]
        for rival in [pair.name for pair in pairs[1:]] or [""]:
            row: dict[str, object] = {"name": name, "unit": unit, "ours": statistics.median(ours), "better": better}
            if rival:
                ratios = [one / other for one, other in zip(ours, found[rival], strict=True)]
                row |= {
                    "rival": rival, "rival_value": statistics.median(found[rival]),
                    "ratio": statistics.median(ratios),
                }  # fmt: skip
            rows.append(row)
        print(f"{name:<26}" + "".join(f"  {pair.name} {statistics.median(found[pair.name]):.4g}" for pair in pairs))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A figure a line: ours, then each rival's value and what ours is to it."""
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    others = list(dict.fromkeys(str(row["rival"]) for row in rows if "rival" in row))
    lines = ["| | gwd | " + " | ".join(others) + " |", "|---|" + "---|" * (len(others) + 1)]
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        cells = [f"{row['rival_value']:.3g} ({row['ratio']:.2f})" for row in mine if "rival" in row]
        lines.append(f"| {name}, {mine[0]['unit']} | {mine[0]['ours']:.3g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=int, default=3, help="of each flow")
    options.add_argument("--only", default="", metavar="WORD", help="figures with it in their name; the others stay")
    chosen = options.parse_args()
    if os.geteuid() != 0 or shutil.which("iperf3") is None:
        sys.exit("error: needs root and iperf3")
    others, bare = rivals()
    nodes = [NodeSpec("ann"), NodeSpec("bob"), NodeSpec("quinn"), NodeSpec("rosa"), *bare]
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder, Lab(nodes, folder=Path(folder) / "lab") as lab:
        text = lab.folder / "policy.hujson"
        text.write_text(policy(RULES))
        lab.run(HUB, "gwctl", "policy", "set", str(text))
        ours = Pair("gwd", "ann", "bob", lab.run("bob", "gw", "ip", "-4").strip())
        for pair, start in others:
            start(lab, pair)
        rows = measure(lab, [ours, *(pair for pair, _ in others)], chosen.rounds, chosen.seconds, chosen.only)
    OUT.mkdir(exist_ok=True)
    before = OUT / "dataplane.json"
    if chosen.only and before.exists():
        kept = json.loads(before.read_text())["rows"]
        rows = [row for row in kept if chosen.only not in row["name"]] + rows
    print(f"\n{table(rows)}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"CPython {platform.python_version()}, core {'compiled' if COMPILED else 'interpreted'}"
    report = {"machine": machine, "versions": versions, "rows": rows}
    (OUT / "dataplane.json").write_text(json.dumps(report, indent=1) + "\n")
    (OUT / "dataplane.md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
