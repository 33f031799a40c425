"""What the daemon tells while it works, and the result of a ping. Ref: ipn.Notify, ipnstate.PingResult"""

from __future__ import annotations

from typing import Final

import msgspec

from gw.model.gojson import GoStruct

STATES: Final = ("NoState", "InUseOtherUser", "NeedsLogin", "NeedsMachineAuth", "Stopped", "Starting", "Running")


class Notify(GoStruct):
    err_message: str | None = None
    state: int | None = None
    browse_to_url: str | None = msgspec.field(default=None, name="BrowseToURL")

    @property
    def state_name(self) -> str:
        return STATES[self.state] if self.state is not None and 0 <= self.state < len(STATES) else ""


class PingResult(GoStruct):
    ip: str = ""
    node_ip: str = ""
    node_name: str = ""
    err: str = ""
    latency_seconds: float = 0.0
    endpoint: str = ""
    peer_relay: str = ""  # ADDRESS:vni:N
    derp_region_id: int = 0
    derp_region_code: str = ""
    transport: str = ""  # ours: `quic` where the pong came inside QUIC

    def describe(self) -> str:
        """One line: who answered, by which path, how fast."""
        direct = f"{self.transport} {self.endpoint}".strip() if self.endpoint else ""
        path = (
            direct
            or (f"peer-relay {self.peer_relay}" if self.peer_relay else "")
            or f"relay {self.derp_region_code or self.derp_region_id}"
        )
        return f"pong from {self.node_name} ({self.node_ip}) via {path} in {self.latency_seconds * 1000:.1f} ms"
