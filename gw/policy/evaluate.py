"""A policy over a described tailnet, and all that it means there: what `gwctl policy eval` prints.

Ref: vectors/policy/README.md (result)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gw.model.addresses import EXIT_ROUTES
from gw.policy.attributes import SUGGEST_EXIT, NodeGifts
from gw.policy.checks import FAILED, Checks
from gw.policy.faults import PolicyError
from gw.policy.filters import filter_for
from gw.policy.routing import routes_for
from gw.policy.sshrules import SshSection
from gw.policy.topology import Topology, TopologyNode, view_of
from gw.policy.view import PolicyView


def evaluate(topology: Topology, text: bytes) -> dict[str, Any]:
    """The result object, to be encoded as JSON: `error`, or all that an accepted policy means."""
    try:
        view = view_of(topology, text)
        failures = Checks(view).failures()
        if failures:
            raise PolicyError(FAILED, details=failures)
    except PolicyError as error:
        return {"error": {"message": error.message, "details": error.details}}
    nodes = [entry.node for entry in view.entries.values()]
    gifts = NodeGifts(view.compiled)
    ssh = SshSection[TopologyNode](view.compiled)
    has_ipv4 = {node.name: gifts.has_ipv4(view.entries[node.id]) for node in nodes}
    peers = {node.name: view.peers_of(node) for node in nodes}
    routes = {viewer.name: {peer.name: _routes(view, viewer, peer) for peer in peers[viewer.name]} for viewer in nodes}
    return {
        "error": None,
        "filter_rules": {node.name: filter_for(view, node) for node in nodes},
        "ssh": {node.name: ssh.rules_for(view, node) for node in nodes},
        "node_attrs": {node.name: _values(_attributes(gifts, view, node)) for node in nodes},
        "peers": routes,
        "auto_approved": {node.name: gifts.approved(view.entries[node.id], node.advertised) for node in nodes},
        "peer_caps": {
            viewer: {peer: [SUGGEST_EXIT] for peer, found in shown.items() if set(found) & set(EXIT_ROUTES)}
            for viewer, shown in routes.items()
        },
        "addresses": {
            node.name: {
                "self": _addresses(node, has_ipv4[node.name]),
                "peers": {
                    peer.name: _addresses(peer, has_ipv4[node.name] and has_ipv4[peer.name])
                    for peer in peers[node.name]
                },
            }
            for node in nodes
        },
    }


def _routes(view: PolicyView[TopologyNode], viewer: TopologyNode, peer: TopologyNode) -> list[str]:
    return routes_for(view, viewer, peer, lambda route: min(view.serving(route), default=None), lambda node: True)


def _attributes(gifts: NodeGifts, view: PolicyView[TopologyNode], node: TopologyNode) -> dict[str, list[str] | None]:
    return gifts.attributes(view.entries[node.id], is_mac=node.posture_attributes.get("node:os") == "macos")


def _values(attributes: dict[str, list[str] | None]) -> dict[str, list[msgspec.Raw] | None]:
    return {
        name: None if values is None else [msgspec.Raw(each.encode()) for each in values]
        for name, values in attributes.items()
    }


def _addresses(node: TopologyNode, with_ipv4: bool) -> Iterable[str]:
    return [f"{text}/{128 if ':' in text else 32}" for text in node.addresses if with_ipv4 or ":" in text]
