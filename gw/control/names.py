"""DNS labels of nodes: from the host's own name, unique in the tailnet, or chosen by an administrator.

    Ann's MacBook.local → ann-s-macbook      second one → ann-s-macbook-1      no letters at all → node

Ref: tailscale util/dnsname SanitizeHostname; RFC 1035 §2.3.1
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, final

from gw.errors import Conflict, UsageError

MAX_LABEL: Final = 63
FALLBACK: Final = "node"
_SUFFIXES: Final = (".localdomain", ".local", ".lan")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NOT_LABEL: Final = re.compile(r"[^a-z0-9]+", re.ASCII)


def label_of(hostname: str) -> str:
    """A valid DNS label made of a host name; `node` where nothing of it can stand in one."""
    name = hostname[:1024].lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return _NOT_LABEL.sub("-", plain).strip("-")[:MAX_LABEL].strip("-") or FALLBACK


def is_label(name: str) -> bool:
    """Whether this is a DNS label in lower case."""
    return _LABEL.fullmatch(name) is not None


def check_label(name: str) -> str:
    """The name in lower case. Raises UsageError if it is no DNS label."""
    lowered = name.lower()
    if not _LABEL.fullmatch(lowered):
        raise UsageError(f"not a DNS label: `{name}`", hint="letters, digits and inner hyphens, at most 63")
    return lowered


def follows(given: str, hostname: str) -> bool:
    """Whether `given` was made from the host name (and so follows it), rather than chosen by an administrator."""
    base = label_of(hostname)
    if given == base:
        return True
    stem, hyphen, number = given.rpartition("-")
    return bool(hyphen) and number.isdigit() and base.startswith(stem) and (stem == base or len(given) == MAX_LABEL)


@final
class Names:
    """The labels in use. A thousand hosts of one name cost one probe each, not a search."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def take(self, hostname: str) -> str:
        """A free label for this host name, now taken: the name itself, else with `-1`, `-2`, …"""
        base = label_of(hostname)
        if base not in self._taken:
            self._taken.add(base)
            return base
        number = self._next.get(base, 1)
        while True:
            suffix = f"-{number}"
            candidate = base[: MAX_LABEL - len(suffix)].rstrip("-") + suffix
            number += 1
            if candidate not in self._taken:
                self._next[base] = number
                self._taken.add(candidate)
                return candidate

    def claim(self, name: str) -> None:
        """Take exactly this label. Raises Conflict if another node has it."""
        if name in self._taken:
            raise Conflict(f"name is taken: `{name}`", hint="choose another one; `gwctl nodes list` shows all")
        self._taken.add(name)

    def release(self, name: str) -> None:
        """Give a label back; the lowest free number is found again."""
        self._taken.discard(name)
        stem, _, number = name.rpartition("-")
        if number.isdigit() and int(number) < self._next.get(stem, 0):
            self._next[stem] = max(1, int(number))
