"""The relay map. Ref: tailcfg.DERPMap, DERPRegion, DERPNode

What GhostWire adds has names that stock clients do not know and pass over.
"""

from __future__ import annotations

import msgspec

from gw.model.gojson import GoStruct


class DERPNode(GoStruct):
    name: str = ""  # unique in the map, `<region><letter>`
    region_id: int = 0
    host_name: str = ""
    cert_name: str = ""  # "", a TLS name, or `sha256-raw:<64 hex>`
    ipv4: str = ""  # "" = resolve host_name, `none` = family off
    ipv6: str = ""
    stunport: int = 0  # 0 = 3478, < 0 = no STUN
    stunonly: bool = False
    derpport: int = 0  # 0 = 443
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port80: bool = False
    quic_port: int = msgspec.field(default=0, name="ghostwire.dev/cap/relay-quic")  # UDP; 0 = no QUIC
    relay_key: str = msgspec.field(default="", name="ghostwire.dev/cap/relay-key")  # 64 hex digits


class DERPRegion(GoStruct):
    region_id: int = 0
    region_code: str = ""
    region_name: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    avoid: bool = False
    no_measure_no_home: bool = False
    nodes: list[DERPNode] | None = None


class DERPHomeParams(GoStruct):
    region_score: dict[int, float] | None = None


class DERPMap(GoStruct):
    home_params: DERPHomeParams | None = None
    regions: dict[int, DERPRegion] | None = None
    omit_default_regions: bool = msgspec.field(default=False, name="omitDefaultRegions")
