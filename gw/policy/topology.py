"""A tailnet described in JSON: users and nodes to try a policy on without a server.

Ref: vectors/policy/README.md (topology)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, final

import msgspec

from gw.policy.faults import PolicyError
from gw.policy.people import User
from gw.policy.reader import read_policy
from gw.policy.view import PolicyView

POOLS: Final = ("100.64.0.0/10", "fd7a:115c:a1e0::/48")


class TopologyUser(msgspec.Struct):
    name: str
    id: int = 0
    email: str = ""
    role: str = "member"


class TopologyRoutes(msgspec.Struct):
    advertised: list[str] = []
    approved: list[str] = []


class DescribedNode(msgspec.Struct):
    name: str
    id: int = 0
    user: str | None = None
    tags: list[str] = []
    ips: list[str] = []
    routes: TopologyRoutes = msgspec.field(default_factory=TopologyRoutes)
    attributes: dict[str, Any] = {}

    def placed(self) -> TopologyNode:
        """As the policy looks at it."""
        served = [route for route in self.routes.advertised if route in self.routes.approved]
        return TopologyNode(
            self.id,
            self.name,
            self.user or "",
            tuple(self.tags),
            tuple(self.ips),
            tuple(served),
            tuple(self.routes.advertised),
            self.attributes,
        )


class Topology(msgspec.Struct):
    """domains: e-mail domains of the tailnet."""

    users: list[TopologyUser] = []
    nodes: list[DescribedNode] = []
    domains: list[str] = []


@final
@dataclass(frozen=True, slots=True)
class TopologyNode:
    """A node of a topology, as the policy looks at it."""

    id: int
    name: str
    user: str
    tags: tuple[str, ...]
    addresses: tuple[str, ...]
    served_routes: tuple[str, ...]
    advertised: tuple[str, ...] = ()
    posture_attributes: dict[str, Any] = field(default_factory=dict)


class Asked(msgspec.Struct):
    """A line of `gwctl policy eval --batch`."""

    topology: Topology
    policy: str


def read_topology(raw: bytes) -> Topology:
    """Raises PolicyError."""
    try:
        return msgspec.json.decode(raw, type=Topology)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"not a topology: {error}") from None


def view_of(topology: Topology, text: bytes) -> PolicyView[TopologyNode]:
    """The policy in force over the topology. Raises PolicyError for either."""
    policy = read_policy(text, domains=topology.domains)
    users = [User(each.name, each.email, each.role, each.id) for each in topology.users]
    try:
        view = PolicyView[TopologyNode](policy, POOLS, users)
        for each in topology.nodes:
            view.add(each.placed())
    except ValueError as error:
        raise PolicyError(f"not a topology: {error}") from None
    return view
