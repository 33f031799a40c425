"""Backups of a directory in use, and putting them back."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gw.errors import ConfigError, Conflict, GwError
from gw.state.backup import read_manifest, restore
from gw.state.files import write_secret
from gw.state.heads import public_hex, signing_key
from gw.state.layout import init_state_dir
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore, Put
from gw.state.trailreading import kept_heads, verify


@pytest.fixture
async def backup(paths: StatePaths, node: Callable[..., Any], tmp_path: Path) -> Path:
    """Two nodes, a key, three events; a third node committed while the files were read."""
    write_secret(paths.keys_dir / "control.key", b"privkey:00")
    target = tmp_path / "b.tar.gz"
    with DirectoryStore(paths, settle_delay_s=60).open() as store:
        store.load("node")
        await store.commit([Put(node(1)), Put(node(2))])
        for number in range(3):
            store.trail.append(float(number), "x", subject="node:1")
        with target.open("wb") as file:
            late = io.BytesIO()

            class Tee:
                def write(self, raw: bytes) -> int:
                    if not late.tell():
                        late.write(b"1")
                        store.commit_sync([Put(node(3))])
                        store.trail.append(9.0, "late")
                    return file.write(raw)

            store.backup(Tee(), "0.1")  # type: ignore[arg-type]
    return target


def test_it_holds_everything_of_one_instant_and_secrets_stay_secret(backup: Path, tmp_path: Path) -> None:
    manifest = read_manifest(backup)
    assert {"config.toml", "policy.hujson", "control/nodes/1.toml", "keys/control.key", "events/head.json"} <= set(
        manifest.files
    )
    assert "control/nodes/3.toml" not in manifest.files
    target = StatePaths(tmp_path / "fresh")
    _, kept = restore(backup, target)
    assert kept is None
    with DirectoryStore(target).open() as store:
        assert sorted(store.load("node")) == [1, 2]
    assert (target.keys_dir / "control.key").stat().st_mode & 0o777 == 0o600
    assert target.keys_dir.stat().st_mode & 0o777 == 0o700
    assert not list(target.root.glob(".tmp-*"))
    key = public_hex(signing_key(target.keys_dir / "events.key"))
    verdict = verify(target.events_dir, key, kept_heads(target.events_dir))
    assert verdict.is_whole, verdict.problems
    assert verdict.lines == 3


def test_what_is_there_is_replaced_only_by_force_and_kept(backup: Path, paths: StatePaths) -> None:
    with pytest.raises(Conflict, match="holds a server's state"):
        restore(backup, paths)
    (paths.root / "policy.hujson").write_text("// mine\n{}")
    _, kept = restore(backup, paths, force=True)
    assert kept is not None
    assert (kept / "policy.hujson").read_text() == "// mine\n{}"
    assert (paths.root / "policy.hujson").read_text() == "{}\n"
    assert not (paths.nodes_dir / "3.toml").exists()


def test_a_directory_in_use_is_left_alone(backup: Path, paths: StatePaths) -> None:
    with DirectoryStore(paths).open(), pytest.raises(Conflict, match="holds"):
        restore(backup, paths, force=True)


def rewritten(backup: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    out = backup.with_name("forged.tar.gz")
    with tarfile.open(backup) as old, tarfile.open(out, "w:gz") as new:
        for member in old:
            file = old.extractfile(member)
            changed = change(member.name, file.read() if file else b"")
            if changed is not None:
                member.name, raw = changed
                member.size = len(raw)
                new.addfile(member, io.BytesIO(raw))
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, raw: (name, raw + b"#" if name == "config.toml" else raw), "`config.toml` is damaged"),
        (lambda name, raw: None if name.endswith("1.toml") else (name, raw), "`control/nodes/1.toml` is damaged"),
        (lambda name, raw: None if name == "manifest.json" else (name, raw), "no manifest"),
        (lambda name, raw: ("../evil" if name == "config.toml" else name, raw), "it holds `../evil`"),
        (lambda name, raw: ("/etc/passwd" if name == "config.toml" else name, raw), "it holds `/etc/passwd`"),
        (lambda name, raw: ("journal/x" if name == "config.toml" else name, raw), "it holds `journal/x`"),
        (lambda name, raw: (name, b"{" if name == "manifest.json" else raw), "not a backup"),
    ],
)
def test_a_backup_that_is_not_whole_or_not_ours_is_refused_before_anything_is_touched(
    backup: Path, paths: StatePaths, change: Any, says: str
) -> None:
    before = sorted(path for path in paths.root.rglob("*") if path.name != "lock")
    with pytest.raises(ConfigError, match=says):
        restore(rewritten(backup, change), paths, force=True)
    assert sorted(path for path in paths.root.rglob("*") if path.name != "lock") == before


def test_a_torn_file_and_nonsense_are_refused(backup: Path, tmp_path: Path) -> None:
    raw = backup.read_bytes()
    for text in (raw[: len(raw) // 2], b"", b"nonsense", gzip.compress(b"nonsense"), raw[:-300]):
        backup.write_bytes(text)
        with pytest.raises(GwError):
            read_manifest(backup)


def test_links_in_the_directory_are_not_followed(paths: StatePaths, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (paths.nodes_dir / "9.toml").symlink_to(tmp_path / "secret")
    with DirectoryStore(paths).open() as store, (tmp_path / "b").open("wb") as file:
        assert "control/nodes/9.toml" not in store.backup(file, "0.1").files


def test_a_fresh_directory_needs_no_force(backup: Path, tmp_path: Path) -> None:
    target = StatePaths(tmp_path / "empty")
    init_state_dir(target)
    restore(backup, target)
    assert target.config_file.exists()
