"""Preferences and what `gw up` sends. Ref: ipn.Prefs, ipn.MaskedPrefs, ipn.Options; control protocol §10"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from gw.model.gojson import GoStruct


class Prefs(GoStruct):
    control_url: str = msgspec.field(default="", name="ControlURL")
    want_running: bool = False
    logged_out: bool = False
    hostname: str = ""
    corp_dns: bool = msgspec.field(default=False, name="CorpDNS")
    route_all: bool = False
    shields_up: bool = False  # nobody may begin anything with this node
    transport: Literal["auto", "quic", "udp"] = "auto"  # to peers with a direct path; ours


_WIRE: Final = {field.name: field.encode_name for field in msgspec.structs.fields(Prefs)}


def masked(changes: dict[str, Any]) -> dict[str, Any]:
    """A MaskedPrefs object: each changed field, and a flag that it was set."""
    out: dict[str, Any] = {}
    for name, value in changes.items():
        out[_WIRE[name]] = value
        out[f"{_WIRE[name]}Set"] = True
    return out
