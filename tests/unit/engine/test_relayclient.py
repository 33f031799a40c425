"""When a relay over QUIC is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gw.engine import relayclient, relayquic
from gw.engine.relayclient import _Line
from gw.engine.relayquic import MemoryTickets
from gw.model.derpmap import DERPNode, DERPRegion
from gw.model.keys import NodeSecret
from gw.wire.derp.client import Restarting
from gw.wire.x25519 import clamp


class Nobody:
    """Implements RelayEvents."""

    def packets(self, region: int, batch: list[Any]) -> None: ...
    def peer_gone(self, region: int, peer: Any) -> None: ...
    def connected(self, region: int) -> None: ...
    def disconnected(self, region: int) -> None: ...


class Brief:
    """A QUIC connection that lets in and ends at once."""

    words: Sequence[object] = ()
    is_refused = False
    is_early_accepted = False
    is_silent = False
    end = None

    def __init__(self, node: Any, secret: Any, tickets: Any, take: Callable[[Sequence[object]], None], *_: Any) -> None:
        self._take = take

    async def open(self) -> None: ...

    async def serve(self) -> None:
        self._take(self.words)

    def note_home(self, is_home: bool) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("word_s", [0, 30])
async def test_a_relay_that_ends_at_once_is_asked_ever_more_seldom(
    word_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it says of its restart holds over QUIC as over TLS."""
    region = DERPRegion(region_id=1, nodes=[DERPNode(host_name="relay.test", quic_port=1)])
    line = _Line(region, NodeSecret(clamp(b"n" * 32)), b"i" * 16, Nobody(), lambda region, peer: None, MemoryTickets())
    monkeypatch.setattr(relayquic, "QuicLine", Brief)
    monkeypatch.setattr(Brief, "words", [Restarting(word_s * 1000, 0)] if word_s else [])
    pauses: list[float] = []
    plain = asyncio.timeout

    def timeout(seconds: float) -> asyncio.Timeout:
        pauses.append(seconds)
        if len(pauses) == 8:
            raise RuntimeError("enough")
        return plain(0)

    monkeypatch.setattr(relayclient.asyncio, "timeout", timeout)
    with pytest.raises(RuntimeError, match="enough"):
        await line._run_quic()
    if word_s:
        assert min(pauses) >= word_s
    else:
        assert pauses[-1] > 2.0
        assert pauses[0] < 1.0
