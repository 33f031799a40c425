"""A machine that allows namespaces, and labs of its own folder for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gw.lab import Lab, Nat, NodeSpec

MESH = [
    NodeSpec("ann", Nat.NONE),
    NodeSpec("bob", Nat.ENDPOINT_INDEPENDENT),
    NodeSpec("cat", Nat.SYMMETRIC),
    NodeSpec("dan", Nat.UDP_BLOCKED),
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Four nodes, one behind each kind of NAT, for all tests of a module."""
    with Lab(MESH, folder=tmp_path_factory.mktemp("lab") / "mesh", log_level="debug") as lab:
        yield lab


@pytest.fixture
def lab_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `gw lab` uses in this test."""
    folder = tmp_path / "lab"
    monkeypatch.setenv("GW_LAB_DIR", str(folder))
    return folder
