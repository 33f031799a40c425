"""`gw lab roam` and `gw lab move`: a node changes its network, connections inside live on, exit codes are true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gw.errors import GwError
from gw.lab import Lab, NodeSpec, roaming
from gw.lab.ledger import Ledger
from gw.lab.roaming import longest_pause
from gw.lab.topology import move, run

from .namespaces import needs_namespaces

pytestmark = [
    needs_namespaces(),
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3"),
]

GW = str(Path(sys.executable).parent / "gw")


def test_iperf3_lives_on_over_the_quic_relay_and_directly_in_quic(tmp_path: Path) -> None:
    done = subprocess.run(
        [GW, "lab", "roam", "--json", "--seconds", "8"],
        env={**os.environ, "GW_LAB_DIR": str(tmp_path / "roam")},
        capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    assert [each["by"] for each in runs] == ["relay", "quic"]
    for each in runs:
        assert each["problems"] == []
        assert each["new_quic"] == each["new_sessions"] == 0
        assert each["before"] != each["after"]
        assert each["pause_s"] < 6.0  # a machine with other work; seen: 0.2 s
        assert len(each["megabits"]) == 8
        assert each["arrived_bytes"] > 1 << 20
    assert "<- moved" in done.stderr


def test_a_connection_that_does_not_live_on_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GW_LAB_DIR", str(tmp_path / "lost"))
    monkeypatch.setattr(roaming, "GRACE_S", 2.0)

    def into_the_void(ledger: Ledger, name: str) -> tuple[str, str]:
        run(["ip", "-n", ledger.namespace(f"{name}-nat"), "link", "set", "wan", "down"])
        return "here", "nowhere"

    monkeypatch.setattr(roaming, "move", into_the_void)
    said: list[str] = []
    with pytest.raises(GwError, match="does not end|did not live on"):
        roaming.roam(said.append, ["relay"], 6)
    assert not any("lived on" in line for line in said)


def test_a_standing_lab_s_node_moves(tmp_path: Path) -> None:
    folder = tmp_path / "standing"
    with Lab([NodeSpec("ann", daemon=False)], folder=folder) as lab:
        lab.leave()
        done = subprocess.run(
            [GW, "lab", "move", "ann"], env={**os.environ, "GW_LAB_DIR": str(folder)},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == "ann: 198.51.100.11 -> 198.51.100.182\n"
        assert "198.51.100.182/24" in lab.run("ann", "ip", "-o", "-4", "addr", "show", "dev", "eth0")
        assert move(lab.ledger, "ann") == ("198.51.100.182", "198.51.100.183")
        lab.run("ann", "ping", "-n", "-c", "1", "-W", "5", "198.51.100.1")


def test_the_longest_pause_is_that_of_the_slices_without_a_byte() -> None:
    assert longest_pause([5, 0, 0, 1, 0]) == 0.2
    assert longest_pause([5, 1]) == 0.0
    assert longest_pause([]) == 0.0
