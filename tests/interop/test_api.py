"""The API of a running server: thousands of bad requests of schemathesis, `gwctl` from elsewhere, pages and metrics."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .scripts import free_port, run, serving

HERE = Path(sys.executable).parent
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
KNOWN = {  # what path parameters may be, so that many requests reach something
    "tailnet": ["-", "other"], "nodeId": ["1", "box", "\u00b2"], "deviceId": ["1", "x"], "id": ["1", "ann", "bob"],
    "oldId": ["1", "nobody"], "userId": ["1", "7"], "newName": ["nas", "b ad"], "prefix": ["x", "0"], "keyId": ["x"],
    "region": ["900", "r900", "901"], "name": ["900a", "x"],
}  # fmt: skip


@pytest.fixture
def served(state: Path, port: int) -> Iterator[Path]:
    metrics = free_port()
    config = state / "config.toml"
    config.write_text(f'metrics_listen = "127.0.0.1:{metrics}"\n{config.read_text()}')
    (state / "metrics").write_text(str(metrics))
    with serving(state, port):
        yield state


@pytest.fixture
def key_file(served: Path) -> Path:
    made = run("gwctl", "apikeys", "create", state=served)
    assert made.returncode == 0, made.stderr
    path = served / "api.key"
    path.write_text(made.stdout)
    path.chmod(0o600)
    return path


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def described(url: str, folder: Path) -> Path:
    """The server's document, its path parameters narrowed, and without the keys: the caller brings one."""
    document: dict[str, Any] = json.loads(get(f"{url}/openapi.json")[2])
    del document["components"]["securitySchemes"]
    for methods in document["paths"].values():
        for method, operation in list(methods.items()):
            if "text/event-stream" in operation["responses"]["200"]["content"]:
                del methods[method]  # it has no end
                continue
            operation.pop("security", None)
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def attacked(state: Path, port: int, key: Path, *options: str) -> None:
    program = shutil.which("schemathesis", path=f"{HERE}{os.pathsep}{os.environ['PATH']}")
    argv = [program] if program else [sys.executable, "-m", "schemathesis.cli"]
    result = subprocess.run(
        [
            *argv, "run", str(described(f"http://127.0.0.1:{port}", state)), "--url", f"http://127.0.0.1:{port}",
            "-H", f"Authorization: Bearer {key.read_text().strip()}", "--checks", CHECKS, "--request-timeout", "10",
            "--generation-database", "none", "--no-color", "--suppress-health-check", "all", *options,
        ],
        capture_output=True, text=True, cwd=state, check=False,
    )  # fmt: skip
    assert "Failures:" not in result.stdout, result.stdout[-6000:]
    assert "Errors:" not in result.stdout, result.stdout[-6000:]
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert get(f"http://127.0.0.1:{port}/health")[0] == 200


@pytest.mark.timeout(180)
def test_schemathesis_finds_no_5xx_no_hang_and_no_answer_that_was_not_described(
    served: Path, port: int, key_file: Path
) -> None:
    attacked(served, port, key_file, "--phases", "fuzzing", "--max-examples", "6", "--seed", "7")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_schemathesis_finds_nothing_in_a_long_campaign(served: Path, port: int, key_file: Path) -> None:
    attacked(served, port, key_file, "--phases", "coverage,fuzzing", "--max-examples", "100")


def test_gwctl_works_from_elsewhere_with_a_key(served: Path, port: int, key_file: Path, tmp_path: Path) -> None:
    far = tmp_path / "nowhere"
    there = {"GWCTL_ADDRESS": f"http://127.0.0.1:{port}", "GWCTL_API_KEY_FILE": str(key_file)}

    def gwctl(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        return run("gwctl", *words, state=far, **{**there, **more})

    assert gwctl("users", "create", "zoe").stdout == "user created: zoe\n"
    made = json.loads(gwctl("preauthkeys", "create", "-u", "zoe", "--ip", "100.64.0.77", "-o", "json").stdout)
    assert (made["ipAddresses"], made["user"]["name"]) == (["100.64.0.77"], "zoe")
    assert gwctl("health").stdout == "pass\n"
    policy = gwctl("policy", "get").stdout
    assert policy.startswith("// Who may reach whom")
    (tmp_path / "p.hujson").write_text('{"grants": []}')
    assert gwctl("policy", "set", tmp_path / "p.hujson").returncode == 0
    assert (served / "policy.hujson").read_text() == '{"grants": []}'
    missing = gwctl("users", "destroy", "nobody", "--force")
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (4, "error: no such user: `nobody`")
    assert gwctl("config", "get", "domain").returncode == 2
    flags = ("--address", there["GWCTL_ADDRESS"], "--api-key-file", str(key_file))
    assert "zoe" in run("gwctl", *flags, "users", "list", state=far).stdout
    wrong = gwctl("users", "list", GWCTL_API_KEY_FILE="", GWCTL_API_KEY="hskey-api-x")
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (6, "error: invalid API key")
    assert gwctl("users", "list", GWCTL_ADDRESS=f"http://127.0.0.1:{free_port()}").returncode == 3
    clear = gwctl("users", "list", GWCTL_ADDRESS="http://192.0.2.1")
    assert (clear.returncode, "in clear" in clear.stderr) == (2, True)
    key_file.chmod(0o644)
    assert gwctl("users", "list").returncode == 5


def test_what_the_api_acknowledged_outlives_a_kill(state: Path, port: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    key = run("gwctl", "apikeys", "create", state=state).stdout.strip()
    url = f"http://127.0.0.1:{port}/api/v1/user"
    acknowledged: list[str] = []

    def create(name: str) -> None:
        body = json.dumps({"name": name}).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as answer:
                acknowledged.append(json.loads(answer.read())["user"]["name"])
        except OSError:
            pass  # killed before it answered: it may be there or not

    for turn in range(3):
        with serving(state, port) as server, ThreadPoolExecutor(8) as pool:
            for number in range(60):
                pool.submit(create, f"u{turn}-{number}")
            while len(acknowledged) < 20 * (turn + 1):
                time.sleep(0.002)
            server.kill()
    there = {user["name"] for user in json.loads(run("gwctl", "users", "list", "-o", "json", state=state).stdout)}
    assert len(acknowledged) >= 60
    assert set(acknowledged) - there == set()


def test_a_key_crosses_the_network_inside_tls(state: Path, port: int, tmp_path: Path) -> None:
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(state / "tls.key"))
    certificate.cert_chain_pems[0].write_to_path(str(state / "tls.crt"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    config = (state / "config.toml").read_text()
    (state / "config.toml").write_text(f'tls_cert_file = "tls.crt"\ntls_key_file = "tls.key"\n{config}')
    key = run("gwctl", "apikeys", "create", state=state).stdout.strip()
    there = {"GWCTL_ADDRESS": f"https://localhost:{port}", "GWCTL_API_KEY": key}
    with serving(state, port):
        trusted = run("gwctl", "users", "list", state=tmp_path, SSL_CERT_FILE=str(tmp_path / "ca.pem"), **there)
        assert "ann" in trusted.stdout, trusted.stderr
        distrusted = run("gwctl", "users", "list", state=tmp_path, **there)
        assert (distrusted.returncode, "not trusted" in distrusted.stderr) == (1, True)


def test_pages_documents_and_metrics_are_where_people_look(served: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    for path in ("/", "/apple", "/windows", "/admin", "/register/hskey-authreq-0123", "/api/v1/docs", "/swagger"):
        status, headers, body = get(url + path)
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8"), path
    status, headers, body = get(f"{url}/register/hskey-authreq-%3Cx%3E")
    assert (status, b"x" in body.partition(b"<h1>")[2].partition(b"hskey")[2]) == (400, False)
    status, headers, body = get(f"{url}/apple/ios")
    assert (status, headers["content-type"]) == (200, "application/x-apple-aspen-config")
    import plistlib

    profile = plistlib.loads(body)
    assert profile["PayloadContent"][0]["ControlURL"] == url
    assert get(f"{url}/apple/tv")[0] == 404
    assert json.loads(get(f"{url}/openapi.json")[2])["openapi"] == "3.1.0"
    assert json.loads(get(f"{url}/health")[2]) == {"status": "pass"}
    assert "version" in json.loads(get(f"{url}/version")[2])
    assert "Regions" in json.loads(get(f"{url}/derpmap/default")[2])
    assert get(f"{url}/metrics")[0] == 404  # not on the public listener
    status, headers, body = get(f"http://127.0.0.1:{(served / 'metrics').read_text()}/metrics")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert b"gw_control_users 2.0" in body
    dashboard = json.loads((Path(__file__).parents[2] / "packaging/grafana/control.json").read_text())
    asked = {word for panel in dashboard["panels"] for word in panel.get("ghostwireMetrics", [])}
    assert asked
    assert [name for name in asked if f"# TYPE {name} ".encode() not in body] == []


def test_half_a_request_holds_no_connection_for_long(served: Path, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as other:
        one.sendall(b"GET /health HTT")
        other.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        for channel in (one, other):
            channel.settimeout(30)
            try:
                assert channel.recv(100) == b""
            except ConnectionResetError:
                pass
