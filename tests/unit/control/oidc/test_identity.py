"""Who may come in, and what they are called."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gw.control.accounts import check_user_name
from gw.control.oidc.identity import Identity, admit, names_for
from gw.control.oidc.refusals import LoginRefused
from gw.state.config import OidcSettings

CLAIMS = {"iss": "https://id.test", "sub": "s", "exp": 1, "email": "Ann@Example.org", "email_verified": True}


def settings(**more: Any) -> OidcSettings:
    return OidcSettings(issuer="https://id.test", client_id="mesh", **more)


def person(username: str = "", email: str = "", display_name: str = "") -> Identity:
    return Identity("i/s", username, email, display_name, "", (), 0.0)


def test_issuer_and_subject_are_the_identity() -> None:
    found = admit(CLAIMS | {"groups": ["b", "a", "a"], "picture": "https://x/p.png", "name": "Ann\x1b[2J"}, settings())
    assert found.provider_id == "https://id.test/s"
    assert (found.email, found.groups, found.picture) == ("Ann@Example.org", ("a", "b"), "https://x/p.png")
    assert found.display_name == "Ann[2J", "no control characters"


@pytest.mark.parametrize(
    ("claims", "rules", "why"),
    [
        ({"email_verified": False}, {}, "not verified"),
        ({"email_verified": None}, {}, "not verified"),
        ({"email_verified": "false"}, {}, "not verified"),
        ({"email_verified": 1}, {}, "not verified"),
        ({"email": None}, {"allowed_domains": ["example.org"]}, "not verified"),
        ({"email": "ann@example.org@evil.test"}, {"allowed_domains": ["evil.test"]}, "not verified"),
        ({}, {"allowed_domains": ["example.com"]}, "domain"),
        ({"email": "ann@sub.example.org"}, {"allowed_domains": ["example.org"]}, "domain"),
        ({"email": "ann@notexample.org"}, {"allowed_domains": ["example.org"]}, "domain"),
        ({}, {"allowed_users": ["bob@example.org"]}, "not among the users"),
        ({}, {"allowed_groups": ["ops"]}, "none of the groups"),
        ({"groups": ["op"]}, {"allowed_groups": ["ops"]}, "none of the groups"),
        ({"groups": {"ops": 1}}, {"allowed_groups": ["ops"]}, "none of the groups"),
        ({"groups": ["ops"], "email_verified": False}, {"allowed_groups": ["ops"]}, "not verified"),
        ({"groups": ["ops"]}, {"allowed_groups": ["ops"], "groups_claim": "roles"}, "none of the groups"),
    ],
)
def test_who_is_kept_out(claims: dict[str, Any], rules: dict[str, Any], why: str) -> None:
    merged = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    with pytest.raises(LoginRefused, match=why):
        admit(merged, settings(**rules))


@pytest.mark.parametrize(
    ("claims", "rules"),
    [
        ({"email_verified": "true"}, {"allowed_domains": ["EXAMPLE.org"]}),
        ({}, {"allowed_users": ["ann@example.ORG"]}),
        ({"email_verified": False}, {"email_verified_required": False, "allowed_users": ["ann@example.org"]}),
        ({"email": None}, {}),
        ({"groups": "ops"}, {"allowed_groups": ["dev", "ops"]}),
        ({"roles": ["ops"]}, {"allowed_groups": ["ops"], "groups_claim": "roles"}),
    ],
)
def test_who_may_come_in(claims: dict[str, Any], rules: dict[str, Any]) -> None:
    admit({name: value for name, value in (CLAIMS | claims).items() if value is not None}, settings(**rules))


def test_groups_stay_out_of_the_policy_where_that_is_set() -> None:
    found = admit(CLAIMS | {"groups": ["ops"]}, settings(policy_groups=False, allowed_groups=["ops"]))
    assert found.groups == ()


@pytest.mark.parametrize(
    ("who", "name"),
    [
        (person("ann", "ann@example.org"), "ann"),
        (person("Ann Other", "x@example.org"), "Ann-Other"),
        (person("", "Ann@Example.org"), "ann@example.org"),
        (person("ann@example.org", "Ann@Example.org"), "ann@example.org"),
        (person("ceo@example.org", "ann@example.org"), "ceo"),
        (person("ceo@example.org"), "ceo"),
        (person("a@b@c"), "a-b-c"),
        (person("42", "", "Zoë"), "Zo"),
        (person("用户"), "user"),
        (person(), "user"),
    ],
)
def test_what_a_person_is_called(who: Identity, name: str) -> None:
    """A chosen user name never reads as an address in the policy unless it is the person's verified one."""
    assert next(names_for(who)) == name


def test_there_is_always_another_name() -> None:
    assert list(islice(names_for(person("ann")), 4)) == ["ann", "user", "ann-2", "ann-3"]


@hypothesis_settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))
def test_every_offered_name_is_a_good_one(username: str, email: str, shown: str) -> None:
    for name in islice(names_for(person(username, email, shown)), 6):
        assert check_user_name(name) == name
        assert "@" not in name or name.lower() == email.lower()
