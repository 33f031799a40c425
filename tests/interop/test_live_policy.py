"""An edited policy reaches the nodes that are connected: filters, SSH, attributes, who is seen, routes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .controlclient import Node
from .scripts import key, nodes, run, serving


def put(state: Path, text: str) -> None:
    path = state.parent / "new.hujson"
    path.write_text(text)
    done = run("gwctl", "policy", "set", str(path), state=state)
    assert done.returncode == 0, done.stderr


def names(message: dict[str, Any]) -> list[str]:
    return sorted(peer["Name"].split(".")[0] for peer in message["Peers"])


def test_filters_ssh_attributes_and_sight_follow_the_policy(state: Path, port: int) -> None:
    with serving(state, port):
        laptop, nas, guest = Node(port, "laptop"), Node(port, "nas"), Node(port, "guest")
        assert laptop.register(key(state))["Error"] == ""
        assert nas.register(key(state, "--tags", "tag:nas"))["Error"] == ""
        assert guest.register(key(state, user="bob"))["Error"] == ""
        for node in (laptop, nas, guest):
            assert names(node.open_stream()) == []
        put(
            state,
            """{
                "tagOwners": {"tag:nas": ["ann@"]},
                "acls": [{"action": "accept", "src": ["ann@"], "dst": ["tag:nas:22,443"]}],
                "ssh": [{"action": "check", "src": ["ann@"], "dst": ["tag:nas"], "users": ["root"]}],
                "nodeAttrs": [{"target": ["tag:nas"], "attr": ["custom:storage"]}],
            }""",
        )
        whole = nas.until(lambda m: m.get("Peers"))
        assert names(whole) == ["laptop"]
        (rule,) = whole["PacketFilters"]["base"]
        assert rule["SrcIPs"] == ["100.64.0.1", "fd7a:115c:a1e0::1"]
        assert {entry["Ports"]["First"] for entry in rule["DstPorts"]} == {22, 443}
        (login,) = whole["SSHPolicy"]["rules"]
        assert login["sshUsers"] == {"root": "root"}
        assert "holdAndDelegate" in login["action"]
        assert "custom:storage" in whole["Node"]["CapMap"]
        seen = laptop.until(lambda m: m.get("Peers"))
        assert names(seen) == ["nas"]
        assert seen["PacketFilters"]["base"] == []
        # another device of ann's changes what the nas lets in, and nothing for the guest
        second = Node(port, "second")
        assert second.register(key(state))["Error"] == ""
        second.open_stream()
        more = nas.until(lambda m: m.get("PacketFilters") and "SSHPolicy" in m and not m.get("Peers"))
        assert "100.64.0.4" in str(more["PacketFilters"]["base"][0]["SrcIPs"])
        assert len(more["SSHPolicy"]["rules"][0]["principals"]) == 4
        # a policy that is wrong leaves the last one
        (state / "policy.hujson").write_text('{"acls": [{"action": "accept", "src": ["tag:x"], "dst": ["*:*"]}]}')
        put(state, '{"acls": []}')
        assert nas.until(lambda m: m.get("PacketFilters", {}).get("base") == [])
        assert not [m for m in guest.messages if m.get("Peers")]


def test_a_route_is_approved_by_the_policy_and_steered_by_via(state: Path, port: int) -> None:
    with serving(state, port):
        put(
            state,
            """{
                "tagOwners": {"tag:one": [], "tag:two": []},
                "grants": [
                    {"src": ["ann@"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:one"]},
                    {"src": ["bob@"], "dst": ["10.0.0.0/8"], "ip": ["*"], "via": ["tag:two"]},
                ],
                "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:one", "tag:two"]}},
            }""",
        )
        routers = [Node(port, "one"), Node(port, "two")]
        for router, tag in zip(routers, ("tag:one", "tag:two"), strict=True):
            assert router.register(key(state, "--tags", tag))["Error"] == ""
            router.open_stream()
            router.routes = ["10.1.0.0/16"]
            assert router.call("/machine/map", router.request(omit_peers=True))[0] == 200
        for _ in range(100):
            if all(node["approvedRoutes"] == ["10.1.0.0/16"] for node in nodes(state)):
                break
            time.sleep(0.05)
        for user, wanted in (("ann", "one"), ("bob", "two")):
            node = Node(port, f"of-{user}")
            assert node.register(key(state, user=user))["Error"] == ""
            assert _routers(node.open_stream()) == [wanted]


def _peers(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(message.get("Peers") or []), *(message.get("PeersChanged") or [])]


def _routers(message: dict[str, Any]) -> list[str]:
    """Names of the peers that lead to the subnet."""
    return [peer["Name"].split(".")[0] for peer in _peers(message) if "10.1.0.0/16" in peer["AllowedIPs"]]
