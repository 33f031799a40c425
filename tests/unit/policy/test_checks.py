"""A policy's own tests: what they may ask, and what they say of the rules.

Ref: spec policy §4.3, §13
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gw.policy.evaluate import evaluate
from gw.policy.topology import Topology, read_topology

NODES: list[dict[str, Any]] = [
    {"id": 1, "name": "laptop", "user": "ann", "ips": ["100.64.0.1", "fd7a:115c:a1e0::1"]},
    {"id": 2, "name": "phone", "user": "ann", "ips": ["100.64.0.2", "fd7a:115c:a1e0::2"]},
    {"id": 3, "name": "other", "user": "ben", "ips": ["100.64.0.3", "fd7a:115c:a1e0::3"]},
    {"id": 4, "name": "nas", "tags": ["tag:nas"], "ips": ["100.64.0.4", "fd7a:115c:a1e0::4"]},
]
USERS = [
    {"id": 1, "name": "ann", "email": "ann@x.org", "role": "owner"},
    {"id": 2, "name": "ben", "email": "ben@x.org"},
]
ACLS = [{"action": "accept", "src": ["ann@x.org"], "dst": ["tag:nas:22"]}]
SSH = [{"action": "check", "src": ["ann@x.org"], "dst": ["tag:nas"], "users": ["root"]}]


def topology(nodes: list[dict[str, Any]] = NODES) -> Topology:
    return read_topology(json.dumps({"domains": ["x.org"], "users": USERS, "nodes": nodes}).encode())


def message(**sections: Any) -> str:
    """Why the policy is refused; "" where it is accepted."""
    text = json.dumps(
        {"tagOwners": {"tag:nas": []}, "hosts": {"net": "100.64.0.0/24", "one": "100.64.0.4"}, **sections}
    )
    error = evaluate(topology(), text.encode())["error"]
    return str(error["message"]) if error else ""


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ({"src": "ann@x.org", "accept": ["tag:nas:22"], "deny": ["tag:nas:23"]}, True),
        ({"src": "ann@x.org", "accept": ["tag:nas:23"]}, False),
        ({"src": "ben@x.org", "accept": ["tag:nas:22"]}, False),
        ({"src": "ann@x.org", "deny": ["tag:nas:22"]}, False),
        ({"src": "ann@x.org"}, False),  # neither accept nor deny
        ({"src": "ann@x.org", "proto": "TCP", "accept": ["one:22"]}, True),
        ({"src": "ann@x.org", "proto": "17", "accept": ["one:22"]}, True),
        ({"src": "ann@x.org", "proto": "sctp", "accept": ["one:22"]}, False),  # no rule without protocol is about it
        ({"src": "ann@x.org", "proto": "icmp", "accept": ["one:22"]}, False),
        ({"src": "ann@x.org", "accept": ["[fd7a:115c:a1e0::4]:22"]}, True),
        ({"src": "ann@x.org", "accept": ["fd7a:115c:a1e0::4:22"]}, True),
        ({"src": "ann@x.org", "deny": ["192.0.2.7:22"]}, True),  # need not be a node
        # ports
        ({"src": "ann@x.org", "deny": ["tag:nas:*"]}, False),
        ({"src": "ann@x.org", "deny": ["tag:nas:80,81"]}, False),
        ({"src": "ann@x.org", "deny": ["tag:nas:80-81"]}, False),
        ({"src": "ann@x.org", "deny": ["tag:nas:0"]}, False),
        # destinations
        ({"src": "ann@x.org", "deny": ["192.0.2.7/32:22"]}, False),
        ({"src": "ann@x.org", "deny": ["net:23"]}, False),
        ({"src": "ann@x.org", "deny": ["*:23"]}, False),
        ({"src": "ann@x.org", "deny": ["autogroup:internet:23"]}, False),
        ({"src": "ann@x.org", "deny": ["autogroup:self:23"]}, False),
        ({"src": "ann@x.org", "deny": ["autogroup:danger-all:23"]}, False),
        ({"src": "ann@x.org", "deny": ["autogroup:admin:23"]}, False),
        ({"src": "ann@x.org", "deny": ["autogroup:member:23", "autogroup:tagged:23"]}, True),
        ({"src": "ann@x.org", "deny": ["[tag:nas]:23"]}, False),
        ({"src": "ann@x.org", "deny": [" tag:nas :23"]}, False),
        ({"src": "ann@x.org", "deny": ["tag:what:23"]}, False),
        # sources
        ({"src": "", "deny": ["tag:nas:23"]}, False),
        ({"src": "nobody@x.org", "deny": ["tag:nas:23"]}, False),
        ({"src": "autogroup:self", "deny": ["tag:nas:23"]}, False),
        ({"src": "autogroup:internet", "deny": ["tag:nas:23"]}, False),
        ({"src": "autogroup:danger-all", "deny": ["tag:nas:23"]}, False),
        ({"src": "autogroup:admin", "accept": ["tag:nas:22"]}, True),
        ({"src": " ann@x.org ", "accept": ["tag:nas:22"]}, True),
        ({"src": "*", "deny": ["tag:nas:23"]}, True),
        # every source must be allowed: one device of two is not enough
        ({"src": "autogroup:member", "accept": ["tag:nas:22"]}, False),
    ],
)
def test_packets(test: dict[str, Any], holds: bool) -> None:
    assert message(acls=ACLS, tests=[test, test]) == ("" if holds else "test(s) failed")


def test_each_prefix_of_a_source_is_asked_by_itself() -> None:
    """100.64.0.1 and 100.64.0.2 are neighbours, yet two prefixes."""
    acls = [{"action": "accept", "src": ["100.64.0.1", "fd7a:115c:a1e0::1"], "dst": ["one:22"]}]
    assert message(acls=acls, tests=[{"src": "100.64.0.1", "accept": ["one:22"]}]) == ""
    assert message(acls=acls, tests=[{"src": "ann@x.org", "accept": ["one:22"]}]) == "test(s) failed"


@pytest.mark.parametrize(
    ("stated", "holds"),
    [
        ({"srcPostureAttrs": {"node:os": "linux"}}, True),
        ({"srcPostureAttrs": {"node:os": "windows"}}, False),
        ({"srcPostureAttrs": {}}, False),
        ({}, False),  # then it is about the nodes as they are, and of these nothing is known
    ],
)
def test_the_posture_that_a_test_states_decides(stated: dict[str, Any], holds: bool) -> None:
    sections: dict[str, Any] = {"postures": {"posture:linux": ["node:os == 'linux'"]}}
    sections["acls"] = [{**ACLS[0], "srcPosture": ["posture:linux"]}]
    test = {"src": "ann@x.org", **stated}
    assert message(tests=[{**test, "accept": ["tag:nas:22"]}], **sections) == ("" if holds else "test(s) failed")
    assert message(tests=[{**test, "deny": ["tag:nas:22"]}], **sections) == ("test(s) failed" if holds else "")


def test_a_stated_posture_is_an_object() -> None:
    test = {"src": "ann@x.org", "accept": ["tag:nas:22"], "srcPostureAttrs": ["linux"]}
    assert message(acls=ACLS, tests=[test]) == "tests.srcPostureAttrs: expected an object"


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"src": "ann@x.org", "dst": ["tag:nas"], "accept": ["root"], "check": ["root"], "deny": ["bob"]}, ""),
        ({"src": "ann@x.org", "dst": ["tag:nas"], "deny": ["root"]}, "test(s) failed"),
        ({"src": "ben@x.org", "dst": ["tag:nas"], "deny": ["root"]}, ""),
        ({"src": "ann@x.org", "dst": ["one"], "check": ["root"]}, ""),
        ({"src": "ann@x.org", "dst": ["100.64.0.4"], "check": ["root"]}, ""),
        ({"src": "ann@x.org", "dst": ["net"], "deny": ["bob"]}, "test(s) failed"),  # no single address
        ({"src": "ann@x.org", "dst": ["tag:nas"]}, "test(s) failed"),
        ({"src": "ann@x.org", "dst": ["tag:nas"], "accept": [""]}, "test(s) failed"),
        ({"src": "ann@x.org", "dst": [], "deny": ["bob"]}, "test(s) failed"),
        ({"src": "nobody@x.org", "dst": ["tag:nas"], "deny": ["bob"]}, "test(s) failed"),
        ({"src": "192.0.2.7", "dst": ["tag:nas"], "deny": ["root"]}, ""),  # nobody's address, which no rule lets in
        ({"src": "192.0.2.7", "dst": ["tag:nas"], "accept": ["root"]}, "test(s) failed"),
        ({"src": "ann@x.org", "dst": ["autogroup:self"], "deny": ["root"]}, ""),
        ({"src": "ann@x.org", "dst": ["192.0.2.7"], "deny": ["root"]}, "test(s) failed"),  # no node
        ({"src": "ann@x.org", "dst": ["*"], "deny": ["root"]}, 'SSH tests dst contains disallowed element "*"'),
        ({"src": "ann@x.org", "dst": ["autogroup:admin"], "deny": ["root"]},
         'SSH tests dst contains disallowed element "autogroup:admin"'),
        ({"src": "ann@x.org", "dst": ["100.64.0.4/32"], "deny": ["root"]},
         'SSH tests dst contains disallowed element "100.64.0.4/32"'),
        ({"src": "ann@x.org", "dst": ["tag:no"], "deny": ["root"]}, 'SSH tests dst contains unknown tag "tag:no"'),
    ],
)  # fmt: skip
def test_logins(test: dict[str, Any], expected: str) -> None:
    assert message(acls=[], ssh=SSH, sshTests=[test]) == expected
