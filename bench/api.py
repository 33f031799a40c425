"""Lists of the API at 50,000 nodes: how long the whole takes, and how long it keeps everybody else waiting.

    ours    objects are made 250 at a time while the list is sent; between two pieces the event loop is free
    rival   the same objects made and encoded in one go

`bench/api.py --nodes 5000` for a shorter run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gw.control.admin import TABLE, answer
from gw.control.api.calls import Listing
from gw.control.tailnet import Tailnet
from gw.policy.starting import DENY_ALL
from gw.state.config import Config
from gw.state.documents import NodeDoc, PreauthKeyDoc, UserDoc

OUT = Path(__file__).resolve().parent / "out"
NOW = datetime(2031, 5, 1, tzinfo=UTC)
USERS = 1000
LONGEST_PAUSE_S = 0.25  # a list of 50,000 nodes must not hold the loop longer, on a busy machine too


class Full:
    """A store that holds everything and takes every change."""

    def __init__(self, nodes: int) -> None:
        self.users = {f"user{n}": UserDoc(id=n + 1, name=f"user{n}", created=NOW) for n in range(USERS)}
        self.keys = {
            f"{n:012x}": PreauthKeyDoc(id=n + 1, prefix=f"{n:012x}", hash="0" * 64, user=f"user{n}", created=NOW)
            for n in range(USERS)
        }
        self.nodes = {
            n: NodeDoc(
                id=n, machine_key=f"mkey:{n:064x}", node_key=f"nodekey:{n:064x}", user=f"user{n % USERS}",
                given_name=f"box-{n}", hostname=f"box-{n}", created=NOW, preauth_key=f"{n % USERS:012x}",
                addresses=[f"100.{64 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", f"fd7a:115c:a1e0::{n:x}"],
            )
            for n in range(1, nodes + 1)
        }  # fmt: skip

    def load(self, kind: str) -> dict[Any, Any]:
        return {"user": self.users, "preauthkey": self.keys, "node": self.nodes}.get(kind, {})

    async def commit(self, changes: list[Any]) -> None:
        return None


class Pauses:
    """The longest time that a task which wants to run every millisecond had to wait."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - before - 0.001)


async def timed(work: Any) -> tuple[float, float, int]:
    """Seconds, longest pause in seconds, bytes."""
    pauses = Pauses()
    async with asyncio.TaskGroup() as tasks:
        watcher = tasks.create_task(pauses.watch())
        await asyncio.sleep(0.05)
        pauses.longest_s = 0.0
        began = time.perf_counter()
        size = await work()
        took = time.perf_counter() - began
        await asyncio.sleep(0.01)
        watcher.cancel()
    return took, pauses.longest_s, size


async def sent(chunks: AsyncIterator[bytes]) -> int:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        await asyncio.sleep(0)
    return size


async def measure(nodes: int) -> list[dict[str, Any]]:
    tailnet = Tailnet.load(Full(nodes), Config(server_url="http://mesh.test"), DENY_ALL)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []

    def row(name: str, unit: str, ours: float, value: float) -> None:
        rows.append(
            {"name": name, "unit": unit, "ours": ours, "rival": "in one go", "rival_value": value,
             "ratio": ours / value, "better": "lower"}
        )  # fmt: skip

    for title, target in (("v1 node", "/api/v1/node"), ("v2 devices", "/api/v2/tailnet/-/devices?fields=all")):

        async def streamed(target: str = target) -> int:
            found = await TABLE.run(tailnet, "GET", target)
            assert isinstance(found, Listing)
            return await sent(found.chunks())

        async def whole(target: str = target) -> int:
            return len(msgspec.json.encode(await answer(tailnet, "GET", target)))

        took, pause, size = await timed(streamed)
        other, other_pause, _ = await timed(whole)
        row(f"{title}: all {nodes}, {size / 1e6:.0f} MB", "s", took, other)
        row(f"{title}: longest wait of others", "ms", pause * 1e3, other_pause * 1e3)
        assert pause < LONGEST_PAUSE_S, f"{title}: others waited {pause:.3f} s"

    async def one() -> int:
        for _ in range(100):
            await TABLE.run(tailnet, "GET", f"/api/v1/node/100.64.{nodes >> 8 & 255}.{nodes & 255}")
        return 0

    async def scan() -> int:
        for _ in range(100):
            next(each for each in tailnet.nodes.values() if each.id == nodes)
        return 0

    took, _, _ = await timed(one)
    other, _, _ = await timed(scan)
    row("v1 node by address: one of all", "ms", took * 10, other * 10)
    rows[-1]["rival"] = "a scan"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50_000)
    rows = asyncio.run(measure(parser.parse_args().nodes))
    OUT.mkdir(exist_ok=True)
    content = {"machine": platform.machine(), "python": platform.python_version(), "rows": rows}
    (OUT / "api.json").write_text(json.dumps(content, indent=2) + "\n")
    for each in rows:
        print(f"{each['name']:<40} {each['ours']:10.3f} {each['unit']:<4} {each['rival']} {each['rival_value']:.3f}")


if __name__ == "__main__":
    main()
