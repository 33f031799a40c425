"""The console scripts as a test starts them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


def _ports() -> Iterator[int]:
    """Below those that the kernel gives to connections, others for every worker of pytest-xdist: nobody else takes one
    between the answer and its use."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + 1_000 * (worker % 16)
    return itertools.cycle(range(first + os.getpid() % 500, first + 1_000))


_CANDIDATES = _ports()


def free_port() -> int:
    """For TCP and UDP."""
    for port in _CANDIDATES:
        try:
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            return port
        except OSError:
            continue
    raise AssertionError("no port is free")


def run(
    script: str, *words: object, state: Path, user: int | None = None, timeout_s: float = 60.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / script), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        user=user,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GW_STATE_DIR": str(state), **environment},
    )


def initialise(state: Path, port: int) -> None:
    result = run(
        "gwctl", "init", "--server-url", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{port}", state=state
    )
    assert result.returncode == 0, result.stderr


@contextmanager
def serving(state: Path, port: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`gwctl serve` until the block ends, from when it answers on its socket: the port is open before it has read its
    documents."""
    server = subprocess.Popen(
        [str(BIN / "gwctl"), "serve", *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "GW_STATE_DIR": str(state)},
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe, socket.socket(socket.AF_UNIX) as admin:
                if (
                    probe.connect_ex(("127.0.0.1", port)) == 0
                    and admin.connect_ex(str(state / "run" / "gwctl.sock")) == 0
                ):
                    break
            assert server.poll() is None, server.stderr and server.stderr.read()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def key(state: Path, *flags: str, user: str = "ann") -> str:
    result = run("gwctl", "preauthkeys", "create", "-u", user, *flags, "-o", "json", state=state)
    assert result.returncode == 0, result.stderr
    return str(json.loads(result.stdout)["key"])


def nodes(state: Path) -> list[dict[str, object]]:
    return list(json.loads(run("gwctl", "nodes", "list", "-o", "json", state=state).stdout))
