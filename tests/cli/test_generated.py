"""completions/ and man/ say what the command lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_man_pages_and_completions_are_those_of_the_command_line() -> None:
    command = [sys.executable, "-P", str(REPOSITORY / "packaging" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
