from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import GwError
from gw.state.journal import (
    MAGIC,
    Entry,
    Journal,
    Record,
    decode_segment,
    encode_record,
    fingerprint,
    read_journal,
    remove_segments,
)

ENTRIES = st.lists(
    st.builds(
        Entry, kind=st.sampled_from(["user", "node"]), key=st.integers(0, 99) | st.text(max_size=5),
        before=st.integers(0, 2**63 - 1), text=st.none() | st.binary(max_size=40),
    ), max_size=3,
)  # fmt: skip
RECORDS = st.lists(ENTRIES, max_size=5).map(
    lambda lists: [Record(number, 1.5, entries) for number, entries in enumerate(lists, 1)]
)


def segment(records: list[Record]) -> bytes:
    return MAGIC + b"".join(encode_record(record) for record in records)


@given(RECORDS)
def test_records_come_back_as_they_were_written(records: list[Record]) -> None:
    raw = segment(records)
    assert decode_segment(raw) == (records, len(raw))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_whole_records_and_no_error(raw: bytes, has_magic: bool) -> None:
    raw = MAGIC + raw if has_magic else raw
    records, whole = decode_segment(raw)
    assert whole <= len(raw)
    assert decode_segment(raw[:whole])[0] == records


@given(RECORDS, st.data())
def test_a_cut_anywhere_recovers_every_record_before_it(records: list[Record], data: st.DataObject) -> None:
    raw = segment(records)
    cut = data.draw(st.integers(0, len(raw)))
    ends = [len(segment(records[:count])) for count in range(len(records) + 1)]
    found, whole = decode_segment(raw[:cut])
    assert found == records[: sum(end <= cut for end in ends[1:])]
    assert whole in (*ends, 0)


@given(RECORDS, st.data())
def test_a_flipped_bit_never_gives_a_record_that_was_not_written(records: list[Record], data: st.DataObject) -> None:
    raw = bytearray(segment(records))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    found, _ = decode_segment(bytes(raw))
    assert found == records[: len(found)]


@given(RECORDS, st.binary(max_size=60))
def test_garbage_behind_the_records_does_no_harm(records: list[Record], garbage: bytes) -> None:
    raw = segment(records)
    found, whole = decode_segment(raw + b"\0\0\0\0" + garbage)
    assert (found, whole) == (records, len(raw))


def test_a_record_of_an_older_life_behind_the_end_is_not_taken() -> None:
    """A file system may show old blocks after a crash; the number tells them."""
    raw = segment([Record(5, 0, [])]) + encode_record(Record(3, 0, []))
    assert [record.number for record in decode_segment(raw)[0]] == [5]


def test_fingerprints_tell_no_file_from_an_empty_one() -> None:
    assert fingerprint(None) == 0 != fingerprint(b"")
    assert 0 < fingerprint(b"x") < 2**63


def record(number: int, text: bytes = b"x") -> bytes:
    return encode_record(Record(number, 0.0, [Entry("user", "a", 0, text)]))


def test_appended_records_are_read_again_over_several_segments(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, read_journal(folder))
    journal.append([record(1), record(2)])
    first = journal.finish_segment()
    journal.append([record(3)])
    journal.close()
    replay = read_journal(folder)
    assert [found.number for found in replay.records] == [1, 2, 3]
    assert len(replay.segments) == 2 and replay.segments[0] == first and replay.torn_bytes == 0
    assert folder.stat().st_mode & 0o777 == 0o700 and replay.segments[0].stat().st_mode & 0o777 == 0o600


def test_numbers_go_on_after_a_restart_and_no_segment_is_overwritten(tmp_path: Path) -> None:
    Journal(tmp_path, read_journal(tmp_path)).append([record(1)])
    second = Journal(tmp_path, read_journal(tmp_path))
    assert second.next_number == 2
    second.append([record(2)])
    assert [found.number for found in read_journal(tmp_path).records] == [1, 2]


def test_nothing_is_written_before_the_first_append(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", read_journal(tmp_path / "journal"))
    assert journal.finish_segment() is None
    journal.close()
    assert not (tmp_path / "journal").exists()


def test_a_torn_tail_is_counted_and_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, read_journal(tmp_path))
    journal.append([record(1)])
    path = journal.finish_segment()
    assert path is not None
    with path.open("ab") as file:
        file.write(record(2)[:-3])
    replay = read_journal(tmp_path)
    assert [found.number for found in replay.records] == [1]
    assert replay.torn_bytes == len(record(2)) - 3


def test_a_hole_between_segments_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, read_journal(tmp_path))
    paths = []
    for number in (1, 2, 3):
        journal.append([record(number)])
        paths.append(journal.finish_segment())
    assert paths[1] is not None
    paths[1].unlink()
    assert [found.number for found in read_journal(tmp_path).records] == [1, 3]
    assert "records 2 to 2 are missing" in caplog.text


def test_removed_segments_are_gone_and_twice_does_no_harm(tmp_path: Path) -> None:
    journal = Journal(tmp_path, read_journal(tmp_path))
    journal.append([record(1)])
    path = journal.finish_segment()
    assert path is not None
    remove_segments([path])
    remove_segments([path])
    assert read_journal(tmp_path).records == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_group_the_disk_refuses_leaves_no_trace_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    journal = Journal(tmp_path, read_journal(tmp_path))
    journal.append([record(1)])
    real = os.write
    with monkeypatch.context() as patch:
        room = [len(record(2)) + 7]

        def write(descriptor: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(code, os.strerror(code))
            part = bytes(data)[: room[0]]
            room[0] -= len(part)
            return real(descriptor, part)

        patch.setattr("os.write", write)
        with pytest.raises(GwError, match="disk full") as caught:
            journal.append([record(2), record(3)])
        assert caught.value.hint is not None and "free space" in caught.value.hint
    assert [found.number for found in read_journal(tmp_path).records] == [1]
    journal.append([record(2, b"again")])
    assert read_journal(tmp_path).records[1].entries[0].text == b"again"


def test_a_write_error_of_the_disk_closes_the_journal_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fdatasync the kernel may have dropped the pages: a later success would mean nothing."""
    journal = Journal(tmp_path, read_journal(tmp_path))
    journal.append([record(1)])
    with monkeypatch.context() as patch:

        def refuse(_descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("os.fdatasync", refuse)
        with pytest.raises(GwError, match="Input/output error"):
            journal.append([record(2)])
    with pytest.raises(GwError, match="failed before"):
        journal.append([record(2)])
