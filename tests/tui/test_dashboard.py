"""The dashboard as a person sees it: cards, the table, filter and ping, drawn at two sizes and without colour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

from gw.errors import GwError, NotRunning, PermissionNeeded
from gw.tui.app import Dashboard
from gw.tui.widgets.peertable import PeerTable

WALL = 1_800_000_000.0
STATUS: dict[str, Any] = {
    "BackendState": "Running",
    "TailscaleIPs": ["100.64.0.1", "fd7a:115c:a1e0::1"],
    "MagicDNSSuffix": "ghost.internal",
    "Health": [],
    "DataPlane": {"compiled": True, "lanes": 2, "tcp_offload": True, "udp_gso": True, "udp_gro": True},
    "Self": {"DNSName": "alice.ghost.internal.", "HostName": "alice"},
    "Peer": {
        "nodekey:bb": {
            "DNSName": "bob.ghost.internal.", "HostName": "bob", "OS": "linux", "Online": True, "Active": True,
            "TailscaleIPs": ["100.64.0.2"], "CurAddr": "198.51.100.7:41641", "Relay": "home", "LatencySeconds": 0.0042,
            "RxBytes": 0, "TxBytes": 0, "LastHandshake": "2027-01-15T07:59:30Z", "Addrs": ["198.51.100.7:41641"],
            "RxPackets": 70123, "TxPackets": 4211, "Drops": {"acl": 3, "replay": 12},
        },
        "nodekey:cc": {
            "DNSName": "carol.ghost.internal.", "HostName": "carol", "OS": "android", "Online": True, "Active": True,
            "TailscaleIPs": ["100.64.0.3"], "CurAddr": "", "Relay": "home", "RxBytes": 0, "TxBytes": 0,
            "LastHandshake": "0001-01-01T00:00:00Z", "Tags": ["tag:phone"],
        },
        "nodekey:dd": {
            "DNSName": "dave.ghost.internal.", "HostName": "dave", "OS": "linux", "Online": False,
            "TailscaleIPs": ["100.64.0.4"], "CurAddr": "", "Relay": "home", "RxBytes": 1 << 20, "TxBytes": 1 << 30,
        },
    },
}  # fmt: skip


class ScriptedFeed:
    """Gives the events of a script, then stays open; an error in the script is raised."""

    def __init__(self, *script: dict[str, Any] | GwError) -> None:
        self.script = list(script)
        self.pinged: list[str] = []

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        for step in self.script:
            if isinstance(step, GwError):
                raise step
            yield step
        await asyncio.Event().wait()

    async def ping(self, address: str) -> str:
        self.pinged.append(address)
        return f"pong from bob ({address}) via 198.51.100.7:41641 in 4 ms"


def dashboard(*script: dict[str, Any] | GwError) -> Dashboard:
    return Dashboard(ScriptedFeed(*script), wall=lambda: WALL, ticking=False)


Snapshot = Callable[..., bool]


def typed(*keys: str) -> Callable[[Pilot[None]], Awaitable[None]]:
    """Traffic for two seconds of the model's time, then these keys."""

    async def act(pilot: Pilot[None]) -> None:
        await pilot.pause()
        app = pilot.app
        assert isinstance(app, Dashboard)
        for step in range(5):
            app.mesh.tick(1.0)
            app._take({"Peers": {"nodekey:bb": {"RxBytes": step * step * 5_000_000, "TxBytes": step * 400_000}}})
        for line in app.query(Input):
            line.cursor_blink = False  # a slow machine would be seen between two blinks
        await pilot.press(*keys)
        await pilot.pause()

    return act


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_peers_with_paths_and_rates(snap_compare: Snapshot, size: tuple[int, int]) -> None:
    """A direct, a relayed and an offline peer; the first one is under the cursor."""
    assert snap_compare(dashboard({"Status": STATUS}), run_before=typed(), terminal_size=size)


def test_without_colour(snap_compare: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(dashboard({"Status": STATUS}), run_before=typed(), terminal_size=(80, 24))


def test_ping_result_stands_in_the_detail_pane(snap_compare: Snapshot) -> None:
    assert snap_compare(dashboard({"Status": STATUS}), run_before=typed("p"), terminal_size=(80, 24))


def test_filter_line(snap_compare: Snapshot) -> None:
    assert snap_compare(dashboard({"Status": STATUS}), run_before=typed("slash", *"phone"), terminal_size=(100, 30))


@pytest.mark.parametrize(
    "step",
    [
        NotRunning("nothing listens on `/run/ghostwire/gwd.sock`"),
        PermissionNeeded("no permission for `/run/ghostwire/gwd.sock`"),
        {"Status": {"BackendState": "NeedsLogin"}},
        {"Status": {"BackendState": "NeedsLogin", "AuthURL": "https://control.example/register/hskey-authreq-0123"}},
        {"Status": {"BackendState": "Stopped"}},
    ],
    ids=["daemon-down", "no-permission", "needs-login", "auth-url", "stopped"],
)
def test_cards_say_what_to_type(snap_compare: Snapshot, step: dict[str, Any] | GwError) -> None:
    assert snap_compare(dashboard(step), terminal_size=(90, 24))


async def test_the_cursor_stays_on_its_peer_when_others_come_and_go() -> None:
    app = dashboard({"Status": STATUS})
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        await pilot.press("down")
        table = app.query_one(PeerTable)
        assert table.selected_key == "nodekey:cc"
        app._take({"Peers": {"nodekey:aa": {"DNSName": "anna.ghost.internal.", "Online": True}}, "Removed": []})
        await pilot.pause()
        assert table.selected_key == "nodekey:cc"
        app._take({"Removed": ["nodekey:bb"]})
        await pilot.pause()
        assert table.selected_key == "nodekey:cc"


async def test_ping_goes_to_the_selected_peer() -> None:
    feed = ScriptedFeed({"Status": STATUS})
    app = Dashboard(feed, wall=lambda: WALL, ticking=False)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        await pilot.press("down", "p")
        await pilot.pause()
        assert feed.pinged == ["100.64.0.3"]


async def test_the_feed_is_followed_again_after_the_daemon_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gw.tui.app.RECONNECT_S", 0.0)
    feed = ScriptedFeed(NotRunning("x"))
    app = Dashboard(feed, wall=lambda: WALL, ticking=False)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        feed.script = [{"Status": STATUS}]
        for _ in range(20):
            await pilot.pause()
        assert app.query_one(PeerTable).row_count == 3


async def test_words_typed_in_one_breath_with_the_slash_are_all_taken() -> None:
    app = dashboard({"Status": STATUS})
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        for key in ("slash", *"phone"):  # as a terminal delivers them: no turn of the loop between
            app.post_message(Key(key, "/" if key == "slash" else key))
        await pilot.pause()
        assert app.query_one("#filter", Input).value == "phone"
        assert app.mesh.words == "phone"
