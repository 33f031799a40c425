"""The nodes in memory, found by id, key, machine, name, address or owner, with the names and addresses in use.

Reading is a dictionary look-up. What enters was checked by `admissible`, because what a node's document says goes to
every peer.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Final, final

from gw.control.allocator import Allocator
from gw.control.names import Names, is_label
from gw.control.records import NodeRecord
from gw.control.spelling import number_of
from gw.errors import NotFound
from gw.state.documents import NodeDoc

_NODE_KEY: Final = re.compile(r"nodekey:(?!0{64})[0-9a-f]{64}", re.ASCII)
_MACHINE_KEY: Final = re.compile(r"mkey:(?!0{64})[0-9a-f]{64}", re.ASCII)


@final
class Roster:
    """Change it with `enter`, `leave`, `index` and `unindex` only. users: names of those there are."""

    def __init__(self, pools: Iterable[str], domain: str, users: Container[str]) -> None:
        self.nodes: dict[int, NodeRecord] = {}
        self.by_node_key: dict[str, NodeRecord] = {}
        self.by_machine_key: dict[str, list[NodeRecord]] = {}
        self.by_name: dict[str, NodeRecord] = {}
        self.by_address: dict[str, NodeRecord] = {}
        self.addresses = Allocator(pools)
        self.names = Names()
        self._domain = domain
        self._users = users
        self._by_user: dict[str, dict[int, NodeRecord]] = {}

    def node(self, node_id: int) -> NodeRecord:
        """Raises NotFound."""
        found = self.nodes.get(node_id)
        if found is None:
            raise NotFound(f"no such node: `{node_id}`", hint="see `gwctl nodes list`")
        return found

    def find(self, text: str) -> NodeRecord:
        """A node by id, name, full name, or address. Raises NotFound."""
        numbered = self.nodes.get(number_of(text))
        if numbered is not None:
            return numbered
        name = text.lower().removesuffix(".").removesuffix(f".{self._domain}")
        found = self.by_name.get(name)
        if found is None:
            found = self.by_address.get(name)
        if found is None:
            raise NotFound(f"no such node: `{text[:80]}`", hint="see `gwctl nodes list`")
        return found

    def has(self, node: NodeRecord) -> bool:
        """Whether the node is still part of the tailnet."""
        return self.nodes.get(node.id) is node

    def of_user(self, user: str) -> list[NodeRecord]:
        return list(self._by_user.get(user, {}).values())

    def admissible(self, doc: NodeDoc) -> str:
        """Why a document cannot be taken in, "" if it can. What it says goes to every peer: one bad name or key would
        make their clients drop whole messages."""
        if not is_label(doc.given_name):
            return f"`given_name` is no DNS label: `{doc.given_name[:80]}`"
        if not _NODE_KEY.fullmatch(doc.node_key) or not _MACHINE_KEY.fullmatch(doc.machine_key):
            return "`node_key` or `machine_key` is no key"
        if doc.node_key in self.by_node_key:
            return f"node key belongs to node {self.by_node_key[doc.node_key].id}"
        if doc.given_name in self.by_name:
            return f"name `{doc.given_name}` belongs to node {self.by_name[doc.given_name].id}"
        if doc.user and doc.user not in self._users:
            return f"no such user: `{doc.user}`"
        if not doc.user and not doc.tags:
            return "neither user nor tags"
        for index, address in enumerate(doc.addresses):
            try:
                fault = "" if self.addresses.claim(address) else f"address `{address}` belongs to another node"
            except ValueError:
                fault = f"not an address: `{address[:80]}`"
            if fault:
                self.addresses.release(doc.addresses[:index])
                return fault
        self.addresses.release(doc.addresses)
        return ""

    def enter(self, node: NodeRecord) -> None:
        self.index(node)
        self.nodes[node.id] = node
        self.by_machine_key.setdefault(node.doc.machine_key, []).append(node)

    def leave(self, node: NodeRecord) -> None:
        self.unindex(node)
        del self.nodes[node.id]
        machine = self.by_machine_key[node.doc.machine_key]
        machine.remove(node)
        if not machine:
            del self.by_machine_key[node.doc.machine_key]

    def index(self, node: NodeRecord) -> None:
        """Find the node by what its document says, and keep its name and addresses from others."""
        doc = node.doc
        self.by_node_key[doc.node_key] = node
        self.by_name[doc.given_name] = node
        if doc.user:
            self._by_user.setdefault(doc.user, {})[node.id] = node
        if doc.given_name not in self.names:
            self.names.claim(doc.given_name)
        for address in doc.addresses:
            self.addresses.claim(address)
            self.by_address[address] = node

    def unindex(self, node: NodeRecord) -> None:
        doc = node.doc
        del self.by_node_key[doc.node_key], self.by_name[doc.given_name]
        if doc.user:
            own = self._by_user[doc.user]
            del own[node.id]
            if not own:
                del self._by_user[doc.user]
        self.names.release(doc.given_name)
        self.addresses.release(doc.addresses)
        for address in doc.addresses:
            self.by_address.pop(address, None)
