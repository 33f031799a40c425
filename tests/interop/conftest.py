"""A free port, a state directory with two users, and no socket left open."""

from __future__ import annotations

import shutil
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


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A state directory with the users ann and bob, and the port in its settings. For copying only."""
    folder, port = tmp_path_factory.mktemp("initialised") / "s", free_port()
    initialise(folder, port)
    for user in ("ann", "bob"):
        assert run("gwctl", "users", "create", user, state=folder).returncode == 0
    return folder, port


@pytest.fixture
def state(tmp_path: Path, port: int, initialised: tuple[Path, int]) -> Path:
    """Initialised for that port, with the users ann and bob."""
    original, its_port = initialised
    folder = tmp_path / "s"
    shutil.copytree(original, folder)
    settings = folder / "config.toml"
    settings.write_text(settings.read_text().replace(f":{its_port}", f":{port}"))
    return folder
