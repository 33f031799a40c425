"""Keys and preferences of a node: on disk before they are used, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gw.errors import ConfigError, PermissionNeeded
from gw.localapi.prefs import Prefs
from gw.node.identity import Identity
from gw.node.prefs import load_prefs, save_prefs


def test_keys_are_the_same_after_a_restart_and_0600(tmp_path: Path) -> None:
    first = Identity.load(tmp_path / "node")
    assert not first.has_node_key
    made = first.node_key
    again = Identity.load(tmp_path / "node")
    assert (again.machine_key, again.node_key) == (first.machine_key, made)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "node").iterdir()} == {0o600}
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


def test_the_last_key_a_server_may_know_outlives_several_rotations(tmp_path: Path) -> None:
    identity = Identity.load(tmp_path)
    known = identity.node_key
    identity.rotate()
    identity.rotate()
    again = Identity.load(tmp_path)
    assert (again.previous_key, again.node_key) == (known, identity.node_key)
    again.settle()
    assert not Identity.load(tmp_path).previous_key


def test_forgetting_keeps_the_machine(tmp_path: Path) -> None:
    identity = Identity.load(tmp_path)
    old = identity.node_key
    identity.forget()
    again = Identity.load(tmp_path)
    assert not again.has_node_key
    assert again.machine_key == identity.machine_key
    assert again.node_key != old


def test_a_spoilt_or_open_key_is_named(tmp_path: Path) -> None:
    Identity.load(tmp_path)
    (tmp_path / "machine.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"machine\.key"):
        Identity.load(tmp_path)
    (tmp_path / "machine.key").chmod(0o644)
    with pytest.raises(PermissionNeeded, match="readable by others"):
        Identity.load(tmp_path)


def test_preferences_come_back_as_they_were(tmp_path: Path) -> None:
    prefs = Prefs(control_url='http://"odd"\n', want_running=True, hostname="ann", corp_dns=False)
    save_prefs(tmp_path, prefs)
    assert load_prefs(tmp_path) == prefs
    assert (tmp_path / "prefs.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["no_such = 1", "schema = 2", "hostname = 5", "= ="])
def test_preferences_that_make_no_sense_are_refused_with_their_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "prefs.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"prefs\.toml"):
        load_prefs(tmp_path)
