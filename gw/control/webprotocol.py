"""HTTP/1.1 with an end to waiting: a request whose head or body stops coming is cut off, and so is its connection.

The front door bounds the first head of a connection (`gw.control.frontdoor`); this does the same for the ones after it
and for all bodies. Between two requests uvicorn's own keep-alive timeout holds.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S: Final = 45.0  # longer than the API's own limit, which answers 408


@final
class WebProtocol(H11Protocol):
    """One connection of a browser or program."""

    _overdue: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Keep time while a request is under way; what comes meanwhile gives no more of it."""
        is_coming = self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        )
        if not is_coming:
            self._rest()
        elif self._overdue is None and not self.transport.is_closing():
            self._overdue = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.abort)

    def _rest(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
