"""`why`, `diff` and `fmt`: they agree with what the filters say, and they tell the truth about what is missing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.policy.difference import difference
from gw.policy.evaluate import evaluate
from gw.policy.explain import Explainer, parse_question
from gw.policy.formatting import formatted
from gw.policy.hujson import parse
from gw.policy.topology import Topology, read_topology, view_of

from .clientfilter import accepts

FOLDER = Path(__file__).parents[2] / "vectors" / "policy"
ASKED = ("22", "80", "443", "5432", "53/udp", "8080")
NUMBERS = {"22": (6, 22), "80": (6, 80), "443": (6, 443), "5432": (6, 5432), "53/udp": (17, 53), "8080": (6, 8080)}


def accepted(category: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{category}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [vector for vector in map(json.loads, file) if vector["expect"]["error"] is None]


@pytest.mark.parametrize("category", ["acl", "grants", "routes"])
def test_why_agrees_with_the_filters_that_eval_prints(category: str) -> None:
    """Every pair of nodes of every fourth vector, at six services: many thousand questions."""
    count = allowed = 0
    for vector in accepted(category)[::4]:
        topology = read_topology(json.dumps(vector["topology"]).encode())
        text = vector["policy"].encode()
        filters = evaluate(topology, text)["filter_rules"]
        explainer = Explainer(view_of(topology, text))
        for one in topology.nodes:
            for two in topology.nodes:
                if one is two:
                    continue
                for service in ASKED:
                    for source, target in zip(one.ips, two.ips, strict=True):
                        question = parse_question(
                            source, f"[{target}]:{service}" if ":" in target else f"{target}:{service}"
                        )
                        expected = accepts(filters[two.name], source, target, *NUMBERS[service])
                        assert explainer.explain(question).is_allowed is expected, (vector["name"], str(question))
                        count, allowed = count + 1, allowed + expected
    assert count > 1000
    assert 0 < allowed < count


TOPOLOGY = read_topology(
    json.dumps({
        "users": [{"id": 1, "name": "ann", "email": "ann@x.org"}, {"id": 2, "name": "ben", "email": "ben@x.org"}],
        "nodes": [
            {"id": 1, "name": "laptop", "user": "ann", "ips": ["100.64.0.1", "fd7a:115c:a1e0::1"]},
            {"id": 2, "name": "nas", "tags": ["tag:nas"], "ips": ["100.64.0.2"],
             "routes": {"advertised": ["10.0.0.0/8"], "approved": ["10.0.0.0/8"]}},
            {"id": 3, "name": "phone", "user": "ann", "ips": ["100.64.0.3"]},
            {"id": 4, "name": "other", "user": "ben", "ips": ["100.64.0.4"]},
        ],
    }).encode()
)  # fmt: skip
POLICY = b"""{
	"tagOwners": {"tag:nas": []},
	"acls": [
		// first
		{"action": "accept", "src": ["ann@x.org"], "dst": ["tag:nas:22,80", "10.1.0.0/16:443"]},
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
	],
}
"""


def why(source: str, target: str) -> Any:
    return Explainer(view_of(TOPOLOGY, POLICY)).explain(parse_question(source, target)).plain()


def test_the_rule_and_its_line_are_named() -> None:
    found = why("laptop", "nas:22")
    assert found["allowed"]
    assert found["rules"][0]["line"] == 5
    assert '"tag:nas:22,80"' in found["rules"][0]["text"]
    assert why("laptop", "phone:5000")["rules"][0]["line"] == 6


def test_what_is_nearest_and_what_it_lacks() -> None:
    found = why("laptop", "nas:443")
    assert not found["allowed"]
    assert found["nearest"][0]["lacks"] == "its ports do not include tcp 443"
    assert found["suggestion"] == '{"src": ["ann@x.org"], "dst": ["tag:nas"], "ip": ["tcp:443"]}'
    assert why("other", "nas:22")["nearest"][0]["lacks"] == "`other` is not among its sources"
    assert why("other", "laptop:22")["nearest"] == []


def test_beyond_the_nodes_the_router_decides() -> None:
    assert why("laptop", "10.1.2.3:443")["allowed"]
    assert why("laptop", "10.1.2.3:443")["through"] == ["nas"]
    assert not why("laptop", "10.2.0.1:443")["allowed"]
    assert why("laptop", "192.0.2.1:443")["note"] == "no node has an approved route to 192.0.2.1"


def test_an_address_of_the_wrong_family_is_not_reached() -> None:
    text = b'{"acls": [{"action": "accept", "src": ["100.64.0.1"], "dst": ["fd7a:115c:a1e0::1:*", "100.64.0.2:22"]}]}'
    explainer = Explainer(view_of(TOPOLOGY, text))
    assert explainer.explain(parse_question("laptop", "nas:22")).is_allowed
    assert not explainer.explain(parse_question("fd7a:115c:a1e0::1", "nas:22")).is_allowed


@pytest.mark.parametrize("target", ["nas", "nas:", "nas:0", "nas:70000", "nas/tcp"])
def test_a_question_without_a_port_is_none(target: str) -> None:
    with pytest.raises(ValueError, match="port"):
        parse_question("laptop", target)


def test_the_difference_is_what_opens_and_what_closes() -> None:
    new = POLICY.replace(b"22,80", b"80-82").replace(b'"src": ["ann@x.org"]', b'"src": ["autogroup:member"]')
    found = difference(view_of(TOPOLOGY, POLICY), view_of(TOPOLOGY, new))
    gained = {(edge.sources, edge.targets): edge.services for edge in found.gained.nodes}
    assert gained[("laptop", "phone"), ("nas",)] == ("tcp:81-82", "udp:81-82")
    assert gained[("other",), ("nas",)] == ("icmp:*", "tcp:80-82", "udp:80-82", "ipv6-icmp:*")
    lost = {(edge.sources, edge.targets): edge.services for edge in found.lost.nodes}
    assert lost[("laptop", "phone"), ("nas",)] == ("tcp:22", "udp:22")
    same = difference(view_of(TOPOLOGY, POLICY), view_of(TOPOLOGY, POLICY))
    assert same.lines() == []


@pytest.mark.parametrize("category", ["acl", "grants", "routes", "ssh", "tests", "sshtests", "nodeattrs"])
def test_formatting_keeps_meaning_and_is_stable(category: str) -> None:
    for vector in accepted(category):
        text = vector["policy"].encode()
        once = formatted(text)
        assert formatted(once) == once
        assert parse(once).plain() == parse(text).plain()
        assert once.count(b"//") >= text.count(b"//") - text.count(b"://")


def test_formatting_keeps_every_comment_in_its_place() -> None:
    text = b"""// head
{ // open
"acls":[ {"action":"accept",/* in */"src":["*"],"dst":["*:*"]} // after
  , // lone

  /* block */

], "groups" // odd
:{}}// tail
"""
    assert formatted(text).decode() == (
        '// head\n{ // open\n\t"acls": [\n\t\t'
        '{"action": "accept", /* in */ "src": ["*"], "dst": ["*:*"]}, // after\n'
        '\t\t// lone\n\n\t\t/* block */\n\t],\n\t"groups" /* odd */: {},\n} // tail\n'
    )


space = st.sampled_from(["", " ", "\n", "\n\n\n", "\t", " // a\n", "\n// b\n", "/* c */", " /* d\n   d */ "])
scalars = st.sampled_from(['"x"', "1", "true", "null", '"a // no /* comment"', '"{[,:]}"'])


@st.composite
def texts(draw: st.DrawFn, depth: int = 0) -> str:
    """HuJSON with white space and comments wherever they may stand."""
    kind = draw(st.sampled_from(["scalar", "list", "object"])) if depth < 3 else "scalar"
    if kind == "scalar":
        return f"{draw(space)}{draw(scalars)}{draw(space)}"
    count = draw(st.integers(0, 3))
    items = [draw(texts(depth + 1)) for _ in range(count)]
    if kind == "object":
        items = [f'{draw(space)}"k{n}"{draw(space)}:{item}' for n, item in enumerate(items)]
    trailing = f",{draw(space)}" if items and draw(st.booleans()) else draw(space)
    left, right = "{}" if kind == "object" else "[]"
    return f"{draw(space)}{left}{','.join(items)}{trailing}{right}{draw(space)}"


@given(texts())
def test_formatting_any_text_keeps_meaning_and_comments(text: str) -> None:
    raw = text.encode()
    once = formatted(raw)
    assert parse(once).plain() == parse(raw).plain()
    assert formatted(once) == once
    for letter in (b" a", b" b", b" c ", b" d\n"):
        assert once.count(letter) == raw.count(letter)


def test_an_empty_topology_is_one() -> None:
    assert evaluate(Topology(), b'{"acls": []}')["error"] is None
