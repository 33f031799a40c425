"""What the event trail costs registrations: nodes log in, in one process, with a trail and without one, by turns.

    rows: registrations a second with the trail, against the same without; appending one event; verifying a trail

`bench/events.py --nodes 1000` for a shorter run. The directory lies below `$GW_BENCH_DIR`, else below the working
directory: not on tmpfs, where nothing is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gw.control import accounts, enrolment, events
from gw.control.tailnet import Tailnet
from gw.model.hostinfo import Hostinfo
from gw.model.registration import RegisterAuth, RegisterRequest
from gw.policy.reader import read_policy
from gw.policy.starting import OWN_DEVICES_TEXT
from gw.state.config import Config
from gw.state.heads import public_hex, signing_key
from gw.state.layout import init_state_dir
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore
from gw.state.trail import Trail
from gw.state.trailreading import kept_heads, verify

OUT = Path(__file__).resolve().parent / "out"
AT_ONCE = 64
EVENTS = 20_000
Row = dict[str, Any]


def registered(folder: Path, nodes: int, *, with_trail: bool) -> tuple[float, float]:
    """Seconds and CPU seconds for so many logins, 64 at a time, every one durable."""
    paths = StatePaths(folder)
    init_state_dir(paths, config='server_url = "http://bench.test"\n', policy=OWN_DEVICES_TEXT)
    with DirectoryStore(paths).open() as store:
        record = events.recorder(store.trail) if with_trail else lambda entry: None
        tailnet = Tailnet.load(
            store, Config(server_url="http://bench.test"), read_policy(OWN_DEVICES_TEXT.encode()), record
        )
        return asyncio.run(_log_in(tailnet, store, nodes))


async def _log_in(tailnet: Tailnet, store: DirectoryStore, nodes: int) -> tuple[float, float]:
    user = await accounts.create_user(tailnet, "bench")
    _, key = await accounts.create_preauth_key(tailnet, user=user, reusable=True)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            request = RegisterRequest(
                node_key=f"nodekey:{number + 1:064x}", auth=RegisterAuth(auth_key=key),
                hostinfo=Hostinfo(hostname=f"n{number}"),
            )  # fmt: skip
            await enrolment.register_preauth(tailnet, f"mkey:{number + 1:064x}", request)

    async with tailnet.running():
        begun, used = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for number in range(nodes):
                tasks.create_task(one(number))
        return time.perf_counter() - begun, time.process_time() - used


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nodes", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    place = Path(os.environ.get("GW_BENCH_DIR") or os.getcwd())
    with tempfile.TemporaryDirectory(prefix="gw-bench-", dir=place) as name:
        folder = Path(name)
        figures: dict[bool, list[float]] = {True: [], False: []}
        costs: dict[bool, list[float]] = {True: [], False: []}
        for round_ in range(chosen.rounds):
            for with_trail in (True, False) if round_ % 2 else (False, True):
                seconds, used = registered(folder / "state", chosen.nodes, with_trail=with_trail)
                figures[with_trail].append(chosen.nodes / seconds)
                costs[with_trail].append(used / chosen.nodes * 1e6)
                shutil.rmtree(folder / "state")
        trail = Trail(folder / "events", folder / "keys" / "events.key")
        begun = time.perf_counter()
        for number in range(EVENTS):
            trail.append(
                1e9, "node-registered", actor="machine mkey:0000…", subject=f"node:{number}", after={"id": number}
            )
        append_us = (time.perf_counter() - begun) / EVENTS * 1e6
        trail.close(1e9)
        begun = time.perf_counter()
        verdict = verify(folder / "events", public_hex(signing_key(folder / "keys" / "events.key")),
                         kept_heads(folder / "events"))  # fmt: skip
        verify_us = (time.perf_counter() - begun) / EVENTS * 1e6
        assert verdict.is_whole and verdict.lines == EVENTS
    ours, rival = statistics.median(figures[True]), statistics.median(figures[False])
    dear, cheap = statistics.median(costs[True]), statistics.median(costs[False])
    rows: list[Row] = [
        {"name": "registrations with the event trail", "unit": "1/s", "ours": round(ours), "rival": "without it",
         "rival_value": round(rival), "ratio": round(ours / rival, 3), "better": "higher"},
        {"name": "CPU a registration with the event trail", "unit": "us", "ours": round(dear), "rival": "without it",
         "rival_value": round(cheap), "ratio": round(dear / cheap, 3), "better": "lower"},
        {"name": "append one event", "unit": "us", "ours": round(append_us, 1), "better": "lower"},
        {"name": "verify one event", "unit": "us", "ours": round(verify_us, 1), "better": "lower"},
    ]  # fmt: skip
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    OUT.mkdir(exist_ok=True)
    (OUT / "events.json").write_text(json.dumps({"bench": "events", "machine": machine, "rows": rows}, indent=1) + "\n")
    json.dump(rows, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
