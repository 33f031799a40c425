"""A policy as read and checked: what each section says, and where in the text it says it.

Ref: spec policy §3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from gw.model.derpmap import DERPRegion
from gw.model.dnsconfig import DNSRecord
from gw.policy.people import User
from gw.policy.postures import Assertion
from gw.policy.selectors import ROLES, Kind, Selector
from gw.policy.services import Service
from gw.policy.spans import Span, SpanSet

Capabilities = Mapping[str, "tuple[str, ...]"]  # name -> values, each as JSON text


@final
@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """One entry of `grants`, or the destinations of one entry of `acls` that share their ports.

    at: byte of the text where the entry begins. postures: names of which a source node must hold one; () for any node.
    """

    section: str
    at: int
    sources: tuple[Selector, ...]
    destinations: tuple[Selector, ...]
    services: tuple[Service, ...] = ()
    capabilities: Capabilities = field(default_factory=dict)
    via: tuple[str, ...] = ()
    postures: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, eq=False)
class SshRule:
    """check_period_s: how long an approval lasts; None for `accept`."""

    at: int
    sources: tuple[Selector, ...]
    destinations: tuple[Selector, ...]
    users: tuple[str, ...]
    check_period_s: float | None
    accept_env: tuple[str, ...]
    postures: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, eq=False)
class NodeAttribute:
    at: int
    targets: tuple[Selector, ...]
    attributes: tuple[str, ...]
    pools: tuple[Span, ...]
    capabilities: Capabilities


@final
@dataclass(frozen=True, slots=True, eq=False)
class AutoApprovers:
    routes: tuple[tuple[Span, tuple[Selector, ...]], ...] = ()
    exit_node: tuple[Selector, ...] = ()


@final
@dataclass(frozen=True, slots=True, eq=False)
class PolicyTest:
    """An entry of `tests` as it stands: whatever is wrong with it makes the test fail.

    posture_attributes: of the source; None for those that its nodes have.
    """

    at: int
    source: str
    protocol: str
    accept: tuple[str, ...]
    deny: tuple[str, ...]
    posture_attributes: Mapping[str, object] | None = None


@final
@dataclass(frozen=True, slots=True, eq=False)
class SshTest:
    at: int
    source: str
    destinations: tuple[str, ...]
    accept: tuple[str, ...]
    deny: tuple[str, ...]
    check: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """A whole policy. grants: None where the text has neither `grants` nor `acls`, which allows everything."""

    text: bytes = b""
    grants: tuple[Grant, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hosts: Mapping[str, Span] = field(default_factory=dict)
    ipsets: Mapping[str, SpanSet] = field(default_factory=dict)
    tag_owners: Mapping[str, tuple[Selector, ...]] = field(default_factory=dict)
    auto_approvers: AutoApprovers = field(default_factory=AutoApprovers)
    ssh: tuple[SshRule, ...] = ()
    node_attributes: tuple[NodeAttribute, ...] = ()
    postures: Mapping[str, tuple[Assertion, ...]] = field(default_factory=dict)
    tests: tuple[PolicyTest, ...] = ()
    ssh_tests: tuple[SshTest, ...] = ()
    randomize_client_port: bool = False
    disable_ipv4: bool = False
    one_cgnat_route: str = ""
    derp_regions: Mapping[int, DERPRegion | None] = field(default_factory=dict)  # replaces regions; None takes one away
    dns_records: tuple[DNSRecord, ...] = ()

    def mentions(self, user: User) -> bool:
        """Whether any rule is about this user by name, group, e-mail domain or role."""
        selectors = self._selectors()
        words = {member for members in self.groups.values() for member in members}
        words |= {each.name for each in selectors if each.kind is Kind.USER}
        domains = {each.name for each in selectors if each.kind is Kind.DOMAIN}
        has_roles = any(each.is_autogroup(*ROLES) for each in selectors)
        is_local = any(login.startswith("localpart:") for rule in self.ssh for login in rule.users)
        return (
            not words.isdisjoint(user.called)
            or any(f"group:{group}" in self.groups for group in user.groups)
            or user.domain in domains
            or (has_roles and user.role != "member")
            or is_local
        )

    def _selectors(self) -> set[Selector]:
        lists: list[tuple[Selector, ...]] = [*self.tag_owners.values(), self.auto_approvers.exit_node]
        lists += [each for grant in self.grants or () for each in (grant.sources, grant.destinations)]
        lists += [each for rule in self.ssh for each in (rule.sources, rule.destinations)]
        lists += [entry.targets for entry in self.node_attributes]
        lists += [approvers for _, approvers in self.auto_approvers.routes]
        return {selector for each in lists for selector in each}
