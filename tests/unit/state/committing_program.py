"""A server that commits without pause until it is killed. Each acknowledged number is a line on stdout.

usage: committing_program.py STATE_DIR FIRST_NUMBER
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from gw.state.documents import NodeDoc, UserDoc
from gw.state.paths import StatePaths
from gw.state.store import Delete, DirectoryStore, Put

CREATED = datetime(2026, 11, 24, tzinfo=UTC)
CALLERS = 8


async def main(root: Path, first: int) -> None:
    """Each caller makes a node and a user in one commit, changes the node, and removes every third."""
    store = DirectoryStore(StatePaths(root), settle_delay_s=0.01).open()
    store.load("node")
    numbers = iter(range(first, sys.maxsize))

    async def call() -> None:
        for number in numbers:
            node = NodeDoc(
                id=number, machine_key="m", node_key="n", given_name=f"n{number}", created=CREATED, hostname="x" * 200
            )
            await store.commit([Put(node), Put(UserDoc(id=number, name=f"u{number}", created=CREATED))])
            await store.commit([Put(node.edited(hostname="changed"))])
            if number % 3 == 0:
                await store.commit([Delete("node", number), Delete("user", f"u{number}")])
            os.write(1, b"%d\n" % number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(call())


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
