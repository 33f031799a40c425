"""The event trail over HTTP, as server-sent events: ours, beside Headscale's REST v1."""

from __future__ import annotations

from typing import Final

from gw.control.api.calls import Answer, Call, Operation, Stream
from gw.errors import Conflict, UsageError


async def follow_events(call: Call) -> Answer:
    """From now on, or after the number in `Last-Event-ID` or `after`."""
    stream = call.tailnet.events
    if stream is None:
        raise Conflict("events can be followed at a running server alone", hint="gwctl events -f")
    wanted = call.headers.get("last-event-id") or call.query.get("after", "")
    if wanted and not (wanted.isascii() and wanted.isdigit() and len(wanted) < 19):
        raise UsageError(f"not the number of an event: `{wanted[:40]}`")
    globs = [glob for glob in call.query.get("event", "").split(",") if glob]
    after = int(wanted) if wanted else stream.last
    return Stream(
        stream.server_sent(after, globs, call.query.get("actor", ""), call.query.get("subject", "")),
        "text/event-stream",
    )


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/events", handler=follow_events, scope="all:read",
        summary="Follow who changes what, as server-sent events", media_type="text/event-stream",
        query={
            "after": "Begin after the event of this number; `Last-Event-ID` says the same.",
            "event": "Globs of event names, separated by commas: `node-*,user-created`.",
            "actor": "Part of who did it.", "subject": "Glob: `node:3`, `user:*`.",
        },
    ),
]  # fmt: skip
