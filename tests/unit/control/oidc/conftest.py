"""An identity provider without a network: it signs what a test wants signed, and a browser that keeps cookies."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from joserfc import jwk, jws
from starlette.applications import Starlette

from gw.control.oidc.routes import BrowserLogins
from gw.errors import TimedOut
from gw.net.fetch import Answer
from gw.state.config import OidcSettings

ISSUER = "https://id.test"
CLIENT = "mesh"
KEY = jwk.RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
NOW = 1_935_360_000.0  # the world's clock


class FakeProvider:
    """Answers like a provider. asked: the paths, in order; claims: what the next token says beside the usual."""

    def __init__(self) -> None:
        self.key = KEY
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.claims: dict[str, Any] = {}
        self.userinfo: dict[str, Any] | None = None
        self.metadata: dict[str, Any] = {}
        self.is_down = False
        self.header: dict[str, Any] = {"alg": "RS256", "kid": "one"}
        self.nonce = ""
        self.token_answer: tuple[int, bytes] | None = None

    def good(self) -> dict[str, Any]:
        return {
            "iss": ISSUER, "aud": CLIENT, "sub": "s-1", "exp": NOW + 600, "iat": NOW, "nonce": self.nonce,
            "email": "ann@example.org", "email_verified": True, "preferred_username": "ann", "name": "Ann Other",
        }  # fmt: skip

    def token(self, claims: dict[str, Any] | None = None) -> str:
        body = json.dumps(claims if claims is not None else self.good() | self.claims)
        return jws.serialize_compact(self.header, body, self.key, algorithms=[self.header["alg"]])

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": ISSUER, "authorization_endpoint": f"{ISSUER}/auth", "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/jwks", "id_token_signing_alg_values_supported": ["RS256", "none", "HS256"],
        } | self.metadata  # fmt: skip

    async def __call__(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"", tls: object = None
    ) -> Answer:
        if self.is_down:
            raise TimedOut("no answer from id.test:443")
        path = urlsplit(url).path
        self.asked.append(path)
        if path.endswith("openid-configuration"):
            return Answer(200, {}, json.dumps(self.discovery()).encode())
        if path == "/jwks":
            return Answer(200, {}, json.dumps({"keys": [self.key.as_dict(private=False)]}).encode())
        if path == "/userinfo":
            return Answer(200 if self.userinfo is not None else 500, {}, json.dumps(self.userinfo).encode())
        assert (method, path) == ("POST", "/token")
        self.forms.append({name: values[0] for name, values in parse_qs(body.decode()).items()})
        self.headers.append(headers or {})
        if self.token_answer is not None:
            return Answer(*self.token_answer[:1], {}, self.token_answer[1])
        return Answer(200, {}, json.dumps({"id_token": self.token(), "access_token": "at"}).encode())


class Browser:
    """Speaks ASGI to the routes; keeps cookies."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self.cookies: dict[str, str] = {}
        self.status = 0
        self.headers: dict[str, str] = {}
        self.set_cookies: list[str] = []
        self.text = ""

    async def open(self, method: str, path: str, form: Mapping[str, str] | None = None) -> int:
        sent: list[Mapping[str, Any]] = []
        body = urlencode(form or {}).encode()
        parts = urlsplit(path)
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        scope = {
            "type": "http", "method": method, "path": parts.path, "raw_path": parts.path.encode(), "root_path": "",
            "query_string": parts.query.encode(), "http_version": "1.1", "scheme": "http", "server": ("mesh.test", 80),
            "headers": [(b"cookie", cookie.encode())] if cookie else [],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)  # type: ignore[arg-type]
        self.status = sent[0]["status"]
        raw = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        self.headers = dict(raw)
        self.set_cookies = [value for name, value in raw if name == "set-cookie"]
        for line in self.set_cookies:
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line or value == '""':
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        self.text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        return self.status

    @property
    def form_token(self) -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.text)
        assert found is not None, self.text
        return html.unescape(found[1])

    @property
    def sent_to(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.headers["location"]).query).items()}


class Scene:
    """A world whose logins go to the fake provider, and one browser."""

    def __init__(self, world: Any, provider: FakeProvider) -> None:
        self.world, self.provider = world, provider
        self.logins = BrowserLogins(world.tailnet, provider)
        self.app = Starlette(routes=self.logins.routes())
        self.browser = Browser(self.app)

    def device(self, hostname: str = "box", machine: str = "mkey:1", **more: Any) -> str:
        from gw.control import enrolment

        return enrolment.begin_auth(self.world.tailnet, machine, self.world.request(hostname=hostname, **more))

    async def to_provider(self, auth_id: str) -> str:
        """Open the AuthURL; returns the state."""
        assert await self.browser.open("GET", f"/register/{auth_id}") == 302, self.browser.text
        self.provider.nonce = self.browser.sent_to["nonce"]
        return self.browser.sent_to["state"]

    async def back(self, state: str, **more: str) -> int:
        return await self.browser.open("GET", f"/oidc/callback?{urlencode({'code': 'c', 'state': state} | more)}")

    async def answer(self, auth_id: str, answer: str = "yes", token: str = "") -> int:
        form = {"token": token or self.browser.form_token, "answer": answer}
        return await self.browser.open("POST", f"/register/confirm/{auth_id}", form)

    async def log_in(self, **device: Any) -> Any:
        """All of it; returns the device's node."""
        auth_id = self.device(**device)
        assert await self.back(await self.to_provider(auth_id)) == 200, self.browser.text
        assert await self.answer(auth_id) == 200, self.browser.text
        login = self.world.tailnet.logins.get(auth_id, self.world.now.timestamp())
        return login.node


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def make_scene(make_world: Callable[..., Any], provider: FakeProvider) -> Callable[..., Scene]:
    def make(policy: Any = None, server_url: str = "", **settings: Any) -> Scene:
        asked = OidcSettings(issuer=ISSUER, client_id=CLIENT, **settings)
        world = make_world(policy, oidc=asked) if policy is not None else make_world(oidc=asked)
        if server_url:
            import msgspec

            world.tailnet.config = msgspec.structs.replace(world.tailnet.config, server_url=server_url)
        return Scene(world, provider)

    return make


@pytest.fixture
async def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()
