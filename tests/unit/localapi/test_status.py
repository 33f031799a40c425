"""`gw status --json` is read by scripts made for Tailscale."""

from __future__ import annotations

import json

from gw.localapi.status import PeerStatus, Status, Tailnet
from gw.model.gojson import encode

STATUS = (
    "Version", "TUN", "BackendState", "HaveNodeKey", "AuthURL", "TailscaleIPs", "Self", "Health", "MagicDNSSuffix",
    "CurrentTailnet", "CertDomains", "Peer", "User",
)  # fmt: skip
PEER = (
    "ID", "NodeID", "PublicKey", "HostName", "DNSName", "OS", "UserID", "TailscaleIPs", "Addrs", "CurAddr", "Relay",
    "PeerRelay", "RxBytes", "TxBytes", "Created", "LastWrite", "LastSeen", "LastHandshake", "Online", "ExitNode",
    "ExitNodeOption", "Active", "PeerAPIURL", "TaildropTarget", "NoFileSharingReason", "InNetworkMap", "InMagicSock",
    "InEngine",
)  # fmt: skip


def test_fields_that_tailscale_always_prints_are_always_there() -> None:
    """`jq .Self.Online` on an offline node is `false`, and a Go program can read every time."""
    found = json.loads(encode(Status(self_=PeerStatus(), current_tailnet=Tailnet(), peer={"nodekey:b": PeerStatus()})))
    assert [name for name in STATUS if name not in found] == []
    for peer in (found["Self"], found["Peer"]["nodekey:b"]):
        assert [name for name in PEER if name not in peer] == []
        assert peer["Online"] is False
        assert peer["LastSeen"] == "0001-01-01T00:00:00Z"
    assert set(found["CurrentTailnet"]) == {"Name", "MagicDNSSuffix", "MagicDNSEnabled"}
