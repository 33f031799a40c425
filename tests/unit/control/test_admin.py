"""Administration in Headscale's REST v1 shapes: control protocol §7.4."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gw.control import enrolment
from gw.control.admin import answer
from gw.errors import Conflict, NotFound, UsageError
from gw.model.hostinfo import Hostinfo

USER_FIELDS = ["id", "name", "createdAt", "displayName", "email", "providerId", "provider", "profilePicUrl"]
NODE_FIELDS = [
    "id", "machineKey", "nodeKey", "discoKey", "ipAddresses", "name", "user", "lastSeen", "expiry", "preAuthKey",
    "createdAt", "registerMethod", "givenName", "online", "approvedRoutes", "availableRoutes", "subnetRoutes", "tags",
]  # fmt: skip
KEY_FIELDS = ["user", "id", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags"]


async def call(world: Any, method: str, path: str, **body: Any) -> Any:
    """The answer as it looks after a trip through JSON."""
    import msgspec

    raw = json.dumps(body).encode() if body else b""
    return json.loads(msgspec.json.encode(await answer(world.tailnet, method, f"/api/v1{path}", raw)))


async def test_a_user_has_headscales_fields(world: Any) -> None:
    made = (await call(world, "POST", "/user", name="ann", displayName="Ann", email="a@x.org"))["user"]
    assert list(made) == USER_FIELDS
    assert made == (await call(world, "GET", "/user?name=ann"))["users"][0]
    assert (made["id"], made["createdAt"]) == ("1", "2031-05-01T00:00:00Z")
    assert (await call(world, "GET", "/user?id=2"))["users"] == []


async def test_a_node_has_headscales_fields(world: Any) -> None:
    node = await world.node(hostname="Box")
    world.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname="Box", routable_ips=["10.0.0.0/8", "0.0.0.0/0"]))
    await call(world, "POST", "/node/1/approve_routes", routes=["10.0.0.0/8"])
    (shown,) = (await call(world, "GET", "/node"))["nodes"]
    assert list(shown) == NODE_FIELDS
    assert list(shown["user"]) == USER_FIELDS
    assert list(shown["preAuthKey"]) == KEY_FIELDS
    assert shown["id"] == "1"
    assert (shown["name"], shown["givenName"]) == ("Box", "box")
    assert shown["registerMethod"] == "REGISTER_METHOD_AUTH_KEY"
    assert shown["discoKey"] == "discokey:" + "0" * 64
    assert shown["expiry"] is None
    assert shown["availableRoutes"] == ["10.0.0.0/8", "0.0.0.0/0"]
    assert shown["approvedRoutes"] == shown["subnetRoutes"] == ["10.0.0.0/8"]


async def test_a_tagged_node_is_shown_under_the_user_of_all_tagged_devices(world: Any) -> None:
    await world.node()
    shown = (await call(world, "POST", "/node/box/tags", tags=["tag:web"]))["node"]
    assert (shown["user"]["id"], shown["user"]["name"], shown["tags"]) == ("2147455555", "tagged-devices", ["tag:web"])


async def test_a_key_is_shown_whole_once(world: Any) -> None:
    await world.user()
    body = {"user": "1", "reusable": True, "expiration": "2031-06-01T00:00:00Z"}
    made = (await call(world, "POST", "/preauthkey", **body))["preAuthKey"]
    assert list(made) == KEY_FIELDS
    assert made["key"].startswith("hskey-auth-")
    assert len(made["key"]) == 11 + 12 + 1 + 64
    (listed,) = (await call(world, "GET", "/preauthkey"))["preAuthKeys"]
    assert listed == {**made, "key": made["key"][:23] + "-***"}
    assert await enrolment.register_preauth(world.tailnet, "mkey:1", world.request(made["key"]))


async def test_a_key_is_expired_and_deleted(world: Any) -> None:
    await world.key()
    await call(world, "POST", "/preauthkey/expire", id="1")
    assert (await call(world, "GET", "/preauthkey"))["preAuthKeys"][0]["expiration"] == "2031-05-01T00:00:00Z"
    await call(world, "DELETE", "/preauthkey?id=1")
    assert (await call(world, "GET", "/preauthkey?user=ann"))["preAuthKeys"] == []


async def test_a_node_is_renamed_expired_and_deleted(world: Any) -> None:
    await world.node()
    assert (await call(world, "POST", "/node/1/rename/nas"))["node"]["givenName"] == "nas"
    assert (await call(world, "POST", "/node/1/expire"))["node"]["expiry"] == "2031-05-01T00:00:00Z"
    later = (await call(world, "POST", "/node/1/expire", expiry="2031-07-01T02:00:00+02:00"))["node"]
    assert later["expiry"] == "2031-07-01T00:00:00Z"
    assert (await call(world, "POST", "/node/1/expire", disableExpiry=True))["node"]["expiry"] is None
    with pytest.raises(UsageError, match="time without a zone"):
        await call(world, "POST", "/node/1/expire", expiry="2031-07-01T02:00:00")
    await call(world, "DELETE", "/node/nas")
    with pytest.raises(NotFound):
        await call(world, "GET", "/node/1")


async def test_a_waiting_login_is_listed_and_approved(world: Any) -> None:
    first = enrolment.begin_auth(world.tailnet, "mkey:1", world.request(hostname="phone"))
    second = enrolment.begin_auth(world.tailnet, "mkey:2", world.request())
    third = enrolment.begin_auth(world.tailnet, "mkey:3", world.request())
    pending = (await call(world, "GET", "/auth"))["pending"]
    assert (pending[0]["authId"], pending[0]["hostname"]) == (first, "phone")
    with pytest.raises(UsageError, match="no user yet"):
        await call(world, "POST", "/auth/approve", authId=first)
    await world.user()
    assert (await call(world, "POST", "/auth/approve", authId=first))["node"]["givenName"] == "phone"
    await world.user("ben")
    with pytest.raises(UsageError, match="whose node"):
        await call(world, "POST", "/auth/approve", authId=second)
    shown = (await call(world, "POST", f"/node/register?user=ben&key={second}"))["node"]
    assert (shown["user"]["name"], shown["registerMethod"]) == ("ben", "REGISTER_METHOD_CLI")
    await call(world, "POST", "/auth/reject", authId=third)
    assert (await call(world, "GET", "/auth"))["pending"] == []


async def test_users_are_renamed_and_removed_by_id(world: Any) -> None:
    await world.user()
    assert (await call(world, "POST", "/user/1/rename/anna"))["user"]["name"] == "anna"
    await call(world, "DELETE", "/user/1")
    assert (await call(world, "GET", "/user"))["users"] == []


async def test_nonsense_is_refused(world: Any) -> None:
    await world.user()
    with pytest.raises(NotFound, match="no such call: `PATCH"):
        await call(world, "PATCH", "/user")
    with pytest.raises(UsageError, match="request body"):
        await answer(world.tailnet, "POST", "/api/v1/user", b"{")
    with pytest.raises(UsageError, match="request body"):
        await call(world, "POST", "/user", name=5)
    with pytest.raises(Conflict):
        await call(world, "POST", "/user", name="ann")
