"""Throughput and latency through the tunnel, against wireguard-go on the same cores in the same run.

Four hosts on one bridge, in namespaces: ann and bob run gwd, wga and wgb wireguard-go ($WIREGUARD_GO, else the one on
PATH). Each figure is measured for one pair, then for the other, in turn; the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from gw.errors import GwError
from gw.lab import Lab, NodeSpec
from gw.native import COMPILED
from gw.wire.x25519 import clamp, public_key

OUT = Path(__file__).resolve().parent / "out"
SECONDS = 3
FIGURES = (
    ("one TCP flow", "Gb/s", ("-t", str(SECONDS)), "higher"),
    ("one TCP flow, reverse", "Gb/s", ("-t", str(SECONDS), "-R"), "higher"),
    ("four TCP flows", "Gb/s", ("-t", str(SECONDS), "-P", "4"), "higher"),
)


def start_rival(lab: Lab, program: str) -> str:
    """wireguard-go between wga and wgb; returns wgb's inner address."""
    secrets = {name: clamp(os.urandom(32)) for name in ("wga", "wgb")}
    outer = {"wga": "198.51.100.13", "wgb": "198.51.100.14"}
    inner = {"wga": "100.127.0.1", "wgb": "100.127.0.2"}
    for name in ("wga", "wgb"):
        lab.start(name, f"rival-{name}", "env", "WG_SUDO=1", program, "-f", f"{name}0")
    for name, other in (("wga", "wgb"), ("wgb", "wga")):
        socket = Path(f"/var/run/wireguard/{name}0.sock")
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.05)
        key = lab.state(name) / "key"
        key.write_text(base64.b64encode(secrets[name]).decode())
        key.chmod(0o600)
        peer = base64.b64encode(public_key(secrets[other])).decode()
        lab.run(
            name, "wg", "set", f"{name}0", "listen-port", "51820", "private-key", str(key), "peer", peer,
            "allowed-ips", f"{inner[other]}/32", "endpoint", f"{outer[other]}:51820",
        )  # fmt: skip
        lab.run(name, "ip", "addr", "add", f"{inner[name]}/24", "dev", f"{name}0")
        lab.run(name, "ip", "link", "set", f"{name}0", "mtu", "1280", "up")
    return inner["wgb"]


def throughput(lab: Lab, sender: str, address: str, flags: tuple[str, ...]) -> float:
    """Gb/s as the receiver counts them."""
    report = json.loads(lab.run(sender, "iperf3", "-J", "-c", address, *flags))
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def latency(lab: Lab, sender: str, address: str) -> float:
    """Microseconds of an idle ping, median of 100."""
    text = lab.run(sender, "ping", "-n", "-i", "0.01", "-c", "100", address)
    times = sorted(float(line.rpartition("time=")[2].split()[0]) for line in text.splitlines() if "time=" in line)
    return statistics.median(times) * 1000


def measure(lab: Lab, rounds: int) -> list[dict[str, object]]:
    program = os.environ.get("WIREGUARD_GO") or shutil.which("wireguard-go") or ""
    pairs = {"ours": ("ann", "bob", lab.run("bob", "gw", "ip", "-4").strip())}
    if program and shutil.which("wg"):
        pairs["rival"] = ("wga", "wgb", start_rival(lab, program))
    for sender, receiver, address in pairs.values():
        lab.start(receiver, f"iperf-{receiver}", "iperf3", "-s", "-B", address)
        for _ in range(100):
            try:
                lab.run(sender, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", address)
                break
            except GwError:
                time.sleep(0.1)
    time.sleep(1)
    rows = []
    for name, unit, flags, better in (*FIGURES, ("idle ping", "us", (), "lower")):
        found: dict[str, list[float]] = {which: [] for which in pairs}
        for _ in range(rounds):
            for which, (sender, _, address) in pairs.items():
                value = throughput(lab, sender, address, flags) if flags else latency(lab, sender, address)
                found[which].append(value)
        ours = statistics.median(found["ours"])
        rival = statistics.median(found["rival"]) if "rival" in found else 0.0
        rows.append(
            {
                "name": name, "unit": unit, "ours": ours, "rival": "wireguard-go" if rival else "",
                "rival_value": rival, "ratio": ours / rival if rival else 0.0, "better": better,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    rounds = options.parse_args().rounds
    if os.geteuid() != 0 or shutil.which("iperf3") is None:
        sys.exit("error: needs root and iperf3")
    nodes = [NodeSpec("ann"), NodeSpec("bob"), NodeSpec("wga", daemon=False), NodeSpec("wgb", daemon=False)]
    with tempfile.TemporaryDirectory(prefix="gw-bench-") as folder, Lab(nodes, folder=Path(folder) / "lab") as lab:
        rows = measure(lab, rounds)
    for row in rows:
        rival = f"{row['rival']} {row['rival_value']:.4g}, ratio {row['ratio']:.2f}" if row["ratio"] else ""
        print(f"{row['name']:<30} {row['ours']:>10.4g} {row['unit']:<5} {rival}")
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"CPython {platform.python_version()}, core {'compiled' if COMPILED else 'interpreted'}"
    report = {"machine": machine, "versions": versions, "rows": rows}
    (OUT / "dataplane.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
