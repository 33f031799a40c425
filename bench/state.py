"""The state directory: loading many nodes, and what one durable change costs.

    rows: load of 50,000 node documents (also hand-edited ones) against tomli + msgspec alone on the same files
          one durable change at 100, 5,000 and 50,000 nodes, against SQLite (WAL, synchronous=FULL) holding as many
          many durable changes at once, a second, against SQLite's one-by-one transactions

`bench/state.py --nodes 10000` for a shorter run. The directory lies below `$GW_BENCH_DIR`, else below the working
directory: not on tmpfs, where nothing is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import tomli

from gw.state.codec import encode
from gw.state.documents import NodeDoc
from gw.state.layout import init_state_dir
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore, Put

OUT = Path(__file__).resolve().parent / "out"
CREATED = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)
CHANGES = 200
AT_ONCE = 2000
LOAD_LIMIT_S = 10.0

Row = dict[str, Any]


def node(number: int) -> NodeDoc:
    return NodeDoc(
        id=number,
        machine_key=f"mkey:{number:064x}",
        node_key=f"nodekey:{number * 7:064x}",
        user=f"user{number % 200}",
        given_name=f"node-{number}",
        hostname=f"node-{number}",
        addresses=[f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", f"fd7a:115c:a1e0::{number:x}"],
        created=CREATED,
        register_method="authkey",
        preauth_key="abcdefghijkl",
    )


def fill(paths: StatePaths, count: int, *, by_hand: bool = False) -> None:
    init_state_dir(paths, config="server_url = 'http://bench.test'\n")
    for number in range(1, count + 1):
        raw = encode(node(number))
        (paths.nodes_dir / f"{number}.toml").write_bytes(b"# by hand\n" + raw if by_hand else raw)
    os.sync()


def row(name: str, unit: str, ours: float, rival: str, rival_value: float, better: str) -> Row:
    return {
        "name": name, "unit": unit, "ours": ours, "rival": rival, "rival_value": rival_value,
        "ratio": ours / rival_value if rival_value else None, "better": better,
    }  # fmt: skip


LOADER = """
import resource, sys, time
from pathlib import Path
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
store = DirectoryStore(StatePaths(Path(sys.argv[1]))).open()
nodes = store.load("node")
print(len(nodes), time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
store.close()
"""


def load(paths: StatePaths, count: int) -> tuple[float, float]:
    """Seconds and MiB of a fresh process that opens the directory and loads every node."""
    command = [sys.executable, "-P", "-c", LOADER, str(paths.root)]
    found, seconds, mebibytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(found) == count
    return float(seconds), float(mebibytes)


def load_plain(paths: StatePaths) -> float:
    """The rival: read each file, tomli, msgspec.convert; no checks, no fingerprints."""
    documents = []
    start = time.perf_counter()
    for entry in os.scandir(paths.nodes_dir):
        with open(entry.path, "rb") as file:
            documents.append(msgspec.convert(tomli.load(file), NodeDoc))
    return time.perf_counter() - start


async def change(paths: StatePaths, count: int) -> tuple[float, float]:
    """Median microseconds of one durable change, and durable changes a second with many callers."""
    with DirectoryStore(paths).open() as store:
        nodes = store.load("node")
        times = []
        for step in range(CHANGES):
            doc = nodes[step * 7919 % count + 1].edited(hostname=f"renamed-{step}")
            start = time.perf_counter()
            await store.commit([Put(doc)])
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        await asyncio.gather(*(store.commit([Put(node(step % count + 1))]) for step in range(AT_ONCE)))
        return statistics.median(times) * 1e6, AT_ONCE / (time.perf_counter() - start)


def change_sqlite(folder: Path, count: int) -> float:
    """The rival: median microseconds of one durable update in SQLite with as many rows."""
    database = sqlite3.connect(folder / f"rival-{count}.db", isolation_level=None)
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = full")
    database.execute("create table nodes (id integer primary key, doc blob)")
    database.execute("begin")
    database.executemany("insert into nodes values (?, ?)", ((n, encode(node(n))) for n in range(1, count + 1)))
    database.execute("commit")
    times = []
    for step in range(CHANGES):
        number = step * 7919 % count + 1
        raw = encode(node(number).edited(hostname=f"renamed-{step}"))
        start = time.perf_counter()
        database.execute("update nodes set doc = ? where id = ?", (raw, number))
        times.append(time.perf_counter() - start)
    database.close()
    return statistics.median(times) * 1e6


def measure(folder: Path, most: int) -> list[Row]:
    rows: list[Row] = []
    sizes = sorted({min(size, most) for size in (100, 5_000, most)})
    costs: dict[int, float] = {}
    for size in sizes:
        paths = StatePaths(folder / f"nodes-{size}")
        fill(paths, size)
        if size == most:
            seconds, mebibytes = min(load(paths, size) for _ in range(2))
            plain = load_plain(paths)
            rows.append(row(f"load {size:,} nodes", "s", seconds, "tomli+msgspec", plain, "lower"))
            rows.append(row(f"memory of {size:,} nodes", "MiB", mebibytes, "", 0, "lower"))
        costs[size], rate = asyncio.run(change(paths, size))
        sqlite = change_sqlite(folder, size)
        rows.append(row(f"one durable change, {size:,} nodes", "us", costs[size], "SQLite", sqlite, "lower"))
        rows.append(
            row(
                f"{AT_ONCE:,} changes at once, {size:,} nodes", "1/s", rate, "SQLite one by one", 1e6 / sqlite, "higher"
            )
        )
    small, large = costs[sizes[0]], costs[sizes[-1]]
    rows.append(
        row(f"one change: {sizes[-1]:,} against {sizes[0]:,} nodes", "us", large, f"{sizes[0]:,}", small, "lower")
    )
    paths = StatePaths(folder / "by-hand")
    fill(paths, most, by_hand=True)
    seconds, _ = load(paths, most)
    rows.append(row(f"load {most:,} nodes with comments", "s", seconds, "tomli+msgspec", load_plain(paths), "lower"))
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nodes", type=int, default=50_000)
    most = options.parse_args().nodes
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=os.environ.get("GW_BENCH_DIR", ".")) as folder:
        rows = measure(Path(folder), most)
    for found in rows:
        rival = f"{found['rival']} {found['rival_value']:,.4g}, ratio {found['ratio']:.2f}" if found["ratio"] else ""
        print(f"{found['name']:<44} {found['ours']:>12,.4g} {found['unit']:<5} {rival}")
    OUT.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"CPython {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    report = {"machine": machine, "versions": versions, "rows": rows}
    (OUT / "state.json").write_text(json.dumps(report, indent=1) + "\n")
    slow = [found for found in rows if found["name"].startswith("load") and found["ours"] > LOAD_LIMIT_S]
    if slow:
        sys.exit(f"error: loading takes longer than {LOAD_LIMIT_S:.0f} s")


if __name__ == "__main__":
    main()
