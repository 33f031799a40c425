"""Sentences of the specification that no capture speaks to, each over a small tailnet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gw.model.filterrule import FilterRule
from gw.model.gojson import decoder, encode
from gw.policy import durations
from gw.policy.evaluate import evaluate
from gw.policy.fields import Faults
from gw.policy.ipsets import IpSets
from gw.policy.postures import held, parse_assertion
from gw.policy.topology import read_topology

ROUTER = {"advertised": ["10.33.0.0/16"], "approved": ["10.33.0.0/16"]}
TOPOLOGY: dict[str, Any] = {
    "domains": ["x.org"],
    "users": [{"id": 1, "name": "ann", "email": "ann@x.org", "role": "owner"}, {"id": 2, "name": "local"}],
    "nodes": [
        {"id": 1, "name": "laptop", "user": "ann", "ips": ["100.64.0.1"], "attributes": {"node:os": "macos"}},
        {"id": 2, "name": "router", "tags": ["tag:r"], "ips": ["100.64.0.2"], "routes": ROUTER},
        {"id": 3, "name": "guest", "user": "local", "ips": ["100.64.0.3"]},
    ],
}


def result(text: str | dict[str, Any], nodes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    described = {**TOPOLOGY, "nodes": TOPOLOGY["nodes"] + (nodes or [])}
    raw = text if isinstance(text, str) else json.dumps({"tagOwners": {"tag:r": []}, **text})
    return evaluate(read_topology(json.dumps(described).encode()), raw.encode())


def message(text: str | dict[str, Any]) -> str:
    error = result(text)["error"]
    return str(error["message"]) if error else ""


def acl(**parts: Any) -> dict[str, Any]:
    return {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], **parts}]}


def grant(**parts: Any) -> dict[str, Any]:
    return {"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], **parts}]}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # names of tags
        ({"tagOwners": {"tag:": []}}, "tagOwners[\"tag:\"]: tag names must not be empty"),
        ({"tagOwners": {"tag:1a": []}}, "tagOwners[\"tag:1a\"]: tag names must start with a letter, after 'tag:'"),
        ({"tagOwners": {"tag:a_b": []}},
         'tagOwners["tag:a_b"]: tag names can only contain numbers, letters, or dashes'),
        ({"tagOwners": {"web": []}}, "tagOwners[\"web\"]: tags must start with 'tag:'"),
        ({"tagOwners": {"tag:a": ["tag:b"], "tag:b": ["tag:a", "tag:b"]}}, ""),
        # an ACL destination is not trimmed, and brackets are for IPv6 alone
        (acl(dst=[" tag:r:22"]), 'dst=" tag:r:22": invalid selector: " tag:r": white space around it'),
        (acl(dst=["tag:r :22"]), 'dst="tag:r :22": invalid selector: "tag:r ": white space around it'),
        (acl(dst=["[tag:r]:22"]), 'dst="[tag:r]:22": brackets are for IPv6 addresses'),
        (acl(dst=["[10.0.0.1]:22"]), 'dst="[10.0.0.1]:22": brackets are for IPv6 addresses'),
        (acl(dst=["[fd7a::/64]:22"]), 'dst="[fd7a::/64]:22": brackets are for IPv6 addresses'),
        (acl(dst=["[fd7a::1]:22", "[fd7a::]/64:22", "fd7a::1:22"]), ""),
        (acl(src=[" tag:r "]), ""),
        # the whole internet by whatever spelling
        (grant(dst=["0.0.0.0/0"]), 'dst "0.0.0.0/0": to allow all IP addresses, use "*" or "autogroup:internet"'),
        (grant(dst=["0::/0"]), 'dst "0::/0": to allow all IP addresses, use "*" or "autogroup:internet"'),
        (grant(dst=["10.0.0.0/0"]), 'dst "10.0.0.0/0": to allow all IP addresses, use "*" or "autogroup:internet"'),
        (acl(dst=["0.0.0.0/0:*"]), ""),
        # whom
        (acl(src=["user:*@"]), 'invalid selector: "user:*@": a domain is missing'),
        (acl(src=["fe80::1%eth0"]), 'invalid selector: "fe80::1%eth0"'),
        ({"hosts": {"h": "fe80::1%eth0"}},
         'hostname contains invalid IP address: hostname "h" address "fe80::1%eth0"'),
        ({"acls": [], "nodeAttrs": [{"target": ["no@x.org"], "attr": ["a"]}]},
         'nodeAttrs: user not found: "no@x.org"'),
        ({"acls": [], "nodeAttrs": [{"target": ["local@"], "attr": ["a"]}]}, ""),
        # capabilities of Tailscale's own domain
        ({"acls": [], "nodeAttrs": [{"target": ["*"], "app": {"tailscale.com/app-connectors": [{"name": "x"}]}}]}, ""),
        (grant(app={"tailscale.com/app-connectors": []}), "capability name must not be in the tailscale.com domain"),
        # white space and comments alone are no policy; no bytes at all are
        (" \n", "hujson: line 2, column 1: parsing value: unexpected EOF"),
        ("// nothing\n", "hujson: line 2, column 1: parsing value: unexpected EOF"),
        ("", ""),
    ],
)  # fmt: skip
def test_accepted_or_refused(policy: str | dict[str, Any], expected: str) -> None:
    assert message(policy) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("168h", ""),
        ("0", ""),
        ("0s", ""),
        ("1h30m", ""),
        ("always", ""),
        ("abc", 'time: invalid duration "abc"'),
        ("-+5m", 'time: invalid duration "-+5m"'),
        ("12", 'time: missing unit in duration "12"'),
        ("1h30", 'time: missing unit in duration "1h30"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("9999999999999h", 'time: invalid duration "9999999999999h"'),
        ("9" * 9000 + "h", f'time: invalid duration "{"9" * 9000}h"'),
        ("-1m", "checkPeriod -1m0s must be a positive duration"),
        ("-500ms", "checkPeriod -500ms must be a positive duration"),
        ("200h", "checkPeriod 200h0m0s is above the max (168h)"),
        ("168h0.5s", "checkPeriod 168h0m0.5s is above the max (168h)"),
    ],
)
def test_check_periods(text: str, expected: str) -> None:
    rule = {"action": "check", "src": ["autogroup:member"], "dst": ["tag:r"], "users": ["root"], "checkPeriod": text}
    assert message({"acls": [], "ssh": [rule]}) == expected


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(0, "0s"), (1, "1ns"), (1500, "1.5\u00b5s"), (2_000_000, "2ms"), (10**9, "1s"), (3_600 * 10**9, "1h0m0s")],
)
def test_durations_are_written_as_go_does(nanoseconds: int, text: str) -> None:
    assert durations.text_of(nanoseconds) == text
    assert durations.parse(text) == nanoseconds


def test_a_capability_for_one_address_behind_a_router_makes_nobody_visible() -> None:
    """No rule is left of it after the reduction to the router."""
    found = result({"grants": [{"src": ["ann@x.org"], "dst": ["10.33.0.5"], "app": {"x.org/cap": [1]}}]})
    assert found["peers"] == {"laptop": {}, "router": {}, "guest": {}}
    assert found["filter_rules"]["router"] == []
    found = result({"grants": [{"src": ["ann@x.org"], "dst": ["10.33.0.0/24"], "app": {"x.org/cap": [1]}}]})
    assert found["peers"] == {"laptop": {"router": ["10.33.0.0/16"]}, "router": {"laptop": []}, "guest": {}}


VALUES = r'[1e400, {"b": "\ud800", "a": [1.50, -0, 12345678901234567890123]}, /* why */ "<\u00e9>", null,]'


def test_values_of_capabilities_are_passed_through_as_they_are_spelled() -> None:
    """As Go's json.RawMessage: what is JSON is a value, whether or not a float or a string could hold it."""
    rule = f'{{"src": ["*"], "dst": ["tag:r"], "app": {{"x.org/cap": {VALUES}}}}}'
    given = f'{{"target": ["tag:r"], "app": {{"tailscale.com/app-connectors": {VALUES}}}}}'
    found = result(f'{{"tagOwners": {{"tag:r": []}}, "grants": [{rule}], "nodeAttrs": [{given}]}}')
    assert found["error"] is None
    expected = rb'[1e400,{"b":"\ud800","a":[1.50,-0,12345678901234567890123]},"<\u00e9>",null]'
    sent = encode(found["filter_rules"]["router"][0])
    assert b'"CapMap":{"x.org/cap":' + expected in sent
    assert expected in encode(found["node_attrs"]["router"])
    read = decoder(FilterRule)(sent)  # and our own node reads it, as a Go client does
    assert read.cap_grant is not None
    values = (read.cap_grant[0].cap_map or {})["x.org/cap"] or []
    assert bytes(values[1]) == rb'{"b":"\ufffd","a":[1.50,-0,12345678901234567890123]}'


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ('{"acls": [], "derpMap": {"Regions": {"1": {"RegionID": 1e400}}}}', "derpMap: number out of range: 1e400"),
        ('{"acls": [], "tests": [{"src": "*", "srcPostureAttrs": {"node:a": [-1e999]}}]}',
         "tests.srcPostureAttrs: number out of range: -1e999"),
        ('{"acls": [], "randomizeClientPort": 1e400}', "policy.randomizeClientPort: expected true or false"),
    ],
)  # fmt: skip
def test_a_number_that_somebody_has_to_read_must_be_one(policy: str, expected: str) -> None:
    assert message(policy) == expected


def test_users_without_an_address_are_in_no_domain() -> None:
    found = result(acl(src=["user:*@x.org"], dst=["tag:r:22"]))
    assert found["peers"]["guest"] == {}
    assert found["peers"]["laptop"] != {}


def test_routes_are_approved_however_they_are_written_and_the_internet_never() -> None:
    routes = {"advertised": ["10.0.0.1/24", "10.0.0.0/7", "::/0", "0.0.0.0/0", "fd00::/64"], "approved": []}
    node = {"id": 9, "name": "new", "tags": ["tag:r"], "ips": ["100.64.0.9"], "routes": routes}
    approvers = {"10.0.0.0/8": ["tag:r"], "0.0.0.0/0": ["ann@x.org"], "::/0": ["tag:r"]}
    found = result({"acls": [], "autoApprovers": {"routes": approvers}}, [node])
    assert found["auto_approved"]["new"] == ["10.0.0.1/24", "fd00::/64"]


def test_one_cgnat_route_is_for_macs() -> None:
    found = result({"acls": [], "OneCGNATRoute": "mac-never"})["node_attrs"]
    assert found == {"laptop": {"one-cgnat?v=false": None}, "router": {}, "guest": {}}


@pytest.mark.parametrize(
    ("assertion", "value", "holds"),
    [
        ("node:os == 'linux'", "linux", True),
        ("node:os=='linux'", "macos", False),
        ('  node:os != "linux"  ', "macos", True),
        ("node:os IN ['macos', 'linux']", "linux", True),
        ("node:os IN ['a,b' , 'c',]", "a,b", True),
        ("node:os IN []", "linux", False),
        ("node:os NOT IN ['macos']", "linux", True),
        ("node:os NOT IN ['macos']", None, False),  # a missing attribute fails
        ("node:os != 'macos'", None, False),
        ("node:os IS SET", "linux", True),
        ("node:os IS SET", None, False),
        ("node:os IS NOT SET", None, True),
        ("node:os >= '1.40'", "1.40.1", True),
        ("node:os >= '1.40'", "1.9", False),
        ("node:os < '1.40'", "1.40", False),
        ("node:os <= '1.040'", "1.40", True),
        ("node:os > 5", 6, True),
        ("node:os > 5", True, False),
        ("node:os == true", True, True),
        ("node:os == 1", True, False),
        ("node:os IN [1, true, 'x']", 1, True),
        ("node:os >= '1.2'", "9" * 5000, True),  # a node may say what it likes
    ],
)
def test_postures(assertion: str, value: object, holds: bool) -> None:
    attributes = {} if value is None else {"node:os": value}
    assert bool(held({"posture:x": (parse_assertion(assertion),)}, attributes)) is holds


@pytest.mark.parametrize(
    "text",
    ["", "node:os", "os == 'a'", "node:os = 'a'", "node:os == linux", "node:os in ['a']", "node:os IN 'a'",
     "node:os IN ['a' 'b']", "node:os IN ['a', b]", "node:os IN [,]", "node:os IS SET 'a'", "node:os == 'a' 'b'",
     "node:os == 'x" + " " * 100_000 + "y"],
)  # fmt: skip
def test_no_postures(text: str) -> None:
    with pytest.raises(ValueError, match="invalid posture assertion"):
        parse_assertion(text)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["10.0.0.0/30", "remove 10.0.0.1"], ["10.0.0.0", "10.0.0.2/31"]),
        (["remove 10.0.0.1", "10.0.0.0/30"], ["10.0.0.0/30"]),  # in order: what is added later is in
        (["10.0.0.0/30", "remove 10.0.0.0/30", "add 10.0.0.2"], ["10.0.0.2"]),
        (["host:h", "remove ipset:b"], ["192.0.2.0-192.0.2.4", "192.0.2.6-192.0.2.255"]),
        (["fd00::/126", "remove fd00::/127"], ["fd00::2/127"]),
    ],
)
def test_ip_sets(entries: list[str], expected: list[str]) -> None:
    faults = Faults()
    sets = IpSets({"h": (3221225984, 3221226239)})
    sets.define("a", 0, [(0, entry) for entry in entries])
    sets.define("b", 0, [(0, "192.0.2.5")])
    sets.resolve(faults)
    assert faults.found == []
    assert sets.resolved["a"].text() == expected
