"""Who wins between the journal and a hand edit, one file at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gw.errors import ConfigError
from gw.state.codec import decode, encode
from gw.state.documents import Kind, UserDoc
from gw.state.journal import Entry, fingerprint
from gw.state.paths import StatePaths
from gw.state.settling import Loss, settle

Make = Callable[..., UserDoc]


def check(kind: Kind, name: str, raw: bytes, where: str) -> object:
    return decode(kind, name, raw, where, {})


def chain(*texts: bytes | None, start: bytes | None = None) -> list[Entry]:
    entries = []
    for text in texts:
        entries.append(Entry("user", "anna", fingerprint(start), text))
        start = text
    return entries


@pytest.fixture
def file(paths: StatePaths) -> Path:
    return paths.users_dir / "anna.toml"


@pytest.fixture
def texts(user: Make) -> list[bytes]:
    return [encode(user("anna", email=f"{number}@example.org")) for number in range(5)]


def run(paths: StatePaths, entries: list[Entry]) -> list[Loss]:
    losses = settle(paths.root, entries, check)
    assert not [name for name in os.listdir(paths.users_dir) if name.startswith(".tmp-")]
    return losses


def test_the_last_text_of_a_chain_is_written(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    assert run(paths, chain(*texts)) == []
    assert file.read_bytes() == texts[-1] and file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("crashed_after", [None, 0, 1, 2])
def test_settling_again_after_a_crash_gives_the_same(
    paths: StatePaths, file: Path, texts: list[bytes], crashed_after: int | None
) -> None:
    if crashed_after is not None:
        file.write_bytes(texts[crashed_after])
    for _ in range(2):
        assert run(paths, chain(*texts[:3])) == []
        assert file.read_bytes() == texts[2]


def test_deletion_and_return_are_settled_too(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    file.write_bytes(texts[0])
    assert run(paths, chain(texts[1], None, start=texts[0])) == []
    assert not file.exists()
    assert run(paths, chain(None, texts[2])) == []
    assert file.read_bytes() == texts[2]


def test_a_hand_edit_wins_and_ours_is_kept(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    file.write_bytes(texts[4])
    losses = run(paths, chain(texts[1], texts[2], start=texts[0]))
    kept = file.with_name("anna.toml.conflict")
    assert losses == [Loss(("user", "anna"), "conflict", kept)]
    assert file.read_bytes() == texts[4] and kept.read_bytes() == texts[2]
    run(paths, chain(texts[1], texts[2], start=texts[0]))
    assert len(os.listdir(paths.users_dir)) == 2, "the same conflict again makes no second file"
    run(paths, chain(texts[3], start=texts[0]))
    assert file.with_name("anna.toml.conflict-2").read_bytes() == texts[3]


def test_a_hand_deletion_wins(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    losses = run(paths, chain(texts[1], start=texts[0]))
    assert [loss.what for loss in losses] == ["conflict"] and not file.exists()
    assert file.with_name("anna.toml.conflict").read_bytes() == texts[1]


def test_a_hand_edit_wins_over_our_deletion(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    file.write_bytes(texts[4])
    assert run(paths, chain(None, start=texts[0])) == [Loss(("user", "anna"), "conflict", None)]
    assert file.read_bytes() == texts[4]


def test_a_change_made_after_the_hand_edit_was_seen_is_written(
    paths: StatePaths, file: Path, texts: list[bytes]
) -> None:
    """Entries: ours over the old text, then ours over the hand edit. The first one lost, the second one knew."""
    file.write_bytes(texts[3])
    losses = run(paths, [*chain(texts[1], start=texts[0]), *chain(texts[2], start=texts[3])])
    assert file.read_bytes() == texts[2]
    assert file.with_name("anna.toml.conflict").read_bytes() == texts[1] and len(losses) == 1


@pytest.mark.parametrize("broken", [b"name = ", b"\xff", b"name = 'bob'\nid = 1\ncreated = 2026-01-01T00:00:00Z"])
def test_a_broken_edit_does_not_undo_what_was_acknowledged(
    paths: StatePaths, file: Path, texts: list[bytes], broken: bytes
) -> None:
    file.write_bytes(broken)
    losses = run(paths, chain(texts[1], start=texts[0]))
    kept = file.with_name("anna.toml.broken")
    assert losses == [Loss(("user", "anna"), "broken-edit", kept)]
    assert file.read_bytes() == texts[1] and kept.read_bytes() == broken


def test_links_and_folders_in_the_way_are_put_aside(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    target = paths.root / "elsewhere"
    target.write_bytes(texts[4])
    file.symlink_to(target)
    run(paths, chain(texts[1], start=texts[0]))
    assert file.read_bytes() == texts[1] and not file.is_symlink() and target.read_bytes() == texts[4]
    file.unlink()
    file.mkdir()
    run(paths, chain(texts[2], start=texts[0]))
    assert file.read_bytes() == texts[2] and (paths.users_dir / "anna.toml.broken-2").is_dir()


def test_an_edit_between_reading_and_renaming_is_not_overwritten(
    paths: StatePaths, file: Path, texts: list[bytes]
) -> None:
    file.write_bytes(texts[0])
    seen: list[bytes] = []

    def edit_late(kind: Kind, name: str, raw: bytes, where: str) -> object:
        seen.append(raw)
        return None

    other = paths.users_dir / "berta.toml"
    other.write_bytes(b"foreign")

    def editing(kind: Kind, name: str, raw: bytes, where: str) -> object:
        file.write_bytes(texts[4])  # anna's file was decided on before berta's is looked at
        return edit_late(kind, name, raw, where)

    entries = [*chain(texts[1], start=texts[0]), Entry("user", "berta", 1, texts[0])]
    losses = settle(paths.root, entries, editing)
    assert file.read_bytes() == texts[4]
    assert sorted(str(loss.ident[1]) for loss in losses) == ["anna", "berta"]


def test_a_large_batch_is_settled_like_a_small_one(paths: StatePaths, user: Make) -> None:
    texts = {f"u{number}": encode(user(f"u{number}")) for number in range(100)}
    assert settle(paths.root, [Entry("user", key, 0, text) for key, text in texts.items()], check) == []
    assert {path.stem: path.read_bytes() for path in paths.users_dir.iterdir()} == texts


def test_a_refusing_disk_leaves_no_temporary_files(paths: StatePaths, file: Path, texts: list[bytes]) -> None:
    (paths.root / "relays").rmdir()
    entries = [*chain(texts[0]), Entry("relay", 900, 0, b"x")]
    with pytest.raises(OSError):
        settle(paths.root, entries, check)
    assert os.listdir(paths.users_dir) == []
    (paths.root / "relays").mkdir()
    settle(paths.root, entries, check)
    assert file.read_bytes() == texts[0]


def test_the_check_decides_what_a_readable_document_is() -> None:
    with pytest.raises(ConfigError):
        check("user", "anna.toml", b"", "x")
