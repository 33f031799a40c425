"""What an API key may do. Each scope has a form that only reads: `devices:core:read`.

Ref: control protocol §7.5
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gw.errors import PermissionNeeded, UsageError

ALL: Final = "all"
READ: Final = ":read"
_WHOLE: Final = (
    ALL, "auth_keys", "oauth_keys", "devices:core", "devices:routes", "policy_file", "feature_settings", "users",
)  # fmt: skip
SCOPES: Final = tuple(scope + suffix for scope in _WHOLE for suffix in ("", READ))  # tokens count on the order


def has_scope(held: Iterable[str], needed: str) -> bool:
    """Whether the scopes include one: a scope includes its reading form, `all` all, `all:read` all that only read."""
    enough = {needed, needed.removesuffix(READ), ALL}
    if needed.endswith(READ):
        enough.add(ALL + READ)
    return not enough.isdisjoint(held)


def require_scope(held: Iterable[str], needed: str) -> None:
    """Raises PermissionNeeded."""
    if not has_scope(held, needed):
        raise PermissionNeeded(f"the key lacks the scope `{needed}`")


def check_scopes(wanted: Iterable[str], *, held: Iterable[str]) -> list[str]:
    """The wanted scopes in order, none twice. Raises UsageError for an unknown one, or one beyond those held."""
    found = set(wanted)
    for scope in sorted(found):
        if scope not in SCOPES:
            raise UsageError(f"no such scope: `{scope[:40]}`", hint=f"one of {', '.join(SCOPES)}")
        if not has_scope(held, scope):
            raise UsageError(f"the scope `{scope}` is not the caller's to give")
    return [scope for scope in SCOPES if scope in found]
