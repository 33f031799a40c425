from __future__ import annotations

from pathlib import Path

import pytest

from gw.state.paths import SYSTEM_STATE_DIR, StatePaths, resolve_state_dir


def test_flag_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GW_STATE_DIR", "/from/environment")
    assert resolve_state_dir("/from/flag") == Path("/from/flag")
    assert resolve_state_dir(None) == Path("/from/environment")


def test_a_relative_directory_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_state_dir("mesh") == tmp_path / "mesh"


def test_root_and_people_have_their_own_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GW_STATE_DIR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert resolve_state_dir(None) == SYSTEM_STATE_DIR
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert resolve_state_dir(None) == tmp_path / "ghostwire"


def test_sockets_lie_in_run_for_the_system_and_below_the_root_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GW_RUNTIME_DIR", raising=False)
    assert StatePaths(SYSTEM_STATE_DIR).control_socket == Path("/run/ghostwire/gwctl.sock")
    assert StatePaths(Path("/x")).node_socket == Path("/x/run/gwd.sock")
    monkeypatch.setenv("GW_RUNTIME_DIR", "/short")
    assert StatePaths(Path("/x")).node_socket == Path("/short/gwd.sock")


def test_everything_lies_below_the_root() -> None:
    paths = StatePaths(Path("/x"))
    names = [name for name in vars(StatePaths) if isinstance(vars(StatePaths)[name], property)]
    assert len(names) >= 18
    for name in names:
        assert getattr(paths, name).is_relative_to("/x"), name
