"""The event trail: `events/<day>.jsonl`, one JSON object a line, for people and their tools.

It is not part of what must survive: a full disk costs an event, never a change.
"""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gw.errors import GwError
from gw.state.files import inherit_owner, make_folder

log = logging.getLogger(__name__)


def record_event(folder: Path, wall: float, event: str, **fields: object) -> None:
    """Append one event. wall: UTC seconds; event: a stable kebab-case id. Never raises."""
    when = datetime.fromtimestamp(wall, UTC)
    line = msgspec.json.encode({"time": when.isoformat(timespec="milliseconds"), "event": event, **fields}) + b"\n"
    try:
        make_folder(folder, 0o750)
        path = folder / f"{when:%Y-%m-%d}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            inherit_owner(descriptor, folder)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
    except (OSError, GwError) as error:
        log.warning("event %s is not recorded: %s", event, error)
