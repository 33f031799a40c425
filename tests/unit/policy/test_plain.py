"""The engine against a plain reading of the specification, on policies and tailnets that never met before."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.policy.evaluate import evaluate
from gw.policy.reader import read_policy
from gw.policy.topology import read_topology

from .plain import Plain, as_rules
from .test_vectors import check

__all__ = ["check"]  # fixture

FOLDER = Path(__file__).parents[2] / "vectors" / "policy"


def accepted() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for category in ("acl", "grants", "routes"):
        with gzip.open(FOLDER / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            found += [vector for vector in map(json.loads, file) if vector["expect"]["error"] is None]
    return found


@pytest.mark.parametrize("seed", range(120))
def test_policy_of_one_vector_over_the_tailnet_of_another(seed: int, check: Any) -> None:
    chance = random.Random(seed)
    vectors = accepted()
    topology = read_topology(json.dumps(chance.choice(vectors)["topology"]).encode())
    for node in topology.nodes:  # and other routes, tags and owners than were captured
        if chance.random() < 0.3:
            node.routes.approved = list(node.routes.advertised)
        if chance.random() < 0.2 and topology.users:
            node.user, node.tags = chance.choice(topology.users).name, []
    text = chance.choice(vectors)["policy"].encode()
    result = json.loads(msgspec.json.encode(evaluate(topology, text)))
    if result["error"] is not None:
        return  # e.g. its own tests fail over these nodes
    plain = Plain(topology, read_policy(text))
    for node in topology.nodes:
        found = {name: set(routes) for name, routes in result["peers"][node.name].items()}
        assert found == plain.peers(node), node.name
        rules = [rule for rule in result["filter_rules"][node.name] if rule.get("DstPorts")]
        assert check.net(rules) == check.net(as_rules(plain.rules(node))), node.name
