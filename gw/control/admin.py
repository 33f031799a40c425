"""Administration: every call there is, for whoever may make it.

    answer(tailnet, "POST", "/api/v1/user", b'{"name":"ann"}') → {"user": {...}}

The control server serves the table on its unix socket and, to holders of keys, over HTTPS (`gw.control.api.http`);
without a server `gwctl` calls it on the state directory itself. All of them come to the same functions.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gw.control.api import (
    v1_config,
    v1_events,
    v1_keys,
    v1_logins,
    v1_nodes,
    v1_policy,
    v1_relays,
    v1_routes,
    v1_upkeep,
    v1_users,
    v1_webhooks,
    v2_devices,
    v2_keys,
    v2_policy,
    v2_settings,
    v2_users,
)
from gw.control.api.calls import Answer, Listing, Reply, Stream, Table
from gw.control.tailnet import Tailnet

PREFIX: Final = "/api"
TABLE: Final = Table(
    operation
    for room in (
        v1_users, v1_config, v1_events, v1_nodes, v1_keys, v1_logins, v1_policy, v1_relays, v1_routes, v1_upkeep,
        v1_webhooks,
        v2_devices, v2_keys, v2_policy, v2_settings, v2_users,
    )
    for operation in room.OPERATIONS
)  # fmt: skip


async def respond(tailnet: Tailnet, method: str, target: str, body: bytes = b"") -> Answer:
    """The answer to a call of somebody who may do everything. target: path and query. Raises GwError."""
    return await TABLE.run(tailnet, method, target, body)


async def answer(tailnet: Tailnet, method: str, target: str, body: bytes = b"") -> Any:
    """The same as plain dictionaries and lists."""
    found = await respond(tailnet, method, target, body)
    assert not isinstance(found, Stream)  # only a running server has one
    if isinstance(found, Listing):
        found = found.whole()
    if isinstance(found, Reply):
        return msgspec.json.decode(found.body) if found.media_type == "application/json" else found.body.decode()
    return msgspec.to_builtins(found)


def changes_state(method: str) -> bool:
    """Whether a call of this method may change anything."""
    return method != "GET"
