"""The parent of the swarms: commands to all, times of all, every one on the machine's one monotonic clock."""

from __future__ import annotations

import multiprocessing
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final

from loadgen.swarm import Plan, Report, main

PER_PROCESS: Final = 17_000  # a process has 20,000 descriptors


@dataclass(slots=True)
class Cost:
    cpu_s: float
    rss_bytes: int


class Fleet:
    """clients: (number, auth key, peers it shall see in the end). Use as a context."""

    def __init__(
        self, host: str, port: int, clients: list[tuple[int, str, int]], *, tls: bool = False, salt: str = "",
        fetch_key: bool = True,
    ) -> None:  # fmt: skip
        count = -(-len(clients) // PER_PROCESS)
        self.size = len(clients)
        self.home: dict[int, int] = {}
        self._pipes: list[Connection] = []
        self._children: list[Any] = []
        context = multiprocessing.get_context("spawn")
        for number in range(count):
            mine = clients[number::count]
            self.home |= {index: number for index, _, _ in mine}
            ours, theirs = context.Pipe()
            plan = Plan(host, port, tls, [f"127.0.{number + 1}.{each}" for each in range(1, 9)], salt, mine, fetch_key)
            child = context.Process(target=main, args=(plan, theirs), daemon=True)
            child.start()
            theirs.close()
            self._pipes.append(ours)
            self._children.append(child)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(("stop", None))
            except OSError:
                continue
        for child in self._children:
            child.join(10)
            if child.is_alive():
                child.kill()

    def ask(self, verb: str, value: Any = None) -> list[Any]:
        """The answers of all processes."""
        for pipe in self._pipes:
            pipe.send((verb, value))
        return [pipe.recv() for pipe in self._pipes]

    def go(self, goal: str, at_once: int, *, stay: bool = True) -> float:
        """Send all clients to a goal. Returns when it began."""
        begun = time.monotonic()
        self.ask("go", (goal, max(1, at_once // len(self._pipes)), stay))
        return begun

    def status(self) -> Report:
        total = Report()
        for part in self.ask("status"):
            total.registered += part.registered
            total.streaming += part.streaming
            total.complete += part.complete
            total.pending += part.pending
            total.lost += part.lost
            total.registered_at = max(total.registered_at, part.registered_at)
            total.first_map_at = max(total.first_map_at, part.first_map_at)
            total.complete_at = max(total.complete_at, part.complete_at)
            total.missing |= part.missing
            for why, count in part.errors.items():
                total.errors[why] = total.errors.get(why, 0) + count
        return total

    def wait(self, until: str, limit_s: float, *, poll_s: float = 0.1, say: bool = False) -> Report:
        """Until all are `registered`, `streaming` or `complete`, at most so long."""
        deadline = time.monotonic() + limit_s
        told = time.monotonic()
        while True:
            report = self.status()
            if getattr(report, until) >= self.size or time.monotonic() > deadline:
                return report
            if say and time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"    {until}: {getattr(report, until):,} of {self.size:,}", file=sys.stderr, flush=True)
            time.sleep(poll_s)

    def change(self, index: int, number: int) -> None:
        """One client has other endpoints now."""
        self._pipes[self.home[index]].send(("change", (index, number)))

    def arrivals(self) -> dict[int, list[float]]:
        """Seconds from each change to each peer that heard of it."""
        sent: dict[int, float] = {}
        arrived: dict[int, list[float]] = {}
        for their_sent, their_arrived in self.ask("arrivals"):
            sent |= their_sent
            for number, times in their_arrived.items():
                arrived.setdefault(number, []).extend(times)
        return {number: [when - begun for when in arrived.get(number, [])] for number, begun in sent.items()}

    def latencies(self) -> list[float]:
        return [each for part in self.ask("latencies") for each in part]

    def cost(self) -> Cost:
        parts = self.ask("cost")
        return Cost(sum(cpu for cpu, _ in parts), sum(rss for _, rss in parts))
