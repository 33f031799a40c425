"""The trail of what was changed, by whom: lines of `events/<day>.jsonl`, appended and never rewritten.

    {"seq":7,"prev":"<64 hex>","time":"2031-05-01T10:00:00.123+00:00","event":"node-renamed","actor":"root (uid 0)",
     "subject":"node:3","revision":4,"before":{"given_name":"box"},"after":{"given_name":"nas"}}

before and after hold only the fields that differ, and never a secret or its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, TypeAlias, final

import msgspec

from gw.state.trail import Trail

SECRET_FIELDS: Final = frozenset({"hash", "schema", "revision"})
SERVER: Final = "server"
HAND_EDIT: Final = "hand edit"
RELAY: Final = "gwrelay "  # and its name: a relay that enters itself into the relay map
_NOT_ADMINISTRATORS: Final = (
    "machine ",
    "anybody ",
    RELAY,
    "oidc ",
)  # the last: a person who connects a device of their own

_actor: ContextVar[str] = ContextVar("gw_actor", default=SERVER)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Who is behind the changes made inside the block."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def actor() -> str:
    """Who is behind what is being done."""
    return _actor.get()


def is_administrative(name: str) -> bool:
    """Whether an administrator is behind it, not a machine or its owner, the policy, an editor or the server."""
    return name not in (SERVER, "policy", HAND_EDIT) and not name.startswith(_NOT_ADMINISTRATORS)


@final
class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. event: `node-renamed`; subject: `node:3`, `user:ann`, `preauthkey:<prefix>`."""

    time: datetime
    event: str
    actor: str
    subject: str
    revision: int | None = None  # of the document that the change left
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


Recorder: TypeAlias = Callable[[Event], None]


def event(
    name: str, subject: str, before: msgspec.Struct | None, after: msgspec.Struct | None, *, at: datetime
) -> Event:
    """An event with the differences between two documents."""
    old, new = _fields(before), _fields(after)
    if old is not None and new is not None:
        keys = [key for key in new if old.get(key) != new[key]]
        old, new = {key: old.get(key) for key in keys}, {key: new[key] for key in keys}
    revision = getattr(after, "revision", None)
    return Event(time=at, event=name, actor=_actor.get(), subject=subject, revision=revision, before=old, after=new)


def _fields(doc: msgspec.Struct | None) -> dict[str, Any] | None:
    if doc is None:
        return None
    return {name: getattr(doc, name) for name in doc.__struct_fields__ if name not in SECRET_FIELDS}


def recorder(trail: Trail) -> Recorder:
    """A function that appends events to a trail."""

    def record(entry: Event) -> None:
        details = {"revision": entry.revision, "before": entry.before, "after": entry.after}
        trail.append(
            entry.time.timestamp(), entry.event, actor=entry.actor, subject=entry.subject,
            **{name: value for name, value in details.items() if value is not None},
        )  # fmt: skip

    return record
