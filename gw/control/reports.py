"""What nodes report and what is noticed of them: memory only, told to their peers, never written as declared state.

observe      endpoints, host information, keys of discovery, home relay
set_online   the map stream opened or closed
set_unwell   a router that is connected and yet answers nothing
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import msgspec

from gw.control.claims import (
    MAX_CAPABILITY_VERSION,
    clean_disco_key,
    clean_endpoints,
    clean_hostinfo,
    clean_region,
    same_for_peers,
)
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.model.hostinfo import Hostinfo
from gw.model.node import PeerChange

if TYPE_CHECKING:
    from gw.control.tailnet import Tailnet


class Router(msgspec.Struct, frozen=True):
    """What the event trail says of a subnet: the id of the node that serves it."""

    router: int


@final
class Reports:
    """Takes reports into a tailnet."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet

    def observe(
        self,
        node: NodeRecord,
        *,
        hostinfo: Hostinfo | None = None,
        endpoints: list[str] | None = None,
        disco_key: str | None = None,
        home_derp: int | None = None,
        cap: int | None = None,
    ) -> None:
        """Take in what a node says about itself; None keeps what is known. Peers hear only of real differences."""
        if not self._tailnet.roster.has(node):
            return
        patch = PeerChange(node_id=node.id)
        whole = False
        if hostinfo is not None:
            if hostinfo != node.hostinfo:  # most say what they said before, and that was cleaned
                whole = self._observe_hostinfo(node, clean_hostinfo(hostinfo))
            report = node.hostinfo.net_info
            if home_derp is None and report is not None:
                home_derp = report.preferred_derp
        if endpoints is not None:
            clean = clean_endpoints(endpoints)
            if clean != node.endpoints:
                node.endpoints = patch.endpoints = clean
        if disco_key is not None:
            key = clean_disco_key(disco_key)
            if key and key != node.disco_key:
                node.disco_key = patch.disco_key = key
        region = clean_region(home_derp or 0)
        if region and region != node.home_derp:
            node.home_derp = patch.derp_region = region
        version = None if cap is None else min(max(cap, 0), MAX_CAPABILITY_VERSION)
        if version is not None and version != node.cap:
            node.cap = patch.cap = version
        if whole:
            self._tailnet.republish(node)
        elif patch != PeerChange(node_id=node.id):
            self._tailnet.publish(Change(ChangeKind.PATCHED, node, patch))

    def _observe_hostinfo(self, node: NodeRecord, hostinfo: Hostinfo) -> bool:
        """Keep it; whether peers see a difference."""
        old = node.hostinfo
        if hostinfo.net_info is None and old.net_info is not None:
            hostinfo = msgspec.structs.replace(hostinfo, net_info=old.net_info)
        node.hostinfo = hostinfo
        if hostinfo.hostname and hostinfo.hostname != node.doc.hostname:
            self._tailnet.upkeep.follow_hostname(node)
        return not same_for_peers(old, hostinfo)

    def set_online(self, node: NodeRecord, online: bool) -> None:
        """Say that the node's map stream has opened or closed."""
        if node.online == online or not self._tailnet.roster.has(node):
            return
        node.online = online
        node.last_seen = self._tailnet.clock()
        if online:
            node.awaited = None
        patch = PeerChange(node_id=node.id, online=online, last_seen=None if online else node.last_seen)
        self._tailnet.publish(Change(ChangeKind.PATCHED, node, patch))
        self._elect_again(node)
        self._tailnet.upkeep.arm(node)

    def set_unwell(self, node: NodeRecord, unwell: bool) -> None:
        """Say that a router does not answer although its map stream stands, or that it answers again."""
        if node.is_unwell == unwell or not self._tailnet.roster.has(node):
            return
        node.is_unwell = unwell
        self._tailnet.record("router-unwell" if unwell else "router-well", f"node:{node.id}")
        self._elect_again(node)

    def _elect_again(self, node: NodeRecord) -> None:
        """A router came, went, fell ill or got well: who serves its subnets now?"""
        tailnet = self._tailnet
        elected = tailnet.routes.refresh(node)
        for prefix in {route for each in elected for route in tailnet.routes.primaries_of(each)} & {
            *node.served_routes
        }:
            tailnet.record("route-taken-over", f"route:{prefix}", None, Router(tailnet.routes.primary(prefix) or 0))
        for router in {each.id: each for each in (*elected, *tailnet.policy.rivals(node))}.values():
            tailnet.publish(Change(ChangeKind.CHANGED, router))
