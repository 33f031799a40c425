"""SSH rules as a node gets them.

Ref: spec policy §11; tailscale ssh/tailssh
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar, final

from gw.model.sshpolicy import SSHAction, SSHPrincipal, SSHRule
from gw.policy.compiled import Compiled
from gw.policy.membership import audience, is_meant
from gw.policy.model import SshRule
from gw.policy.spans import address_at
from gw.policy.view import Entry, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)

ACCEPT: Final = SSHAction(
    accept=True, allow_agent_forwarding=True, allow_local_port_forwarding=True, allow_remote_port_forwarding=True
)
HOLD: Final = "https://unused/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER"
LOCALPART: Final = "localpart:*@"


@final
class SshSection(Generic[N]):
    """The section `ssh` of a compiled policy. Tell it of every node that comes, goes or changes by `touched`."""

    def __init__(self, compiled: Compiled) -> None:
        self._rules = [_Rule[N](rule, compiled) for rule in compiled.policy.ssh]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def rules_for(self, view: PolicyView[N], node: N) -> list[SSHRule]:
        """In the order in which the client tries them: checks before accepts."""
        entry = view.entries[node.id]
        checks: list[SSHRule] = []
        accepts: list[SSHRule] = []
        for rule in self._rules:
            (accepts if rule.rule.check_period_s is None else checks).extend(rule.compiled_for(view, entry))
        return [*checks, *accepts]

    def check_period(self, source: Entry[N], destination: Entry[N]) -> float | None:
        """Seconds that an approval of this way lasts, by the first check in the file that opens it; None = none."""
        for rule in self._rules:
            if rule.rule.check_period_s is not None and rule.leads(source, destination):
                return rule.rule.check_period_s
        return None

    def touched(self, view: PolicyView[N], entry: Entry[N]) -> list[N]:
        """The nodes whose rules are other ones because this one came, went, or was so until now."""
        found: dict[int, Entry[N]] = {}
        for rule in self._rules:
            if not rule.counts(entry):
                continue
            rule.forget()
            found |= view.owned(rule.destinations)
            if rule.own or rule.domains:
                found |= {each.node.id: each for each in view.household(entry.facts.owner)}
        return [each.node for each in found.values()]


@final
class _Rule(Generic[N]):
    """One entry of the section. Whom it lets in is found once, until a node that counts comes or goes."""

    def __init__(self, rule: SshRule, compiled: Compiled) -> None:
        self.rule = rule
        self.sources = audience(compiled, rule.sources)
        self.destinations = audience(compiled, [each for each in rule.destinations if not each.is_autogroup("self")])
        self.own = any(each.is_autogroup("self") for each in rule.destinations)
        self.domains = [
            user.removeprefix(LOCALPART) for user in rule.users if user.startswith(LOCALPART) and user != LOCALPART
        ]
        self._compiled = compiled
        self._logins = _logins(rule.users)
        self._action = _action(rule)
        self._for_destinations: list[SSHRule] | None = None

    def forget(self) -> None:
        self._for_destinations = None

    def counts(self, entry: Entry[N]) -> bool:
        """Whether the node is a source."""
        postures = self.rule.postures
        return is_meant(self.sources, entry, self._compiled) and (
            not postures or not entry.facts.postures.isdisjoint(postures)
        )

    def leads(self, source: Entry[N], destination: Entry[N]) -> bool:
        """Whether it lets the one in at the other."""
        if not self.counts(source):
            return False
        owner = source.facts.owner
        is_own = self.own and bool(owner) and owner == destination.facts.owner
        return is_own or is_meant(self.destinations, destination, self._compiled)

    def compiled_for(self, view: PolicyView[N], entry: Entry[N]) -> list[SSHRule]:
        owner = entry.facts.owner
        found: list[SSHRule] = []
        if self.own and owner:
            found += self._for([each for each in view.household(owner) if self.counts(each)], {})
        if is_meant(self.destinations, entry, self._compiled):
            if self._for_destinations is None:
                sources = [each for each in view.owned(self.sources).values() if self.counts(each)]
                self._for_destinations = self._by_owner(sources) if self.domains else self._for(sources, {})
            found += self._for_destinations
        elif self.domains and self.counts(entry):
            # the service's quirk: a source gets the rules for its own user's devices, or for itself
            mine = view.household(owner) if owner else [entry]
            found += self._by_owner([each for each in mine if self.counts(each)])
        return found

    def _by_owner(self, sources: Iterable[Entry[N]]) -> list[SSHRule]:
        """Users one by one, for each has a login of its own; then all tagged nodes."""
        by_owner: dict[str, list[Entry[N]]] = {}
        tagged: list[Entry[N]] = []
        for entry in sources:
            (by_owner.setdefault(entry.facts.owner, []) if entry.facts.owner else tagged).append(entry)
        people = self._compiled.people.by_name
        found: list[SSHRule] = []
        for owner in sorted(by_owner, key=lambda name: people[name].id if name in people else 0):
            found += self._for(by_owner[owner], {})
            user = people.get(owner)
            if user is not None and user.domain in self.domains:
                local = user.email.rpartition("@")[0]
                found += self._for(by_owner[owner], {local: local})
        return [*found, *self._for(tagged, {})]

    def _for(self, sources: Iterable[Entry[N]], logins: dict[str, str]) -> list[SSHRule]:
        principals = [SSHPrincipal(node_ip=str(address_at(place))) for entry in sources for place in entry.facts.places]
        if not principals:
            return []
        return [
            SSHRule(
                principals=principals,
                ssh_users=logins or self._logins,
                action=self._action,
                accept_env=list(self.rule.accept_env) or None,
            )
        ]


def _logins(users: Iterable[str]) -> dict[str, str]:
    """`=` is "the same name". root needs to be named, also where every other name is fine."""
    found: dict[str, str] = {"root": ""}
    for user in users:
        if user == "autogroup:nonroot":
            found["*"] = "="
        elif not (user.startswith(LOCALPART) and user != LOCALPART):
            found[user] = user
    return found


def _action(rule: SshRule) -> SSHAction:
    if rule.check_period_s is not None:
        return SSHAction(hold_and_delegate=HOLD)
    return ACCEPT
