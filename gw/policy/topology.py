"""A tailnet described in JSON: users and nodes to try a policy on without a server.

Ref: vectors/policy/README.md (topology)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, final

import msgspec

from gw.policy.attributes import check_targets
from gw.policy.faults import PolicyError
from gw.policy.people import User
from gw.policy.reader import read_policy
from gw.policy.spans import number, span
from gw.policy.view import PolicyView

POOLS: Final = ("100.64.0.0/10", "fd7a:115c:a1e0::/48")


class TopologyUser(msgspec.Struct):
    name: str
    id: int = 0
    email: str = ""
    role: str = "member"
    groups: list[str] = []  # that the identity provider names


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

    def checked(self) -> Topology:
        """Itself. Raises PolicyError where an address or a route is none, or two nodes have one id."""
        for node in self.nodes:
            try:
                for address in node.ips:
                    number(address)
                for route in (*node.routes.advertised, *node.routes.approved):
                    span(route)
            except ValueError as error:
                raise PolicyError(f"not a topology: node `{node.name}`: {error}") from None
        if len({node.id for node in self.nodes}) < len(self.nodes):
            raise PolicyError("not a topology: two nodes have one id")
        return self


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
    return _read(raw, Topology).checked()


def read_asked(raw: bytes) -> Asked:
    """Raises PolicyError where it is no question; its policy may be no policy."""
    asked = _read(raw, Asked)
    asked.topology.checked()
    return asked


def view_of(topology: Topology, text: bytes) -> PolicyView[TopologyNode]:
    """The policy in force over the topology. Raises PolicyError."""
    policy = read_policy(text, domains=topology.domains)
    users = [User(each.name, each.email, each.role, each.id, frozenset(each.groups)) for each in topology.users]
    view = PolicyView[TopologyNode](policy, POOLS, users)
    check_targets(view.compiled)
    for each in topology.nodes:
        view.add(each.placed())
    return view


T = TypeVar("T")


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"not a topology: {error}") from None
