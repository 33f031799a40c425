"""Bringing documents of older schemas to today's.

A migration takes the tables of a file of schema N and changes them in place to schema N + 1. Before the first one is
written the store takes a snapshot of the directory. Each has a test with a directory that the old version wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gw.state.documents import Kind

Migration = Callable[[dict[str, Any]], None]
Migrations = Mapping[tuple[Kind, int], Migration]

MIGRATIONS: Final[Migrations] = {}  # (kind, schema it starts from); schema 1 is the first there is


def migrate(kind: Kind, tables: dict[str, Any], target: int, migrations: Migrations) -> bool:
    """Bring parsed tables up to `target`; whether anything was done. A kind may have no step for a number."""
    schema = tables.get("schema", target)
    if not isinstance(schema, int) or isinstance(schema, bool) or schema >= target or schema < 0:
        return False
    for step in range(schema, target):
        change = migrations.get((kind, step))
        if change is not None:
            change(tables)
    tables["schema"] = target
    return True
