"""The trail of changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gw.control.events import acting_as, recorder
from gw.state.trail import BEGINNING, Trail


async def test_a_change_is_told_with_who_what_before_and_after(world: Any, tmp_path: Path) -> None:
    node = await world.node()
    with acting_as("root (uid 0)"):
        await world.tailnet.rename(node, "nas")
    recorder(Trail(tmp_path / "events", tmp_path / "key"))(world.events[-1])
    (line,) = (tmp_path / "events" / "2031-05-01.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "seq": 1,
        "prev": BEGINNING,
        "time": "2031-05-01T00:00:00.000+00:00",
        "event": "node-renamed",
        "actor": "root (uid 0)",
        "subject": "node:1",
        "revision": 1,
        "before": {"given_name": "box"},
        "after": {"given_name": "nas"},
    }


async def test_the_actor_of_a_change_is_kept_when_it_outlives_its_caller(world: Any) -> None:
    node = await world.node()
    async with world.tailnet.running():
        with acting_as("ann"):
            await world.tailnet.rename(node, "nas")
    assert world.events[-1].actor == "ann"


async def test_a_machine_that_registers_is_the_actor(world: Any) -> None:
    await world.node(machine="mkey:" + "5" * 64)
    assert world.events[-1].actor == "machine mkey:55555555…"
