"""What makes an ID token worthless. OpenID Connect Core 1.0 §3.1.3.7, RFC 8725."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwk, jws

from gw.control.oidc.refusals import LoginRefused, ProviderFailed
from gw.control.oidc.tokens import ALGORITHMS, UnknownKey, read_keys, verify

ISSUER, CLIENT, NOW = "https://id.test", "mesh", 1_000_000.0
KEY = jwk.RSAKey.generate_key(2048, {"kid": "one"})
OTHER = jwk.RSAKey.generate_key(2048, {"kid": "one"})
GOOD = {"iss": ISSUER, "aud": CLIENT, "sub": "s", "exp": NOW + 600, "iat": NOW, "nonce": "n"}


def signed(claims: Any, key: Any = KEY, **header: Any) -> str:
    head = {"alg": "RS256", "kid": "one"} | header
    return jws.serialize_compact(head, json.dumps(claims), key, algorithms=[head["alg"]])


def check(token: str, keys: Any = (KEY,), algorithms: Any = ALGORITHMS, **more: Any) -> Any:
    return verify(
        token, keys, issuer=ISSUER, client_id=CLIENT, nonce="n", algorithms=algorithms, now=NOW, **more
    )  # fmt: skip


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_good_token_gives_its_claims() -> None:
    assert check(signed(GOOD)) == GOOD
    assert check(signed(GOOD | {"aud": [CLIENT]}))["sub"] == "s"
    assert check(signed(GOOD | {"aud": [CLIENT, "other"], "azp": CLIENT}))["sub"] == "s"
    assert check(signed(GOOD | {"exp": NOW - 59, "iat": NOW + 59}))["sub"] == "s"  # clocks differ a little


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"iss": "https://evil.test"}, "iss"),
        ({"iss": ISSUER + "/"}, "iss"),
        ({"iss": None}, "iss"),
        ({"aud": "other"}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": {CLIENT: 1}}, "aud"),
        ({"aud": [CLIENT, "other"]}, "azp"),
        ({"aud": [CLIENT, "other"], "azp": "other"}, "azp"),
        ({"azp": "other"}, "azp"),
        ({"exp": NOW - 61}, "exp"),
        ({"exp": None}, "exp"),
        ({"exp": "2000000000"}, "exp"),
        ({"exp": True}, "exp"),
        ({"iat": NOW + 61}, "iat"),
        ({"iat": None}, "iat"),
        ({"nbf": NOW + 61}, "nbf"),
        ({"nonce": "m"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["n"]}, "nonce"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "x" * 256}, "sub"),
        ({"sub": "a\nb"}, "sub"),
    ],
)
def test_a_claim_that_does_not_fit_refuses_the_token(change: dict[str, Any], why: str) -> None:
    claims = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(LoginRefused) as caught:
        check(signed(claims))
    assert caught.value.detail.startswith(f"ID token: {why}")
    assert "n" not in caught.value.message.split(), "the page does not quote the token"


def test_an_unsigned_token_is_refused() -> None:
    for name in ("none", "None", "NONE", "nOnE"):
        token = f"{b64(json.dumps({'alg': name}).encode())}.{b64(json.dumps(GOOD).encode())}."
        with pytest.raises(LoginRefused):
            check(token, algorithms=[*ALGORITHMS, name])


def test_the_public_key_as_a_shared_secret_signs_nothing() -> None:
    """RFC 8725 §2.1: HS256 over the text of the RSA key."""
    for secret in (KEY.as_pem(private=False), json.dumps(KEY.as_dict(private=False)).encode()):
        text = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'one'}).encode())}.{b64(json.dumps(GOOD).encode())}"
        token = f"{text}.{b64(hmac.digest(secret, text.encode(), 'sha256'))}"
        with pytest.raises(LoginRefused, match="not valid"):
            check(token, algorithms=[*ALGORITHMS, "HS256"])


def test_a_signature_of_another_key_is_refused() -> None:
    with pytest.raises(LoginRefused) as caught:
        check(signed(GOOD, OTHER))
    assert caught.value.detail == "ID token: bad signature"
    head, body, signature = signed(GOOD).split(".")
    forged = b64(json.dumps(GOOD | {"sub": "root"}).encode())
    for token in (f"{head}.{forged}.{signature}", f"{head}.{body}.", f"{head}.{body}", ""):
        with pytest.raises(LoginRefused):
            check(token)


def test_a_key_that_the_token_brings_itself_is_not_believed() -> None:
    with pytest.raises(LoginRefused):
        check(signed(GOOD, OTHER, jwk=OTHER.as_dict(private=False)))


def test_an_algorithm_that_the_provider_does_not_announce_is_refused() -> None:
    with pytest.raises(LoginRefused) as caught:
        check(signed(GOOD), algorithms=["ES256"])
    assert "RS256" in caught.value.detail


def test_an_unknown_key_is_told_apart() -> None:
    with pytest.raises(UnknownKey):
        check(signed(GOOD, kid="two"))


def test_without_a_key_id_every_key_is_tried() -> None:
    token = jws.serialize_compact({"alg": "RS256"}, json.dumps(GOOD), KEY, algorithms=["RS256"])
    assert check(token, [OTHER, KEY])["sub"] == "s"


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [("ES256", jwk.ECKey.generate_key("P-256")), ("Ed25519", jwk.OKPKey.generate_key("Ed25519")), ("PS256", KEY)],
)
def test_other_signatures_that_are_in_use(algorithm: str, key: Any) -> None:
    token = jws.serialize_compact({"alg": algorithm}, json.dumps(GOOD), key, algorithms=[algorithm])
    assert check(token, [key])["sub"] == "s"


def test_the_access_token_has_to_be_the_one_that_was_signed() -> None:
    right = b64(hashlib.sha256(b"at").digest()[:16])
    assert check(signed(GOOD | {"at_hash": right}), access_token="at")
    for wrong in (b64(hashlib.sha256(b"other").digest()[:16]), "", 7, None):
        with pytest.raises(LoginRefused):
            check(signed(GOOD | {"at_hash": wrong}), access_token="at")


def test_a_key_set_is_taken_without_what_cannot_sign() -> None:
    public = KEY.as_dict(private=False)
    entries = [
        public, public | {"use": "enc", "kid": "e"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "o"},
        {"kty": "RSA"}, {"kty": "XX"}, "text", KEY.as_dict(private=True) | {"kid": "leaked"},
    ]  # fmt: skip
    keys = read_keys(json.dumps({"keys": entries}).encode())
    assert [key.kid for key in keys] == ["one", "leaked"]
    assert not any(key.is_private for key in keys)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_set_or_one_error(raw: bytes) -> None:
    try:
        read_keys(raw)
    except ProviderFailed:
        pass


@settings(deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.binary(max_size=60).map(b64), max_size=5).map(".".join)))
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(LoginRefused):
        check(text)
