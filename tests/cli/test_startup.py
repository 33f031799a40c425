"""What a command costs before it does anything: nothing heavy is imported until it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
