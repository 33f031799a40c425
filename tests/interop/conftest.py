"""A free port, a state directory with two users, and no socket left open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .controlclient import opened
from .scripts import free_port, initialise, run


@pytest.fixture(autouse=True)
def closed_sockets() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def state(tmp_path: Path, port: int) -> Path:
    """Initialised for that port, with the users ann and bob."""
    folder = tmp_path / "s"
    initialise(folder, port)
    for user in ("ann", "bob"):
        assert run("gwctl", "users", "create", user, state=folder).returncode == 0
    return folder
