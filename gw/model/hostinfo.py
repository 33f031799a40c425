"""Hostinfo and NetInfo: what a node says about itself. Ref: tailcfg.Hostinfo, tailcfg.NetInfo"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gw.model.gojson import GoStruct

QUIC_PEER: Final = "gw-peer/1"  # proto of a service: QUIC with peers, on the node's UDP port


class Service(GoStruct):
    proto: str = ""  # tcp, udp, peerapi4, peerapi6, peerapi-dns-proxy; ours: QUIC_PEER
    port: int = 0
    description: str = ""


class NetInfo(GoStruct):
    mapping_varies_by_dest_ip: bool | None = None
    working_ipv6: bool | None = None
    os_has_ipv6: bool | None = None
    working_udp: bool | None = None
    working_icmpv4: bool | None = None
    have_port_map: bool = False
    upnp: bool | None = None
    pmp: bool | None = None
    pcp: bool | None = None
    preferred_derp: int = 0
    link_type: str = ""
    derp_latency: dict[str, float] | None = msgspec.field(default=None, name="DERPLatency")  # `<region>-v4` → seconds
    firewall_mode: str = ""


class Hostinfo(GoStruct):
    ipn_version: str = ""
    frontend_log_id: str = ""
    backend_log_id: str = ""
    os: str = ""
    os_version: str = ""
    container: bool | None = None
    env: str = ""
    distro: str = ""
    distro_version: str = ""
    distro_code_name: str = ""
    app: str = ""
    desktop: bool | None = None
    package: str = ""
    device_model: str = ""
    hostname: str = ""
    shields_up: bool = False
    sharee_node: bool = False
    wire_ingress: bool = False
    ingress_enabled: bool = False
    allows_update: bool = False
    machine: str = ""
    go_arch: str = ""
    go_version: str = ""
    routable_ips: list[str] | None = None
    request_tags: list[str] | None = None
    services: list[Service] | None = None
    net_info: NetInfo | None = None
    ssh_host_keys: list[str] | None = msgspec.field(default=None, name="sshHostKeys")
    cloud: str = ""
    userspace: bool | None = None
    userspace_router: bool | None = None
    app_connector: bool | None = None
    services_hash: str = ""
    peer_relay: bool = False
    exit_node_id: str = ""
    location: Any = None  # a union with Raw would only read null
