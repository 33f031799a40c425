"""What the policy in force means for each node: who sees whom, and which packets a node lets in.

The view keeps an index of the nodes by owner, so that every question and every change costs what it touches and never a
walk over the whole tailnet: O(1) for `visible`, O(peers) for `peers_of`, O(own addresses) for `filter_for`.

    own devices   sources: all addresses of the owner's untagged devices; destinations: the node's own addresses
    allow all     sources: the tailnet's address pools and every approved subnet route; destination: everything
    nothing       no rule, no peer

Ref: spec policy §6 (sources, reduction), §7 (autogroup:self)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, final

from gw.model.filterrule import FilterRule, NetPortRange
from gw.policy.document import Policy
from gw.policy.ranges import AddressRanges, pool_sources

EXIT_ROUTES: Final = ("0.0.0.0/0", "::/0")


class PolicyNode(Protocol):
    """What a policy looks at. user: "" when tagged; tags replace the user completely."""

    @property
    def id(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def tags(self) -> Sequence[str]: ...
    @property
    def addresses(self) -> Sequence[str]: ...
    @property
    def served_routes(self) -> Sequence[str]: ...


N = TypeVar("N", bound=PolicyNode)


@final
@dataclass(frozen=True, slots=True)
class Effect(Generic[N]):
    """What a change of one node did to others. filters: whose packet filter is another one now (the node may be among
    them); lost: who saw the node before and no longer does."""

    filters: Collection[N] = ()
    lost: Collection[N] = ()


@dataclass(frozen=True, slots=True)
class _Facts:
    owner: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


@dataclass(slots=True)
class _Household(Generic[N]):
    """The untagged devices of one user."""

    devices: dict[int, N] = field(default_factory=dict)
    ranges: AddressRanges = field(default_factory=AddressRanges)
    sources: list[str] | None = None  # the text of ranges, until they change


@final
class PolicyView(Generic[N]):
    """The policy in force over an index of nodes. pools: the tailnet's address prefixes."""

    def __init__(self, policy: Policy, pools: Iterable[str]) -> None:
        self.policy = policy
        self.epoch = 1
        self._pools = pool_sources(pools)
        self._nodes: dict[int, N] = {}
        self._facts: dict[int, _Facts] = {}
        self._households: dict[str, _Household[N]] = {}
        self._routes: Counter[str] = Counter()
        self._everybody: list[FilterRule] | None = None

    def set_policy(self, policy: Policy) -> bool:
        """Put a policy in force; False if it was already. The epoch goes up with every change."""
        if policy is self.policy:
            return False
        self.policy = policy
        self.epoch += 1
        return True

    def visible(self, viewer: N, other: N) -> bool:
        """Whether the two are peers of each other (both policies are symmetric)."""
        if viewer.id == other.id or self.policy is Policy.NOTHING:
            return False
        if self.policy is Policy.ALLOW_ALL:
            return True
        owner = _owner(viewer)
        return owner != "" and owner == _owner(other)

    def peers_of(self, node: N) -> list[N]:
        """The nodes that `node` sees, in no particular order."""
        return [peer for peer in self._audience(_owner(node)) if peer.id != node.id]

    def routes_usable(self, viewer: N, router: N) -> bool:
        """Whether the subnet and exit routes of `router` are for `viewer`: `autogroup:self` opens only addresses."""
        return self.policy is Policy.ALLOW_ALL and viewer.id != router.id

    def filter_for(self, node: N) -> list[FilterRule]:
        """The rules that `node` enforces on arriving packets; empty means that nothing may come in.

        The list under allow-all is one shared object until it changes, so that it can be encoded once.
        """
        if self.policy is Policy.ALLOW_ALL:
            if self._everybody is None:
                sources = self._pools + sorted(route for route in self._routes if route not in self._pools)
                self._everybody = [FilterRule(src_ips=sources, dst_ports=[NetPortRange(ip="*")])]
            return self._everybody
        household = self._households.get(_owner(node)) if self.policy is Policy.OWN_DEVICES else None
        if household is None:
            return []
        if household.sources is None:
            household.sources = household.ranges.text()
        return [FilterRule(src_ips=household.sources, dst_ports=[NetPortRange(ip=each) for each in node.addresses])]

    def add(self, node: N) -> Effect[N]:
        """Take in a new node."""
        facts = _facts(node)
        self._nodes[node.id] = node
        self._facts[node.id] = facts
        self._enter(node, facts)
        return Effect(filters=self._touched(facts, facts.routes))

    def remove(self, node: N) -> Effect[N]:
        """Take out a node that was deleted."""
        facts = self._facts[node.id]
        saw = [peer for peer in self._audience(facts.owner) if peer.id != node.id]
        self._leave(node, facts)
        del self._nodes[node.id], self._facts[node.id]
        return Effect(filters=[each for each in self._touched(facts, facts.routes) if each.id != node.id], lost=saw)

    def update(self, node: N) -> Effect[N]:
        """Look again at a node whose user, tags, addresses or routes may have changed."""
        before, after = self._facts[node.id], _facts(node)
        if before == after:
            return Effect()
        saw = [] if before.owner == after.owner else self._audience(before.owner)
        self._leave(node, before)
        self._facts[node.id] = after
        self._enter(node, after)
        touched = {each.id: each for each in self._touched(before, before.routes)}
        touched |= {each.id: each for each in self._touched(after, after.routes)}
        if self.policy is Policy.ALLOW_ALL and before.routes == after.routes:
            touched = {}
        elif self.policy is Policy.OWN_DEVICES:
            if (before.owner, before.addresses) == (after.owner, after.addresses):
                touched = {}
            else:
                touched[node.id] = node
        lost = [peer for peer in saw if peer.id != node.id and not self.visible(peer, node)]
        return Effect(filters=list(touched.values()), lost=lost)

    def _audience(self, owner: str) -> list[N]:
        if self.policy is Policy.ALLOW_ALL:
            return list(self._nodes.values())
        household = self._households.get(owner) if self.policy is Policy.OWN_DEVICES else None
        return [] if household is None else list(household.devices.values())

    def _touched(self, facts: _Facts, routes: Sequence[str]) -> list[N]:
        if self.policy is Policy.ALLOW_ALL and not routes:
            return []
        return self._audience(facts.owner)

    def _enter(self, node: N, facts: _Facts) -> None:
        if facts.owner:
            household = self._households.setdefault(facts.owner, _Household())
            household.devices[node.id] = node
            for address in facts.addresses:
                household.ranges.add(address)
            household.sources = None
        if facts.routes:
            self._routes.update(facts.routes)
            self._everybody = None

    def _leave(self, node: N, facts: _Facts) -> None:
        household = self._households.get(facts.owner)
        if household is not None:
            del household.devices[node.id]
            for address in facts.addresses:
                household.ranges.remove(address)
            household.sources = None
            if not household.devices:
                del self._households[facts.owner]
        if facts.routes:
            self._routes.subtract(facts.routes)
            self._routes += Counter()
            self._everybody = None


def _owner(node: PolicyNode) -> str:
    return "" if node.tags else node.user


def _facts(node: PolicyNode) -> _Facts:
    routes = tuple(route for route in node.served_routes if route not in EXIT_ROUTES)
    return _Facts(_owner(node), tuple(node.addresses), routes)
