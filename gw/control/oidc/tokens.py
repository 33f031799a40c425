"""ID tokens: whose signature they bear, and whether they were made for this login.

    header.payload.signature     signed by a key of the provider's set; never by a shared secret, never unsigned
    iss aud azp exp nbf iat      who made it, for whom, when
    nonce                        the login it belongs to: a token of another login is worth nothing here
    at_hash                      the access token it came with

Ref: OpenID Connect Core 1.0 §2, §3.1.3.7; RFC 7515; RFC 8725
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
from joserfc import jwk, jws
from joserfc.errors import JoseError

from gw.control.oidc.refusals import LoginRefused, ProviderFailed

ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip
LEEWAY_S: Final = 60.0
MAX_TOKEN_BYTES: Final = 64 << 10
MAX_KEYS: Final = 100
MAX_SUBJECT_CHARS: Final = 255
_HASHES: Final = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}

Claims = dict[str, Any]


class UnknownKey(LoginRefused):
    """The token names a key that the set does not have: the provider may have a new one."""


def read_keys(raw: bytes) -> list[jwk.Key]:
    """The public signing keys of a key set; those of unknown kinds are left out. Raises ProviderFailed."""
    try:
        entries = msgspec.json.decode(raw, type=dict[str, Any])["keys"]
        if not isinstance(entries, list):
            raise TypeError("`keys` is no list")
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
        raise ProviderFailed(f"not a key set: {error}") from None
    keys: list[jwk.Key] = []
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue  # `oct`: a shared secret signs nothing here
        if entry.get("use", "sig") != "sig":
            continue
        public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
        try:
            keys.append(jwk.import_key(public))
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    return keys


def verify(
    token: str,
    keys: Collection[jwk.Key],
    *,
    issuer: str,
    client_id: str,
    nonce: str,
    algorithms: Collection[str],
    now: float,
    access_token: str = "",
) -> Claims:
    """The claims of a good token. now: wall clock, seconds. Raises LoginRefused; UnknownKey, a kind of it."""
    header, claims = _signed(token, keys, [name for name in algorithms if name in ALGORITHMS])
    _check_parties(claims, issuer, client_id)
    _check_times(claims, now)
    if not isinstance(claims.get("nonce"), str) or not hmac.compare_digest(claims["nonce"].encode(), nonce.encode()):
        raise _bad("nonce")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise _bad("sub")
    if access_token and "at_hash" in claims:
        _check_access_token(claims["at_hash"], access_token, str(header.get("alg")))
    return claims


def _bad(what: str) -> LoginRefused:
    return LoginRefused(
        "the identity provider's answer is not valid for this login", detail=f"ID token: {what}", status=400
    )


def _signed(token: str, keys: Collection[jwk.Key], algorithms: Collection[str]) -> tuple[Mapping[str, Any], Claims]:
    """Header and claims, once the signature is proven."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _bad("too large")
    try:
        header = jws.extract_compact(token.encode()).headers()
        algorithm, name = header.get("alg"), header.get("kid")
    except (JoseError, ValueError, TypeError, AttributeError) as error:
        raise _bad(f"no JWS: {type(error).__name__}") from None
    if algorithm not in algorithms:
        raise _bad(f"signed by {algorithm!r}")
    fitting = [key for key in keys if name is None or key.kid == name]
    if not fitting:
        raise UnknownKey(
            "the identity provider's answer bears an unknown signature", detail=f"key {name!r}", status=400
        )
    for key in fitting:
        try:
            payload = jws.deserialize_compact(token, key, algorithms=algorithms).payload
            break
        except (JoseError, ValueError, TypeError):
            continue
    else:
        raise _bad("bad signature")
    try:
        return header, msgspec.json.decode(payload or b"", type=Claims)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _bad("claims are no JSON object") from None


def _check_parties(claims: Claims, issuer: str, client_id: str) -> None:
    if claims.get("iss") != issuer:
        raise _bad("iss")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or client_id not in audiences:
        raise _bad("aud")
    authorized = claims.get("azp")
    if (len(audiences) > 1 or authorized is not None) and authorized != client_id:
        raise _bad("azp")


def _check_times(claims: Claims, now: float) -> None:
    if _time(claims, "exp") <= now - LEEWAY_S:
        raise _bad("exp: it is over")
    if _time(claims, "iat") > now + LEEWAY_S:
        raise _bad("iat: in the future; compare the clocks")
    if "nbf" in claims and _time(claims, "nbf") > now + LEEWAY_S:
        raise _bad("nbf: in the future; compare the clocks")


def _time(claims: Claims, name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(name)
    return float(value)


def _check_access_token(expected: object, access_token: str, algorithm: str) -> None:
    """The left half of the hash that the signature uses. EdDSA has none to go by, so it is not checked there."""
    make = _HASHES.get(algorithm[-3:])
    if make is None:
        return
    digest = make(access_token.encode()).digest()
    wanted = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
    if not isinstance(expected, str) or not hmac.compare_digest(expected.encode(), wanted):
        raise _bad("at_hash")
