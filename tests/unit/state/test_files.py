from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from gw.errors import Conflict, GwError, NotFound, PermissionNeeded
from gw.state.files import make_folder, read_secret, translate, write_atomic, write_secret
from gw.state.layout import init_state_dir
from gw.state.lock import DirectoryLock
from gw.state.paths import StatePaths
from gw.state.trail import Trail

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files away")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new", 0o600)
        assert reader.read() == b"old", "a reader keeps the text it opened"
    assert path.read_bytes() == b"new" and mode(path) == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"t")
    link.symlink_to(target)
    write_atomic(link, b"mine")
    assert target.read_bytes() == b"t" and link.read_bytes() == b"mine" and not link.is_symlink()


def test_a_refused_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:

        def refuse(_descriptor: int, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("os.write", refuse)
        with pytest.raises(GwError, match="disk full: cannot write"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(GwError, match="cannot write"):
        write_atomic(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == ["a"]


def test_writing_below_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        write_atomic(tmp_path / "no" / "a", b"x")


def test_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "control.key"
    write_secret(path, b"s3")
    assert mode(path) == 0o600 and mode(path.parent) == 0o700 and read_secret(path) == b"s3"


def test_a_secret_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    write_secret(path, b"s")
    path.chmod(0o640)
    with pytest.raises(PermissionNeeded, match="readable by others") as caught:
        read_secret(path)
    assert "chmod 600" in (caught.value.hint or "")


def test_a_missing_secret_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_secret(tmp_path / "k")


def test_folders_get_their_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        make_folder(tmp_path / "a" / "b", 0o750)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "b") == 0o750 and mode(tmp_path / "a") == 0o755
    make_folder(tmp_path / "a" / "b", 0o700)
    assert mode(tmp_path / "a" / "b") == 0o750, "a folder that is there stays as it is"


def test_a_file_where_a_folder_should_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(GwError, match="cannot make the folder"):
        make_folder(tmp_path / "a" / "b", 0o755)


@as_root
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    """`sudo gwctl …` must not leave files that the user gwctl cannot read."""
    os.chown(tmp_path, 4242, 4343)
    write_atomic(tmp_path / "file", b"x")
    write_secret(tmp_path / "keys" / "k", b"x")
    make_folder(tmp_path / "a" / "b", 0o700)
    Trail(tmp_path / "events", tmp_path / "keys" / "e").append(0.0, "x")
    lock = DirectoryLock(tmp_path)
    lock.release()
    for name in ("file", "keys", "keys/k", "a", "a/b", "events", "events/1970-01-01.jsonl", "lock"):
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (4242, 4343), name


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (errno.ENOENT, NotFound, "no such file"), (errno.EACCES, PermissionNeeded, "may not write"),
        (errno.ENOSPC, GwError, "disk full"), (errno.EROFS, GwError, "read-only"), (errno.EIO, GwError, "cannot write"),
    ],
)  # fmt: skip
def test_the_systems_refusals_become_one_line_with_a_hint(code: int, kind: type[GwError], says: str) -> None:
    error = translate(OSError(code, os.strerror(code)), "write", Path("/x/y"))
    assert type(error) is kind and says in error.message and "\n" not in error.message
    assert error.hint or code == errno.EIO


def test_a_new_directory_has_its_parts_and_modes(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "deep" / "state")
    init_state_dir(paths, config="server_url = 'http://x'\n", policy="{}\n")
    assert mode(paths.keys_dir) == mode(paths.journal_dir) == 0o700
    assert mode(paths.nodes_dir) == 0o750 and mode(paths.config_file) == 0o640
    assert paths.policy_file.read_text() == "{}\n"
    ignored = (paths.root / ".gitignore").read_text().split()
    for secret in ("/keys/", "/node/", "/relay/", "/journal/"):
        assert secret in ignored


def test_a_directory_that_is_set_up_is_left_alone(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    init_state_dir(paths, config="a", policy="p")
    with pytest.raises(Conflict, match="set up already"):
        init_state_dir(paths, config="b", policy="q")
    init_state_dir(paths)
    assert paths.config_file.read_text() == "a" and paths.policy_file.read_text() == "p"


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    first = DirectoryLock(paths.root)
    with pytest.raises(Conflict, match=f"another server holds .*: process {os.getpid()}$"):
        DirectoryLock(paths.root)
    first.release()
    first.release()
    DirectoryLock(paths.root, wait_s=1.0).release()
