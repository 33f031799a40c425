"""A fresh state directory and documents to put into it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gw.state.documents import NodeDoc, UserDoc
from gw.state.layout import init_state_dir
from gw.state.paths import StatePaths

CREATED = datetime(2026, 11, 24, 4, 30, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    layout = StatePaths(tmp_path / "state")
    init_state_dir(layout, config='server_url = "http://control.test:8080"\n', policy="{}\n")
    return layout


@pytest.fixture
def node() -> Callable[..., NodeDoc]:
    def make(number: int, **fields: Any) -> NodeDoc:
        given = {
            "machine_key": "mkey:" + f"{number:02x}" * 32,
            "node_key": "nodekey:" + f"{number:02x}" * 32,
            "user": "alice",
            "given_name": f"node-{number}",
            "addresses": [f"100.64.0.{number % 250 + 1}", f"fd7a:115c:a1e0::{number:x}"],
            "created": CREATED,
        }
        return NodeDoc(id=number, **(given | fields))

    return make


@pytest.fixture
def user() -> Callable[..., UserDoc]:
    def make(name: str, number: int = 1, **fields: Any) -> UserDoc:
        return UserDoc(id=number, name=name, **({"created": CREATED} | fields))

    return make
