"""Packet filter rules as they travel from control to node. Ref: tailcfg.FilterRule; policy spec"""

from __future__ import annotations

import msgspec

from gw.model.gojson import GoStruct


class PortRange(GoStruct, omit_defaults=False):
    first: int = 0
    last: int = 65535


class NetPortRange(GoStruct, omit_defaults=False):
    ip: str = "*"
    ports: PortRange = msgspec.field(default_factory=PortRange)


class CapGrant(GoStruct):
    dsts: list[str] | None = None
    caps: list[str] | None = None
    cap_map: dict[str, list[msgspec.Raw] | None] | None = None


class FilterRule(GoStruct):
    src_ips: list[str] | None = None
    dst_ports: list[NetPortRange] | None = None
    ip_proto: list[int] | None = None  # empty = TCP, UDP, ICMPv4, ICMPv6
    cap_grant: list[CapGrant] | None = None
