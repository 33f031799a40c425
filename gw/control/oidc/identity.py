"""From claims to a person: who it is, whether the settings let them in, and what to call them.

    who         issuer/subject, nothing else: names and addresses change hands, a subject does not
    admission   allowed_groups, then the verified e-mail address against allowed_domains and allowed_users
    name        the preferred user name, else the e-mail address; never one that reads as another's address

Ref: OpenID Connect Core 1.0 §5.1, §5.7
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from gw.control.oidc.refusals import LoginRefused
from gw.state.config import OidcSettings

MAX_TEXT: Final = 200
MAX_URL_CHARS: Final = 2000
MAX_GROUPS: Final = 500
MAX_NAME_CHARS: Final = 63
_EMAIL: Final = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[A-Za-z0-9._-]{1,253}")
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9._-]+", re.ASCII)


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """A person as the provider tells. email: "" unless it may be relied on. expires: of the ID token, seconds."""

    provider_id: str
    username: str
    email: str
    display_name: str
    picture: str
    groups: tuple[str, ...]
    expires: float

    @property
    def shown(self) -> str:
        return self.email or self.username or self.display_name or self.provider_id


def admit(claims: Mapping[str, Any], settings: OidcSettings) -> Identity:
    """The person behind verified claims, if the settings let them in. Raises LoginRefused."""
    email, is_verified = _email(claims)
    groups = _groups(claims.get(settings.groups_claim)) if settings.groups_claim else ()
    if settings.allowed_groups and not set(settings.allowed_groups) & set(groups):
        raise LoginRefused("you are in none of the groups that may use this network", detail="allowed_groups")
    asks_email = bool(settings.allowed_domains or settings.allowed_users)
    if settings.email_verified_required and not is_verified and (email or asks_email):
        raise LoginRefused(
            "your e-mail address is not verified", detail="email_verified", status=401,
            hint="verify it at the identity provider, then log in again",
        )  # fmt: skip
    domain = email.rpartition("@")[2].lower()
    if settings.allowed_domains and domain not in {each.lower() for each in settings.allowed_domains}:
        raise LoginRefused("your e-mail domain may not use this network", detail="allowed_domains")
    if settings.allowed_users and email.lower() not in {each.lower() for each in settings.allowed_users}:
        raise LoginRefused("you are not among the users of this network", detail="allowed_users")
    return Identity(
        provider_id=f"{claims['iss']}/{claims['sub']}",
        username=_text(claims.get("preferred_username")),
        email=email,
        display_name=_text(claims.get("name")),
        picture=_url(claims.get("picture")),
        groups=groups if settings.policy_groups else (),
        expires=float(claims["exp"]),
    )


def names_for(identity: Identity) -> Iterator[str]:
    """User names to try, best first, without end. A name with `@` is the person's own address or not offered."""
    wishes = [identity.username, identity.email, identity.email.partition("@")[0], identity.display_name, "user"]
    names = list(dict.fromkeys(name for name in (_name(wish, identity.email) for wish in wishes) if name))
    yield from names
    base = names[0].partition("@")[0][: MAX_NAME_CHARS - 8]
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1


def _name(wish: str, email: str) -> str:
    """The wish as a user name, "" where nothing is left of it. Ref: gw.control.accounts.check_user_name"""
    local, at, domain = wish.rpartition("@") if wish.count("@") == 1 else ("", "", wish.replace("@", "-"))
    if at and wish.lower() == email.lower() and _NOT_IN_NAMES.search(local + domain) is None:
        whole = wish.lower()
        return whole if whole[0].isalpha() and len(whole) <= MAX_NAME_CHARS else ""
    plain = _NOT_IN_NAMES.sub("-", local if at else domain).strip("-._")
    while plain and not plain[0].isalpha():
        plain = plain[1:].lstrip("-._")
    plain = plain[:MAX_NAME_CHARS]
    return plain if len(plain) > 1 else ""


def _email(claims: Mapping[str, Any]) -> tuple[str, bool]:
    """The address, and whether the provider has verified it. Some providers write the truth as text."""
    value = claims.get("email")
    if not isinstance(value, str) or not _EMAIL.fullmatch(value):
        return "", False
    verified = claims.get("email_verified")
    return value, verified is True or verified == "true"


def _groups(value: object) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    good = (each for each in found if isinstance(each, str) and 0 < len(each) <= MAX_TEXT and each.isprintable())
    return tuple(sorted(dict.fromkeys(good)))[:MAX_GROUPS]


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(char for char in value if char.isprintable())[:MAX_TEXT].strip()


def _url(value: object) -> str:
    good = isinstance(value, str) and value.startswith("https://") and len(value) <= MAX_URL_CHARS
    return value if good and isinstance(value, str) and value.isprintable() else ""
