"""Whom a rule is about: a user, group, tag, autogroup, host name, address, IP set, or everybody.

Ref: spec policy §4
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, final

from gw.policy.spans import Span, span

ROLES: Final = ("admin", "owner", "network-admin", "it-admin", "billing-admin", "auditor")
AUTOGROUPS: Final = ("danger-all", "internet", "member", "nonroot", "self", "shared", "tagged", *ROLES)
DOMAIN_PREFIX: Final = "user:*@"
_ADDRESS: Final = re.compile(r"[0-9a-fA-F:.]+(?:/[0-9]+)?")


class Kind(Enum):
    ANY = "*"
    ADDRESS = "address"
    USER = "user"
    DOMAIN = "domain"  # all users of an e-mail domain
    GROUP = "group"
    TAG = "tag"
    AUTOGROUP = "autogroup"
    IPSET = "ipset"
    HOST = "host"


@final
@dataclass(frozen=True, slots=True)
class Selector:
    """name: the user, domain, host, or what follows the prefix; tags and groups keep theirs. at: of an address."""

    kind: Kind
    name: str
    at: Span = field(default=(0, 0), compare=False)

    def __str__(self) -> str:
        match self.kind:
            case Kind.AUTOGROUP | Kind.IPSET:
                return f"{self.kind.value}:{self.name}"
            case Kind.DOMAIN:
                return f"{DOMAIN_PREFIX}{self.name}"
            case _:
                return self.name

    def is_autogroup(self, *names: str) -> bool:
        return self.kind is Kind.AUTOGROUP and self.name in names


ANY: Final = Selector(Kind.ANY, "*")


def parse_selector(text: str) -> Selector:
    """Raises ValueError with the message to show."""
    text = text.strip()
    if _ADDRESS.fullmatch(text) and (":" in text or "." in text):
        try:
            return Selector(Kind.ADDRESS, text, span(text))
        except ValueError:
            if ":" in text or "/" in text:
                raise ValueError(f'invalid address: "{text}"') from None
    if text == "*":
        return ANY
    if text == DOMAIN_PREFIX:
        raise ValueError(f'invalid selector: "{text}": a domain is missing')
    if text.startswith(DOMAIN_PREFIX):
        return Selector(Kind.DOMAIN, text.removeprefix(DOMAIN_PREFIX))
    if "@" in text:
        return Selector(Kind.USER, text)
    if text.startswith("group:"):
        return Selector(Kind.GROUP, text)
    if text.startswith("tag:"):
        return Selector(Kind.TAG, text)
    if text.startswith("ipset:"):
        return Selector(Kind.IPSET, text.removeprefix("ipset:"))
    if text.startswith("autogroup:"):
        name = text.removeprefix("autogroup:")
        if name not in AUTOGROUPS:
            known = ", ".join(f"autogroup:{each}" for each in AUTOGROUPS)
            raise ValueError(f'invalid autogroup: got "{text}", must be one of [{known}]')
        return Selector(Kind.AUTOGROUP, name)
    if not text or ":" in text:
        raise ValueError(f'invalid selector: "{text}"')
    return Selector(Kind.HOST, text)


def without_brackets(host: str) -> str:
    """The host of a destination, `[v6]` and `[v6]/n` without brackets. Raises ValueError with the message to show."""
    if host != host.strip():
        raise ValueError(f'invalid selector: "{host}": white space around it')
    if not host.startswith("["):
        return host
    address, bracket, length = host[1:].partition("]")
    is_address = bool(bracket) and ":" in address and _ADDRESS.fullmatch(address) and "/" not in address
    if not is_address or (length and not length.startswith("/")):
        raise ValueError("brackets are for IPv6 addresses")
    return address + length
