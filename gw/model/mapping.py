"""The map exchange: a node tells what it has, control streams what the mesh is. Ref: control protocol §5, §6"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from gw.model.derpmap import DERPMap
from gw.model.dnsconfig import DNSConfig
from gw.model.filterrule import FilterRule
from gw.model.gojson import GoStruct
from gw.model.hostinfo import Hostinfo
from gw.model.node import Node, PeerChange, UserProfile


class EndpointType:
    """Values of `EndpointTypes`, parallel to `Endpoints`."""

    UNKNOWN = 0
    LOCAL = 1
    STUN = 2
    PORTMAPPED = 3
    STUN_LOCAL_PORT = 4
    EXPLICIT = 5


class MapRequest(GoStruct):
    version: int = 0
    compress: str = ""
    keep_alive: bool = False
    node_key: str = ""
    disco_key: str = ""
    stream: bool = False
    hostinfo: Hostinfo | None = None
    map_session_handle: str = ""
    map_session_seq: int = 0
    endpoints: list[str] | None = None
    endpoint_types: list[int] | None = None
    tka_head: str = ""
    read_only: bool = False
    omit_peers: bool = False
    debug_flags: list[str] | None = None


class PingRequest(GoStruct):
    url: str = ""
    url_is_noise: bool = msgspec.field(default=False, name="URLIsNoise")
    log: bool = False
    types: str = ""
    ip: str = ""
    payload: str | None = None


class Debug(GoStruct):
    sleep_seconds: float = 0.0
    disable_log_tail: bool = False
    exit: int | None = None


class MapResponse(GoStruct):
    """One message of the stream: absent means unchanged."""

    map_session_handle: str = ""
    seq: int = 0
    keep_alive: bool = False
    ping_request: PingRequest | None = None
    pop_browser_url: str = msgspec.field(default="", name="PopBrowserURL")
    node: Node | None = None
    derp_map: DERPMap | None = msgspec.field(default=None, name="DERPMap")
    peers: list[Node] | None = None
    peers_changed: list[Node] | None = None
    peers_removed: list[int] | None = None
    peers_changed_patch: list[PeerChange] | None = None
    peer_seen_change: dict[int, bool] | None = None
    online_change: dict[int, bool] | None = None
    dns_config: DNSConfig | None = None
    domain: str = ""
    collect_services: bool | None = None
    packet_filter: list[FilterRule] | None = None
    packet_filters: dict[str, list[FilterRule] | None] | None = None
    user_profiles: list[UserProfile] | None = None
    health: list[str] | None = None
    ssh_policy: Any = msgspec.field(default=None, name="SSHPolicy")  # a union with Raw would only read null
    control_time: datetime | None = None
    debug: Debug | None = None
