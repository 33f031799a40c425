"""kill -9 at any moment loses nothing that was acknowledged."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from gw.state.paths import StatePaths
from gw.state.store import DirectoryStore

PROGRAM = Path(__file__).parent / "committing_program.py"


def kill_one(paths: StatePaths, first: int, chance: random.Random) -> list[int]:
    """Run the program, kill it after some acknowledgements, return the acknowledged numbers."""
    command = [sys.executable, "-P", str(PROGRAM), str(paths.root), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(chance.randint(1, 60))]
        server.kill()
        lines += server.stdout.read().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines), "the program died by itself"
    return [int(line) for line in lines]


def crash_and_check(paths: StatePaths, rounds: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: set[int] = set()
    for round_ in range(rounds):
        acknowledged |= set(kill_one(paths, round_ * 1_000_000, chance))
        with DirectoryStore(paths).open() as store:
            nodes, users = store.load("node"), store.load("user")
            assert store.quarantined == {}
        for number in acknowledged:
            if number % 3 == 0:
                assert number not in nodes, "a removal was acknowledged"
            else:
                assert nodes[number].hostname == "changed" and nodes[number].revision == 1
        assert {f"u{number}" for number in nodes} == set(users), "one commit is all or nothing"
    assert len(acknowledged) >= rounds
    leftovers = [str(path) for path in paths.root.rglob("*") if ".conflict" in path.name or ".tmp-" in path.name]
    assert leftovers == [] and list(paths.journal_dir.iterdir()) == []


@pytest.mark.timeout(60)
def test_nothing_acknowledged_is_lost_by_kill_9(paths: StatePaths) -> None:
    crash_and_check(paths, rounds=12, seed=random.randrange(1 << 32))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_by_300_times_kill_9(paths: StatePaths) -> None:
    crash_and_check(paths, rounds=300, seed=random.randrange(1 << 32))
