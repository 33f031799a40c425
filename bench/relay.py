"""The relay under load: throughput, CPU a packet, latency, fairness, idle clients; beside `$DERPER` in the same run.

    clients (one light process) ──TLS──▶ relay ──TLS──▶ clients, all on loopback
    the same over QUIC, at the same relay: rows that end in "over QUIC"; the rival is derper over TLS there too
    UDP between nodes, at the same relay: rows that end in "UDP between nodes"

Each figure is measured at one relay, then at the other, in turn, round after round. A ratio is the median of the
rounds' ratios, a value the median of the values. CPU is that of the relay's processes alone, user and system.

    GWRELAY_WORKERS=2   run ours with so many processes
    DERP_LOAD=PROGRAM   a load of Tailscale's own client code: rows ending in "stock clients" are by it at both relays,
                        and QUIC is compared with derper under it. PROGRAM takes -addr HOST:PORT -pairs N -size BYTES
                        -window PACKETS -secs N; it prints `start`, `end` and JSON: packets, gbps, pps, p50us, p99us
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gw.native import COMPILED

HERE: Final = Path(__file__).resolve().parent
OUT: Final = HERE / "out"
LOAD: Final = HERE / "loadgen" / "derpclients.py"
MAX_STOCK_PAIRS: Final = 16  # beyond that the load takes the cores that the relays need
QUIC_LOAD: Final = HERE / "loadgen" / "quicclients.py"
MAX_QUIC_CLIENTS: Final = 1000  # a handshake costs both ends a millisecond and more
TICKS: Final = os.sysconf("SC_CLK_TCK")
START_S: Final = 30.0
QUIC: Final = "gwrelay over QUIC"
UDP: Final = "gwrelay, UDP between nodes"
UDP_LOAD: Final = HERE / "loadgen" / "udppairs.py"
MAX_UDP_PAIRS: Final = 500
STOCK: Final = ", stock clients"
GWRELAY: Final = "from gw.commands.gwrelay import main; main()"


@dataclass
class Relay:
    """A running relay."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    load: Path = LOAD

    def members(self) -> list[int]:
        """Its process and the processes below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(word) for word in task.read_text().split()]
        return found

    def cpu_s(self) -> float:
        total = 0
        for pid in self.members():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory(self) -> int:
        """Bytes of its own: pages shared among its workers count in parts."""
        total = 0
        for pid in self.members():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(name: str, command: list[str], port: int, folder: Path) -> Iterator[Relay]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "GW_STATE_DIR": str(folder / "state")}
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: {name} does not start\n{(folder / f'{name}.log').read_text()}")
            time.sleep(0.05)
        time.sleep(1)
        yield Relay(name, port, process)
    finally:
        process.terminate()
        process.wait(10)


def relays(stack: ExitStack, folder: Path, workers: int) -> list[Relay]:
    """Ours, and the rival where there is one."""
    port, udp = free_port(), free_port()
    ours = [
        sys.executable, "-P", "-c", GWRELAY, "serve", "--listen", f"127.0.0.1:{port}", "--self-signed",
        "--stun", f"127.0.0.1:{udp}", "--admit", "all", "--hostname", "127.0.0.1", "--workers", str(workers),
    ]  # fmt: skip
    found = [stack.enter_context(running("gwrelay", ours, port, folder))]
    found.append(Relay(QUIC, udp, found[0].process, QUIC_LOAD))
    found.append(Relay(UDP, port, found[0].process, UDP_LOAD))
    if os.environ.get("DERPER"):
        port = free_port()
        theirs = [
            os.environ["DERPER"], "-a", f"127.0.0.1:{port}", "-certmode", "manual", "-certdir", str(folder),
            "-hostname", "127.0.0.1", "-stun=false", "-http-port", "-1", "-c", str(folder / "derper.key"),
        ]  # fmt: skip
        found.append(stack.enter_context(running("derper", theirs, port, folder)))
    if os.environ.get("DERP_LOAD"):
        stock = Path(os.environ["DERP_LOAD"])
        tls = [each for each in found if each.name not in (QUIC, UDP)]
        found += [Relay(each.name + STOCK, each.port, each.process, stock) for each in tls]
    return found


def load(relay: Relay, *words: str) -> dict[str, float]:
    """Run the load; what it printed, and the relay's CPU a packet in `cpu_us`."""
    command = [sys.executable, "-P", str(relay.load), *words, "--port", str(relay.port)]
    if relay.name.endswith(STOCK):
        command = [str(relay.load), "-addr", f"127.0.0.1:{relay.port}", *stock_words(words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    marks = []
    for word in ("start", "end"):
        if process.stdout.readline().strip() != word:
            sys.exit(f"error: the load at {relay.name} failed")
        marks.append(relay.cpu_s())
    result: dict[str, float] = json.loads(process.stdout.readline())
    if "p50us" in result:
        result |= {"p50_us": result["p50us"], "p99_us": result["p99us"]}
    if words[0] == "idle":
        time.sleep(1)
        result["memory"] = relay.memory()
    else:
        result["cpu_us"] = (marks[1] - marks[0]) / max(1.0, result["packets"]) * 1e6
    process.stdin.close()
    process.wait()
    return result


def cases(seconds: float, idle: int, crowd: int) -> list[tuple[str, list[str], list[tuple[str, str, str]]]]:
    """Name, words for the load, and (figure, unit, better) of each."""
    cost = [("gbps", "Gb/s", "higher"), ("cpu_us", "µs/packet", "lower")]
    fair = [*cost, ("fairness", "Jain", "higher")]
    time_ = ["--seconds", str(seconds)]
    return [
        ("1 pair", ["flow", *time_], cost),
        ("4 pairs", ["flow", "--connected", "8", "--active", "4", *time_], cost),
        ("16 pairs", ["flow", "--connected", "32", "--active", "16", *time_], cost),
        ("1 pair, 100 B", ["flow", "--size", "100", *time_], [("pps", "packet/s", "higher"), cost[1]]),
        ("100 connected, all send", ["flow", "--connected", "100", "--active", "50", *time_], fair),
        (
            f"{crowd} connected, all send",
            ["flow", "--connected", str(crowd), "--active", str(crowd // 2), "--window", "16384", *time_], fair,
        ),
        ("one at a time", ["ping", *time_], [("p50_us", "µs", "lower"), ("p99_us", "µs", "lower"), cost[1]]),
        (f"{idle} idle", ["idle", "--connected", str(idle)],
         [("connects", "connect/s", "higher"), ("client_kb", "KB each", "lower")]),
    ]  # fmt: skip


def measure(chosen: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, words, wanted in cases(chosen.seconds, chosen.idle, chosen.crowd):
        if chosen.only and not any(name.startswith(each) for each in chosen.only):
            continue
        with ExitStack() as stack:
            ends = relays(stack, folder, chosen.workers)
            found: dict[str, list[dict[str, float]]] = {end.name: [] for end in ends}
            is_heavy = words[0] == "idle" or "16384" in words
            for _ in range(1 if is_heavy else chosen.rounds):
                for end in ends:
                    if end.name == UDP and (words[0] == "idle" or pairs_of(words) > MAX_UDP_PAIRS):
                        continue
                    if end.name.endswith(STOCK) and (words[0] == "idle" or pairs_of(words) > MAX_STOCK_PAIRS):
                        continue
                    fitting = fit_quic(words) if end.name == QUIC else words
                    before = end.memory()
                    result = load(end, *fitting)
                    if words[0] == "idle":
                        count = int(fitting[fitting.index("--connected") + 1])
                        result["client_kb"] = (result["memory"] - before) / count / 1024
                    found[end.name].append(result)
        kinds = {"gwrelay": "", QUIC: ", over QUIC", UDP: ", UDP between nodes", "gwrelay" + STOCK: STOCK}
        stock = "derper" + STOCK
        for figure, unit, better, kind in [(*each, kind) for kind in kinds if found.get(kind) for each in wanted]:
            if any(figure not in each for each in found[kind]):
                continue
            ours = [each[figure] for each in found[kind]]
            suffix = kinds[kind]
            against = stock if found.get(stock) and kind != "gwrelay" else "derper"
            row: dict[str, Any] = {
                "name": f"{name}{suffix}: {figure}", "unit": unit, "ours": statistics.median(ours), "better": better,
            }  # fmt: skip
            if kind in (QUIC, UDP) and not found.get("derper"):
                theirs = [each[figure] for each in found["gwrelay"]]
                ratios = [one / other for one, other in zip(ours, theirs, strict=True) if other]
                row |= {
                    "rival": "gwrelay over TLS", "rival_value": statistics.median(theirs),
                    "ratio": statistics.median(ratios or [0.0]),
                }  # fmt: skip
            if found.get(against):
                theirs = [each[figure] for each in found[against]]
                ratios = [one / other for one, other in zip(ours, theirs, strict=True) if other]
                row |= {
                    "rival": against, "rival_value": statistics.median(theirs),
                    "ratio": statistics.median(ratios or [0.0]),
                }  # fmt: skip
            rows.append(row)
            rival = f"  {row['rival']} {row['rival_value']:.4g}  ratio {row['ratio']:.2f}" if "rival" in row else ""
            print(f"{row['name']:<42} {row['ours']:.4g} {unit}{rival}", flush=True)
    return rows


def pairs_of(words: list[str]) -> int:
    return int(words[words.index("--active") + 1]) if "--active" in words else 1


def stock_words(words: list[str]) -> list[str]:
    """The same for `$DERP_LOAD`."""
    seconds = words[words.index("--seconds") + 1]
    size = words[words.index("--size") + 1] if "--size" in words else "1400"
    one = ["-window", "1"] if words[0] == "ping" else []
    return ["-pairs", str(pairs_of(words)), "-size", size, *one, "-secs", f"{float(seconds):.0f}"]


def fit_quic(words: list[str]) -> list[str]:
    """The same for fewer clients, and packets of the size that a tunnel sends."""
    words = list(words)
    for flag, most in (("--connected", MAX_QUIC_CLIENTS), ("--active", MAX_QUIC_CLIENTS // 2)):
        if flag in words:
            place = words.index(flag) + 1
            words[place] = str(min(int(words[place]), most))
    return words


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=2.0, help="of each flow")
    options.add_argument("--idle", type=int, default=10_000, help="idle clients")
    options.add_argument("--crowd", type=int, default=5000, help="connected clients that all send")
    options.add_argument("--workers", type=int, default=int(os.environ.get("GWRELAY_WORKERS", "1")))
    options.add_argument("--only", nargs="*", help="cases whose names begin so")
    chosen = options.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fit = max(2, min(hard, 1 << 20) - 500)
    chosen.idle, chosen.crowd = min(chosen.idle, fit), min(chosen.crowd, fit)
    with tempfile.TemporaryDirectory(prefix="gw-bench-relay-") as folder:
        rows = measure(chosen, Path(folder))
    OUT.mkdir(exist_ok=True)
    core = "compiled" if COMPILED else "interpreted"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, {core} core"
    (OUT / "relay.json").write_text(json.dumps({"machine": machine, "workers": chosen.workers, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
