"""The policy of a running tailnet: one object that answers every question about it, live.

    nodes and users come, change, go ──> PolicyEngine ──> Effect: whose filter and SSH rules are other ones now
    filters, SSH rules, attributes, visibility, routes, approvals <── asked for one node at a time

Ref: spec policy §15
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Generic, TypeVar, final

from gw.model.filterrule import FilterRule
from gw.model.sshpolicy import SSHRule
from gw.policy.attributes import NodeGifts, check_targets
from gw.policy.checks import Checks
from gw.policy.compiled import Compiled
from gw.policy.filters import filter_for
from gw.policy.model import Policy
from gw.policy.ownership import TagOwners
from gw.policy.people import People, User
from gw.policy.routing import IsOnline, Primary, routes_for
from gw.policy.sshrules import SshSection
from gw.policy.view import Effect, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)


@final
class PolicyEngine(Generic[N]):
    """pools: the tailnet's address prefixes. Raises PolicyError where the users make the policy ambiguous."""

    def __init__(self, policy: Policy, pools: Iterable[str], users: Iterable[User] = ()) -> None:
        self._users = {user.name: user for user in users}
        self._is_behind = False  # users came whom the policy in force cannot tell from others
        self.view: PolicyView[N] = PolicyView(policy, pools, self._users.values())
        self._take_over(_Sections(self.view.compiled))

    @property
    def policy(self) -> Policy:
        return self.view.policy

    def set_policy(self, policy: Policy) -> None:
        """Put a policy in force. Raises PolicyError; the last one stays then."""
        self._put_in_force(self._compiled(policy))

    def failures(self, policy: Policy) -> list[str]:
        """What the policy's own tests would say if it were in force. Raises PolicyError where it cannot be."""
        trial: PolicyView[N] = PolicyView(policy, self.view.pools, self._users.values())
        _Sections(trial.compiled)
        check_targets(trial.compiled)
        if not policy.tests and not policy.ssh_tests:
            return []
        for entry in self.view.entries.values():
            trial.add(entry.node)
        return Checks(trial).failures()

    def own_failures(self) -> list[str]:
        """What the tests of the policy in force say."""
        return Checks(self.view).failures()

    def put_user(self, user: User) -> bool:
        """A user is new or different. True where that changed what holds for nodes. Raises PolicyError."""
        return self._change_people(user, present=True)

    def drop_user(self, name: str) -> bool:
        """A user is gone. True where that changed what holds for nodes."""
        old = self._users.get(name)
        return old is not None and self._change_people(old, present=False)

    # Nodes

    def add(self, node: N) -> Effect[N]:
        """Take in a new node."""
        return self._with_ssh(self.view.add(node), node)

    def knows(self, node: N) -> bool:
        """Whether the node was added. One that was not reaches nobody, and nobody reaches it."""
        return node.id in self.view.entries

    def update(self, node: N) -> Effect[N]:
        """Look again at a node that may be another one for the policy."""
        before = self.view.entries[node.id]
        effect = self.view.update(node)
        if self.view.entries[node.id] is before:
            return effect
        touched = {each.id: each for each in self.ssh.touched(self.view, before)}
        effect = Effect([*touched.values(), *effect.filters], effect.lost, effect.anew)
        return self._with_ssh(effect, node)

    def remove(self, node: N) -> Effect[N]:
        """Take out a node that was deleted."""
        entry = self.view.entries[node.id]
        effect = self.view.remove(node)
        touched = {each.id: each for each in (*effect.filters, *self.ssh.touched(self.view, entry))}
        touched.pop(node.id, None)
        return Effect(list(touched.values()), effect.lost)

    def rivals(self, node: N) -> Collection[N]:
        """Other routers of this node's subnets that a `via` rule may lead by instead."""
        if not self.view.compiled.via or not self.knows(node):
            return ()
        found = {
            id_: entry.node
            for route in self.view.entries[node.id].routes
            for id_, entry in self.view.serving(route).items()
            if entry.facts.tags and id_ != node.id
        }
        return found.values()

    # What it means for a node

    def visible(self, viewer: N, other: N) -> bool:
        return self.knows(viewer) and self.knows(other) and self.view.visible(viewer, other)

    def peers_of(self, node: N) -> list[N]:
        return self.view.peers_of(node) if self.knows(node) else []

    def audience_of(self, node: N) -> Hashable:
        """Nodes with equal answers are seen by the same others."""
        return self.view.audience_of(node) if self.knows(node) else ("unknown", node.id)

    def sees_its_like(self, node: N) -> bool:
        """Whether nodes with its audience see one another."""
        return self.knows(node) and self.view.sees_its_like(node)

    def filter_for(self, node: N) -> list[FilterRule]:
        return filter_for(self.view, node) if self.knows(node) else []

    def ssh_for(self, node: N) -> list[SSHRule]:
        return self.ssh.rules_for(self.view, node) if self.knows(node) else []

    def ssh_check_period(self, source: N, destination: N) -> float | None:
        """Seconds that an approval of an SSH connection lasts; None where no rule asks for one."""
        if not (self.knows(source) and self.knows(destination)):
            return None
        return self.ssh.check_period(self.view.entries[source.id], self.view.entries[destination.id])

    def attributes_of(self, node: N, *, is_mac: bool = False) -> dict[str, list[str] | None]:
        """Name -> values as JSON texts."""
        if not self.knows(node):
            return {}
        return self.gifts.attributes(self.view.entries[node.id], is_mac=is_mac)

    def has_ipv4(self, node: N) -> bool:
        return not self.knows(node) or self.gifts.has_ipv4(self.view.entries[node.id])

    def routes_for(self, viewer: N, peer: N, primary: Primary, is_online: IsOnline[N]) -> list[str]:
        """Of the routes that `peer` serves, those in the map of `viewer`."""
        return routes_for(self.view, viewer, peer, primary, is_online)

    def approved(self, node: N, advertised: Iterable[str]) -> list[str]:
        """Of the advertised routes, those that the policy approves by itself."""
        if not self.knows(node):
            return []
        return self.gifts.approved(self.view.entries[node.id], advertised)

    def may_tag(self, user: str, tag: str) -> bool:
        """Whether a node that this user logs in may take the tag."""
        return self.owners.may(user, tag)

    # Inside

    def _compiled(self, policy: Policy) -> Compiled:
        return Compiled(policy, People(self._users.values(), policy.groups), self.view.pools)

    def _put_in_force(self, compiled: Compiled, *, is_idle: bool = False) -> None:
        """is_idle: no node stands otherwise for it. Nothing is changed where a section raises PolicyError."""
        sections = _Sections[N](compiled)
        if is_idle:
            self.view.compiled = compiled
        else:
            self.view.put_in_force(compiled)
        self._take_over(sections)
        self._is_behind = False

    def _take_over(self, sections: _Sections[N]) -> None:
        self.owners, self.gifts, self.ssh = sections.owners, sections.gifts, sections.ssh

    def _with_ssh(self, effect: Effect[N], node: N) -> Effect[N]:
        touched = self.ssh.touched(self.view, self.view.entries[node.id])
        if not touched:
            return effect
        merged = {each.id: each for each in (*effect.filters, *touched)}
        return Effect(list(merged.values()), effect.lost, effect.anew)

    def _change_people(self, user: User, *, present: bool) -> bool:
        people = self.view.compiled.people
        old = self._users.get(user.name)
        if present and old == user and not self._is_behind:
            return False
        self._users.pop(user.name, None)
        if present:
            self._users[user.name] = user
        is_mentioned = self.policy.mentions(user) or (old is not None and self.policy.mentions(old))
        if not is_mentioned and not self._is_behind:
            if old is not None:
                people.remove(old)
            if present:
                people.add(user)
            return False
        owns_nodes = self._is_behind or bool(self.view.household(user.name))
        self._is_behind = True
        self._put_in_force(self._compiled(self.policy), is_idle=not owns_nodes)
        return owns_nodes


@final
class _Sections(Generic[N]):
    """What is not about packets. Raises PolicyError where the users make it ambiguous."""

    def __init__(self, compiled: Compiled) -> None:
        self.owners = TagOwners(compiled)
        self.gifts = NodeGifts(compiled)
        self.ssh: SshSection[N] = SshSection(compiled)
