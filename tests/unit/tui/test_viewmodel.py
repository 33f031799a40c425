"""The dashboard's data, without a screen."""

from __future__ import annotations

from typing import Any

import pytest

from gw.tui.viewmodel import MeshView, PeerRow, Situation, age_text, drops_text, rate_text, size_text, sparkline


def peer(**fields: Any) -> dict[str, Any]:
    return {"DNSName": "bob.ghost.internal.", "TailscaleIPs": ["100.64.0.2"], "Online": True, "OS": "linux", **fields}


def view(**peers: dict[str, Any]) -> MeshView:
    mesh = MeshView()
    mesh.apply({"Status": {"BackendState": "Running", "Self": {"DNSName": "me.ghost.internal."}, "Peer": peers}})
    return mesh


def test_rates_are_differences_between_ticks() -> None:
    mesh = view(b=peer(RxBytes=1000, TxBytes=0))
    mesh.tick(1.0)
    mesh.apply({"Peers": {"b": {"RxBytes": 3000, "TxBytes": 500}}})
    mesh.tick(2.0)
    row = mesh.peers["b"]
    assert (row.rx_rate, row.tx_rate, list(row.history)) == (1000.0, 250.0, [1250.0])


def test_a_counter_that_went_back_is_a_restart_and_not_a_rate() -> None:
    mesh = view(b=peer(RxBytes=1000))
    mesh.tick(1.0)
    mesh.apply({"Peers": {"b": {"RxBytes": 10}}})
    mesh.tick(1.0)
    assert mesh.peers["b"].rx_rate == 0


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"CurAddr": "1.2.3.4:5", "Relay": "home"}, "direct 1.2.3.4:5"),
        ({"CurAddr": "", "Relay": "home", "Active": True}, "relay home"),
        ({"CurAddr": "", "Relay": "home", "Active": False}, "idle"),
        ({"Online": False, "CurAddr": ""}, "offline"),
    ],
)
def test_the_path_is_told_in_two_words(fields: dict[str, Any], path: str) -> None:
    assert view(b=peer(**fields)).peers["b"].path == path


def test_peers_that_left_are_gone_and_the_others_keep_their_history() -> None:
    mesh = view(b=peer(), c=peer(DNSName="carol.ghost.internal."))
    mesh.tick(1.0)
    mesh.tick(1.0)
    mesh.apply({"Status": {"BackendState": "Running", "Peer": {"c": peer(DNSName="carol.ghost.internal.")}}})
    assert list(mesh.peers) == ["c"]
    assert len(mesh.peers["c"].history) == 1
    mesh.apply({"Removed": ["c"]})
    assert not mesh.peers


def test_the_filter_wants_every_word_somewhere() -> None:
    mesh = view(b=peer(), c=peer(DNSName="carol.x.", TailscaleIPs=["100.64.0.3"], OS="windows"))
    for words, names in (("", ["bob", "carol"]), ("win 0.3", ["carol"]), ("bob windows", []), ("BOB", ["bob"])):
        mesh.words = words
        assert [row.name for row in mesh.rows()] == names


def test_offline_peers_stand_last() -> None:
    mesh = view(a=peer(DNSName="alice.x.", Online=False), b=peer())
    assert [row.name for row in mesh.rows()] == ["bob", "alice"]


@pytest.mark.parametrize(
    ("state", "situation"),
    [("NeedsLogin", Situation.NEEDS_LOGIN), ("Running", Situation.RUNNING), ("Stopped", Situation.STOPPED)],
)
def test_the_backend_state_chooses_the_card(state: str, situation: Situation) -> None:
    mesh = MeshView()
    mesh.apply({"Status": {"BackendState": state, "AuthURL": "http://x/register/y"}})
    assert (mesh.situation, mesh.auth_url) == (situation, "http://x/register/y")


def test_the_zero_time_is_no_handshake() -> None:
    assert view(b=peer(LastHandshake="0001-01-01T00:00:00Z")).peers["b"].last_handshake is None
    assert view(b=peer(LastHandshake="1970-01-01T00:01:00Z")).peers["b"].last_handshake == 60


def test_numbers_read_well() -> None:
    assert [rate_text(value) for value in (0, 100, 150_000, 312_500_000)] == ["0", "800", "1.2M", "2.5G"]
    assert [size_text(value) for value in (0, 1536, 5 << 30)] == ["0 B", "1.5 KiB", "5.0 GiB"]
    assert [age_text(value) for value in (None, 0.5, 30, 150, 7200, 200_000)] == ["—", "now", "30s", "2m", "2h", "2d"]


def test_sparkline_scales_to_its_own_maximum() -> None:
    assert sparkline([0, 1, 2], 3) == "▁▅█"
    assert sparkline([0, 0], 3) == " ▁▁"
    assert sparkline([1, 9, 3], 2) == "█▃"


def test_a_peer_without_tags_is_found_too() -> None:
    """The daemon's JSON has `null` where there are none."""
    mesh = MeshView()
    mesh.apply({"Status": {"BackendState": "Running", "Peer": {"nodekey:b": {"DNSName": "bob.", "Tags": None}}}})
    mesh.words = "bob"
    assert [row.name for row in mesh.rows()] == ["bob"]


def test_the_busiest_come_first_and_the_absent_last() -> None:
    mesh = MeshView()
    peers: dict[str, dict[str, Any]] = {
        "nodekey:a": {"DNSName": "ann.", "Online": False, "RxBytes": 9000},
        "nodekey:b": {"DNSName": "bob.", "Online": True, "RxBytes": 5},
        "nodekey:c": {"DNSName": "cat.", "Online": True, "RxBytes": 7},
        "nodekey:d": {"DNSName": "dan.", "Online": True},
    }
    mesh.apply({"Status": {"BackendState": "Running", "Peer": peers}})
    mesh.tick(0.0)
    assert [row.name for row in mesh.busiest()] == ["cat", "bob", "dan", "ann"]
    mesh.apply({"Peers": {"nodekey:d": {"TxBytes": 100}}})
    mesh.tick(2.0)
    assert [row.name for row in mesh.busiest()] == ["dan", "cat", "bob", "ann"]
    assert mesh.busiest()[0].tx_rate == 50


def test_drops_are_told_the_most_frequent_first() -> None:
    row = PeerRow("nodekey:b", {"Drops": {"acl": 2, "replay": 9}, "RxPackets": 3})
    assert drops_text(row.drops) == "replay 9, acl 2"
    assert drops_text(PeerRow("nodekey:c", {"Drops": None}).drops) == "none"
    assert row.packets == (3, 0)
