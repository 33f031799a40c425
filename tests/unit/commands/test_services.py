"""What the service manager gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from gw.commands.services import hidden_in_home


@pytest.mark.parametrize(
    ("prefix", "interpreter", "hidden"),
    [
        ("/opt/pipx/venvs/ghostwire-mesh", "/usr/bin/python3", None),
        ("/home/ann/.local/pipx/venvs/g", "/usr/bin/python3", "/home/ann/.local/pipx/venvs/g"),
        ("/opt/ghostwire", "/root/.pyenv/versions/3.12.1/bin/python3", "/root/.pyenv/versions/3.12.1/bin/python3"),
        ("/homestead/g", "/usr/bin/python3", None),
    ],
)
def test_an_installation_in_a_home_is_hidden_from_services(prefix: str, interpreter: str, hidden: str | None) -> None:
    """Units run with ProtectHome=yes and as users of their own: a plain `pipx install` cannot start one."""
    found = hidden_in_home(Path(prefix), Path(interpreter))
    assert (None if found is None else str(found)) == hidden
