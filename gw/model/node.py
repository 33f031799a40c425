"""A node as others see it, and a change to one. Ref: tailcfg.Node, PeerChange, UserProfile; protocol §6.2, §6.3"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from gw.model.gojson import GoStruct
from gw.model.hostinfo import Hostinfo

QUIC_PEER_CAP: Final = "ghostwire.dev/cap/quic-peer"  # the node speaks QUIC with its peers


class UserProfile(GoStruct):
    id: int = 0
    login_name: str = ""
    display_name: str = ""
    profile_pic_url: str = ""
    groups: list[str] | None = None


class Node(GoStruct):
    id: int = 0
    stable_id: str = ""
    name: str = ""  # fully qualified, with the trailing dot
    user: int = 0
    sharer: int = 0
    key: str = ""
    key_expiry: datetime | None = None
    key_signature: str | None = None
    machine: str = ""
    disco_key: str = ""
    addresses: list[str] | None = None
    allowed_ips: list[str] | None = None  # absent = addresses
    endpoints: list[str] | None = None
    derp: str = ""  # `127.3.3.40:<region>`, for clients older than capver 111
    home_derp: int = 0
    hostinfo: Hostinfo | None = None
    created: datetime | None = None
    cap: int = 0
    tags: list[str] | None = None
    primary_routes: list[str] | None = None
    last_seen: datetime | None = None
    online: bool | None = None
    machine_authorized: bool = False
    capabilities: list[str] | None = None
    cap_map: dict[str, list[msgspec.Raw] | None] | None = None
    unsigned_peerapi_only: bool = msgspec.field(default=False, name="UnsignedPeerAPIOnly")
    computed_name: str = ""
    computed_name_with_host: str = ""
    expired: bool = False
    self_node_v4_masq_addr_for_this_peer: str | None = None
    self_node_v6_masq_addr_for_this_peer: str | None = None
    is_wire_guard_only: bool = False
    is_jailed: bool = False


class PeerChange(GoStruct):
    """A patch: absent fields are unchanged."""

    node_id: int
    derp_region: int = 0
    cap: int = 0
    cap_map: dict[str, list[msgspec.Raw] | None] | None = None
    endpoints: list[str] | None = None
    key: str | None = None
    key_signature: str | None = None
    disco_key: str | None = None
    online: bool | None = None
    last_seen: datetime | None = None
    key_expiry: datetime | None = None  # the zero time clears it
