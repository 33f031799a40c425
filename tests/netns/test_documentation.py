"""Every console block of the documentation, run as it stands.

             one sandbox (network, mounts, processes)
192.0.2.10 ──┤ gwctl  gwrelay  gwdns  gwd ├── the README's five minutes, top to bottom
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from .sandbox import Sandbox

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Installing is what the packaging tests do: here the scripts are on PATH already.
ALREADY_DONE = ("pipx install", "pip install", "uv tool install")


def commands(page: str) -> list[str]:
    """The lines after `$ ` of all console blocks of a page, in order."""
    blocks = BLOCK.findall((REPOSITORY / page).read_text())
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def second_node(box: Sandbox, name: str) -> None:
    """The machine of one's own that the pages ping."""
    options = "--state-dir /var/lib/second"
    box.run(f"setsid gwd run {options} --tun second0 --port 0 >/run/second.log 2>&1 </dev/null &")
    box.run(f"until gw status {options} >/dev/null 2>&1 || [ $? != 3 ]; do sleep 0.1; done")  # 3: not running
    box.run(f"gw up {options} --login-server http://{box.address}:8080 --auth-key file:key.txt --hostname {name}")


def test_the_readme_has_commands() -> None:
    assert len(commands("README.md")) >= 8


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
@pytest.mark.timeout(300)
def test_every_console_block_works_as_written(page: str, tmp_path: Path) -> None:
    with Sandbox(tmp_path / "box", "192.0.2.10") as box:
        for command in commands(page):
            if any(words in command for words in ALREADY_DONE):
                continue
            if command.startswith("gw ping"):
                second_node(box, command.split()[-1])
            result = box.run(command)
            if "preauthkeys create" in command and "-o json" in command:
                key = json.loads(result.stdout)["key"]
                box.run(f"umask 077; echo {shlex.quote(key)} > key.txt")
