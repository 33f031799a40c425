"""Changes that a crash left without their event: the journal has them, the trail has not. They are told at the start.

A change is appended to the trail right after it is durable; between the two a process can be killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gw.errors import GwError
from gw.state.codec import decode
from gw.state.documents import file_name
from gw.state.journal import Entry, Record
from gw.state.migrations import Migrations
from gw.state.trail import Trail
from gw.state.trailreading import last_lines

LOOKED_AT: Final = 20_000  # lines; a crash leaves at most a second's changes in the journal


class _Told(msgspec.Struct, frozen=True):
    subject: str = ""
    revision: int | None = None


def record_recovered(trail: Trail, records: Sequence[Record], migrations: Migrations, wall: float) -> None:
    """Append an event `change-recovered` for each change of which the trail says nothing. Raises nothing."""
    told: set[tuple[str, int | None]] = set()
    try:
        lines = last_lines(trail.folder, LOOKED_AT)
    except GwError:
        lines = []
    for line in lines:
        try:
            event = msgspec.json.decode(line, type=_Told)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        told.add((event.subject, event.revision))
    for record in records:
        changes = [_named(entry, migrations) for entry in record.entries if entry.kind != "server"]
        if any((subject, revision) in told for subject, revision, _ in changes):
            continue
        for subject, revision, after in changes:
            details: dict[str, Any] = {"after": after} if after is not None else {}
            if revision is not None:
                details["revision"] = revision
            trail.append(wall, "change-recovered", actor="unknown", subject=subject, durable=record.wall, **details)


def _named(entry: Entry, migrations: Migrations) -> tuple[str, int | None, dict[str, Any] | None]:
    """Subject, revision and content of a change; revision None for a deletion."""
    subject = f"{entry.kind}:{entry.key}"
    if entry.text is None:
        return subject, None, None
    try:
        document, _ = decode(entry.kind, file_name(entry.key), entry.text, subject, migrations)
    except GwError:
        return subject, None, None
    hidden = ("hash", "schema", "revision")
    shown = {name: getattr(document, name) for name in document.__struct_fields__ if name not in hidden}
    return subject, document.revision, shown
