"""The identity provider: what it says of itself, its keys, and the exchange of a code for a person's claims.

    discovery      /.well-known/openid-configuration, kept for an hour; after a failure asked again at most every 10 s
    keys           fetched once; again when a token names an unknown one, at most every 30 s
    exchange       code + verifier → ID token, verified → claims, with those of the userinfo endpoint over them

Nothing here waits in the event loop, and the server runs whether the provider does or not.

Ref: OpenID Connect Discovery 1.0; RFC 6749 §4.1; RFC 7636; RFC 9207
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from gw.control.oidc.refusals import LoginRefused, ProviderFailed
from gw.errors import ConfigError, GwError
from gw.net.fetch import Answer, fetch
from gw.state.config import OidcSettings

if TYPE_CHECKING:
    from joserfc import jwk

logger = logging.getLogger(__name__)

DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
KEEP_S: Final = 3600.0
RETRY_S: Final = 10.0
KEYS_REFRESH_S: Final = 30.0
FORM: Final = "application/x-www-form-urlencoded"


class Metadata(msgspec.Struct, frozen=True):
    """The part of a provider's configuration that is used here."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    id_token_signing_alg_values_supported: list[str] = []
    token_endpoint_auth_methods_supported: list[str] = []
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str = ""
    access_token: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""


class Fetch(Protocol):
    async def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> Answer: ...


@final
class Provider:
    """One provider by its settings. secret: of the client, "" for a public one. wall, now: seconds."""

    def __init__(
        self,
        settings: OidcSettings,
        redirect_uri: str,
        secret: str,
        ask: Fetch = fetch,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._redirect_uri = redirect_uri
        self._secret = secret
        self._ask = ask
        self._wall, self._now = wall, now
        self._tls = _trust(settings)
        self._metadata: Metadata | None = None
        self._metadata_until = 0.0
        self._failure: ProviderFailed | None = None
        self._keys: list[jwk.Key] | None = None
        self._keys_at = 0.0
        self._missed_at = float("-inf")  # when an unknown key last made us ask
        self._lock = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """What the provider says of itself. Raises ProviderFailed; an older answer is used while it cannot be asked."""
        async with self._lock:
            if self._now() < self._metadata_until:
                if self._metadata is not None:
                    return self._metadata
                if self._failure is not None:
                    raise self._failure
            try:
                self._metadata = await self._discover()
            except ProviderFailed as error:
                self._metadata_until = self._now() + RETRY_S
                self._failure = error
                if self._metadata is None:
                    raise
                logger.warning("%s; going on with what it said before", error.message)
            else:
                self._metadata_until = self._now() + KEEP_S
            return self._metadata

    async def authorization_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where to send a person. Raises ProviderFailed."""
        metadata = await self.metadata()
        asked = {
            **self.settings.extra_params,
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self.settings.scope),
            "state": state,
            "nonce": nonce,
        }
        if self.settings.pkce.enabled:
            digest = hashlib.sha256(verifier.encode()).digest()
            asked["code_challenge"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            asked["code_challenge_method"] = "S256"
        endpoint = metadata.authorization_endpoint
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked)}"

    async def check_sender(self, issuer: str | None) -> None:
        """Against answers of another provider: the `iss` of an authorization response. Raises LoginRefused."""
        is_promised = (await self.metadata()).authorization_response_iss_parameter_supported
        if (issuer is None and is_promised) or (issuer is not None and issuer != self.settings.issuer):
            raise LoginRefused("the answer is not the identity provider's", detail=f"iss={issuer!r}", status=400)

    async def claims(self, code: str, verifier: str, nonce: str) -> dict[str, Any]:
        """Whom a code stands for. Raises LoginRefused, ProviderFailed."""
        metadata = await self.metadata()
        tokens = await self._exchange(metadata, code, verifier)
        claims = await self._verified(metadata, tokens, nonce)
        if metadata.userinfo_endpoint and tokens.access_token:
            claims |= await self._userinfo(metadata, tokens.access_token, claims)
        return claims

    async def _discover(self) -> Metadata:
        url = self.settings.issuer.rstrip("/") + DISCOVERY_PATH
        metadata = await self._get(url, Metadata)
        if metadata.issuer != self.settings.issuer:
            raise ProviderFailed(
                f"the identity provider calls itself `{metadata.issuer[:200]}`",
                hint=f"write exactly that as `oidc.issuer`, now `{self.settings.issuer}`",
            )
        endpoints = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        for endpoint in (*endpoints, metadata.userinfo_endpoint):
            is_insecure = self.settings.issuer.startswith("https:") and not endpoint.startswith("https:")
            if is_insecure and endpoint:
                raise ProviderFailed(f"the identity provider names an endpoint that is not https: `{endpoint[:200]}`")
        return metadata

    async def _get(self, url: str, kind: type[Metadata]) -> Metadata:
        try:
            return msgspec.json.decode((await self._good(url)).body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProviderFailed(f"the identity provider's `{url}` is not what it should be: {error}") from None

    async def _good(self, url: str) -> Answer:
        try:
            answer = await self._ask("GET", url, tls=self._tls)
        except GwError as error:
            raise ProviderFailed(f"the identity provider cannot be asked: {error.message}", hint=error.hint) from error
        if answer.status != 200:
            raise ProviderFailed(
                f"the identity provider answers {answer.status} at `{url}`", hint="check `oidc.issuer`"
            )
        return answer

    async def _exchange(self, metadata: Metadata, code: str, verifier: str) -> _Tokens:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self._redirect_uri}
        if self.settings.pkce.enabled:
            form["code_verifier"] = verifier
        headers = {"Content-Type": FORM}
        name, secret = self.settings.client_id, self._secret
        methods = metadata.token_endpoint_auth_methods_supported or ["client_secret_basic"]
        if secret and "client_secret_basic" in methods:
            pair = f"{quote_plus(name)}:{quote_plus(secret)}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        else:
            form |= {"client_id": name} | ({"client_secret": secret} if secret else {})
        try:
            answer = await self._ask(
                "POST", metadata.token_endpoint, headers=headers, body=urlencode(form).encode(), tls=self._tls
            )
        except GwError as error:
            raise ProviderFailed(f"the identity provider cannot be asked: {error.message}") from error
        if answer.status != 200:
            reason = _refusal(answer.body)
            if answer.status == 401 or reason == "invalid_client":
                raise ProviderFailed(
                    "the identity provider does not accept this server", hint="check client_id and client_secret_file"
                )
            raise LoginRefused(
                "the identity provider did not confirm the login", detail=f"token: {answer.status} {reason}", status=400
            )
        try:
            tokens = msgspec.json.decode(answer.body, type=_Tokens)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProviderFailed("the identity provider's token answer is no JSON object") from None
        if not tokens.id_token:
            raise ProviderFailed("the identity provider sent no ID token", hint="`oidc.scope` needs `openid`")
        return tokens

    async def _verified(self, metadata: Metadata, tokens: _Tokens, nonce: str) -> dict[str, Any]:
        from gw.control.oidc.tokens import UnknownKey, verify

        for attempt in (1, 2):
            keys = await self._key_set(metadata, is_stale=attempt == 2)
            try:
                return verify(
                    tokens.id_token,
                    keys,
                    issuer=self.settings.issuer,
                    client_id=self.settings.client_id,
                    nonce=nonce,
                    algorithms=metadata.id_token_signing_alg_values_supported or ["RS256"],
                    now=self._wall(),
                    access_token=tokens.access_token,
                )
            except UnknownKey:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    async def _key_set(self, metadata: Metadata, *, is_stale: bool) -> list[jwk.Key]:
        """is_stale: a token names a key that is not among those known."""
        from gw.control.oidc.tokens import read_keys

        async with self._lock:
            now = self._now()
            wait_s = self._missed_at + KEYS_REFRESH_S - now if is_stale else self._keys_at + KEEP_S - now
            if self._keys is not None and wait_s > 0:
                return self._keys
            if is_stale:
                self._missed_at = now
            try:
                self._keys = read_keys((await self._good(metadata.jwks_uri)).body)
            except ProviderFailed:
                if self._keys is None:
                    raise
            self._keys_at = self._now()
            return self._keys

    async def _userinfo(self, metadata: Metadata, access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
        """Claims that go over those of the token; none where it fails. Raises LoginRefused for another person's."""
        headers = {"Authorization": f"Bearer {access_token}"}
        try:
            answer = await self._ask("GET", metadata.userinfo_endpoint, headers=headers, tls=self._tls)
            if answer.status != 200:
                raise ProviderFailed(f"status {answer.status}")
            more = msgspec.json.decode(answer.body, type=dict[str, Any])
        except (GwError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            logger.warning("no userinfo, the ID token has to do: %s", error)
            return {}
        if more.get("sub") != claims["sub"]:
            raise LoginRefused("the identity provider's answers do not agree", detail="userinfo: sub", status=400)
        for name in ("iss", "aud", "azp", "exp", "iat", "nbf", "nonce"):
            more.pop(name, None)
        if "email" in more and more["email"] != claims.get("email"):
            more.setdefault("email_verified", False)  # what was verified is the other address
        return more


def _refusal(raw: bytes) -> str:
    try:
        return msgspec.json.decode(raw, type=_Refusal).error[:100]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "without a reason"


def _trust(settings: OidcSettings) -> ssl.SSLContext | None:
    if not settings.issuer.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot use the CA certificates: {error}", path=settings.ca_file, key="oidc.ca_file"
        ) from error
