"""What the control server knows of one node, and how a change of it is told to the rest of the program."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import final

from gw.model.hostinfo import Hostinfo
from gw.model.node import PeerChange
from gw.state.documents import NodeDoc


@final
@dataclass(eq=False, slots=True)
class NodeRecord:
    """One node, one object for as long as it exists. `doc` is durable and replaced as a whole; the rest is observed."""

    doc: NodeDoc
    domain: str
    hostinfo: Hostinfo = field(default_factory=Hostinfo)
    endpoints: list[str] = field(default_factory=list)
    disco_key: str = ""
    home_derp: int = 0
    cap: int = 0
    online: bool = False
    is_unwell: bool = False  # its map stream stands, but it answers no pings
    last_seen: datetime | None = None
    awaited: datetime | None = None  # since when it may open its map stream, having been let in; None once it has
    armed: float = float("inf")  # when the clock looks at it next, UTC seconds
    expiry_told: bool = False  # whether the others know that its key expired
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # held over a durable change of `doc`
    id: int = field(init=False)  # of every `doc` it ever has

    def __post_init__(self) -> None:
        self.id = self.doc.id

    @property
    def is_alive(self) -> bool:
        """Whether packets sent by it probably arrive."""
        return self.online and not self.is_unwell

    @property
    def user(self) -> str:
        """Name of the owner; "" for a tagged node."""
        return self.doc.user

    @property
    def tags(self) -> list[str]:
        return self.doc.tags

    @property
    def addresses(self) -> list[str]:
        return self.doc.addresses

    @property
    def fqdn(self) -> str:
        """`name.domain`, without the trailing dot."""
        return f"{self.doc.given_name}.{self.domain}"

    @property
    def advertised_routes(self) -> list[str]:
        return self.hostinfo.routable_ips or []

    @property
    def served_routes(self) -> list[str]:
        """Routes that it advertises and that were approved, exit routes included; none before it is approved itself."""
        approved = self.doc.approved_routes if self.doc.approved else []
        return [route for route in self.advertised_routes if route in approved] if approved else []

    @property
    def posture_attributes(self) -> dict[str, object]:
        """What the node says of itself, as postures name it."""
        info = self.hostinfo
        return {
            name: value
            for name, value in (
                ("node:os", info.os.lower()),
                ("node:osVersion", info.os_version),
                ("node:tsVersion", info.ipn_version.partition("-")[0]),
            )
            if value
        }

    def is_expired(self, now_wall: datetime) -> bool:
        return self.doc.expiry is not None and self.doc.expiry <= now_wall


class ChangeKind(Enum):
    ADDED = "added"
    CHANGED = "changed"  # the whole node is another one
    PATCHED = "patched"  # only what `patch` says
    REMOVED = "removed"
    POLICY = "policy"
    DNS = "dns"
    RELAYS = "relays"


@final
@dataclass(frozen=True, slots=True)
class Change:
    """Something that is durable (or observed) by now and that subscribers may tell.

    filters: nodes whose packet filter or SSH rules are other ones because of it. anew: the node itself sees its peers
    differently. lost: nodes that saw `node` before and do not any more (and that it does not see either); after REMOVED
    these are all of its former peers.
    """

    kind: ChangeKind
    node: NodeRecord | None = None
    patch: PeerChange | None = None
    filters: Collection[NodeRecord] = ()
    lost: Collection[NodeRecord] = ()
    anew: bool = False
