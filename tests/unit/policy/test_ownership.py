"""Who may give a node which tag."""

from __future__ import annotations

import pytest

from gw.policy.compiled import Compiled
from gw.policy.ownership import TagOwners
from gw.policy.people import People, User
from gw.policy.reader import read_policy

POLICY = b"""{
    "groups": {"group:ops": ["ben@x.org"]},
    "tagOwners": {
        "tag:ann": ["ann@x.org"],
        "tag:ops": ["group:ops"],
        "tag:through": ["tag:ann"],
        "tag:one": ["tag:two"], "tag:two": ["tag:one"],
        "tag:all": ["autogroup:member"], "tag:admin": ["autogroup:admin"],
        "tag:nobody": [], "tag:child": ["autogroup:tagged"],
    },
}"""
USERS = [User("ann", "ann@x.org", "owner", 1), User("ben", "ben@x.org", "member", 2)]


@pytest.mark.parametrize(
    ("user", "tag", "expected"),
    [
        ("ann", "tag:ann", True), ("ben", "tag:ann", False), ("ben", "tag:ops", True), ("ann", "tag:through", True),
        ("ben", "tag:through", False), ("ann", "tag:one", False), ("ben", "tag:all", True), ("", "tag:all", False),
        ("ann", "tag:admin", True), ("ben", "tag:admin", False), ("ann", "tag:nobody", False), ("ann", "tag:x", False),
        ("ann", "tag:child", False),
    ],
)  # fmt: skip
def test_owners_by_name_group_role_and_through_tags(user: str, tag: str, expected: bool) -> None:
    policy = read_policy(POLICY)
    owners = TagOwners(Compiled(policy, People(USERS, policy.groups), ["100.64.0.0/10"]))
    assert owners.may(user, tag) is expected
    assert owners.may("", "tag:through", held=["tag:ann"])
    assert owners.may("", "tag:child", held=["tag:x"])
