"""Texts of policies: read, or refused with the place of every fault."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.policy.reader import SECTIONS, read_policy
from gw.policy.selectors import Kind
from gw.policy.services import Service


def fault(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as found:
        read_policy(text.encode())
    return found.value


def test_faults_have_their_place_and_all_are_told() -> None:
    error = fault('{\n  "acls": [{"action": "deny", "src": ["tag:x"], "dst": ["*:0"]}],\n  "what": 1\n}')
    assert (error.message, error.line, error.column) == ('unknown field: "what"', 3, 3)
    assert error.details == [
        'line 3, column 3: unknown field: "what"',
        'line 2, column 23: action="deny" is not supported',
        'line 2, column 39: src=tag not found: "tag:x"',
        'line 2, column 57: dst="*:0": port range "0": first port must be >0, or use \'*\' for wildcard',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "policy: expected an object"),
        ("{", "hujson: line 1, column 2: parsing value: unexpected EOF"),
        ('{"ACLS": [], "acls": []}', 'duplicate field: "acls"'),
        ('{"groups": {"group:a": "x@y"}}', 'groups["group:a"]: expected a list of strings'),
        ('{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "nope": 1}]}', 'unknown field: "nope"'),
        ('{"acls": [{"action": "accept", "src": ["ipset:x"], "dst": ["*:*"]}]}',
         'ipset not defined in policy: "ipset:x"'),
        ('{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "srcPosture": ["posture:x"]}]}',
         'posture not defined in policy: "posture:x"'),
        ('{"postures": {"posture:x": ["os is linux"]}}', "invalid posture assertion: 'os is linux'"),
        ('{"ipsets": {"ipset:a": ["ipset:b"], "ipset:b": ["ipset:a"]}}', 'ipset "ipset:a" contains itself'),
        ('{"OneCGNATRoute": "always"}', 'invalid OneCGNATRoute: "always"'),
        ('{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp"]}]}', 'port range "tcp": invalid first integer'),
        ('{"ssh": [{"action": "accept", "src": ["autogroup:tagged"], "dst": ["autogroup:self"], "users": ["x"]}]}',
         'invalid dst "autogroup:self": tagged nodes may not reach the devices of users'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    assert fault(text).message == message


def test_letter_case_of_keys_legacy_names_and_notes_of_front_ends() -> None:
    policy = read_policy(
        b'{"ACLs": [{"#ha-meta": {"x": 1}, "Action": "accept", "users": ["*"],'
        b'"ports": ["[fd7a::1]:22", "10.0.0.1:80,90-99"]}]}'
    )
    assert policy.grants is not None
    v6, v4 = policy.grants
    assert v6.services == (Service(0, (22, 22)),)
    assert v4.services == (Service(0, (80, 80)), Service(0, (90, 99)))
    assert v4.destinations[0].kind is Kind.ADDRESS


def test_no_bytes_are_the_default_policy_and_null_is_absence() -> None:
    assert read_policy(b"").grants is None
    assert read_policy(b'{"acls": null, "groups": null}').grants is None
    assert read_policy(b'{"acls": []}').grants == ()


def test_foreign_domains_are_refused_where_domains_are_known() -> None:
    text = b'{"acls": [{"action": "accept", "src": ["user:*@b.example"], "dst": ["*:*"]}]}'
    assert read_policy(text).grants
    with pytest.raises(PolicyError, match=r"b\.example is not associated with this Tailnet"):
        read_policy(text, domains=["a.example"])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_policy_or_one_error(raw: bytes) -> None:
    try:
        assert isinstance(read_policy(raw), Policy)
    except PolicyError as error:
        assert error.message


words = st.sampled_from([
    "*", "tag:a", "group:g", "ann@x.org", "autogroup:self", "autogroup:internet", "h", "10.0.0.0/8", "ipset:s",
    "user:*@x.org", "*:*", "tag:a:22", "h:80-90", "accept", "check", "tcp", "posture:p", "12h", "root",
    "autogroup:nonroot", "", "0",
])  # fmt: skip
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 70000), words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from([
                "src", "dst", "action", "users", "ip", "app", "via", "target", "attr", "accept", "deny", "routes",
                "exitNode", "group:g", "tag:a", "h", "posture:p", "ipset:s", "proto", "checkPeriod", "acceptEnv",
            ]),
            inner, max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(SECTIONS), values, max_size=5))
def test_any_json_gives_a_policy_or_a_fault_with_its_place(content: dict[str, object]) -> None:
    text = json.dumps(content, indent=1).encode()
    try:
        read_policy(text, domains=["x.org"])
    except PolicyError as error:
        assert 0 < error.line <= text.count(b"\n") + 1
        assert error.column > 0
