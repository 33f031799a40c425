"""The addresses of a login by browser, and the watch over the provider.

    GET  /register/{auth_id}           to the provider
    GET  /auth/{auth_id}               the same for an SSH connection that has to be confirmed
    GET  /oidc/callback                back from it: who is this, and whose device is that?
    POST /register/confirm/{auth_id}   the person's answer

Ref: control protocol §7.3
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from gw.control import enrolment, pages
from gw.control.enrolment import Lifetime
from gw.control.events import acting_as
from gw.control.oidc.answers import HEADERS, failure, page, shown
from gw.control.oidc.identity import Identity, admit
from gw.control.oidc.logins import LIFETIME_S, RANDOM_BYTES, Attempt, Confirmation, Ticket, Tickets, cookie_name
from gw.control.oidc.people import settle_user
from gw.control.oidc.provider import Fetch, Provider
from gw.control.oidc.refusals import LoginRefused, ProviderFailed
from gw.control.pending import PendingLogin
from gw.control.sshchecks import ID_PREFIX as CHECK_PREFIX
from gw.control.sshchecks import SshCheck
from gw.control.tailnet import Tailnet
from gw.errors import ConfigError, GwError, NotFound
from gw.net.fetch import fetch
from gw.state.config import OidcSettings
from gw.state.files import read_secret

logger = logging.getLogger(__name__)

CALLBACK: Final = "/oidc/callback"
MAX_FORM_BYTES: Final = 4096
MAX_CODE_CHARS: Final = 4096
WATCH_S: Final = 30.0
MAX_WATCH_S: Final = 600.0
_TYPED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", re.ASCII)  # an id that a shell reads as one word
AGAIN: Final = "Start again on the device: `gw up`, or `tailscale up`."


@final
class BrowserLogins:
    """Logins through the provider that `[oidc]` names. The settings are read at each login, so that edits count."""

    def __init__(self, tailnet: Tailnet, ask: Fetch = fetch) -> None:
        self._tailnet = tailnet
        self._ask = ask
        self._provider: Provider | None = None
        now = time.monotonic
        self._attempts: Tickets[Attempt] = Tickets(now)
        self._confirmations: Tickets[Confirmation] = Tickets(now)

    @property
    def settings(self) -> OidcSettings:
        return self._tailnet.config.oidc

    @property
    def is_on(self) -> bool:
        return bool(self.settings.issuer)

    def provider(self) -> Provider:
        """The provider of the settings in force. Raises ConfigError, NotFound, PermissionNeeded for bad files."""
        if self._provider is None or self._provider.settings != self.settings:
            secret = ""
            if self.settings.client_secret_file:
                secret = read_secret_file(self.settings.client_secret_file)
            self._provider = Provider(self.settings, self._base + CALLBACK, secret, self._ask, self._wall)
        return self._provider

    async def watch(self) -> None:
        """Say in the log whether the provider answers, until it does or the task is cancelled."""
        wait_s = WATCH_S
        while self.is_on:
            try:
                await self.check()
                return
            except GwError as error:
                logger.warning(
                    "nobody can log in by browser until this is repaired: %s; `gwctl auth approve` and keys go on",
                    error.message,
                )
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_WATCH_S)

    async def check(self) -> None:
        """Ask the provider what it is. Raises GwError."""
        await self.provider().metadata()
        logger.info("logins by browser go to %s", self.settings.issuer)
        if not (self.settings.allowed_domains or self.settings.allowed_users or self.settings.allowed_groups):
            logger.warning("everybody with an account at %s may join: see `oidc.allowed_domains`", self.settings.issuer)

    def routes(self) -> list[Route]:
        return [
            Route("/register/{auth_id:str}", self.begin),
            Route("/auth/{auth_id:str}", self.begin),
            Route(CALLBACK, self.come_back),
            Route("/register/confirm/{auth_id:str}", self.confirm, methods=["POST"]),
        ]

    # The three steps

    async def begin(self, request: Request) -> Response:
        auth_id = request.path_params["auth_id"]
        if not self.is_on:
            if not _TYPED.fullmatch(auth_id):  # the page says what to type: an address must not choose the words
                return failure("Not a login", "no device shows this address", AGAIN)
            is_check = request.url.path.startswith("/auth/")
            return HTMLResponse(pages.ssh_check(auth_id) if is_check else pages.register(auth_id), 200, HEADERS)
        if request.method != "GET":
            return PlainTextResponse("")
        try:
            self._waits(auth_id)
            attempt = Attempt(auth_id, secrets.token_urlsafe(RANDOM_BYTES), secrets.token_urlsafe(RANDOM_BYTES))
            provider = self.provider()
            await provider.metadata()  # before a ticket is issued: a dead provider fills no table
            ticket = self._attempts.issue(attempt)
            url = await provider.authorization_url(ticket.token, attempt.nonce, attempt.verifier)
        except GwError as error:
            return self._failed(error, auth_id)
        answer = RedirectResponse(url, 302, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        self._give_cookie(answer, ticket, "lax")  # the provider's redirect is a cross-site navigation
        return answer

    async def come_back(self, request: Request) -> Response:
        if not self.is_on or request.method != "GET":
            return PlainTextResponse("not found", 404)
        asked = request.query_params
        state = asked.get("state", "")
        attempt = self._attempts.redeem(state, request.cookies.get(self._cookie_name(state)))
        try:
            if attempt is None:
                raise LoginRefused(
                    "this login is over, or was begun in another browser", detail="state", status=400, hint=AGAIN
                )
            identity = await self._identity(attempt, asked.get("iss"), asked.get("error"), asked.get("code", ""))
            login = self._waits(attempt.auth_id)
            if isinstance(login, SshCheck):
                self._check_owner(login, identity)
        except GwError as error:
            return self._failed(error, attempt.auth_id if attempt is not None else "", is_known=attempt is not None)
        ticket = self._confirmations.issue(Confirmation(attempt.auth_id, identity))
        if isinstance(login, SshCheck):
            answer: Response = self._connection_question(login, identity, ticket)
        else:
            answer = self._question(login, identity, ticket)
        answer.delete_cookie(self._cookie_name(state), path="/", secure=self._is_secure, httponly=True, samesite="lax")
        self._give_cookie(answer, ticket, "strict")
        return answer

    async def confirm(self, request: Request) -> Response:
        auth_id = request.path_params["auth_id"]
        form = await _form(request)
        token = form.get("token", "")
        waiting = self._confirmations.redeem(token, request.cookies.get(self._cookie_name(token)))
        try:
            if waiting is None or waiting.auth_id != auth_id or not self.is_on:
                raise LoginRefused("this login is over", detail="confirmation", status=400, hint=AGAIN)
            if auth_id.startswith(CHECK_PREFIX):
                return self._decide(waiting, approved=form.get("answer") == "yes")
            if form.get("answer") != "yes":
                with acting_as(f"oidc {waiting.identity.shown}"):
                    enrolment.reject(self._tailnet, auth_id)
                return page("Not connected", "<p>The device was turned away. You can close this page.</p>")
            hostname = await self._connect(waiting)
        except GwError as error:
            return self._failed(error, auth_id, is_known=waiting is not None)
        return page("Connected", f"<p><strong>{shown(hostname)}</strong> is in. You can close this page.</p>")

    # Inside

    async def _identity(self, attempt: Attempt, issuer: str | None, error: str | None, code: str) -> Identity:
        provider = self.provider()
        await provider.check_sender(issuer)
        if error is not None:
            reason = error if error.isascii() and error.replace("_", "").isalnum() else "an error"
            raise LoginRefused(f"the identity provider says: {reason[:80]}", detail="callback", hint=AGAIN)
        if not 0 < len(code) <= MAX_CODE_CHARS:
            raise LoginRefused("the identity provider sent no code", detail="callback", status=400, hint=AGAIN)
        return admit(await provider.claims(code, attempt.verifier, attempt.nonce), self.settings)

    async def _connect(self, waiting: Confirmation) -> str:
        """Let the device in; returns its name."""
        self._login(waiting.auth_id)
        with acting_as(f"oidc {waiting.identity.shown}"):
            user = await settle_user(self._tailnet, waiting.identity)
            node = await enrolment.approve(
                self._tailnet, waiting.auth_id, user, method="oidc", lifetime=self._lifetime(waiting.identity)
            )
        return node.doc.given_name

    def _lifetime(self, identity: Identity) -> Lifetime:
        if self.settings.use_expiry_from_token:
            return Lifetime(by_settings=False, until=datetime.fromtimestamp(identity.expires, UTC))
        seconds = self.settings.expiry_s
        if seconds is None:
            return Lifetime()
        until = self._tailnet.clock() + timedelta(seconds=seconds) if seconds else None
        return Lifetime(by_settings=False, until=until)

    def _decide(self, waiting: Confirmation, *, approved: bool) -> Response:
        """The verdict on an SSH connection. Raises LoginRefused."""
        check = self._waits(waiting.auth_id)
        assert isinstance(check, SshCheck)
        self._check_owner(check, waiting.identity)
        with acting_as(f"oidc {waiting.identity.shown}"):
            self._tailnet.ssh_checks.decide(check, approved=approved)
        if approved:
            return page("Confirmed", "<p>The connection goes on. You can close this page.</p>")
        return page("Not confirmed", "<p>The connection was turned away. You can close this page.</p>")

    def _check_owner(self, check: SshCheck, identity: Identity) -> None:
        """Only who owns the device that connects may confirm it; a tagged one is nobody's. Raises LoginRefused."""
        user = self._tailnet.people.of_identity(identity.provider_id)
        if user is None or check.source.tags or check.source.user != user.name:
            raise LoginRefused(
                f"`{check.source.doc.given_name}`, which connects, is not your device", detail="ssh check",
                hint="an administrator may type `gwctl auth approve`",
            )  # fmt: skip

    def _waits(self, auth_id: str) -> PendingLogin | SshCheck:
        """The device or the connection that waits. Raises LoginRefused."""
        if not auth_id.startswith(CHECK_PREFIX):
            return self._login(auth_id)
        try:
            return self._tailnet.ssh_checks.require(auth_id)
        except NotFound:
            raise LoginRefused(
                "no connection waits for this: it is older than 15 minutes, or was decided already",
                status=404, hint="Connect again and open the new address.",
            ) from None  # fmt: skip

    def _login(self, auth_id: str) -> PendingLogin:
        """The device that waits. Raises LoginRefused."""
        try:
            return self._tailnet.logins.require(auth_id, self._wall())
        except NotFound:
            raise LoginRefused(
                "no device waits for this login: it is older than 15 minutes, or was decided already",
                status=404, hint=AGAIN,
            ) from None  # fmt: skip

    def _question(self, login: PendingLogin, identity: Identity, ticket: Ticket) -> Response:
        info = login.request.hostinfo
        rows = {
            "Device": info.hostname if info is not None else "",
            "System": f"{info.os} {info.os_version}" if info is not None else "",
            "Machine key": f"{login.machine_key[:18]}…",
            "You": f"{identity.display_name} ({identity.shown})" if identity.display_name else identity.shown,
        }
        table = "".join(f"<tr><th>{name}<td>{shown(value.strip() or 'unknown')}" for name, value in rows.items())
        action = f"{self._base}/register/confirm/{login.auth_id}"
        body = (
            f"<table>{table}</table>"
            "<p>Connect it only if you just started this login yourself, on this device. "
            "Whoever holds the device will be in the network as you.</p>"
            f'<form method="post" action="{shown(action, 2000)}">'
            f'<input type="hidden" name="token" value="{ticket.token}">'
            '<button name="answer" value="yes">Connect this device</button>'
            '<button name="answer" value="no">It is not mine</button></form>'
        )
        return page("Is this your device?", body)

    def _connection_question(self, check: SshCheck, identity: Identity, ticket: Ticket) -> Response:
        rows = {
            "From": check.source.doc.given_name,
            "To": f"{check.local_user}@{check.destination.doc.given_name}",
            "You": identity.shown,
        }
        table = "".join(f"<tr><th>{name}<td>{shown(value)}" for name, value in rows.items())
        action = f"{self._base}/register/confirm/{check.auth_id}"
        body = (
            f"<table>{table}</table><p>Confirm it only if you just began this SSH connection yourself.</p>"
            f'<form method="post" action="{shown(action, 2000)}">'
            f'<input type="hidden" name="token" value="{ticket.token}">'
            '<button name="answer" value="yes">Let it in</button>'
            '<button name="answer" value="no">It is not mine</button></form>'
        )
        return page("Is this your connection?", body)

    def _failed(self, error: GwError, auth_id: str, *, is_known: bool = False) -> Response:
        """is_known: a browser with a good cookie came back, so that strangers cannot fill the event trail."""
        if isinstance(error, LoginRefused):
            logger.info("login refused: %s%s", error.message, f" ({error.detail})" if error.detail else "")
            if is_known:
                self._tailnet.record("login-refused", f"login:{auth_id}")
            return failure("You are not logged in", error.message, error.hint, error.status)
        if isinstance(error, ProviderFailed):
            logger.warning("login failed: %s%s", error.message, f"; {error.hint}" if error.hint else "")
        else:
            logger.error("login failed: %s%s", error.message, f"; {error.hint}" if error.hint else "")
        if isinstance(error, ProviderFailed | ConfigError):
            return failure(
                "You are not logged in", "the identity provider cannot be used at the moment",
                "Try again later, or ask whoever runs the control server: its log says why.", 503,
            )  # fmt: skip
        return failure("You are not logged in", error.message, error.hint, 403)

    @property
    def _base(self) -> str:
        return self._tailnet.config.server_url.rstrip("/")

    @property
    def _is_secure(self) -> bool:
        return self._base.startswith("https:")

    def _wall(self) -> float:
        return self._tailnet.clock().timestamp()

    def _cookie_name(self, token: str) -> str:
        """With https the browser itself holds it to this host (RFC 6265bis §4.1.3.2)."""
        return f"__Host-{cookie_name(token)}" if self._is_secure else cookie_name(token)

    def _give_cookie(self, answer: Response, ticket: Ticket, same_site: Literal["lax", "strict"]) -> None:
        answer.set_cookie(
            self._cookie_name(ticket.token), ticket.cookie, max_age=int(LIFETIME_S), path="/",
            secure=self._is_secure, httponly=True, samesite=same_site,
        )  # fmt: skip


def read_secret_file(path: str) -> str:
    """The client's secret. Raises ConfigError where the file is missing, empty, or open to others."""
    try:
        secret = read_secret(Path(path)).decode().strip()
    except (GwError, UnicodeDecodeError) as error:
        reason = error.message if isinstance(error, GwError) else "not text"
        hint = error.hint if isinstance(error, GwError) and not isinstance(error, NotFound) else None
        raise ConfigError(reason, key="oidc.client_secret_file", hint=hint) from error
    if not secret:
        raise ConfigError("the file is empty", path=path, key="oidc.client_secret_file")
    return secret


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    try:
        return {name: values[0] for name, values in parse_qs(body.decode("ascii"), max_num_fields=16).items()}
    except (UnicodeDecodeError, ValueError):
        return {}
