"""Headscale's REST v1: users. Beside its numbers, names are taken for ids."""

from __future__ import annotations

from typing import Final

import msgspec

from gw.control import accounts
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.shapes import Nothing, UserAnswer, UserShape, user_shape

SCOPE: Final = "users"


class NewUser(msgspec.Struct, rename="camel"):
    name: str = ""
    display_name: str = ""
    email: str = ""
    picture_url: str = ""


async def list_users(call: Call) -> Answer:
    query, users = call.query, call.tailnet.users
    wanted = [
        user
        for user in users.values()
        if query.get("id") in (None, "", "0", str(user.id))
        and query.get("name") in (None, "", user.name)
        and query.get("email") in (None, "", user.email)
    ]
    return Listing("users", call.page(wanted, lambda user: user.id), user_shape)


async def create_user(call: Call) -> Answer:
    new = call.read(NewUser)
    user = await accounts.create_user(
        call.tailnet, new.name, display_name=new.display_name, email=new.email, picture=new.picture_url
    )
    return UserAnswer(user_shape(user))


async def delete_user(call: Call) -> Answer:
    await accounts.destroy_user(call.tailnet, accounts.find_user(call.tailnet, call.path[0]))
    return Nothing()


async def rename_user(call: Call) -> Answer:
    user = await accounts.rename_user(call.tailnet, accounts.find_user(call.tailnet, call.path[0]), call.path[1])
    return UserAnswer(user_shape(user))


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/user", handler=list_users, scope=reading(SCOPE), summary="List users",
        answer=UserShape, listing="users",
        query={"id": "Only this id.", "name": "Only this name.", "email": "Only this address."},
    ),
    Operation(
        method="POST", path="/api/v1/user", handler=create_user, scope=SCOPE, summary="Make a user",
        body=NewUser, answer=UserAnswer,
    ),
    Operation(
        method="DELETE", path="/api/v1/user/{id}", handler=delete_user, scope=SCOPE,
        summary="Remove a user who has no nodes, and the user's pre-auth keys", answer=Nothing,
    ),
    Operation(
        method="POST", path="/api/v1/user/{oldId}/rename/{newName}", handler=rename_user, scope=SCOPE,
        summary="Rename a user", answer=UserAnswer,
    ),
]  # fmt: skip
