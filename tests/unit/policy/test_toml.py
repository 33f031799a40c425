"""A policy in TOML says what it says in HuJSON, and its faults are told where they stand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.policy.evaluate import evaluate
from gw.policy.faults import PolicyError
from gw.policy.hujson import parse
from gw.policy.model import Policy
from gw.policy.toml import from_toml, read_toml_policy, to_toml
from gw.policy.topology import read_topology

FOLDER = Path(__file__).parents[2] / "vectors" / "policy"
POLICY = b"""# people
[groups]
"group:admins" = ["ann@x.org"]

[tagOwners]
"tag:nas" = ["group:admins"]

[[acls]]
action = "accept"
src = ["group:admins"]
dst = ["tag:nas:22", "tag:oops:80"]

[[grants]]
src = ["*"]
dst = ["tag:nas"]
ip = ["tcp:0"]
"""


@pytest.mark.parametrize("category", ["acl", "grants", "routes", "ssh", "nodeattrs"])
def test_there_and_back_means_the_same(category: str) -> None:
    with gzip.open(FOLDER / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
        vectors = [json.loads(line) for line in file][::6]
    for vector in vectors:
        text = vector["policy"].encode()
        back = from_toml(to_toml(text))
        topology = read_topology(json.dumps(vector["topology"]).encode())
        assert parse(back).plain() == parse(text).plain()
        assert evaluate(topology, back) == evaluate(topology, text)


def test_a_number_that_toml_cannot_say_is_refused_where_it_stands() -> None:
    with pytest.raises(PolicyError, match="TOML has no numbers") as found:
        to_toml(b'{"grants": [\n {"app": {"x.org/c": [1e400]}}]}')
    assert (found.value.line, found.value.column) == (2, 23)


def test_faults_are_told_at_their_place_in_the_toml() -> None:
    with pytest.raises(PolicyError) as found:
        read_toml_policy(POLICY)
    assert found.value.located == [
        (16, 7, "port range \"0\": first port must be >0, or use '*' for wildcard"),
        (11, 22, 'dst="tag:oops": tag not found: "tag:oops"'),
    ]


def test_a_good_one_is_a_policy() -> None:
    policy = read_toml_policy(POLICY.replace(b', "tag:oops:80"', b"").replace(b"tcp:0", b"tcp:80"))
    assert len(policy.grants or ()) == 2


def test_broken_toml_has_its_place() -> None:
    with pytest.raises(PolicyError, match="not TOML") as found:
        read_toml_policy(b"acls = [\n  {action = }\n]\n")
    assert (found.value.line, found.value.column) == (2, 13)


@given(st.binary(max_size=120))
def test_any_bytes_give_a_policy_or_one_error(raw: bytes) -> None:
    try:
        assert isinstance(read_toml_policy(raw), Policy)
    except PolicyError as error:
        assert error.message
