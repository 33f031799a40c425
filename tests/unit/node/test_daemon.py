"""The daemon's own decisions, with an engine and a host that only write down what they are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from gw.engine.engine import Engine, PeerConfig
from gw.errors import Conflict, UsageError
from gw.localapi.prefs import Prefs
from gw.model.keys import DiscoSecret, NodeKey
from gw.model.mapping import MapResponse
from gw.model.node import Node
from gw.node.daemon import Daemon, Options, run
from gw.node.host import Host
from gw.node.identity import Identity
from gw.state.lock import DirectoryLock
from gw.state.paths import StatePaths


class FakeEngine:
    def __init__(self) -> None:
        self.peers: dict[NodeKey, PeerConfig] = {}
        self.may_use_peer_relays = True

    def allow_peer_relays(self, may_use: bool) -> None:
        self.may_use_peer_relays = may_use

    def set_peer(self, peer: PeerConfig) -> None:
        self.peers[peer.key] = peer

    def remove_peer(self, key: NodeKey) -> None:
        self.peers.pop(key, None)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class FakeHost:
    problems: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def daemon_of(tmp_path: Path) -> tuple[Daemon, FakeEngine]:
    paths = StatePaths(tmp_path)
    daemon = Daemon(paths, Identity.load(paths.node_dir), Prefs(), DiscoSecret(b"\x02" * 32))
    engine = FakeEngine()
    daemon._engine = cast(Engine, engine)
    daemon._host = cast(Host, FakeHost())
    return daemon, engine


def peer(number: int, expiry: datetime | None) -> Node:
    return Node(
        id=number,
        name=f"n{number}.mesh.",
        key=str(NodeKey(bytes([number]) * 32)),
        addresses=[f"100.64.0.{number}/32"],
        home_derp=1,
        key_expiry=expiry,
    )


def test_a_peer_whose_key_is_over_goes_although_no_server_says_so(tmp_path: Path) -> None:
    """The control server may be down for weeks: an expired key must not reach us all that time."""
    daemon, engine = daemon_of(tmp_path)
    wall = datetime.now(UTC)
    soon = wall + timedelta(hours=1)
    peers = [peer(2, soon), peer(3, None), peer(4, wall - timedelta(seconds=1)), peer(5, wall + timedelta(days=1))]
    change = daemon._netmap.apply(MapResponse(node=peer(1, None), peers=peers), wall)
    daemon.netmap(daemon._netmap, change)
    assert {key.raw[0] for key in engine.peers} == {2, 3, 5}
    daemon.drop_expired(wall)
    assert {key.raw[0] for key in engine.peers} == {2, 3, 5}
    daemon.drop_expired(soon)
    assert {key.raw[0] for key in engine.peers} == {3, 5}


def test_a_key_that_was_renewed_stays_and_costs_one_entry(tmp_path: Path) -> None:
    daemon, engine = daemon_of(tmp_path)
    wall = datetime.now(UTC)
    soon, later = wall + timedelta(hours=1), wall + timedelta(days=1)
    change = daemon._netmap.apply(MapResponse(node=peer(1, None), peers=[peer(2, soon)]), wall)
    daemon.netmap(daemon._netmap, change)
    for port in range(100):
        renewed = peer(2, later)
        renewed.endpoints = [f"192.0.2.1:{1000 + port}"]
        daemon.netmap(daemon._netmap, daemon._netmap.apply(MapResponse(peers_changed=[renewed]), wall))
    assert len(daemon._expiries) == 2
    daemon.drop_expired(soon)
    assert {key.raw[0] for key in engine.peers} == {2}
    daemon.drop_expired(later)
    assert engine.peers == {}


def test_the_attribute_that_forbids_peer_relays_is_followed_live(tmp_path: Path) -> None:
    daemon, engine = daemon_of(tmp_path)
    for is_forbidden in (True, False, True):
        own = peer(1, None)
        own.cap_map = {"disable-relay-client": None} if is_forbidden else {}
        daemon.netmap(daemon._netmap, daemon._netmap.apply(MapResponse(node=own), datetime.now(UTC)))
        assert engine.may_use_peer_relays is not is_forbidden


@pytest.mark.parametrize("url", ["x", "ftp://a", "http://a:99999", "http://[::1"])
async def test_a_server_address_that_is_none_is_refused_and_not_kept(tmp_path: Path, url: str) -> None:
    """Kept, it would end gwd at every start."""
    daemon, _ = daemon_of(tmp_path)
    with pytest.raises(UsageError, match="not a control server address"):
        await daemon.edit_prefs({"ControlURL": url, "ControlURLSet": True, "WantRunning": True, "WantRunningSet": True})
    assert daemon.prefs() == Prefs()


async def test_a_kept_server_address_that_is_none_asks_for_a_login(tmp_path: Path) -> None:
    daemon, _ = daemon_of(tmp_path)
    daemon._prefs = Prefs(control_url="http://a:99999", want_running=True)
    daemon._login_asked = True
    await daemon._one_session()
    assert daemon.status().backend_state == "NeedsLogin" or daemon._state == "NeedsLogin"
    assert "not a control server address" in str(daemon._health())


async def test_two_daemons_never_share_a_directory(tmp_path: Path) -> None:
    """Other sockets, ports and interfaces do not help: both would take one node key from each other."""
    paths = StatePaths(tmp_path)
    with DirectoryLock(paths.node_dir, program="gwd"), pytest.raises(Conflict, match="another gwd holds"):
        await run(paths, Options(tun="gw9", socket=tmp_path / "other.sock"), lambda _: None)
    assert not (paths.node_dir / "machine.key").exists()
