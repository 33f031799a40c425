"""Curve25519, with and without AWS-LC."""

from __future__ import annotations

from types import ModuleType

import pytest

from gw.errors import WireError
from gw.wire import awslc, x25519
from gw.wire.x25519 import KeyPair, fresh_pair


class Mixed:
    """Agrees with nobody."""

    def __init__(self) -> None:
        self._pair = KeyPair(bytes(range(32)))

    def public_key(self) -> bytes:
        return self._pair.public

    def exchange(self, public: bytes) -> bytes:
        return self._pair.exchange(public)[::-1]


def module(make: type | None) -> ModuleType:
    made = ModuleType("_hazmat")
    if make is not None:
        made.X25519KeyExchange = make  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("found", [None, module(None), module(Mixed)])
def test_only_an_exchange_that_is_right_is_taken(monkeypatch: pytest.MonkeyPatch, found: ModuleType | None) -> None:
    monkeypatch.setattr(awslc, "load", lambda: found)
    assert x25519._awslc_pair.__wrapped__() is None


@pytest.mark.parametrize("has_awslc", [True, False])
def test_a_fresh_pair_agrees_with_any_other(monkeypatch: pytest.MonkeyPatch, has_awslc: bool) -> None:
    if not has_awslc:
        monkeypatch.setattr(x25519, "_awslc_pair", lambda: None)
    ours, theirs = fresh_pair(), KeyPair(b"\x07" * 32)
    assert ours.public != fresh_pair().public
    assert ours.exchange(theirs.public) == theirs.exchange(ours.public)
    assert ours.exchange(theirs.public) == theirs.exchange(ours.public)
    with pytest.raises(WireError):
        ours.exchange(bytes(32))


def test_awslc_is_installed_with_us() -> None:
    pytest.importorskip("qh3", reason="no wheel of `qh3` for this machine")
    assert x25519._awslc_pair() is not None
