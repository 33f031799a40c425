"""Where the screen gets its events and sends its commands: a port, and the local API behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol


class Feed(Protocol):
    """What the dashboard needs of a daemon. Both raise `GwError` (NotRunning, PermissionNeeded, …)."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """Events as in `gw.tui.viewmodel`, the first one a whole status. Ends when the daemon closes the stream."""

    async def ping(self, address: str) -> str:
        """Ping a tailnet address by disco; returns one line that says how the pong came."""


class LocalFeed:
    """The daemon behind a unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        from gw.localapi.client import events

        async for event in events(self._socket):
            yield event

    async def ping(self, address: str) -> str:
        import asyncio

        from gw.localapi.client import Client

        result = await asyncio.to_thread(Client(self._socket).ping, address)
        return result.describe()
