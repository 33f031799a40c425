"""Which policies are understood, and what becomes of all others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import ConfigError
from gw.policy.document import ALLOW_ALL_TEXT, OWN_DEVICES_TEXT, Policy, read_policy

OWN = '{"action":"accept","src":["autogroup:member"],"dst":["autogroup:self:*"]}'
ALL = '{"action":"accept","src":["*"],"dst":["*:*"]}'


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (OWN_DEVICES_TEXT, Policy.OWN_DEVICES),
        (ALLOW_ALL_TEXT, Policy.ALLOW_ALL),
        (f'{{"acls":[{OWN}]}}', Policy.OWN_DEVICES),
        (f'{{"ACLs":[{ALL}]}}', Policy.ALLOW_ALL),
        ('{"acls":[{"#note":1,"action":"accept","src":[" * "],"dst":["*:*"]}]}', Policy.ALLOW_ALL),
        ("", Policy.NOTHING),
        ("{}", Policy.NOTHING),
        ('{"acls":null}', Policy.NOTHING),
        ('{"acls":[]}', Policy.NOTHING),
    ],
)
def test_the_policies_that_are_understood(text: str, policy: Policy) -> None:
    assert read_policy(text.encode(), "p") is policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "groups": {}}', "p:2:3: section not understood: `groups`"),
        ('{"acls":[{"action":"accept","src":["*"],"dst":["tag:x:*"]}]}', "p:1:47: rule not understood: from `*` to"),
        ('{"acls":[{"action":"accept","src":["tag:x"],"dst":["*:*"]}]}', "p:1:35: rule not understood: from `tag:x`"),
        ('{"acls":[{"action":"accept","src":["*"],"dst":["autogroup:self:*"]}]}', "p:1:47: rule not understood"),
        ('{"acls":[{"action":"accept","src":["*"],"dst":["*:22"]}]}', "p:1:47: rule not understood"),
        ('{"acls":[{"action":"accept","src":["*"],"dst":[" *:*"]}]}', "p:1:47: rule not understood"),
        ('{"acls":[{"action":"accept","proto":"tcp","src":["*"],"dst":["*:*"]}]}', "p:1:29: field of a rule"),
        ('{"acls":[{"action":"deny","src":["*"],"dst":["*:*"]}]}', "p:1:20: action not understood: `deny`"),
        ('{"acls":[{"src":["*"],"dst":["*:*"]}]}', "p:1:10: a rule needs `action`"),
        ('{"acls":[{"action":"accept","src":["*","*"],"dst":["*:*"]}]}', "p:1:35: expected one entry, found 2"),
        ('{"acls":[{"action":"accept","src":"*","dst":["*:*"]}]}', 'p:1:35: expected a list: `["…"]`'),
        (f'{{"acls":[{OWN},{ALL}]}}', "p:1:84: more than one rule"),
        ('{"acls":[],"ACLS":[]}', "p:1:12: section given twice: `ACLS`"),
        ("[]", "p:1:1: a policy is an object: `{…}`"),
        ("{a:1}", "p:1:2: invalid character 'a' at start of object name"),
    ],
)
def test_any_other_policy_is_refused_with_its_place(text: str, message: str) -> None:
    """To leave out a rule that is not understood could grant what its author forbade."""
    with pytest.raises(ConfigError) as caught:
        read_policy(text.encode(), "p")
    assert caught.value.message.startswith(message)


@given(st.binary(max_size=120))
def test_no_stray_bytes_ever_allow_anything(raw: bytes) -> None:
    try:
        assert read_policy(raw, "p") is Policy.NOTHING
    except ConfigError:
        pass
