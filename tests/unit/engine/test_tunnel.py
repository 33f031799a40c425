"""What the tunnel does without its workers."""

from __future__ import annotations

import ipaddress
import logging

import pytest

from gw.engine import tunnel
from gw.engine.tunnel import Tunnel
from gw.model.keys import NodeKey, NodeSecret


class Nobody:
    """Takes no events."""


def test_a_peer_too_many_is_refused_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to end the daemon."""
    monkeypatch.setattr(tunnel, "MAX_PEERS", 2)
    here = Tunnel(NodeSecret(bytes(range(32))), "gw0", 0, Nobody())  # type: ignore[arg-type]
    keys = [NodeKey(bytes([n]) * 32) for n in range(1, 5)]
    for n, key in enumerate(keys):
        here.set_peer(key, [ipaddress.ip_network(f"100.64.0.{n}/32")])
    assert len(here._by_key) == 2
    assert [each.levelno for each in caplog.records] == [logging.ERROR]
    assert "no room for peer" in caplog.text
    here.set_jailed(keys[3], jailed=True)  # the owner need not know
    here.remove_peer(keys[3])


def test_a_machine_that_slept_uses_no_keypair_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the sessions does not count that time."""
    here = Tunnel(NodeSecret(bytes(range(32))), "gw0", 0, Nobody())  # type: ignore[arg-type]
    key = NodeKey(bytes([7]) * 32)
    here.set_peer(key, [ipaddress.ip_network("100.64.0.7/32")])
    here._by_key[key].sessions.add(5)
    reset: list[bytes] = []
    monkeypatch.setattr(here._device, "reset", lambda raw: reset.append(raw) or [])
    before = tunnel._asleep()
    here._tick(1000.0)
    monkeypatch.setattr(tunnel, "_asleep", lambda: before + 1.0)  # a hiccup of the clocks is no sleep
    here._tick(1000.2)
    assert reset == []
    monkeypatch.setattr(tunnel, "_asleep", lambda: before + 3600.0)
    here._tick(1000.4)
    here._tick(1000.6)
    assert reset == [key.raw]
