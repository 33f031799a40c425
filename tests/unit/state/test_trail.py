"""The event trail: chained lines, signed heads, and every way of tampering that has to show."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gw.errors import UsageError
from gw.state.heads import decode_head, public_hex, signing_key
from gw.state.store import DirectoryStore, Put
from gw.state.trail import BEGINNING, Trail, digest_of
from gw.state.trailreading import TrailReader, Verdict, kept_heads, last_lines, own_head, verify

DAY = 86400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def trail(folder: Path, tmp_path: Path) -> Trail:
    return Trail(folder, tmp_path / "keys" / "events.key")


def judged(folder: Path, *more: Any) -> Verdict:
    key = public_hex(signing_key(folder.parent / "keys" / "events.key"))
    return verify(folder, key, [*kept_heads(folder), *more])


def three_days(trail: Trail) -> None:
    for day in range(3):
        for number in range(4):
            trail.append(day * DAY + number, "node-renamed", subject=f"node:{number}")
    trail.seal(3 * DAY)


def test_each_line_names_the_hash_of_the_one_before_across_days(trail: Trail, folder: Path) -> None:
    three_days(trail)
    lines = last_lines(folder, 100)
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == list(range(1, 13))
    assert [event["prev"] for event in events] == [BEGINNING, *map(digest_of, lines[:-1])]
    assert sorted(path.name for path in folder.glob("19*")) == [f"1970-01-0{day}.jsonl" for day in (1, 2, 3)]
    verdict = judged(folder)
    assert verdict.is_whole
    assert (verdict.lines, verdict.heads, verdict.unsigned) == (12, 3, 0)


def test_the_chain_goes_on_after_a_restart(trail: Trail, folder: Path, tmp_path: Path) -> None:
    trail.append(1.0, "a")
    trail.close(2.0)
    again = Trail(folder, tmp_path / "keys" / "events.key")
    assert again.append(3.0, "b") == 2
    assert judged(folder).is_whole
    assert judged(folder).unsigned == 1


def test_a_clock_that_goes_back_writes_no_older_file(trail: Trail, folder: Path) -> None:
    trail.append(5 * DAY, "a")
    trail.append(1 * DAY, "b")
    assert [path.name for path in folder.glob("*.jsonl")] == ["1970-01-06.jsonl"]
    trail.seal(DAY)
    assert judged(folder).is_whole


def test_the_signing_key_is_for_its_owner_alone(trail: Trail, tmp_path: Path) -> None:
    trail.append(1.0, "a")
    trail.seal(1.0)
    assert (tmp_path / "keys" / "events.key").stat().st_mode & 0o777 == 0o600


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))


@pytest.mark.parametrize(
    ("day", "change", "says"),
    [
        (2, lambda lines: [lines[0].replace(b"node:0", b"node:9"), *lines[1:]], "1970-01-02.jsonl:2: the line before"),
        (2, lambda lines: [lines[0], *lines[2:]], "1970-01-02.jsonl:2: events 6 to 6 are missing"),
        (2, lambda lines: lines[:-1], "1970-01-03.jsonl:1: events 8 to 8 are missing"),
        (2, lambda lines: [*lines[:2], lines[0], *lines[2:]], "1970-01-02.jsonl:3: event 5 comes after event 6"),
        (2, lambda lines: [*lines[:2], b'{"event":"x"}', *lines[2:]], "1970-01-02.jsonl:3: a line without a number"),
        (2, lambda lines: [*lines[:2], b"nonsense", *lines[2:]], "1970-01-02.jsonl:3: not an event"),
        (3, lambda lines: lines[:-1], "head.json:0: the trail went on to event 12, now it ends with 11"),
        (3, lambda lines: [*lines[:-1], lines[-1].replace(b"node:3", b"node:9")], "1970-01-03.jsonl:4: event 12 is"),
        (3, lambda lines: [], "head.json:0: the trail went on to event 12, now it ends with 8"),
        (1, lambda lines: [], "1970-01-02.jsonl:1: events 1 to 4 are missing"),
    ],
)  # fmt: skip
def test_what_was_altered_removed_put_in_or_cut_off_shows(
    trail: Trail, folder: Path, day: int, change: Callable[[list[bytes]], list[bytes]], says: str
) -> None:
    three_days(trail)
    rewrite(folder / f"1970-01-0{day}.jsonl", change)
    said = [f"{each.file}:{each.line}: {each.what}" for each in judged(folder).problems]
    assert any(line.startswith(says) for line in said), said


def test_every_altered_byte_of_a_line_shows(trail: Trail, folder: Path) -> None:
    for number in range(3):
        trail.append(float(number), "a", subject="node:1")
    trail.seal(3.0)
    path = folder / "1970-01-01.jsonl"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert not judged(folder).is_whole, at


def test_a_trail_rewritten_whole_shows_against_a_head_kept_elsewhere(
    trail: Trail, folder: Path, tmp_path: Path
) -> None:
    """Somebody with the box's own key makes a new, consistent history."""
    three_days(trail)
    kept = own_head(folder)
    assert kept is not None
    for path in folder.iterdir():
        path.unlink()
    forger = Trail(folder, tmp_path / "keys" / "events.key")
    for number in range(20):
        forger.append(float(number), "innocent")
    forger.seal(99.0)
    assert judged(folder).is_whole
    assert "event 12 is not the one that was signed (kept)" in judged(folder, ("kept", kept)).problems[0].what


def test_a_head_that_was_altered_or_signed_by_another_is_refused(trail: Trail, folder: Path, tmp_path: Path) -> None:
    three_days(trail)
    head = own_head(folder)
    assert head is not None
    for name, value in (("seq", 11), ("hash", "0" * 64), ("time", "x"), ("signature", "00" * 64), ("key", "zz")):
        forged = msgspec.structs.replace(head, **{name: value})
        assert "altered" in judged(folder, ("forged", forged)).problems[0].what
    other = Trail(tmp_path / "other", tmp_path / "other.key")
    other.append(1.0, "a")
    stranger = other.seal(1.0)
    assert "another key" in judged(folder, ("other", stranger)).problems[0].what
    with pytest.raises(UsageError, match="not a head"):
        decode_head(b"{}", "x")


def test_a_trail_without_any_head_is_not_whole(trail: Trail, folder: Path) -> None:
    three_days(trail)
    (folder / "head.json").unlink()
    (folder / "heads.jsonl").unlink()
    assert "no signed head" in judged(folder).problems[0].what


def test_lines_cut_off_while_the_server_was_away_are_told_and_never_healed(trail: Trail, folder: Path) -> None:
    three_days(trail)
    trail.close(3 * DAY)
    rewrite(folder / "1970-01-03.jsonl", lambda lines: lines[:1])
    trail.append(4 * DAY, "node-renamed")
    trail.seal(4 * DAY)
    assert [json.loads(line)["event"] for line in last_lines(folder, 2)] == ["trail-cut", "node-renamed"]
    assert "events 10 to 12 are missing" in judged(folder).problems[0].what


def test_a_line_torn_by_a_crash_is_cut_off_and_told(trail: Trail, folder: Path) -> None:
    trail.append(1.0, "a")
    trail.close(1.0)
    with (folder / "1970-01-01.jsonl").open("ab") as file:
        file.write(b'{"seq":2,"pre')
    trail.append(2.0, "b")
    events = [json.loads(line) for line in last_lines(folder, 9)]
    assert [event["event"] for event in events] == ["a", "trail-repaired", "b"]
    assert events[1]["torn_bytes"] == 13
    assert judged(folder).is_whole


def test_lines_of_a_time_without_a_chain_are_counted_and_left_alone(trail: Trail, folder: Path) -> None:
    folder.mkdir()
    (folder / "1970-01-01.jsonl").write_text('{"event":"old"}\n{"event":"older"}\n')
    trail.append(1.0, "new")
    trail.seal(1.0)
    verdict = judged(folder)
    assert verdict.is_whole
    assert (verdict.unchained, verdict.last) == (2, 1)
    rewrite(folder / "1970-01-01.jsonl", lambda lines: [lines[0], lines[1].replace(b"older", b"newer"), lines[2]])
    assert not judged(folder).is_whole


def test_a_refusing_disk_costs_an_event_and_the_trail_says_how_many(
    trail: Trail, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trail.append(1.0, "a")
    size = (folder / "1970-01-01.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        assert trail.append(2.0, "b") == 0
        assert trail.append(3.0, "c") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "not recorded" in caplog.text
    assert trail.append(4.0, "d") == 3
    events = [json.loads(line) for line in last_lines(folder, 9)]
    assert [(event["event"], event.get("count")) for event in events] == [("a", None), ("events-lost", 2), ("d", None)]
    trail.seal(5.0)
    assert judged(folder).is_whole


def test_listeners_hear_every_event_in_order(trail: Trail) -> None:
    heard: list[int] = []
    trail.listeners.append(lambda seq, line: heard.append(seq))
    for _ in range(3):
        trail.append(1.0, "a")
    assert heard == [1, 2, 3]


def test_a_reader_follows_over_days_and_waits_for_whole_lines(trail: Trail, folder: Path) -> None:
    reader = TrailReader(folder)
    assert reader.read() == []
    three_days(trail)
    assert len(reader.read(5)) == 5
    assert len(reader.read()) == 7
    with (folder / "1970-01-03.jsonl").open("ab") as file:
        file.write(b"half")
        file.flush()
        assert reader.read() == []
        file.write(b" a line\n")
    assert reader.read() == [b"half a line"]


def test_a_reader_starts_behind_a_number_or_at_the_end(trail: Trail, folder: Path) -> None:
    three_days(trail)
    reader = TrailReader(folder)
    reader.seek(6)
    assert next(json.loads(line)["seq"] for line in reader.read()) == 5
    reader.skip()
    assert reader.read() == []


async def test_a_change_whose_event_a_crash_swallowed_is_told_at_the_next_start(paths: Any, node: Any) -> None:
    store = DirectoryStore(paths, settle_delay_s=60).open()
    await store.commit([Put(node(1))])
    await store.commit([Put(node(2))])
    store.trail.append(1.0, "node-registered", subject="node:2", revision=0)
    copy = paths.root.with_name("copy")
    os.system(f"cp -a {paths.root} {copy}")  # what a kill would leave
    store.close()
    crashed = type(paths)(copy)
    DirectoryStore(crashed).open().close()
    events = [json.loads(line) for line in last_lines(crashed.events_dir, 9)]
    assert [(event["event"], event["subject"]) for event in events] == [
        ("node-registered", "node:2"),
        ("change-recovered", "node:1"),
    ]
    assert events[1]["after"]["given_name"] == "node-1"
    DirectoryStore(crashed).open().close()
    assert len(last_lines(crashed.events_dir, 9)) == 2
