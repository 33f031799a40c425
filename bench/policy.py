"""The policy engine at 50,000 nodes and 2,000 rules: a decision, a whole compile, a change of one node.

    nodes   half of them of 5,000 users in 500 groups, half tagged with one or two of 300 tags; some route a subnet
    rules   1,900 from groups and tags to a tag, host or subnet, on a few ports; 100 among the devices of a user

`bench/policy.py --nodes 5000 --rules 200` for a shorter run.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gw.control.server import COLLECT
from gw.policy.decisions import Decider
from gw.policy.engine import PolicyEngine
from gw.policy.filters import filter_for
from gw.policy.people import User
from gw.policy.reader import read_policy

OUT = Path(__file__).resolve().parent / "out"
POOLS = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
LIMITS = {"decision": 10e-6, "compile": 2.0, "update": 5e-3}  # seconds


@dataclass(eq=False)
class Device:
    id: int
    user: str
    tags: tuple[str, ...]
    served_routes: tuple[str, ...] = ()
    posture_attributes: dict[str, object] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()


def devices(count: int, chance: random.Random) -> list[Device]:
    found = []
    for id_ in range(1, count + 1):
        address = f"100.{64 + (id_ >> 16)}.{id_ >> 8 & 255}.{id_ & 255}", f"fd7a:115c:a1e0::{id_:x}"
        routes = (f"10.{id_ // 250 % 256}.0.0/16",) if id_ % 250 == 0 else ()
        if id_ % 2:
            found.append(Device(id_, f"user{id_ % 5000}", (), routes, addresses=address))
        else:
            tags = tuple({f"tag:t{chance.randrange(300)}" for _ in range(chance.choice([1, 1, 2]))})
            found.append(Device(id_, "", tags, routes, addresses=address))
    return found


def policy(rules: int, chance: random.Random) -> bytes:
    def source() -> str:
        return chance.choice([f"group:g{chance.randrange(500)}", f"tag:t{chance.randrange(300)}"])

    def target() -> str:
        return chance.choice([f"tag:t{chance.randrange(300)}", f"10.{chance.randrange(256)}.0.0/16", "h"])

    grants: list[dict[str, Any]] = [
        {
            "src": [source() for _ in range(2)],
            "dst": [target()],
            "ip": [f"tcp:{chance.choice([22, 80, 443, 5432])}", "udp:53"],
        }
        for _ in range(rules - rules // 20)
    ]
    grants += [
        {"src": [f"group:g{chance.randrange(500)}"], "dst": ["autogroup:self"], "ip": ["*"]} for _ in range(rules // 20)
    ]
    return json.dumps({
        "grants": grants,
        "groups": {f"group:g{n}": [f"user{chance.randrange(5000)}@" for _ in range(10)] for n in range(500)},
        "tagOwners": {f"tag:t{n}": [] for n in range(300)},
        "hosts": {"h": "10.7.7.0/24"},
    }).encode()  # fmt: skip


def timed(action: Callable[[], object], repeat: int) -> list[float]:
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=50_000)
    parser.add_argument("--rules", type=int, default=2_000)
    chosen = parser.parse_args()
    chance = random.Random(7)
    nodes = devices(chosen.nodes, chance)
    text = policy(chosen.rules, chance)
    users = [User(f"user{n}", id=n) for n in range(5000)]
    parsed = timed(lambda: read_policy(text), 3)
    read = read_policy(text)
    engine: PolicyEngine[Device] = PolicyEngine(read, POOLS, users)
    for node in nodes:
        engine.add(node)
    gc.freeze()
    gc.set_threshold(*COLLECT)  # as the server has it
    compiles = timed(lambda: engine.set_policy(read), 3)
    decider = Decider(engine.view)
    pairs = [(chance.choice(nodes), chance.choice(nodes)) for _ in range(200_000)]

    def decide() -> None:
        for one, two in pairs:
            decider.allows(one, two, 6, 443)

    decisions = [each / len(pairs) for each in timed(decide, 3)]
    asked = chance.sample(nodes, 200)
    filters = timed(lambda: [filter_for(engine.view, node) for node in asked], 1)[0] / len(asked)
    warm = timed(lambda: [filter_for(engine.view, node) for node in asked], 1)[0] / len(asked)
    peers = timed(lambda: [engine.peers_of(node) for node in asked], 1)[0] / len(asked)
    updates, removals, additions = [], [], []
    for node in asked:
        node.tags = () if node.tags else ("tag:t1",)
        node.user = "" if node.tags else "user7"
        updates += timed(lambda node=node: engine.update(node), 1)
        removals += timed(lambda node=node: engine.remove(node), 1)
        additions += timed(lambda node=node: engine.add(node), 1)
    named = next(each for each in read.groups["group:g0"]).removesuffix("@")
    for node in nodes:
        if node.user == named:
            engine.remove(node)
    engine.drop_user(named)
    arrivals = timed(lambda: engine.put_user(User(named, id=1)), 1)
    size = f"{chosen.nodes:,} nodes, {chosen.rules:,} rules"
    rows = [
        row(f"decision ({size})", "µs", statistics.median(decisions) * 1e6),
        row(f"whole compile ({size})", "s", statistics.median(compiles)),
        row(f"reading the text ({len(text) // 1024} KiB)", "s", statistics.median(parsed)),
        row("a user that the policy names comes", "ms", arrivals[0] * 1e3),
        row("one node: change, p99", "ms", percentile(updates, 99) * 1e3),
        row("one node: removal, p99", "ms", percentile(removals, 99) * 1e3),
        row("one node: arrival, p99", "ms", percentile(additions, 99) * 1e3),
        row("filter of a node, first asked", "ms", filters * 1e3),
        row("filter of a node, asked again", "ms", warm * 1e3),
        row("peers of a node", "ms", peers * 1e3),
    ]
    OUT.mkdir(exist_ok=True)
    (OUT / "policy.json").write_text(json.dumps({"machine": platform.machine(), "rows": rows}, indent=1) + "\n")
    for each in rows:
        print(f"{each['name']:<48} {each['ours']:>10.3f} {each['unit']}")
    for name, limit, found in (
        ("decision", LIMITS["decision"], statistics.median(decisions)),
        ("compile", LIMITS["compile"], statistics.median(compiles)),
        ("update", LIMITS["update"], percentile([*updates, *removals, *additions], 99)),
    ):
        print(f"{name}: {'within' if found <= limit else 'ABOVE'} its limit of {limit:g} s")


def row(name: str, unit: str, ours: float) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "better": "lower"}


def percentile(found: list[float], share: int) -> float:
    return sorted(found)[min(len(found) - 1, len(found) * share // 100)]


if __name__ == "__main__":
    main()
