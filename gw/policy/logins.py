"""Who may log in as whom where by SSH, as clients decide it: the first rule that lists the source and knows the login.

Ref: spec policy §11; tailscale ssh/tailssh
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from gw.model.sshpolicy import SSHRule
from gw.policy.spans import address_at
from gw.policy.sshrules import SshSection
from gw.policy.topology import TopologyNode
from gw.policy.view import PolicyView

ANY_LOGIN: Final = "autogroup:nonroot"  # stands for every login that no rule names


@final
@dataclass(frozen=True, slots=True)
class Login:
    """How a login is let in. action: `accept` or `check`."""

    action: str
    accept_env: tuple[str, ...] = ()


def logins(view: PolicyView[TopologyNode]) -> dict[tuple[int, int], dict[str, Login]]:
    """(source, target) by id -> login -> how; what is not there may not log in."""
    section = SshSection[TopologyNode](view.compiled)
    if not section:
        return {}
    owners = {str(address_at(place)): id_ for id_, entry in view.entries.items() for place in entry.facts.places}
    known: dict[tuple[int, ...], dict[int, dict[str, Login]]] = {}  # most targets share their rules
    kept: list[list[SSHRule]] = []  # so that no two rules have one id
    found: dict[tuple[int, int], dict[str, Login]] = {}
    for id_, entry in view.entries.items():
        rules = section.rules_for(view, entry.node)
        key = tuple(map(id, rules))
        if key not in known:
            kept.append(rules)
            known[key] = _outcomes(rules, owners)
        found |= {(source, id_): granted for source, granted in known[key].items() if source != id_}
    return found


def login_of(granted: dict[str, Login], user: str) -> Login | None:
    """How a source may log in as `user`."""
    return granted.get(user) or (granted.get(ANY_LOGIN) if user != "root" else None)


def _outcomes(rules: Sequence[SSHRule], owners: dict[str, int]) -> dict[int, dict[str, Login]]:
    """Source -> login -> how."""
    named = {name for rule in rules for name in rule.ssh_users} - {"*"}
    found: dict[int, dict[str, Login]] = {}
    for rule in rules:
        login = Login("check" if rule.action.hold_and_delegate else "accept", tuple(rule.accept_env or ()))
        others = rule.ssh_users.get("*")
        names = {name for name, local in rule.ssh_users.items() if local and name != "*"}
        if others:
            names |= named - rule.ssh_users.keys() | {ANY_LOGIN}
        for principal in rule.principals:
            mine = found.setdefault(owners[principal.node_ip], {})
            for name in names:
                mine.setdefault(name, login)
    return found
