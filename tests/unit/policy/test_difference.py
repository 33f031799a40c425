"""`policy diff`: all that a new policy opens and closes, as filters, routes and SSH rules of both say it."""

from __future__ import annotations

import gzip
import json
import random
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.model.filterrule import FilterRule
from gw.policy.difference import Difference, difference
from gw.policy.evaluate import evaluate
from gw.policy.faults import PolicyError
from gw.policy.topology import read_topology, view_of

from .clientfilter import accepts

FOLDER = Path(__file__).parents[2] / "vectors" / "policy"
Filters = dict[str, list[FilterRule]]
EXITS = ["0.0.0.0/0", "::/0"]
TOPOLOGY = read_topology(
    json.dumps({
        "users": [{"id": 1, "name": "ann", "email": "ann@x.org"}, {"id": 2, "name": "ben", "email": "ben@x.org"}],
        "nodes": [
            {"id": 1, "name": "laptop", "user": "ann", "ips": ["100.64.0.1", "fd7a:115c:a1e0::1"]},
            {"id": 2, "name": "nas", "tags": ["tag:nas"], "ips": ["100.64.0.2"],
             "routes": {"advertised": ["10.0.0.0/8"], "approved": ["10.0.0.0/8"]}},
            {"id": 3, "name": "phone", "user": "ann", "ips": ["100.64.0.3"]},
            {"id": 4, "name": "other", "user": "ben", "ips": ["100.64.0.4"]},
            {"id": 5, "name": "exit", "tags": ["tag:exit"], "ips": ["100.64.0.5"],
             "routes": {"advertised": EXITS, "approved": EXITS}},
        ],
    }).encode()
)  # fmt: skip
ANN_TO_NAS: dict[str, Any] = {"src": ["ann@x.org"], "dst": ["tag:nas"]}
OWNERS = {"tagOwners": {"tag:nas": [], "tag:exit": []}}


def changed(old: dict[str, Any], new: dict[str, Any]) -> Difference:
    texts = (json.dumps({**OWNERS, "grants": [], **each}).encode() for each in (old, new))
    return difference(*(view_of(TOPOLOGY, text) for text in texts))


def lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Of the difference; the other way round it must say the same with the signs exchanged."""
    found = changed(old, new).lines()
    other = [line.translate({43: "-", 45: "+"})[:1] + line[1:] for line in changed(new, old).lines()]
    assert sorted(found) == sorted(other)
    return found


def grants(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"grants": list(rules)}


def ssh(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"ssh": [{**ANN_TO_NAS, "action": "accept", **rule} for rule in rules]}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # behind a router
        (grants(), grants({**ANN_TO_NAS, "dst": ["10.1.0.0/16"], "ip": ["tcp:443"]}),
         ["+ laptop, phone -> 10.1.0.0/16 via nas: tcp:443"]),
        (grants({**ANN_TO_NAS, "dst": ["10.1.0.0/16"], "ip": ["tcp:443"]}),
         grants({**ANN_TO_NAS, "dst": ["10.1.0.0/17"], "ip": ["tcp:443-444"]}),
         ["+ laptop, phone -> 10.1.0.0/17 via nas: tcp:444", "- laptop, phone -> 10.1.128.0/17 via nas: tcp:443"]),
        (grants(), grants({**ANN_TO_NAS, "dst": ["192.0.2.0/24"], "ip": ["*"]}), []),  # nobody leads there
        # exit nodes
        (grants(), grants({**ANN_TO_NAS, "dst": ["autogroup:internet"], "ip": ["*"]}),
         ["+ laptop, phone -> autogroup:internet via exit: *"]),
        (grants(), grants({**ANN_TO_NAS, "dst": ["autogroup:internet"], "ip": ["*"], "via": ["tag:exit"]}),
         ["+ laptop, phone -> autogroup:internet via exit: *"]),
        (grants(), grants({**ANN_TO_NAS, "dst": ["tag:exit"], "ip": ["tcp:80"]}), ["+ laptop, phone -> exit: tcp:80"]),
        # SSH
        (ssh(), ssh({"users": ["root", "deploy"]}), ["+ ssh laptop, phone -> nas as deploy, root: accept"]),
        (ssh({"users": ["root", "autogroup:nonroot"]}), ssh({"users": ["autogroup:nonroot"]}),
         ["- ssh laptop, phone -> nas as root: accept"]),
        (ssh({"users": ["root"]}), ssh({"users": ["root"], "action": "check"}),
         ["+ ssh laptop, phone -> nas as root: check", "- ssh laptop, phone -> nas as root: accept"]),
        (ssh({"users": ["autogroup:nonroot"]}), ssh({"users": ["autogroup:nonroot"]}, {"users": ["ann"]}), []),
        (ssh(), ssh({"users": ["x"], "acceptEnv": ["LANG"]}),
         ["+ ssh laptop, phone -> nas as x: accept, environment LANG"]),
        (ssh(), ssh({"users": ["root"], "dst": ["autogroup:self"]}),
         ["+ ssh phone -> laptop as root: accept", "+ ssh laptop -> phone as root: accept"]),
        # capabilities
        (grants(), grants({**ANN_TO_NAS, "app": {"x.org/cap": [{"a": 1}, 2]}}),
         ['+ app laptop, phone -> nas: x.org/cap 2, {"a":1}']),
        (grants({**ANN_TO_NAS, "app": {"x.org/cap": [1, 2]}}), grants({**ANN_TO_NAS, "app": {"x.org/cap": [2, 3]}}),
         ["+ app laptop, phone -> nas: x.org/cap 3", "- app laptop, phone -> nas: x.org/cap 1"]),
        (grants(), grants({**ANN_TO_NAS, "dst": ["autogroup:self", "10.1.0.0/16"], "app": {"x.org/cap": []}}),
         ["+ app laptop, phone -> laptop, phone: x.org/cap", "+ app laptop, phone -> 10.1.0.0/16 via nas: x.org/cap"]),
        (grants(), grants({**ANN_TO_NAS, "app": {"tailscale.com/cap/drive": [1]}}),
         ["+ app laptop, phone -> nas: tailscale.com/cap/drive 1"]),
        # attributes and approvals
        ({}, {"nodeAttrs": [{"target": ["ann@x.org"], "attr": ["a"], "app": {"x.org/y": [1]}}]},
         ["+ attribute of laptop, phone: a", "+ attribute of laptop, phone: x.org/y 1"]),
        ({"nodeAttrs": [{"target": ["tag:nas"], "app": {"x.org/y": [1, 2]}}]},
         {"nodeAttrs": [{"target": ["tag:nas"], "app": {"x.org/y": [2]}}]}, ["- attribute of nas: x.org/y 1"]),
        ({}, {"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:nas"]}, "exitNode": ["tag:exit"]}},
         ["+ approved by itself at nas: 10.0.0.0/8", "+ approved by itself at exit: 0.0.0.0/0, ::/0"]),
        ({"randomizeClientPort": True}, {"randomizeClientPort": True}, []),
    ],
)  # fmt: skip
def test_each_kind_of_change_is_told(old: dict[str, Any], new: dict[str, Any], expected: list[str]) -> None:
    assert lines(old, new) == expected


def test_for_scripts_each_section_has_two_lists() -> None:
    new = {
        **grants({**ANN_TO_NAS, "ip": ["tcp:22"], "app": {"x.org/cap": [{"b": 1}]}}),
        **ssh({"users": ["root"], "action": "check"}),
    }
    assert json.loads(msgspec.json.encode(changed({}, new).plain())) == {
        "gained": [{"src": ["laptop", "phone"], "dst": ["nas"], "ip": ["tcp:22"]}],
        "lost": [],
        "routes": {"gained": [], "lost": []},
        "ssh": {
            "gained": [{"src": ["laptop", "phone"], "dst": ["nas"], "users": ["root"], "action": "check"}], "lost": [],
        },
        "app": {"gained": [{"src": ["laptop", "phone"], "dst": ["nas"], "app": {"x.org/cap": [{"b": 1}]}}], "lost": []},
        "nodeAttrs": {"gained": [], "lost": []},
        "autoApprovers": {"gained": [], "lost": []},
    }  # fmt: skip


def accepted(*categories: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for category in categories:
        with gzip.open(FOLDER / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
            found += [vector for vector in map(json.loads, file) if vector["expect"]["error"] is None]
    return found


def results(topology: dict[str, Any], *texts: str) -> tuple[Difference, list[dict[str, Any]]] | None:
    """The difference of two policies over a tailnet, and all that each means; None where one is refused there."""
    read = read_topology(json.dumps(topology).encode())
    try:
        found = difference(*(view_of(read, text.encode()) for text in texts))
    except PolicyError:
        return None
    meant = [json.loads(msgspec.json.encode(evaluate(read, text.encode()))) for text in texts]
    return None if any(each["error"] for each in meant) else (found, meant)


def opens(edges: list[Any], viewer: str, router: str, address: str, service: tuple[int, int]) -> bool:
    name, port = {6: "tcp", 17: "udp"}[service[0]], service[1]
    for edge in edges:
        if viewer not in edge.sources or edge.via != router or not any(_in(address, each) for each in edge.targets):
            continue
        if "*" in edge.services:
            return True
        for text in edge.services:
            protocol, _, ports = text.partition(":")
            first, _, last = ports.partition("-")
            is_port = ports == "*" or int(first) <= port <= int(last or first)
            if protocol == name and is_port:
                return True
    return False


def _in(address: str, text: str) -> bool:
    place = ip_address(address)
    if text == "autogroup:internet":
        return address in ("8.8.8.8", "2001:4860::1")
    if "-" in text:
        first, last = (ip_address(each) for each in text.split("-"))
        return first.version == place.version and int(first) <= int(place) <= int(last)
    return place in ip_network(text)


@pytest.mark.parametrize("seed", range(24))
def test_what_is_told_of_routes_is_what_filters_and_routes_say(seed: int) -> None:
    """Any two policies of the captures over the tailnet of either."""
    chance = random.Random(seed)
    one, two = chance.sample(accepted("routes", "grants"), 2)
    done = results(one["topology"], one["policy"], two["policy"])
    if done is None:
        return
    found, meant = done
    nodes = one["topology"]["nodes"]
    sent = [msgspec.json.decode(msgspec.json.encode(result["filter_rules"]), type=Filters) for result in meant]
    for viewer in nodes:
        for router in nodes:
            if viewer is router:
                continue
            ranges = [each for each in router["routes"]["approved"] if each not in EXITS]
            addresses = [str(ip_network(each)[index]) for each in ranges for index in (0, -1)]
            addresses += ["8.8.8.8", "2001:4860::1"] * bool(set(router["routes"]["approved"]) & set(EXITS))
            for address in addresses:
                source = next(each for each in viewer["ips"] if (":" in each) == (":" in address))
                for service in ((6, 22), (6, 443), (17, 53)):
                    was, now = (
                        any(ip_address(address) in ip_network(each)
                            for each in result["peers"][viewer["name"]].get(router["name"], []))
                        and accepts(filters[router["name"]], source, address, *service)
                        for result, filters in zip(meant, sent, strict=True)
                    )  # fmt: skip
                    asked = viewer["name"], router["name"], address, service
                    assert opens(found.gained.routes, *asked) is (now and not was), asked
                    assert opens(found.lost.routes, *asked) is (was and not now), asked


def outcome(rules: list[dict[str, Any]], address: str, login: str) -> str:
    """As a client decides it."""
    for rule in rules:
        local = rule["sshUsers"].get(login, rule["sshUsers"].get("*", ""))
        if local and any(each.get("nodeIP") == address for each in rule["principals"]):
            return "check" if rule["action"].get("holdAndDelegate") else "accept"
    return ""


@pytest.mark.parametrize("seed", range(24))
def test_what_is_told_of_ssh_is_what_the_rules_say(seed: int) -> None:
    chance = random.Random(seed)
    one, two = chance.sample(accepted("ssh", "sshtests"), 2)
    done = results(one["topology"], one["policy"], two["policy"])
    if done is None:
        return
    found, meant = done
    nodes = one["topology"]["nodes"]
    env = any(edge.accept_env for edge in (*found.gained.ssh, *found.lost.ssh))
    names = {
        name for result in meant for rules in result["ssh"].values() for rule in rules for name in rule["sshUsers"]
    }
    for viewer in nodes:
        for target in nodes:
            if viewer is target:
                continue
            for login in (names - {"*"}) | {"root", "nobody-names-me"}:
                was, now = (outcome(result["ssh"][target["name"]], viewer["ips"][0], login) for result in meant)
                for side, more, less in ((found.gained, now, was), (found.lost, was, now)):
                    told = {
                        user: edge.action
                        for edge in side.ssh
                        if viewer["name"] in edge.sources and target["name"] in edge.targets
                        for user in edge.users
                    }
                    general = told.get("autogroup:nonroot", "") if login != "root" else ""
                    if login in told or login not in names or not general:  # else it goes without saying
                        expected = more if more != less else ""
                        said = told.get(login, general)
                        assert said == expected or (env and said == more), (viewer["name"], target["name"], login)
