"""Huge and hostile texts cost what they are long: not the square of it, and not the depth of the stack."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gw.policy.checks import Checks
from gw.policy.compiled import Compiled
from gw.policy.explain import Explainer, parse_question
from gw.policy.faults import PolicyError
from gw.policy.formatting import formatted
from gw.policy.ownership import TagOwners
from gw.policy.people import People, User
from gw.policy.reader import MAX_TOLD, read_policy
from gw.policy.toml import read_toml_policy
from gw.policy.topology import read_topology, view_of

MANY = 5000


def read(**sections: Any) -> Any:
    return read_policy(json.dumps(sections).encode())


def test_sets_within_sets_as_deep_as_they_like() -> None:
    ipsets = {f"ipset:{each}": [f"ipset:{each + 1}"] for each in range(MANY)}
    policy = read(ipsets={**ipsets, f"ipset:{MANY}": ["192.0.2.1"]})
    assert policy.ipsets["0"].text() == ["192.0.2.1"]


def test_tags_that_own_tags_as_deep_as_they_like() -> None:
    owners = {f"tag:a{each}": [f"tag:a{each + 1}"] for each in range(MANY)}
    policy = read(tagOwners={**owners, f"tag:a{MANY}": ["ann@"]})
    tag_owners = TagOwners(Compiled(policy, People([User("ann")]), []))
    assert tag_owners.may("ann", "tag:a0")
    assert not tag_owners.may("ben", "tag:a0")


def test_many_words_about_one_set() -> None:
    added = [f"10.{each // 256}.{each % 256}.0/25" for each in range(MANY)]
    removed = [f"remove 10.{each // 256}.{each % 256}.0" for each in range(MANY)]
    mixed = [entry for pair in zip(added, removed, strict=True) for entry in pair]
    assert len(read(ipsets={"ipset:a": mixed}).ipsets["a"]) == MANY


def test_many_faults_are_counted_and_the_first_are_told() -> None:
    rule = {"action": "accept", "src": [f"tag:{each}" for each in range(20_000)], "dst": ["*:*"]}
    with pytest.raises(PolicyError) as found:
        read(acls=[rule])
    assert len(found.value.located) == MAX_TOLD
    assert found.value.details[-1] == f"and {20_000 - MAX_TOLD} more"


def test_many_rules_about_one_large_group() -> None:
    users = [User(f"u{each}", f"u{each}@x.org") for each in range(MANY)]
    rule = {"action": "accept", "src": ["group:g"], "dst": ["*:22"]}
    policy = read(groups={"group:g": [user.email for user in users]}, acls=[rule] * 1000)
    compiled = Compiled(policy, People(users, policy.groups), ["100.64.0.0/10"])
    assert compiled.sources.of_owner("u7", frozenset()) == (1 << 1000) - 1


def test_a_long_line_is_formatted() -> None:
    raw = b'{"a":[' + b'["x"],' * 50_000 + b"]}"
    assert formatted(raw) == b'{"a": [' + b", ".join([b'["x"]'] * 50_000) + b"]}\n"


@pytest.mark.parametrize("raw", [b"a = " + b"1" * 5000, b"a = nan", b"a = " + b"[" * 3000, b"a = " + b"[" * 400])
def test_no_toml_is_too_strange(raw: bytes) -> None:
    with pytest.raises(PolicyError):
        read_toml_policy(raw)


def test_many_nodes_many_rules_and_their_tests() -> None:
    nodes = [
        {"id": each, "name": f"n{each}", "user": "a", "ips": [f"100.64.{each // 250}.{each % 250}"]}
        for each in range(3000)
    ]
    topology = read_topology(json.dumps({"users": [{"name": "a", "email": "a@x"}], "nodes": nodes}).encode())
    acl = {"action": "accept", "src": ["a@x"], "dst": ["192.0.2.1:22", "b@x:22"]}
    ssh = {"action": "accept", "src": ["a@x"], "dst": ["a@x"], "users": ["root"]}
    text = json.dumps({
        "acls": [acl] * 50,
        "ssh": [ssh],
        "tests": [{"src": "a@x", "accept": ["192.0.2.1:22"], "deny": ["a@x:22"]}],
        "sshTests": [{"src": "a@x", "dst": ["a@x"], "accept": ["root"], "deny": ["bob"]}],
    })  # fmt: skip
    assert Checks(view_of(topology, text.encode())).failures() == []


def test_why_with_many_rules_that_allow_it() -> None:
    topology = read_topology(
        b'{"nodes": [{"id": 1, "name": "one", "ips": ["100.64.0.1"]}, {"id": 2, "name": "two", "ips": ["100.64.0.2"]}]}'
    )
    text = json.dumps({"grants": [{"src": ["*"], "dst": ["*"], "ip": ["22"]}] * 2000}).encode()
    found = Explainer(view_of(topology, text)).explain(parse_question("one", "two:22"))
    assert len(found.allowed_by) == 2000
