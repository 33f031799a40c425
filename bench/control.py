"""The control server under load: how fast nodes register, when all know all, how fast a change travels, what it costs.

    bench/control.py                       100, 300 and 1,000 nodes that all see each other; with $HEADSCALE also there
    bench/control.py --sizes 300           one size
    bench/control.py --large 10000         users with five devices each, three shared servers
    bench/control.py --large 50000 --workers 3 --tls

The clients speak the real protocol (`loadgen/`) and run beside the server on the same cores; their own cost is printed.
State is durable and the policy is in force. A phase ends when all are through or its limit is reached; who is left out
is counted and never dropped from a figure.

    registrations/s    connect, GET /key, Noise, /machine/register, 64 at a time, until the last is in
    first map          all open their streams and send a lite update at once: until the last has its first map
    converged          … until everyone knows every peer as online
    propagation        one node sends other endpoints: until a peer has read the patch, over all peers and changes
    CPU                user and system time of the server's processes; of changes among very many nodes without what
                       the idle server takes
    memory             growth of the server's resident memory a node, all streaming
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from loadgen.fleet import Fleet  # noqa: E402
from loadgen.servers import GhostWire, Headscale, Server  # noqa: E402
from loadgen.swarm import Report  # noqa: E402

OUT: Final = HERE / "out"
ALL: Final = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'
HOUSEHOLDS: Final = """{
	"tagOwners": {"tag:shared": []},
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
		{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:shared:443"]},
	],
}"""
DEVICES: Final = 5  # of a user
SERVERS: Final = 3  # that everyone sees
AT_ONCE: Final = 64
CHANGES: Final = 60

Row = dict[str, Any]
Figures = dict[str, float]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def problems(report: Report) -> str:
    worst = sorted(report.errors.items(), key=lambda pair: -pair[1])[:3]
    return "; ".join(f"{count} x {why}" for why, count in worst)


class Run:
    """One server, one fleet, the phases one after the other."""

    def __init__(self, server: Server, fleet: Fleet, *, limit_s: float, at_once: int) -> None:
        self.server, self.fleet, self.limit_s, self.at_once = server, fleet, limit_s, at_once
        self.figures: Figures = {"nodes": fleet.size}
        self.before = server.memory_bytes()
        self._shown: set[str] = set()

    def _spend(self) -> tuple[float, float]:
        return self.server.cpu_s(), self.fleet.cost().cpu_s

    def register(self) -> None:
        server_cpu, own_cpu = self._spend()
        begun = self.fleet.go("registered", self.at_once)
        report = self.fleet.wait("registered", self.limit_s, say=True)
        took = report.registered_at - begun if report.registered == self.fleet.size else time.monotonic() - begun
        spent, own = (after - before for after, before in zip(self._spend(), (server_cpu, own_cpu), strict=True))
        self.figures |= {
            "registrations_per_s": report.registered / took,
            "cpu_registration_ms": 1000 * spent / max(1, report.registered),
            "own_cpu_registration_ms": 1000 * own / max(1, report.registered),
            "not_registered": self.fleet.size - report.registered,
        }
        self._tell("registered", report)

    def join(self) -> None:
        """Register and stream, as clients do, for numbers at which nobody sees everybody."""
        server_cpu, own_cpu = self._spend()
        begun = self.fleet.go("joined", self.at_once)
        marks: list[tuple[float, int]] = []
        deadline = begun + self.limit_s
        report = self.fleet.status()
        while report.registered < self.fleet.size and time.monotonic() < deadline:
            time.sleep(1)
            report = self.fleet.status()
            marks.append((time.monotonic(), report.registered))
            if len(marks) % 10 == 0:
                log(f"    joined: {report.registered:,} of {self.fleet.size:,}, {report.streaming:,} stream")
        took = report.registered_at - begun if report.registered == self.fleet.size else time.monotonic() - begun
        last = [mark for mark in marks if mark[1] >= 0.9 * self.fleet.size]
        if len(last) > 1:
            self.figures["last_tenth_registrations_per_s"] = (last[-1][1] - last[0][1]) / (last[-1][0] - last[0][0])
        report = self.fleet.wait("complete", self.limit_s, say=True)
        spent, own = (after - before for after, before in zip(self._spend(), (server_cpu, own_cpu), strict=True))
        self.figures |= {
            "registrations_per_s": report.registered / took,
            "joined_s": report.complete_at - begun,
            "cpu_join_ms": 1000 * spent / max(1, report.registered),
            "own_cpu_join_ms": 1000 * own / max(1, report.registered),
            "never_got_one": self.fleet.size - report.streaming,
            "not_converged": self.fleet.size - report.complete,
        }
        self._tell("joined", report)

    def stream(self, prefix: str = "", *, at_once: int = 0) -> None:
        server_cpu, own_cpu = self._spend()
        begun = self.fleet.go("streaming", at_once or self.fleet.size)
        report = self.fleet.wait("complete", self.limit_s, poll_s=0.2, say=True)
        spent, own = (after - before for after, before in zip(self._spend(), (server_cpu, own_cpu), strict=True))
        self.figures |= {
            f"{prefix}first_map_s": report.first_map_at - begun,
            f"{prefix}converged_s": (report.complete_at - begun)
            if report.complete == self.fleet.size
            else float("nan"),
            f"{prefix}never_got_one": self.fleet.size - report.streaming,
            f"{prefix}not_converged": self.fleet.size - report.complete,
            f"{prefix}cpu_connect_ms": 1000 * spent / self.fleet.size,
            f"{prefix}own_cpu_connect_ms": 1000 * own / self.fleet.size,
        }
        self._tell(f"{prefix}streaming", report)

    def memory(self, prefix: str = "") -> None:
        now = self.server.memory_bytes()
        self.figures[f"{prefix}memory_kb"] = (now - self.before) / self.fleet.size / 1000
        self.figures[f"{prefix}rss_kb"] = now / self.fleet.size / 1000
        self.figures["own_memory_kb"] = self.fleet.cost().rss_bytes / self.fleet.size / 1000

    def changes(self, expected: dict[int, int], count: int, gap_s: float, prefix: str = "") -> None:
        """expected: number of a client -> peers that hear of its changes."""
        self.fleet.arrivals()
        time.sleep(1.5)
        server_cpu, own_cpu = self._spend()
        chooser = random.Random(7)
        chosen = [chooser.choice(list(expected)) for _ in range(count)]
        begun = time.monotonic()
        base = int(self.figures.get("changes_sent", 0))
        for number, index in enumerate(chosen, base + 1):
            self.fleet.change(index, number)
            time.sleep(gap_s)
        time.sleep(2.5)
        spent, own = (after - before for after, before in zip(self._spend(), (server_cpu, own_cpu), strict=True))
        spent -= (time.monotonic() - begun) * self.figures.get("idle_cpu_percent", 0.0) / 100
        found = self.fleet.arrivals()
        self.figures["changes_sent"] = base + count
        times = [each for heard in found.values() for each in heard]
        wanted = sum(expected[index] for index in chosen)
        self.figures |= {
            f"{prefix}propagation_p50_ms": 1000 * percentile(times, 0.50),
            f"{prefix}propagation_p99_ms": 1000 * percentile(times, 0.99),
            f"{prefix}cpu_change_ms": 1000 * spent / count,
            f"{prefix}own_cpu_change_ms": 1000 * own / count,
            f"{prefix}unheard": wanted - len(times),
        }
        log(f"    {count} changes, {len(times):,} of {wanted:,} heard, p99 {1000 * percentile(times, 0.99):.1f} ms")
        self._show()

    def reconnect(self) -> None:
        self.fleet.ask("drop")
        time.sleep(0.3)
        self.stream("again_")

    def idle(self, seconds: float) -> None:
        server_cpu, _ = self._spend()
        begun = time.monotonic()
        time.sleep(seconds)
        self.figures["idle_cpu_percent"] = 100 * (self._spend()[0] - server_cpu) / (time.monotonic() - begun)

    def restart(self) -> None:
        """Stop the server, start it again: clients come back with their own backoff."""
        begun = time.monotonic()
        self.server.stop()
        stopped = time.monotonic()
        self.server.start()
        up = time.monotonic()
        report = self.fleet.wait("complete", self.limit_s, poll_s=0.5, say=True)
        self.figures |= {
            "restart_stop_s": stopped - begun,
            "restart_start_s": up - stopped,
            "restart_all_back_s": report.complete_at - begun if report.complete == self.fleet.size else float("nan"),
            "restart_missing": self.fleet.size - report.complete,
        }
        self._tell("back after a restart", report)

    def _tell(self, what: str, report: Report) -> None:
        done = {"registered": report.registered}.get(what, report.complete)
        log(f"    {what}: {done:,} of {self.fleet.size:,}  {problems(report)}")
        self._show()

    def _show(self) -> None:
        """What is known so far, for a run that is cut off."""
        fresh = {key: value for key, value in self.figures.items() if key not in self._shown}
        self._shown |= fresh.keys()
        log("      " + ", ".join(f"{key} {value:,.2f}" for key, value in fresh.items()))


def everyone(server: Server, size: int, limit_s: float) -> Figures:
    """All see all."""
    server.prepare()  # type: ignore[attr-defined]
    server.start()
    try:
        clients = [(index, server.keys[index % len(server.keys)], size - 1) for index in range(size)]  # type: ignore[attr-defined]
        with Fleet("127.0.0.1", server.port, clients, salt=str(size)) as fleet:
            run = Run(server, fleet, limit_s=limit_s, at_once=AT_ONCE)
            run.register()
            run.stream()
            run.memory()
            gap = 0.25 if size <= 300 else 0.4
            run.changes(dict.fromkeys(range(size), size - 1), CHANGES, gap)
            run.reconnect()
            run.memory("again_")
            run.changes(dict.fromkeys(range(size), size - 1), CHANGES, gap, "again_")
            return run.figures
    finally:
        server.stop()


def households(
    folder: Path, size: int, *, tls: bool, workers: int, at_once: int, limit_s: float, idle_s: float
) -> Figures:
    """Many users with five devices each, and a few servers that everyone sees."""
    users = (size - SERVERS) // DEVICES
    server = GhostWire(folder, policy=HOUSEHOLDS, users=users, shared=True, tls=tls, workers=workers)
    server.prepare()
    server.start()
    try:
        clients = [(index, server.shared_key, users * DEVICES) for index in range(SERVERS)]
        for user in range(users):
            first = SERVERS + user * DEVICES
            clients += [(first + each, server.keys[user], DEVICES - 1 + SERVERS) for each in range(DEVICES)]
        with Fleet("127.0.0.1", server.port, clients, tls=tls, salt=f"h{size}") as fleet:
            run = Run(server, fleet, limit_s=limit_s, at_once=at_once)
            run.join()
            run.memory()
            devices = dict.fromkeys(range(SERVERS, len(clients)), DEVICES - 1 + SERVERS)
            if idle_s:
                run.idle(idle_s)
            run.changes(devices, 200, 0.05)
            run.restart()
            run.memory("again_")
            return run.figures
    finally:
        server.stop()


COLUMNS: Final = (
    ("nodes", "nodes", "{:,.0f}"),
    ("registrations_per_s", "registrations/s", "{:.0f}"),
    ("cpu_registration_ms", "CPU a registration", "{:.2f} ms"),
    ("first_map_s", "all have their first map", "{:.2f} s"),
    ("converged_s", "all know all", "{:.2f} s"),
    ("never_got_one", "never got one", "{:.0f}"),
    ("propagation_p50_ms", "p50", "{:.1f} ms"),
    ("propagation_p99_ms", "p99", "{:.1f} ms"),
    ("cpu_change_ms", "CPU a change", "{:.1f} ms"),
    ("memory_kb", "memory a node", "{:.0f} KB"),
    ("again_converged_s", "all back", "{:.2f} s"),
    ("again_propagation_p99_ms", "p99 after", "{:.1f} ms"),
)
LOWER: Final = {
    "cpu_registration_ms": "ms", "first_map_s": "s", "converged_s": "s", "never_got_one": "nodes",
    "propagation_p50_ms": "ms", "propagation_p99_ms": "ms", "cpu_change_ms": "ms", "memory_kb": "KB",
    "again_converged_s": "s", "again_propagation_p99_ms": "ms", "again_cpu_change_ms": "ms",
    "cpu_join_ms": "ms", "joined_s": "s", "rss_kb": "KB", "idle_cpu_percent": "%", "restart_all_back_s": "s",
}  # fmt: skip
HIGHER: Final = {"registrations_per_s": "1/s", "last_tenth_registrations_per_s": "1/s"}


def print_table(results: dict[tuple[str, int], Figures]) -> None:
    print("| server | " + " | ".join(title for _, title, _ in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for (name, _), figures in results.items():
        cells = [form.format(figures[key]) if key in figures else "" for key, _, form in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")


def rows_of(results: dict[tuple[str, int], Figures], label: str = "") -> list[Row]:
    rows: list[Row] = []
    for (name, size), figures in results.items():
        if name == Headscale.name:
            continue
        rival = results.get((Headscale.name, size), {})
        for better, units in (("higher", HIGHER), ("lower", LOWER)):
            for key, unit in units.items():
                if key not in figures or figures[key] != figures[key]:
                    continue
                theirs = rival.get(key, 0)
                rows.append(
                    {"name": f"{key.replace('_', ' ')}, {size:,} nodes{label}", "unit": unit, "ours": figures[key],
                     "rival": Headscale.name if theirs else "", "rival_value": theirs,
                     "ratio": figures[key] / theirs if theirs else None, "better": better}
                )  # fmt: skip
    return rows


def write(rows: list[Row], results: dict[tuple[str, int], Figures]) -> None:
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    path = OUT / "control.json"
    kept: list[Row] = []
    if path.exists():
        fresh = {row["name"] for row in rows}
        kept = [row for row in json.loads(path.read_text())["rows"] if row["name"] not in fresh]
    figures = {f"{name} {size}": found for (name, size), found in results.items()}
    report = {"machine": machine, "versions": f"CPython {platform.python_version()}", "rows": kept + rows}
    path.write_text(json.dumps({**report, "figures": figures}, indent=1) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default="100,300,1000", help="numbers of nodes that all see each other")
    options.add_argument("--large", type=int, default=0, help="households instead, so many nodes")
    options.add_argument("--workers", type=int, default=0)
    options.add_argument("--tls", action="store_true")
    options.add_argument("--at-once", type=int, default=0, help="clients on their way at a time")
    options.add_argument("--limit", type=float, default=600.0, help="seconds a phase may take")
    options.add_argument("--idle", type=float, default=20.0, help="seconds to look at the idle server")
    options.add_argument("--no-rival", action="store_true")
    chosen = options.parse_args()
    results: dict[tuple[str, int], Figures] = {}
    base = os.environ.get("GW_BENCH_DIR", ".")  # not on tmpfs, where nothing is durable
    label = (f", {chosen.workers} workers" if chosen.workers else "") + (", TLS" if chosen.tls else "")
    if chosen.large:
        with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=base) as folder:
            figures = households(
                Path(folder).resolve(), chosen.large, tls=chosen.tls, workers=chosen.workers,
                at_once=chosen.at_once or 128, limit_s=chosen.limit, idle_s=chosen.idle,
            )  # fmt: skip
        results[GhostWire.name, int(figures["nodes"])] = figures
    for size in () if chosen.large else map(int, chosen.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=base) as folder:
            log(f"GhostWire, {size} nodes")
            ours = GhostWire(Path(folder).resolve(), policy=ALL, users=max(1, size // 10), workers=chosen.workers)
            results[ours.name, size] = everyone(ours, size, chosen.limit)
        binary = os.environ.get("HEADSCALE")
        if binary and not chosen.no_rival:
            with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=base) as folder:
                log(f"Headscale, {size} nodes")
                rival = Headscale(Path(folder).resolve(), binary)
                results[rival.name, size] = everyone(rival, size, chosen.limit)
    if chosen.large:
        for figures in results.values():
            for key, value in figures.items():
                print(f"{key:<34} {value:,.3f}")
    else:
        print_table(results)
        own = [f"{figures['own_cpu_registration_ms']:.2f} / {figures['own_cpu_change_ms']:.1f} ms"
               for figures in results.values()]  # fmt: skip
        print(f"the clients' own CPU, a registration / a change: {', '.join(own)}")
    write(rows_of(results, label), results)
    median = statistics.median(figures["registrations_per_s"] for figures in results.values())
    if median != median:
        sys.exit("error: nobody registered")


if __name__ == "__main__":
    main()
