"""Session tickets as files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gw.node.tickets import TicketFolder


def test_a_ticket_is_kept_whole_and_secret_and_no_packet_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    folder = TicketFolder(tmp_path / "tickets")
    folder.keep("relay:3478", b"old")
    folder.keep("relay:3478", b"new")
    assert waited == []
    (file,) = (tmp_path / "tickets").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert folder.take("relay:3478") == b"new"
    assert folder.take("relay:3478") is None
