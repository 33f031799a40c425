"""`/machine/set-dns`: a node asks for the TXT record that proves to a certificate authority that its name is its own.

    node ── set-dns {Name: "_acme-challenge.box.mesh.example.org", Type: "TXT", Value} ──▶ `Publisher.publish_txt`

The port `Publisher` is what a DNS backend implements; without one the answer is 501, as from Headscale. A node may ask
for its own name alone.

Ref: control protocol §3, §9.4
"""

from __future__ import annotations

import re
from typing import Final

from gw.control.tailnet import Tailnet
from gw.errors import GwError, NotFound, PermissionNeeded, UsageError
from gw.model.gojson import GoStruct, decoder

CHALLENGE: Final = "_acme-challenge."
_VALUE: Final = re.compile(r"[A-Za-z0-9_-]{16,255}", re.ASCII)


class NoBackend(GwError):
    """No DNS backend is set up: the request is answered with 501."""

    code = "no-backend"


class SetDns(GoStruct):
    version: int = 0
    node_key: str = ""
    name: str = ""
    type: str = ""
    value: str = ""


read_set_dns = decoder(SetDns)


async def set_dns(tailnet: Tailnet, machine: str, request: SetDns) -> None:
    """Publish a node's record. Raises NotFound, PermissionNeeded, UsageError, NoBackend, or the backend's GwError."""
    node = tailnet.by_node_key.get(request.node_key.lower())
    if node is None or node.doc.machine_key != machine:
        raise NotFound("node not found")
    if tailnet.is_expired(node):
        raise PermissionNeeded("node key expired")
    name = request.name.lower().removesuffix(".")
    if request.type.upper() != "TXT" or not name.startswith(CHALLENGE):
        raise UsageError("only TXT records of _acme-challenge can be set")
    if name != f"{CHALLENGE}{node.fqdn}":
        raise PermissionNeeded(f"not this node's name: {name[:80]}")
    if not _VALUE.fullmatch(request.value):
        raise UsageError("not an ACME challenge")
    if tailnet.publisher is None:
        raise NoBackend("Not implemented yet")
    await tailnet.publisher.publish_txt(name, request.value)
    tailnet.record("certificate-challenge", f"node:{node.id}")
