"""Certificates of `gwrelay serve` from an ACME server (pebble), by one process and by several."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .scripts import free_port
from .test_tls import ISSUED_S, NAME, Pebble, await_port, eventually, needs_pebble, serial, tls_to

GWRELAY = Path(sys.executable).parent / "gwrelay"


@contextmanager
def relaying(state: Path, port: int, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    with (state / "relay.log").open("ab") as log:
        relay = subprocess.Popen(
            [str(GWRELAY), "serve", "--workers", str(workers)], stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)},
        )  # fmt: skip
    try:
        await_port(port)
        yield relay
    finally:
        relay.terminate()
        relay.wait(20)


def page(port: int, trust: ssl.SSLContext) -> bytes:
    with tls_to(port, trust) as tls:
        tls.sendall(b"GET /derp/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: tls.recv(65536), b""))


@needs_pebble
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("challenge", "workers"), [("http-01", 2), ("tls-alpn-01", 2), ("dns-01", 1)])
def test_the_relay_has_a_certificate_from_an_authority(tmp_path: Path, challenge: str, workers: int) -> None:
    state = tmp_path / "s"
    state.mkdir()
    port, plain = free_port(), free_port()
    pebble = Pebble(tmp_path, plain, port)
    hook = tmp_path / "hook"
    hook.write_text(
        "#!/bin/sh\nset -eu\n"
        'case "$1" in present) verb=set-txt; more=",\\"value\\":\\"$3\\"" ;; *) verb=clear-txt; more= ;; esac\n'
        f'curl -sf -d "{{\\"host\\":\\"$2.\\"$more}}" http://127.0.0.1:{pebble.dns_api}/$verb\n'
    )
    hook.chmod(0o755)
    (state / "config.toml").write_text(
        f'server_url = "http://127.0.0.1:1"\n[relay]\nlisten = "127.0.0.1:{port}"\nhttp = "127.0.0.1:{plain}"\n'
        f'stun = "127.0.0.1:{free_port()}"\nhostname = "{NAME}"\nadmit = "all"\n'
        f'[relay.acme]\ndomains = ["{NAME}"]\ndirectory = "{pebble.directory}"\nchallenge = "{challenge}"\n'
        f'ca_file = "{pebble.ca_file}"\ndns_hook = "{hook}"\n'
    )
    with pebble.running():
        with relaying(state, port, workers):
            first = eventually(lambda: serial(port, pebble.trust()), ISSUED_S)
            assert page(port, pebble.trust()).startswith(b"HTTP/1.1 200")
            eventually(lambda: not list((state / "relay/acme/proofs").glob("*")))
        files = [path for path in (state / "relay/acme").iterdir() if path.is_file()]
        assert len(files) == 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
        assert "sha256-raw" not in (state / "relays/900.toml").read_text()  # an authority's certificate is not pinned
        with relaying(state, port, workers):
            assert eventually(lambda: serial(port, pebble.trust())) == first, "kept over a restart, not asked for again"
