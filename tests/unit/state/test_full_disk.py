"""A state directory on a file system of 512 KiB, filled to the brim."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gw.errors import GwError
from gw.state.documents import NodeDoc
from gw.state.files import write_atomic
from gw.state.layout import init_state_dir
from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore, Put

pytestmark = pytest.mark.netns


@pytest.fixture
def small(tmp_path: Path) -> Iterator[StatePaths]:
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "gw-test", str(mount)], check=True)
    try:
        paths = StatePaths(mount / "state")
        init_state_dir(paths, config="server_url = 'http://x'\n")
        yield paths
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(paths: StatePaths) -> Path:
    filler = paths.root.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return filler


def test_a_full_disk_refuses_changes_and_keeps_every_acknowledged_one(
    small: StatePaths, node: Callable[..., NodeDoc]
) -> None:
    acknowledged = 0
    with DirectoryStore(small, settle_delay_s=0.01).open() as store:
        store.load("node")
        with pytest.raises(GwError, match="disk full: cannot write") as caught:
            while True:
                store.commit_sync([Put(node(acknowledged + 1, hostname="x" * 2000))])
                acknowledged += 1
        assert caught.value.hint is not None and "\n" not in caught.value.message
    assert acknowledged > 10
    with DirectoryStore(small).open() as store:
        assert set(store.load("node")) == set(range(1, acknowledged + 1)), "a start on the full disk reads them all"
    assert not list(small.root.rglob(".tmp-*"))


def test_life_goes_on_when_there_is_room_again(small: StatePaths, node: Callable[..., NodeDoc]) -> None:
    with DirectoryStore(small).open() as store:
        store.commit_sync([Put(node(1))])
        filler = fill(small)
        with pytest.raises(GwError, match="disk full"):
            for number in range(2, 50):
                store.commit_sync([Put(node(number, hostname="x" * 4000))])
        filler.unlink()
        store.commit_sync([Put(node(99))])
    with DirectoryStore(small).open() as store:
        assert {1, 99} <= set(store.load("node"))
    assert os.listdir(small.journal_dir) == []


def test_a_single_file_is_not_half_written(small: StatePaths) -> None:
    before = small.config_file.read_bytes()
    fill(small)
    with pytest.raises(GwError, match="disk full: cannot write"):
        write_atomic(small.config_file, b"x" * 100_000)
    assert small.config_file.read_bytes() == before
    assert not list(small.root.glob(".tmp-*"))
