"""The entry that a relay writes into the relay map of its own: how it is told from one that a person wrote.

A `gwrelay` beside the control server writes its node into `relays/<region>.toml` with a digest of it, region's names
included. A person who edits the entry leaves a digest that does not fit, and has made a hand edit. That keeps edits
apart from the relay's routine and is no proof: whoever may write the file may make a digest as well.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from gw.state.documents import RelayNode, RelayRegionDoc

DIGEST_CHARS: Final = 16


def entered(node: RelayNode, code: str, name: str) -> RelayNode:
    """The entry as its relay writes it. code, name: of the region."""
    return msgspec.structs.replace(node, entered=_digest(node, code, name))


def entering_relay(before: RelayRegionDoc | None, after: RelayRegionDoc | None) -> str:
    """The name of the relay that made one document of a region into the other by entering itself; "" for a person."""
    if after is None:
        return ""
    old = {node.name: node for node in before.nodes} if before is not None else {}
    new = {node.name: node for node in after.nodes}
    differing = [node for name, node in new.items() if node != old.get(name)]
    if len(differing) != 1 or len(new) != len(after.nodes) or old.keys() - new.keys():
        return ""
    (node,) = differing
    return node.name if node.entered and node.entered == _digest(node, after.code, after.name) else ""


def _digest(node: RelayNode, code: str, name: str) -> str:
    said = msgspec.json.encode((code, name, msgspec.structs.replace(node, entered="")))
    return hashlib.sha256(said).hexdigest()[:DIGEST_CHARS]
