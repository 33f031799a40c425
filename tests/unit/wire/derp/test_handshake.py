"""The relay's end of the handshake: whatever a stranger's box holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from gw.errors import WireError
from gw.model.keys import RelaySecret
from gw.wire.derp.handshake import ClientInfo, RelayIdentity, parse_mesh_key
from gw.wire.x25519 import clamp, public_key

STRANGER = clamp(b"\x21" * 32)
RELAY = RelayIdentity(RelaySecret(clamp(b"\x42" * 32)))
BOX = Box(PrivateKey(STRANGER), PublicKey(RELAY.key))
DEEP = '{"AppName":' + "[" * 5000 + "]" * 5000 + "}"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(["meshKey", "version", "CanAckPings", "IsProber", "AppName"]) | st.text(max_size=8)
documents = st.dictionaries(fields, values, max_size=6).map(json.dumps)


def opened(document: str | bytes) -> ClientInfo:
    raw = document if isinstance(document, bytes) else document.encode()
    return RELAY.open_client_info(public_key(STRANGER) + bytes(BOX.encrypt(raw, bytes(24))))


@given(documents | st.text(st.characters(exclude_categories=["Cs"])) | st.binary())
@example('{"meshKey":"\\ud800"}')  # what no encoding has
@example('{"meshKey":{"a":1}}')
@example('{"meshKey":"' + "é" * 64 + '"}')
@example('{"AppName":"\\udfff"}')
@example(DEEP)
def test_any_document_is_client_info_or_an_error(document: str | bytes) -> None:
    """A stranger's box that held a lone surrogate as mesh key ended the forwarding thread."""
    try:
        info = opened(document)
    except WireError:
        return
    assert info.mesh_key == "" or parse_mesh_key(info.mesh_key) == info.mesh_key
    assert isinstance(info.app_name, str)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("{}", ""), ('{"meshKey":""}', ""), ('{"meshKey":null}', ""), (f'{{"meshKey":"{"aB" * 32}"}}', "ab" * 32)],
)
def test_a_mesh_key_is_64_hex_digits_or_none(said: str, wanted: str) -> None:
    assert opened(said).mesh_key == wanted


@pytest.mark.parametrize("key", ["a", "ab" * 31, "ab" * 33, "xy" * 32, 7, [[]], {"a": 1}, "\u0660" * 64])
def test_another_mesh_key_is_an_error(key: object) -> None:
    with pytest.raises(WireError, match="64 hex digits"):
        opened(json.dumps({"meshKey": key}))
