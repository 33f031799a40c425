"""The live engine: every change of a node leaves what a fresh compile gives, and tells everybody whom it concerns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gw.policy.decisions import Decider
from gw.policy.engine import PolicyEngine
from gw.policy.faults import PolicyError
from gw.policy.people import User
from gw.policy.reader import read_policy
from gw.policy.spans import number
from gw.policy.starting import ALLOW_ALL_TEXT, DENY_ALL, OWN_DEVICES_TEXT

POOLS = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
USERS = [User("ann", "ann@x.org", "owner", 1), User("ben", "ben@x.org", "member", 2), User("cat", "", "member", 3)]
ROUTES = ["10.0.0.0/8", "10.1.0.0/16", "192.168.7.0/24", "0.0.0.0/0", "::/0"]


@dataclass(eq=False)
class Device:
    id: int
    user: str = "ann"
    tags: Sequence[str] = ()
    served_routes: Sequence[str] = ()
    posture_attributes: dict[str, object] = field(default_factory=dict)
    moved: int = 0  # addresses it was given later

    @property
    def addresses(self) -> list[str]:
        host = self.id + 8 * self.moved
        return [f"100.64.0.{host}", f"fd7a:115c:a1e0::{host:x}"]


def engine_of(text: str, *devices: Device) -> PolicyEngine[Device]:
    engine: PolicyEngine[Device] = PolicyEngine(read_policy(text.encode()), POOLS, USERS)
    for device in devices:
        engine.add(device)
    return engine


def meaning(engine: PolicyEngine[Device], device: Device) -> Any:
    """All that the policy says of a device, in an order of its own."""

    def primary(route: str) -> int | None:
        return min(engine.view.serving(route), default=None)

    return {
        "filter": _rules(engine, device),
        "ssh": _ssh(engine, device),
        "attributes": engine.attributes_of(device),
        "peers": {
            peer.id: engine.routes_for(device, peer, primary, lambda _: True) for peer in engine.peers_of(device)
        },
        "approved": engine.approved(device, ROUTES),
    }


def _rules(engine: PolicyEngine[Device], device: Device) -> list[str]:
    found = []
    for rule in engine.filter_for(device):
        raw = msgspec.to_builtins(msgspec.convert(msgspec.json.decode(msgspec.json.encode(rule)), Any))
        raw["SrcIPs"] = sorted(raw["SrcIPs"])
        raw["DstPorts"] = sorted(raw.get("DstPorts") or [], key=str)
        found.append(str(raw))
    return sorted(found)


def _ssh(engine: PolicyEngine[Device], device: Device) -> list[str]:
    found = []
    for rule in engine.ssh_for(device):
        raw = msgspec.to_builtins(rule)
        raw["principals"] = sorted(map(str, raw["principals"]))
        found.append(str(raw))
    return sorted(found)


selectors = st.sampled_from([
    "*", "autogroup:member", "autogroup:tagged", "ann@x.org", "ben@x.org", "cat@", "user:*@x.org", "group:g",
    "group:none", "tag:a", "tag:b", "lan", "100.64.0.3", "10.1.2.0/24", "ipset:s", "autogroup:admin",
])  # fmt: skip
people = st.sampled_from(["autogroup:member", "ann@x.org", "group:g", "user:*@x.org", "autogroup:admin"])
targets = st.one_of(selectors, st.just("autogroup:internet"))
services = st.sampled_from(["*", "tcp:22", "80-90", "udp:53", "icmp:*", "sctp:5"])
postures = st.sampled_from([None, None, ["posture:linux"], ["posture:linux", "posture:new"]])


@st.composite
def grants(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["ip", "ip", "self", "app", "via"]))
    rule: dict[str, Any] = {"src": draw(st.lists(selectors, min_size=1, max_size=2)), "ip": [draw(services)]}
    rule["dst"] = draw(st.lists(targets, min_size=1, max_size=2))
    if kind == "self":
        rule |= {"src": [draw(people)], "dst": draw(st.sampled_from([["autogroup:self"], ["autogroup:self", "tag:a"]]))}
    elif kind == "via":
        rule |= {"via": [draw(st.sampled_from(["tag:a", "tag:b"]))]}
        rule |= {"dst": [draw(st.sampled_from(["10.1.0.0/16", "lan", "autogroup:internet"]))]}
    elif kind == "app":
        rule["app"] = {draw(st.sampled_from(["x.org/cap", "tailscale.com/cap/drive"])): [{"a": 1}]}
        rule["dst"] = [draw(selectors)]
    asked = draw(postures)
    if asked:
        rule["srcPosture"] = asked
    return rule


ssh_rules = st.fixed_dictionaries({
    "action": st.sampled_from(["accept", "check"]),
    "src": st.lists(people, min_size=1, max_size=2),
    "dst": st.lists(st.sampled_from(["autogroup:self", "tag:a", "tag:b", "autogroup:tagged"]), min_size=1, max_size=2),
    "users": st.sampled_from([["root"], ["autogroup:nonroot"], ["localpart:*@x.org"], ["deploy", "root"]]),
})  # fmt: skip


def text_of(rules: list[dict[str, Any]], ssh: list[dict[str, Any]]) -> str:
    return msgspec.json.encode({
        "grants": rules,
        "ssh": ssh,
        "groups": {"group:g": ["ann@x.org", "cat@"], "group:none": []},
        "hosts": {"lan": "192.168.7.0/24"},
        "ipsets": {"ipset:s": ["100.64.0.0/29", "remove 100.64.0.2"]},
        "tagOwners": {"tag:a": [], "tag:b": ["tag:a"]},
        "postures": {"posture:linux": ["node:os == 'linux'"], "posture:new": ["node:tsVersion >= '1.40'"]},
        "nodeAttrs": [{"target": ["tag:a", "ann@x.org"], "attr": ["x"]}],
        "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a"]}, "exitNode": ["group:g"]},
    }).decode()  # fmt: skip


policies = st.builds(text_of, st.lists(grants(), max_size=4), st.lists(ssh_rules, max_size=2))
devices = st.builds(
    Device,
    st.integers(1, 6),
    st.sampled_from(["ann", "ben", "cat"]),
    st.sampled_from([(), (), ("tag:a",), ("tag:b",), ("tag:a", "tag:b")]),
    st.lists(st.sampled_from(ROUTES), max_size=2, unique=True),
    st.sampled_from([{}, {"node:os": "linux"}, {"node:os": "linux", "node:tsVersion": "1.50"}]),
    st.sampled_from([0, 0, 0, 1]),
)


@settings(max_examples=150, deadline=None)
@given(policies, st.lists(st.tuples(devices, st.booleans()), max_size=14))
def test_after_any_changes_it_means_what_a_fresh_compile_means(text: str, steps: list[tuple[Device, bool]]) -> None:
    engine = engine_of(text)
    there: dict[int, Device] = {}
    for wanted, stays in steps:
        before = {id_: meaning(engine, device) for id_, device in there.items()}
        known = there.get(wanted.id)
        if known is None:
            there[wanted.id] = device = replace(wanted)
            effect = engine.add(device)
        elif stays:
            device = known
            for name in ("user", "tags", "served_routes", "posture_attributes", "moved"):
                setattr(device, name, getattr(wanted, name))
            effect = engine.update(device)
        else:
            device = there.pop(wanted.id)
            effect = engine.remove(device)
        fresh = engine_of(text, *there.values())
        now = {id_: meaning(engine, each) for id_, each in there.items()}
        assert now == {id_: meaning(fresh, each) for id_, each in there.items()}
        # everybody who is concerned is told
        told = {each.id for each in effect.filters}
        assert told <= set(there)
        for id_, old in before.items():
            if id_ not in now:
                continue
            new = now[id_]
            assert id_ in told or (old["filter"], old["ssh"]) == (new["filter"], new["ssh"])
            lost = wanted.id in old["peers"] and wanted.id not in new["peers"]
            assert lost == (id_ in {each.id for each in effect.lost} and id_ != wanted.id)
        if wanted.id in now and wanted.id in before and not effect.anew:
            assert now[wanted.id]["peers"] == before[wanted.id]["peers"]
        for one in there.values():
            assert now[one.id]["peers"].keys() == {two.id for two in there.values() if engine.visible(one, two)}


@given(
    st.lists(grants(), max_size=5),
    st.lists(devices, max_size=6, unique_by=lambda each: each.id),
    st.randoms(use_true_random=False),
)
def test_order_splitting_and_merging_of_rules_change_nothing(
    rules: list[dict[str, Any]], nodes: list[Device], chance: random.Random
) -> None:
    """Held as decisions: one rule of two sources is two rules, in any order."""
    split = [
        {**rule, "src": [source], "dst": [target]}
        for rule in rules for source in rule["src"] for target in rule["dst"] if "app" not in rule
    ]  # fmt: skip
    chance.shuffle(split)
    whole = engine_of(text_of([rule for rule in rules if "app" not in rule], []), *nodes)
    parts = engine_of(text_of(split, []), *nodes)
    for one in nodes:
        for two in nodes:
            if one is not two:
                assert whole.visible(one, two) == parts.visible(one, two)
                for protocol, port in ((6, 22), (17, 53), (6, 85), (1, 0), (132, 5)):
                    assert Decider(whole.view).allows(one, two, protocol, port) == Decider(parts.view).allows(
                        one, two, protocol, port
                    )


def granted(engine: PolicyEngine[Device], one: Device, two: Device) -> set[tuple[str, str, bytes]]:
    """(destination, capability, value) of all that the filter of `two` grants to `one`."""
    from tests.unit.policy.clientfilter import holds

    return {
        (dst, name, bytes(value))
        for rule in engine.filter_for(two)
        if any(holds(rule.src_ips or [], number(address)) for address in one.addresses)
        for grant in rule.cap_grant or ()
        for dst in grant.dsts or ()
        for name, values in (grant.cap_map or {}).items()
        for value in (values or [msgspec.Raw(b"null")])
    }


@given(
    st.lists(st.tuples(grants(), st.lists(selectors, min_size=1, max_size=2)), min_size=1, max_size=4),
    st.lists(devices, min_size=2, max_size=6, unique_by=lambda each: each.id),
    st.randoms(use_true_random=False),
)
def test_rules_that_differ_in_their_destinations_alone_may_be_one_rule(
    drawn: list[tuple[dict[str, Any], list[str]]], nodes: list[Device], chance: random.Random
) -> None:
    """One rule a source and destination, against one rule a source with all destinations joined; `app` included."""
    is_free = [not {"via"} & rule.keys() and "autogroup:self" not in rule["dst"] for rule, _ in drawn]
    parts = [
        {**rule, "src": [source], "dst": [target]}
        for (rule, more), free in zip(drawn, is_free, strict=True)
        for source in rule["src"]
        for target in [*rule["dst"], *(more if free else ())]
    ]
    chance.shuffle(parts)
    joined: dict[str, dict[str, Any]] = {}
    for part in parts:
        key = str(sorted((name, value) for name, value in part.items() if name != "dst"))
        known = joined.setdefault(key, {**part, "dst": []})
        known["dst"] = [*known["dst"], *part["dst"]]
    apart, merged = engine_of(text_of(parts, []), *nodes), engine_of(text_of(list(joined.values()), []), *nodes)
    for one in nodes:
        for two in nodes:
            if one is two:
                continue
            assert apart.visible(one, two) == merged.visible(one, two)
            assert granted(apart, one, two) == granted(merged, one, two)
            for protocol, port in ((6, 22), (17, 53), (6, 85), (1, 0), (132, 5)):
                assert Decider(apart.view).allows(one, two, protocol, port) == Decider(merged.view).allows(
                    one, two, protocol, port
                )


@settings(max_examples=150, deadline=None)
@given(policies, st.lists(devices, max_size=6, unique_by=lambda each: each.id))
def test_a_decision_is_what_the_receiver_s_filter_says(text: str, nodes: list[Device]) -> None:
    from tests.unit.policy.clientfilter import accepts

    engine = engine_of(text, *nodes)
    decider = Decider(engine.view)
    for two in nodes:
        rules = engine.filter_for(two)
        for one in nodes:
            if one is two:
                continue
            for protocol, port in ((6, 22), (17, 53), (6, 85), (1, 0), (132, 5), (47, 0)):
                expected = any(
                    accepts(rules, source, target, protocol, port)
                    for source, target in zip(one.addresses, two.addresses, strict=True)
                )
                assert decider.allows(one, two, protocol, port) is expected, (one, two, protocol, port)


def test_without_a_rule_nothing_is_allowed() -> None:
    one, two = Device(1), Device(2)
    engine: PolicyEngine[Device] = PolicyEngine(DENY_ALL, POOLS, USERS)
    engine.add(one)
    engine.add(two)
    assert not engine.visible(one, two)
    assert engine.filter_for(one) == []


def test_the_two_policies_to_begin_with() -> None:
    phone, laptop, other, server = Device(1), Device(2), Device(3, "ben"), Device(4, "", ("tag:x",))
    own = engine_of(OWN_DEVICES_TEXT, phone, laptop, other, server)
    assert own.peers_of(phone) == [laptop]
    assert own.peers_of(other) == own.peers_of(server) == []
    everything = engine_of(ALLOW_ALL_TEXT, phone, laptop, other, server)
    assert {peer.id for peer in everything.peers_of(phone)} == {2, 3, 4}
    new = Device(5)
    assert list(everything.add(new).filters) == [new]  # `*` needs no new list for a new node


def test_a_user_who_comes_counts_at_once_where_the_policy_names_him() -> None:
    text = '{"acls": [{"action": "accept", "src": ["dan@x.org"], "dst": ["*:*"]}]}'
    one, two = Device(1, "dan"), Device(2)
    engine = engine_of(text, one, two)
    assert not engine.visible(one, two)
    assert not engine.put_user(User("eve", "eve@x.org", id=5))
    assert engine.put_user(User("dan", "dan@x.org", id=4))
    assert engine.visible(one, two)
    assert engine.drop_user("dan")
    assert not engine.visible(one, two)


def test_a_user_without_nodes_costs_nobody_anything_and_counts_from_his_first_node() -> None:
    acl = '{"action": "accept", "src": ["user:*@x.org"], "dst": ["ben@x.org:*"]}'
    text = f'{{"acls": [{acl}], "tagOwners": {{"tag:d": ["dan@"]}}}}'
    server, new = Device(1, "ben"), Device(2, "dan")
    engine = engine_of(text, server)
    assert engine.filter_for(server)  # its source list is there before the user
    standing = engine.view.entries[server.id].standing
    assert not engine.may_tag("dan", "tag:d")
    assert not engine.put_user(User("dan", "dan@x.org", id=4))
    assert engine.view.entries[server.id].standing is standing
    assert engine.may_tag("dan", "tag:d")
    engine.add(new)
    fresh = engine_of(text)
    fresh.put_user(User("dan", "dan@x.org", id=4))
    for node in (server, new):
        fresh.add(node)
    assert engine.visible(new, server)
    assert engine.filter_for(server) == fresh.filter_for(server)
    assert engine.ssh_for(server) == fresh.ssh_for(server)


def test_a_name_that_fits_two_users_refuses_the_policy_and_keeps_the_last() -> None:
    engine = engine_of('{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["*:*"]}]}', Device(1), Device(2))
    with pytest.raises(PolicyError, match="multiple users found"):
        engine.put_user(User("zed", "ann@", id=9))
    assert engine.visible(*(entry.node for entry in engine.view.entries.values()))


AMBIGUOUS = User("zed", "ben@x.org", id=9)  # called as ben is
NAMING_BEN = [
    '{"acls": [{"action": "accept", "src": ["ben@x.org"], "dst": ["*:*"]}]}',
    '{"acls": [], "groups": {"group:g": ["ben@x.org"]}, "tagOwners": {"tag:a": ["group:g"]}}',
    '{"acls": [], "nodeAttrs": [{"target": ["ben@x.org"], "attr": ["x"]}]}',
    '{"acls": [], "autoApprovers": {"exitNode": ["ben@x.org"]}}',
    '{"acls": [], "tagOwners": {"tag:a": []}, '
    '"ssh": [{"action": "accept", "src": ["ben@x.org"], "dst": ["tag:a"], "users": ["x"]}]}',
]


@pytest.mark.parametrize("text", NAMING_BEN)
def test_a_policy_that_users_make_ambiguous_is_refused_whole_whatever_section_names_them(text: str) -> None:
    one, two = Device(1), Device(2)
    engine = engine_of(ALLOW_ALL_TEXT, one, two)
    assert not engine.put_user(AMBIGUOUS)
    before = meaning(engine, one)
    unwanted = read_policy(text.encode())
    with pytest.raises(PolicyError, match="multiple users found"):
        engine.failures(unwanted)
    with pytest.raises(PolicyError, match="multiple users found"):
        engine.set_policy(unwanted)
    assert engine.policy.text == ALLOW_ALL_TEXT.encode()
    assert meaning(engine, one) == before
    engine.drop_user("zed")
    engine.set_policy(unwanted)
    assert engine.policy is unwanted


@pytest.mark.parametrize("text", NAMING_BEN)
def test_a_user_whom_the_policy_could_not_tell_apart_counts_as_soon_as_it_can(text: str) -> None:
    one, two = Device(1, "zed"), Device(2, "ann")
    engine = engine_of(text, one, two)
    with pytest.raises(PolicyError, match="multiple users found"):
        engine.put_user(AMBIGUOUS)
    assert not engine.visible(one, two) or engine.policy.grants is None
    engine.set_policy(read_policy(b'{"acls": [{"action": "accept", "src": ["zed@"], "dst": ["ann@:22"]}]}'))
    assert engine.visible(one, two)
    assert engine.drop_user("zed")
    assert not engine.visible(one, two)
    assert engine.put_user(User("zed", "zed@x.org", id=9))
    assert engine.visible(one, two)


@settings(max_examples=60, deadline=None)
@given(
    policies,
    st.lists(devices, max_size=5, unique_by=lambda each: each.id),
    st.lists(
        st.tuples(
            st.sampled_from(["ann", "ben", "cat", "dan"]),
            st.sampled_from(["ann@x.org", "ben@x.org", "dan@y.org", ""]),
            st.sampled_from(["owner", "admin", "member"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    policies,
)
def test_after_users_come_change_and_go_it_means_what_a_fresh_compile_means(
    text: str, nodes: list[Device], steps: list[tuple[str, str, str, bool]], next_text: str
) -> None:
    """Also where a step was refused because two users had one name: then as if it had not been, until it can be."""
    engine = engine_of(text, *nodes)
    users = {user.name: user for user in USERS}
    in_force = dict(users)

    def fresh(text: str) -> PolicyEngine[Device]:
        made: PolicyEngine[Device] = PolicyEngine(read_policy(text.encode()), POOLS, in_force.values())
        for node in nodes:
            made.add(node)
        return made

    for id_, (name, email, role, stays) in enumerate(steps, 10):
        try:
            if stays:
                users[name] = User(name, email, role, id_)
                engine.put_user(users[name])
            elif name not in users:
                assert not engine.drop_user(name)
                continue
            else:
                del users[name]
                engine.drop_user(name)
            in_force = dict(users)
        except PolicyError:
            pass
        expected = fresh(text)
        for node in nodes:
            assert meaning(engine, node) == meaning(expected, node)
            for tag in ("tag:a", "tag:b"):
                assert engine.may_tag(node.user, tag) == expected.may_tag(node.user, tag)
    try:
        engine.set_policy(read_policy(next_text.encode()))
    except PolicyError:
        return
    in_force = users
    expected = fresh(next_text)
    for node in nodes:
        assert meaning(engine, node) == meaning(expected, node)
