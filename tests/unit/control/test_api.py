"""The API over HTTP: keys, scopes, errors, both versions. The application is called as a web server calls it."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from gw.control import apikeys
from gw.control.admin import TABLE
from gw.control.api.http import Api
from gw.control.api.limits import Offenders
from gw.control.events import acting_as
from gw.errors import UsageError
from gw.model.hostinfo import Hostinfo


class Answered:
    def __init__(self, messages: list[Message]) -> None:
        self.status = messages[0]["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
        self.body = b"".join(each.get("body", b"") for each in messages[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One key's way to the API."""

    def __init__(self, world: Any, key: str = "") -> None:
        self.world, self.key = world, key
        self.app = Api(world.tailnet, TABLE, self.observe)
        self.seen: list[tuple[str, str, int]] = []

    def observe(self, method: str, path: str, status: int, seconds: float) -> None:
        self.seen.append((method, path, status))

    async def __call__(
        self, method: str, target: str, body: Any = None, key: str | None = None, **headers: str
    ) -> Answered:
        path, _, query = target.partition("?")
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        used = self.key if key is None else key
        fields = {"authorization": f"Bearer {used}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("203.0.113.4", 1), "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip
        sent: list[Message] = []
        parts: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> Message:
            if parts:
                return parts.pop()
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        async with asyncio.timeout(10):
            await self.app(scope, receive, send)
        return Answered(sent)


@pytest.fixture
async def api(world: Any, tmp_path: Path) -> Client:
    """A caller who may do everything; a policy file that may be written."""
    (tmp_path / "config.toml").write_text('# mine\nserver_url = "http://mesh.test"\n')
    (tmp_path / "policy.hujson").write_bytes(world.tailnet.policy.policy.text)
    world.tailnet.folder = tmp_path
    return Client(world, (await apikeys.create_api_key(world.tailnet))[1])


async def key_with(api: Client, *scopes: str, **more: Any) -> str:
    return (await apikeys.create_api_key(api.world.tailnet, scopes=scopes, **more))[1]


# Keys


async def test_a_key_is_a_hash_at_rest_and_opens_until_it_is_over(api: Client) -> None:
    world = api.world
    (doc,) = world.tailnet.api_keys.values()
    secret = api.key.rpartition("-")[2]
    assert len(secret) == 64
    assert secret not in repr(world.store.documents) + repr(world.events)
    assert (await api("GET", "/api/v1/user")).json == {"users": []}
    assert world.tailnet.api_keys[doc.prefix].last_used == world.now
    again = Client(world.reloaded(), api.key)
    assert (await again("GET", "/api/v1/user")).status == 200
    await apikeys.expire_api_key(world.tailnet, doc)
    assert (await api("GET", "/api/v1/user")).status == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x",
        "Basic !!",
        "Digest a",
        f"Bearer hskey-api-{'0' * 12}-{'0' * 64}",
        "Bearer " + "x" * 9000,
    ],
)
async def test_whoever_has_no_key_is_told_in_headscales_shape(api: Client, header: str) -> None:
    answer = await api("GET", "/api/v1/node", authorization=header)
    assert answer.status == 401
    assert answer.json["code"] == 16
    assert list(answer.json) == ["code", "message", "details", "title", "status", "detail"]
    assert (answer.json["title"], answer.json["status"]) == ("Unauthorized", 401)
    assert "bearer" in answer.headers["www-authenticate"].lower()


async def test_a_wrong_secret_a_changed_one_and_a_clients_open_nothing(api: Client) -> None:
    wrong = api.key[:-1] + ("0" if api.key[-1] != "0" else "1")
    assert (await api("GET", "/api/v1/node", key=wrong)).status == 401
    client = await key_with(api, "all", role="client")
    assert (await api("GET", "/api/v1/node", key=client)).status == 401
    assert (await api("GET", "/api/v1/node", key=client.replace("client", "api"))).status == 401


async def test_wrong_keys_are_turned_away_after_ten_and_right_ones_never(api: Client) -> None:
    for _ in range(10):
        assert (await api("GET", "/api/v1/node", key="x")).status == 401
    answer = await api("GET", "/api/v1/node", key="x")
    assert (answer.status, answer.json["code"]) == (429, 8)
    assert 1 <= int(answer.headers["retry-after"]) <= 6
    assert (await api("GET", "/api/v1/node")).status == 200


def test_offenders_of_one_ipv6_network_are_one_and_their_number_is_bounded() -> None:
    now = [0.0]
    offenders = Offenders(lambda: now[0])
    assert [offenders.note(f"2001:db8::{n}") for n in range(11)] == [0] * 10 + [6]
    assert offenders.note("2001:db8:0:1::1") == 0
    now[0] = 60.0
    assert offenders.note("2001:db8::99") == 0
    for n in range(10_050):
        offenders.note(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
    assert len(offenders._buckets) == 10_000


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (("devices:core:read",), "GET", "/api/v1/node", 200),
        (("devices:core:read",), "DELETE", "/api/v1/node/1", 403),
        (("devices:core",), "GET", "/api/v1/node", 200),
        (("devices:core",), "POST", "/api/v1/node/1/approve_routes", 403),
        (("all:read",), "GET", "/api/v1/user", 200),
        (("all:read",), "POST", "/api/v1/user", 403),
        (("users",), "GET", "/api/v1/apikey", 403),
        (("auth_keys",), "GET", "/api/v2/tailnet/-/keys", 200),
        (("users",), "GET", "/api/v2/tailnet/-/keys", 403),
        (("users",), "GET", "/api/v1/health", 200),
    ],
)
async def test_a_key_does_what_its_scopes_say(
    api: Client, scopes: tuple[str, ...], method: str, path: str, status: int
) -> None:
    await api.world.node()
    answer = await api(method, path, key=await key_with(api, *scopes))
    assert answer.status == status, answer.body


async def test_nobody_gives_more_than_he_has(api: Client) -> None:
    with pytest.raises(UsageError, match="not the caller's to give"):
        await key_with(api, "users", caller=apikeys.Caller("x", ("users:read",)))
    with pytest.raises(UsageError, match="no such scope"):
        await key_with(api, "root")


async def test_each_change_names_the_key_behind_it(api: Client) -> None:
    await api("POST", "/api/v1/user", {"name": "ann"})
    event = api.world.events[-1]
    (doc,) = api.world.tailnet.api_keys.values()
    assert (event.event, event.actor) == ("user-created", f"API key {doc.prefix} from 203.0.113.4")


# Errors


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/node/77", None, 404, 5),
        ("GET", "/api/v1/nothing", None, 404, 5),
        ("PATCH", "/api/v1/node", None, 405, 12),
        ("POST", "/api/v1/user", b"{", 400, 3),
        ("POST", "/api/v1/user", b"[" * 100_000, 400, 3),
        ("POST", "/api/v1/user", b"\xff", 400, 3),
        ("POST", "/api/v1/user", {"name": "\u00b2"}, 400, 3),
        ("GET", "/api/v1/node?user=%C2%B2", None, 404, 5),
        ("GET", "/api/v1/node/%C2%B2", None, 404, 5),
        ("GET", "/api/v1/node/" + "9" * 5000, None, 404, 5),
        ("GET", "/api/v1/node?limit=x", None, 400, 3),
        ("POST", "/api/v1/user", {"name": "taken"}, 409, 6),
        ("POST", "/api/v1/user", b"x" * (4 << 20) + b"x", 413, 3),
        ("POST", "/api/v1/node/1/expire?expiry=yesterday", None, 404, 5),
    ],
)
async def test_what_is_wrong_has_a_status_a_code_and_a_reason(
    api: Client, method: str, path: str, body: Any, status: int, code: int
) -> None:
    await api.world.user("taken")
    answer = await api(method, path, body)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.json["message"]
    assert len(answer.body) < 2000


async def test_a_wrong_method_is_told_the_right_ones(api: Client) -> None:
    assert (await api("PUT", "/api/v1/user/1")).headers["allow"] == "DELETE"


async def test_a_fault_of_ours_is_500_and_says_nothing(api: Client) -> None:
    api.world.tailnet.clock = None
    answer = await api("GET", "/api/v1/auth")
    assert (answer.status, answer.json["message"]) == (500, "internal error")


async def test_a_full_disk_is_our_fault_and_changes_nothing(api: Client) -> None:
    await api("GET", "/api/v1/user")
    api.world.store.broken = True
    answer = await api("POST", "/api/v1/user", {"name": "ann"})
    assert (answer.status, answer.json["message"]) == (500, "no space left")
    assert api.world.tailnet.users == {}


async def test_a_body_that_never_comes_ends(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gw.control.api.http.BODY_TIMEOUT_S", 0.05)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/v1/user", "query_string": b"", "client": None,
        "headers": [(b"authorization", f"Bearer {api.key}".encode())],
        "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 408


# Version 1


async def test_api_keys_have_headscales_fields_first(api: Client) -> None:
    answer = await api("POST", "/api/v1/apikey", {"expiration": "2031-06-01T00:00:00Z"})
    text = answer.json["apiKey"]
    assert text.startswith("hskey-api-")
    listed = (await api("GET", "/api/v1/apikey")).json["apiKeys"][-1]
    assert list(listed)[:5] == ["id", "prefix", "expiration", "createdAt", "lastSeen"]
    assert (listed["id"], listed["expiration"], listed["lastSeen"]) == ("2", "2031-06-01T00:00:00Z", None)
    await api("POST", "/api/v1/apikey/expire", {"prefix": listed["prefix"]})
    assert (await api("GET", "/api/v1/user", key=text)).status == 401
    prefix = text.split("-")[2]
    assert (await api("DELETE", f"/api/v1/apikey/{prefix}")).status == 200
    assert len((await api("GET", "/api/v1/apikey")).json["apiKeys"]) == 1


async def test_a_policy_is_read_and_written_and_events_name_the_writer(api: Client) -> None:
    tailnet = api.world.tailnet
    read = (await api("GET", "/api/v1/policy")).json
    assert read["policy"].encode() == tailnet.policy.policy.text
    wanted = '{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}] /* all */}'
    answer = await api("PUT", "/api/v1/policy", {"policy": wanted})
    assert (answer.status, answer.json["policy"]) == (200, wanted)
    assert tailnet.policy.policy.text == wanted.encode()
    assert (tailnet.folder / "policy.hujson").read_text() == wanted
    assert (api.world.events[-1].event, api.world.events[-1].actor[:7]) == ("policy-changed", "API key")
    assert "unchanged" not in answer.json
    told, written = len(api.world.events), (tailnet.folder / "policy.hujson").stat().st_mtime_ns
    again = await api("PUT", "/api/v1/policy", {"policy": wanted})
    assert (again.status, again.json) == (200, {**answer.json, "unchanged": True})
    assert (len(api.world.events), (tailnet.folder / "policy.hujson").stat().st_mtime_ns) == (told, written)
    refused = await api("PUT", "/api/v1/policy", {"policy": "{"})
    assert (refused.status, refused.json["code"]) == (400, 3)
    assert (tailnet.folder / "policy.hujson").read_text() == wanted


async def test_nodes_come_in_pages_and_while_others_have_their_turn(api: Client) -> None:
    for number in range(5):
        await api.world.node(hostname=f"n{number}")
    first = (await api("GET", "/api/v1/node?limit=2")).json["nodes"]
    rest = (await api("GET", f"/api/v1/node?after={first[-1]['id']}")).json["nodes"]
    assert [each["id"] for each in first + rest] == ["1", "2", "3", "4", "5"]


async def test_a_trial_node_waits_as_headscales_does(api: Client) -> None:
    await api.world.user()
    auth_id = "hskey-authreq-" + "a" * 24
    body = {"user": "ann", "key": auth_id, "name": "Trial", "routes": ["10.0.0.0/8"]}
    shown = (await api("POST", "/api/v1/debug/node", body)).json["node"]
    assert (shown["id"], shown["givenName"], shown["availableRoutes"]) == ("0", "trial", ["10.0.0.0/8"])
    made = (await api("POST", f"/api/v1/node/register?user=ann&key={auth_id}")).json["node"]
    assert (made["id"], made["name"]) == ("1", "Trial")
    assert (await api("POST", "/api/v1/debug/node", {**body, "key": "x"})).status == 400


async def test_a_device_is_approved_addressed_and_moved(api: Client) -> None:
    node = await api.world.node()
    await api.world.user("ben")
    shown = (await api("POST", "/api/v1/node/1/approve", {"approved": False})).json["node"]
    assert shown["approved"] is False
    assert [each["id"] for each in (await api("GET", "/api/v1/node?pending=true")).json["nodes"]] == ["1"]
    assert "approved" not in (await api("POST", "/api/v1/node/1/approve")).json["node"]
    shown = (await api("POST", "/api/v1/node/1/set_ip", {"ipAddresses": ["100.64.9.9"]})).json["node"]
    assert shown["ipAddresses"][0] == "100.64.9.9"
    assert (await api("POST", "/api/v1/node/1/user", {"user": "ben"})).json["node"]["user"]["name"] == "ben"
    assert (await api("POST", "/api/v1/node/backfillips")).status == 400
    assert (await api("POST", "/api/v1/node/backfillips?confirmed=true")).json == {"changes": []}
    assert node.user == "ben"


# Version 2


async def test_a_device_goes_through_tailscales_verbs(api: Client) -> None:
    node = await api.world.node()
    api.world.tailnet.reports.observe(node, hostinfo=Hostinfo(hostname="box", os="linux", routable_ips=["10.0.0.0/8"]))
    device = "/api/v2/device/1"
    shown = (await api("GET", f"{device}?fields=all")).json
    assert (shown["nodeId"], shown["name"], shown["user"], shown["authorized"]) == (
        "1",
        "box.ghost.internal",
        "ann",
        True,
    )
    assert shown["advertisedRoutes"] == ["10.0.0.0/8"]
    assert "advertisedRoutes" not in (await api("GET", device)).json
    for rest, body in (
        ("name", {"name": "nas.ghost.internal"}),
        ("ip", {"ipv4": "100.64.5.5"}),
        ("key", {"keyExpiryDisabled": False}),
        ("routes", {"routes": ["10.0.0.0/8"]}),
        ("authorized", {"authorized": False}),
        ("tags", {"tags": ["tag:web"]}),
    ):
        answer = await api("POST", f"{device}/{rest}", body)
        assert answer.status == 200, (rest, answer.body)
    shown = (await api("GET", "/api/v2/tailnet/-/devices?fields=all")).json["devices"][0]
    assert (shown["name"], shown["addresses"][0], shown["tags"]) == ("nas.ghost.internal", "100.64.5.5", ["tag:web"])
    assert (shown["authorized"], shown["enabledRoutes"]) == (False, ["10.0.0.0/8"])
    await api("POST", f"{device}/name", {"name": ""})
    await api("POST", f"{device}/expire")
    shown = (await api("GET", device)).json
    assert (shown["name"], shown["expires"]) == ("box.ghost.internal", "2031-05-01T00:00:00Z")
    await api("POST", f"{device}/key", {"keyExpiryDisabled": True})
    assert (await api("GET", device)).json["keyExpiryDisabled"] is True
    assert (await api("DELETE", device)).status == 200
    gone = await api("GET", device)
    assert (gone.status, list(gone.json)) == (404, ["message", "status"])
    assert (await api("GET", "/api/v2/device/box")).status == 404
    assert (await api("GET", "/api/v2/tailnet/other.example/devices")).status == 404


async def test_basic_takes_the_key_as_user_name(api: Client) -> None:
    value = base64.b64encode(f"{api.key}:".encode()).decode()
    assert (await api("GET", "/api/v2/tailnet/-/users", authorization=f"Basic {value}")).json == {"users": []}


async def test_an_auth_key_of_version_two_admits_a_node(api: Client) -> None:
    from gw.control import enrolment

    create = {"reusable": True, "ephemeral": True, "preauthorized": True, "tags": ["tag:ci"]}
    body = {"capabilities": {"devices": {"create": create}}, "expirySeconds": 60, "description": "for builds"}
    made = (await api("POST", "/api/v2/tailnet/-/keys", body)).json
    assert made["capabilities"]["devices"]["create"] == create
    assert (made["keyType"], made["expires"], made["description"]) == ("auth", "2031-05-01T00:01:00Z", "for builds")
    node = await enrolment.register_preauth(api.world.tailnet, "mkey:1", api.world.request(made["key"]))
    assert (node.tags, node.doc.ephemeral) == (["tag:ci"], True)
    listed = (await api("GET", "/api/v2/tailnet/-/keys")).json["keys"]
    assert [each["id"] for each in listed] == [made["id"]]
    assert "key" not in listed[0]
    assert len((await api("GET", "/api/v2/tailnet/-/keys?all=true")).json["keys"]) == 2
    assert (await api("GET", f"/api/v2/tailnet/-/keys/{made['id']}")).json["invalid"] is False
    assert (await api("DELETE", f"/api/v2/tailnet/-/keys/{made['id']}")).status == 200
    assert (await api("GET", f"/api/v2/tailnet/-/keys/{made['id']}")).status == 404
    assert (await api("POST", "/api/v2/tailnet/-/keys", {})).status == 400  # nobody's


async def test_a_client_gets_tokens_for_its_tags_alone(api: Client) -> None:
    body = {"keyType": "client", "scopes": ["auth_keys"], "tags": ["tag:ci"]}
    client = (await api("POST", "/api/v2/tailnet/-/keys", body)).json
    form = f"client_id={client['id']}&client_secret={client['key']}&grant_type=client_credentials".encode()
    answer = await api("POST", "/api/v2/oauth/token", form, key="")
    token = answer.json["access_token"]
    assert (answer.json["token_type"], answer.json["expires_in"], answer.json["scope"]) == ("Bearer", 3600, "auth_keys")
    assert answer.headers["cache-control"] == "no-store"

    def wanting(*tags: str) -> dict[str, Any]:
        return {"capabilities": {"devices": {"create": {"tags": list(tags)}}}}

    keys = "/api/v2/tailnet/-/keys"
    assert (await api("POST", keys, wanting("tag:ci"), key=token)).status == 200
    assert (await api("POST", keys, wanting("tag:root"), key=token)).status == 403
    assert (await api("POST", keys, {"user": "ann"}, key=token)).status == 403
    assert (await api("POST", keys, body, key=token)).status == 403
    assert (await api("GET", "/api/v1/node", key=token)).status == 403
    again = Client(api.world.reloaded(), token)
    again.world.tailnet.seal = api.world.tailnet.seal
    assert (await again("GET", keys)).status == 200  # a restart ends no token
    assert (await api("GET", keys, key=token[:-1] + ("A" if token[-1] != "A" else "B"))).status == 401
    api.world.forward(minutes=61)
    assert (await api("GET", keys, key=token)).status == 401


async def test_a_token_ends_with_its_client(api: Client) -> None:
    client = await key_with(api, "devices:core", role="client")
    basic = base64.b64encode(f":{client}".encode()).decode()
    answer = await api("POST", "/api/v2/oauth/token", b"scope=devices:core:read", authorization=f"Basic {basic}")
    token = answer.json["access_token"]
    assert (await api("GET", "/api/v1/node", key=token)).status == 200
    assert (await api("DELETE", "/api/v1/node/1", key=token)).status == 403
    await apikeys.delete_api_key(api.world.tailnet, apikeys.find_api_key(api.world.tailnet, client))
    assert (await api("GET", "/api/v1/node", key=token)).status == 401


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        (b"grant_type=password", 400, "unsupported_grant_type"),
        (b"client_secret=x", 401, "invalid_client"),
        (b"client_id=other&client_secret=hskey-client-" + b"0" * 12 + b"-" + b"0" * 64, 401, "invalid_client"),
        (b"\xff", 400, "invalid_request"),
    ],
)
async def test_oauth_refuses_in_its_own_words(api: Client, form: bytes, status: int, error: str) -> None:
    answer = await api("POST", "/api/v2/oauth/token", form, authorization="")
    assert (answer.status, answer.json["error"]) == (status, error)


async def test_an_acl_is_not_overwritten_unread(api: Client) -> None:
    acl = "/api/v2/tailnet/-/acl"
    first = await api("GET", acl)
    assert first.headers["content-type"] == "application/hujson"
    assert first.body == api.world.tailnet.policy.policy.text
    assert isinstance((await api("GET", acl, accept="application/json")).json, dict)
    wanted = b'{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["443"]}]}'
    done = await api("POST", acl, wanted, if_match=first.headers["etag"])
    assert (done.status, done.body) == (200, wanted)
    late = await api("POST", acl, b"{}", if_match=first.headers["etag"])
    assert late.status == 412
    assert (await api("POST", acl, b"{", if_match=done.headers["etag"])).status == 400
    failing = b'{"grants": [], "tests": [{"src": "a@b.org", "accept": ["100.64.0.1:1"]}]}'
    refused = await api("POST", acl, failing)
    assert refused.status == 400
    assert refused.json["data"][0]["errors"]
    assert (await api("GET", acl)).body == wanted


async def test_an_acl_is_validated_and_previewed(api: Client) -> None:
    await api.world.user("ann")
    acl = "/api/v2/tailnet/-/acl"
    assert (await api("POST", f"{acl}/validate", b'{"grants": []}')).json == {}
    assert "refused" in (await api("POST", f"{acl}/validate", b"{")).json["message"]
    tests = b'[{"src": "ann@", "accept": ["100.64.0.77:22"]}]'
    assert (await api("POST", f"{acl}/validate", tests)).json["message"]
    policy = b"""{"grants": [
        {"src": ["ann@"], "dst": ["100.64.0.9"], "ip": ["443"]},
        {"src": ["tag:x"], "dst": ["*"], "ip": ["*"]}],
        "tagOwners": {"tag:x": []}}"""
    shown = (await api("POST", f"{acl}/preview?type=user&previewFor=ann", policy)).json
    assert shown["matches"] == [{"users": ["ann@"], "ports": ["100.64.0.9:443"], "lineNumber": 2}]
    shown = (await api("POST", f"{acl}/preview?type=ipport&previewFor=100.64.0.9:80", policy)).json
    assert [each["lineNumber"] for each in shown["matches"]] == [3]
    for query in ("", "?type=user&previewFor=x", "?type=ipport&previewFor=x", "?type=ipport&previewFor=1.2.3.4:%C2%B2"):
        assert (await api("POST", f"{acl}/preview{query}", policy)).status == 400


async def test_settings_are_written_with_the_comments_kept(api: Client) -> None:
    path = "/api/v2/tailnet/-/settings"
    assert (await api("GET", path)).json["devicesApprovalOn"] is False
    changed = await api("PATCH", path, {"devicesApprovalOn": True, "devicesKeyDurationDays": 90})
    assert (changed.json["devicesApprovalOn"], changed.json["devicesKeyDurationDays"]) == (True, 90)
    written = (api.world.tailnet.folder / "config.toml").read_text()
    assert written.startswith("# mine\n")
    assert "require_approval = true" in written
    assert api.world.tailnet.config.node.require_approval
    assert (await api("PATCH", path, {"regionalRoutingOn": True})).status == 400
    assert (await api("PATCH", path, {"devicesKeyDurationDays": -1})).status == 400
    with acting_as("x"):
        assert api.world.events[-1].event == "setting-changed"


async def test_users_are_shown_with_their_devices(api: Client) -> None:
    await api.world.node()
    (shown,) = (await api("GET", "/api/v2/tailnet/-/users")).json["users"]
    assert (shown["loginName"], shown["deviceCount"], shown["status"]) == ("ann", 1, "active")
    assert (await api("GET", "/api/v2/users/1")).json == shown
    assert (await api("GET", "/api/v2/users/7")).status == 404


async def test_what_is_measured_names_templates_not_ids(api: Client) -> None:
    await api("GET", "/api/v1/node/12345")
    await api("GET", "/api/v1/12345")
    assert api.seen == [("GET", "/api/v1/node/{nodeId}", 404), ("GET", "unknown", 404)]


async def test_a_stranger_is_refused_before_the_body_is_read(api: Client) -> None:
    answer = await api("POST", "/api/v1/user", b"x" * (5 << 20), key="x")
    assert answer.status == 401
    assert (await api("POST", "/api/v2/oauth/token", b"x" * (17 << 10), key="")).status == 413
