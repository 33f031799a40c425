"""The systemd units as systemd itself reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).resolve().parents[2] / "packaging/systemd").glob("*.service"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_finds_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text().replace("/usr/local/bin/", "/bin/true ")
        (tmp_path / unit.name).write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert [line for line in found.stderr.splitlines() if str(tmp_path) in line or "gw" in line] == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_daemon_gets_more_than_it_needs(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for wanted in ("NoNewPrivileges=yes", "ProtectHome=yes", "RestrictSUIDSGID=yes", "SystemCallArchitectures=native"):
        assert wanted in lines
    if unit.stem != "gwd":
        assert "ProtectSystem=strict" in lines
        assert "SystemCallFilter=@system-service" in lines
        assert f"User={unit.stem}" in lines
