"""476 captures of the public Tailscale service, each compared by the rules of the vectors' README."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.policy.evaluate import evaluate
from gw.policy.topology import read_topology

FOLDER = Path(__file__).parents[2] / "vectors" / "policy"


def vectors() -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [pytest.param(vector, id=vector["name"]) for vector in map(json.loads, file)]
    return found


@pytest.fixture(scope="module")
def check() -> Any:
    spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_there() -> None:
    assert len(vectors()) == 476


@pytest.mark.parametrize("vector", vectors())
def test_the_result_is_the_service_s(vector: dict[str, Any], check: Any) -> None:
    topology = read_topology(json.dumps(vector["topology"]).encode())
    result = json.loads(msgspec.json.encode(evaluate(topology, vector["policy"].encode())))
    fields, extended = check.compare(vector["expect"], result)
    assert all((fields | extended).values()), fields | extended
