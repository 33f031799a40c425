"""Key types: text forms, and secrets that do not print."""

from __future__ import annotations

import pickle

import pytest

from gw.errors import WireError
from gw.model.keys import DiscoKey, MachineKey, NodeKey, NodeSecret


def test_text_form_round_trips_and_upper_case_is_read() -> None:
    key = NodeKey(bytes(range(32)))
    assert NodeKey.parse(str(key)) == key
    assert NodeKey.parse("nodekey:" + bytes(range(32)).hex().upper()) == key


@pytest.mark.parametrize("text", ["", "nodekey:", "nodekey:00", "mkey:" + "0" * 64, "nodekey:" + "g" * 64])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        NodeKey.parse(text)


def test_keys_of_different_roles_are_never_equal() -> None:
    assert NodeKey(bytes(32)) != DiscoKey(bytes(32))
    assert len({NodeKey(bytes(32)), MachineKey(bytes(32))}) == 2


def test_the_zero_key_is_false() -> None:
    assert not NodeKey.zero()
    assert NodeKey(b"\1" + bytes(31))


def test_a_secret_never_prints_itself() -> None:
    secret = NodeSecret(b"\xab" * 32)
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret:>20}", "%s" % secret, str([secret])):  # noqa: UP031
        assert "ab" * 4 not in shown
    assert secret.text() == "privkey:" + "ab" * 32
    with pytest.raises(TypeError):
        pickle.dumps(secret)
