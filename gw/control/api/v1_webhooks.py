"""How the webhooks are doing: ours, beside Headscale's REST v1. They are made and changed in `config.toml`."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from gw.control.api.calls import Answer, Call, Listing, Operation
from gw.control.webhooks import Webhook


class WebhookShape(msgspec.Struct, rename="camel"):
    """receiver: of its URL the part that holds no secret. taken: number of the last event that it is through with;
    waiting: events behind it; head: number of the event that the last signed head it took is about, 0 = none.
    problem: why the last try failed, "" where it did not; since: RFC 3339, of the first failure in a row."""

    name: str
    receiver: str
    events: list[str]
    taken: int
    waiting: int
    head: int
    problem: str
    since: str


async def list_webhooks(call: Call) -> Answer:
    return Listing("webhooks", list(call.tailnet.webhooks.values()), _shape)


def _shape(hook: Webhook) -> WebhookShape:
    place = urlsplit(hook.settings.url)
    return WebhookShape(
        name=hook.settings.name,
        receiver=f"{place.scheme}://{place.netloc.rpartition('@')[2]}",
        events=hook.settings.events,
        taken=hook.taken,
        waiting=hook.waiting,
        head=hook.head,
        problem=hook.problem,
        since=hook.problem_since.isoformat(timespec="seconds") if hook.problem_since is not None else "",
    )


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/webhooks", handler=list_webhooks, scope="all:read",
        summary="List webhooks: what was taken, what waits, why", answer=WebhookShape, listing="webhooks",
    ),
]  # fmt: skip
