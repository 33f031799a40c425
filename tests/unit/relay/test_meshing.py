"""When links are dialled, and that none is left to who is no target any more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gw.model.keys import RelaySecret
from gw.relay.meshing import Mesh, Target

from .ends import House


class Owner:
    """A connection of the plane's; implements `Owner`."""

    drained = 0

    def __init__(self) -> None:
        self.is_closed = False

    def flush(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


class Plane:
    """Takes over sockets a turn later, as the thread does."""

    def __init__(self) -> None:
        self.reception = House().reception
        self.orders: deque[Callable[[], None]] = deque()
        self.owners: list[Owner] = []

    def call(self, order: Callable[[], None]) -> None:
        self.orders.append(order)

    def adopt(self, channel: object, make: Callable[[Owner], object], at_end: object, **_: object) -> None:
        def begin() -> None:
            self.owners.append(Owner())
            make(self.owners[-1])

        self.call(begin)

    def turn(self) -> None:
        while self.orders:
            self.orders.popleft()()


@pytest.mark.parametrize("begins_before", [True, False])
async def test_a_target_that_is_removed_keeps_no_link(begins_before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is removed after the socket was given to the plane, and before the plane took it."""
    plane: Any = Plane()
    mesh = Mesh(plane, RelaySecret(bytes([7]) * 32), "")
    dialled = asyncio.Event()

    async def dial(target: Target) -> object:
        dialled.set()
        return SimpleNamespace(getpeername=lambda: ("192.0.2.7", 443))

    monkeypatch.setattr(mesh, "_dial", dial)
    mesh.set_targets([Target(host="relay-b.example", port=443)])
    running = asyncio.get_running_loop().create_task(mesh.run())
    await dialled.wait()
    await asyncio.sleep(0)
    if begins_before:
        plane.turn()
    mesh.set_targets([])
    for _ in range(5):
        await asyncio.sleep(0)
    plane.turn()
    assert [owner.is_closed for owner in plane.owners] == [True]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
