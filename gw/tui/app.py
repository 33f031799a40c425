"""The dashboard: peers, paths and traffic as they are now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Center, Middle, Vertical
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, Static

from gw.errors import GwError, NotRunning, PermissionNeeded
from gw.tui.feed import Feed
from gw.tui.viewmodel import MeshView, Situation, rate_text
from gw.tui.widgets.card import Card
from gw.tui.widgets.detail import PeerDetail
from gw.tui.widgets.peertable import PeerTable

TICK_S: Final = 1.0
RECONNECT_S: Final = 2.0


class Dashboard(App[None]):
    """`gw tui`. Give it a feed and it draws what the feed says; wall: seconds since the epoch."""

    TITLE = "GhostWire"
    AUTO_FOCUS = ""  # else the hidden filter line would take the keys
    CSS = """
    #bar { height: 1; background: $primary; color: $text; padding: 0 1; }
    #filter { display: none; height: 3; }
    ContentSwitcher { height: 1fr; }
    #cards { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "ping", "Ping", id="ping", tooltip="Ping the selected peer: direct or by relay, and how long"),
        # priority: done before the next key is given to whoever has the focus
        Binding(
            "slash", "filter", "Filter", id="filter", tooltip="Show only peers that match all words", priority=True
        ),
        Binding("escape", "clear_filter", "Clear", id="clear", tooltip="Show all peers again"),
        Binding("q", "quit", "Quit", id="quit", tooltip="Leave"),
    ]

    def __init__(
        self, feed: Feed, *, wall: Callable[[], float] = time.time, ticking: bool = True, ascii_only: bool = False
    ) -> None:
        super().__init__()
        self._feed = feed
        self._wall = wall
        self._ticking = ticking
        self._ascii = ascii_only
        self._pinged: dict[str, str] = {}
        self._ticked_at = time.monotonic()
        self.mesh = MeshView()

    def compose(self) -> ComposeResult:
        yield Static(id="bar")
        yield Input(placeholder="name, address, path, tag …", id="filter")
        with ContentSwitcher(initial="cards"):
            with Middle(id="cards"), Center():
                yield Card(id="card")
            with Vertical(id="peers"):
                yield PeerTable(id="table", ascii_only=self._ascii)
                yield PeerDetail(id="detail")
        yield Footer()

    def on_mount(self) -> None:
        if self._ticking:
            self.set_interval(TICK_S, self._tick)
        self._draw()
        self._follow()

    @work(exclusive=True, name="follow", group="follow")
    async def _follow(self) -> None:
        """Read the feed for ever; on an error show its card and try again."""
        while True:
            try:
                async for event in self._feed.events():
                    self._take(event)
                self.mesh.fail(Situation.DAEMON_DOWN, "the daemon closed the connection")
            except NotRunning as error:
                self.mesh.fail(Situation.DAEMON_DOWN, error.message)
            except PermissionNeeded as error:
                self.mesh.fail(Situation.NO_PERMISSION, error.message)
            except GwError as error:
                self.mesh.fail(Situation.CONNECTING, error.message)
            self._draw()
            await asyncio.sleep(RECONNECT_S)

    def _take(self, event: dict[str, Any]) -> None:
        self.mesh.detail = ""
        self.mesh.apply(event)
        if "Status" in event or "Removed" in event or not self._ticking:
            self._draw()

    def _tick(self) -> None:
        now = time.monotonic()
        self.mesh.tick(now - self._ticked_at)
        self._ticked_at = now
        self._draw()

    def _draw(self) -> None:
        running = self.mesh.situation is Situation.RUNNING
        switcher = self.query_one(ContentSwitcher)
        if (switcher.current == "peers") != running:
            switcher.current = "peers" if running else "cards"
            if running and not self.query_one("#filter", Input).display:
                self.query_one(PeerTable).focus()
        rx, tx = self.mesh.totals()
        online = sum(1 for row in self.mesh.peers.values() if row.path != "offline")
        parts = [f"GhostWire  {self.mesh.self_name}", " ".join(self.mesh.self_addresses[:1])]
        if running:
            parts += [f"{online}/{len(self.mesh.peers)} peers online", f"↓{rate_text(rx)} ↑{rate_text(tx)} b/s"]
        parts += [f"! {text}" for text in self.mesh.health[:1]]
        self.query_one("#bar", Static).update("  ·  ".join(part for part in parts if part))
        if not running:
            self.query_one(Card).show(self.mesh)
            return
        table = self.query_one(PeerTable)
        table.show(self.mesh, self._wall())
        self._draw_detail()

    def _draw_detail(self) -> None:
        key = self.query_one(PeerTable).selected_key
        detail = self.query_one(PeerDetail)
        pinged = self._pinged.get(key, "")
        detail.show(self.mesh.peers.get(key), self._wall(), pinged, self.mesh.transport, ascii_only=self._ascii)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        self._draw_detail()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.mesh.words = event.value
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one(PeerTable).focus()

    def action_filter(self) -> None:
        """Open the filter line; within it, a slash is a letter."""
        box = self.query_one("#filter", Input)
        if box.has_focus:
            box.insert_text_at_cursor("/")
            return
        box.display = True
        self.screen.set_focus(box)  # at once, not with the next turn: the keys that follow are for it

    def action_clear_filter(self) -> None:
        """Close the filter line and show all peers."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.display = False
        self.query_one(PeerTable).focus()

    def action_ping(self) -> None:
        """Ping the selected peer; the result stands in the detail pane."""
        key = self.query_one(PeerTable).selected_key
        row = self.mesh.peers.get(key)
        if row is not None and row.addresses:
            self._pinged[key] = "waiting for a pong"
            self._draw_detail()
            self._ping(key, row.addresses[0])

    @work(exclusive=True, name="ping", group="ping")
    async def _ping(self, key: str, address: str) -> None:
        try:
            self._pinged[key] = await self._feed.ping(address)
        except GwError as error:
            self._pinged[key] = error.message
        self._draw_detail()
