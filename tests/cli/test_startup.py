"""What a command costs before it does anything: nothing heavy is imported until it is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from threading import Thread

import pytest

from gw.state.paths import StatePaths

HEAVY = (
    "aioquic", "asyncio", "cryptography", "http.client", "msgspec", "nacl", "pydantic", "pyroute2", "rich", "ssl",
    "textual", "tomlkit",
)  # fmt: skip


@pytest.mark.parametrize("script", ["gw", "gwctl", "gwd", "gwdns", "gwrelay"])
def test_naming_a_command_imports_nothing_heavy(script: str) -> None:
    program = (
        f"import sys\nfrom gw.commands import {script}\nsys.argv = ['{script}', '--version']\n"
        f"try:\n    {script}.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


PRINTS_A_LOT_LESS = tuple(name for name in HEAVY if name != "msgspec")  # JSON is what these commands are about
READ_ONLY = (
    "gw status",
    "gw ip",
    "gw ping nas",
    "gw metrics",
    "gw top --help",
    "gwctl nodes list",
    "gwctl users list -o json",
    "gwctl version",
    "gwctl policy check --help",
    "gwctl config get server_url",
)


@pytest.mark.parametrize("line", READ_ONLY)
def test_reading_from_a_running_program_imports_nothing_heavy(line: str, tmp_path: Path) -> None:
    """Typer alone would build pydantic adapters for every parameter, and asyncio is for programs that stay."""
    script, *words = line.split()
    (tmp_path / "config.toml").write_text('schema = 1\nserver_url = "http://192.0.2.1:8080"\n')
    program = (
        f"import sys\nfrom gw.commands import {script}\n"
        f"sys.argv = [{script!r}, '--state-dir', {str(tmp_path)!r}, *{words!r}]\n"
        f"try:\n    {script}.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {PRINTS_A_LOT_LESS!r} if name in sys.modules])"
    )
    with answering(StatePaths(tmp_path).control_socket, b'{"nodes":[],"users":[]}'):
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]", out.stderr


@contextmanager
def answering(path: Path, body: bytes) -> Iterator[None]:
    """A control server that knows one answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    path.parent.mkdir(parents=True, exist_ok=True)
    with UnixStreamServer(str(path), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
