"""Tailscale's API v2: users, whom it only shows."""

from __future__ import annotations

from typing import Final

import msgspec

from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.api.v2_devices import check_tailnet
from gw.control.shapes import time_shape
from gw.control.tailnet import Tailnet
from gw.control.userindex import policy_user
from gw.errors import NotFound
from gw.state.documents import UserDoc

SCOPE: Final = "users"


class UserV2(msgspec.Struct, rename="camel"):
    id: str
    display_name: str
    login_name: str
    profile_pic_url: str
    tailnet_id: str
    created: str | None
    type: str
    role: str
    status: str
    device_count: int
    last_seen: str | None
    currently_connected: bool


def user_v2_shape(tailnet: Tailnet, user: UserDoc) -> UserV2:
    nodes = tailnet.roster.of_user(user.name)
    seen = [node.last_seen for node in nodes if node.last_seen is not None]
    return UserV2(
        id=str(user.id),
        display_name=user.display_name or user.name,
        login_name=user.email or user.name,
        profile_pic_url=user.picture,
        tailnet_id=tailnet.domain,
        created=time_shape(user.created),
        type="member",
        role=policy_user(user).role,
        status="active" if nodes else "idle",
        device_count=len(nodes),
        last_seen=time_shape(max(seen)) if seen else None,
        currently_connected=any(node.online for node in nodes),
    )


async def list_users(call: Call) -> Answer:
    check_tailnet(call)
    tailnet = call.tailnet
    users = call.page(tailnet.users.values(), lambda user: user.id)
    return Listing("users", users, lambda user: user_v2_shape(tailnet, user))


async def get_user(call: Call) -> Answer:
    found = next((each for each in call.tailnet.users.values() if str(each.id) == call.path[0]), None)
    if found is None:
        raise NotFound(f"no such user: `{call.path[0][:80]}`")
    return user_v2_shape(call.tailnet, found)


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v2/tailnet/{tailnet}/users", handler=list_users, scope=reading(SCOPE),
        summary="List users", answer=UserV2, listing="users",
    ),
    Operation(
        method="GET", path="/api/v2/users/{userId}", handler=get_user, scope=reading(SCOPE), summary="Show a user",
        answer=UserV2,
    ),
]  # fmt: skip
