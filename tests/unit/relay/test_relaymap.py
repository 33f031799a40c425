"""A relay's own entry in the relay map: written when it differs, told from what a person wrote."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gw.relay.relaymap import enter_map, read_region
from gw.relay.settings import Settings
from gw.state.documents import RelayNode, RelayRegionDoc
from gw.state.paths import StatePaths
from gw.state.relayentries import entering_relay

PIN, KEY = "sha256-raw:" + "ab" * 32, bytes([7]) * 32
OTHER = RelayNode(name="900b", host_name="b.test")


def entry(folder: Path, **settings: object) -> RelayRegionDoc:
    paths = StatePaths(folder)
    enter_map(paths, Settings(hostname="a.test", **settings), PIN, KEY)  # type: ignore[arg-type]
    region = read_region(paths, 900)
    assert region is not None
    return region


def test_what_a_relay_writes_is_its_own(tmp_path: Path) -> None:
    first = entry(tmp_path)
    assert entering_relay(None, first) == "900a"
    file = tmp_path / "relays" / "900.toml"
    written = file.stat().st_mtime_ns
    assert entry(tmp_path) == first
    assert file.stat().st_mtime_ns == written  # a restart writes nothing
    moved = entry(tmp_path, region_name="Elsewhere", listen="0.0.0.0:8443")
    assert (moved.name, moved.nodes[0].derpport) == ("Elsewhere", 8443)
    assert entering_relay(first, moved) == "900a"
    beside = entry(tmp_path, node_name="900c")
    assert [node.name for node in beside.nodes] == ["900a", "900c"]


def test_nodes_of_the_mesh_do_not_get_the_digest(tmp_path: Path) -> None:
    region = entry(tmp_path)
    assert region.nodes[0].entered
    assert "entered" not in msgspec.to_builtins(region.derp_region())["Nodes"][0]


def test_what_a_person_changes_is_not(tmp_path: Path) -> None:
    own = entry(tmp_path)
    (node,) = own.nodes
    replace = msgspec.structs.replace
    for after in (
        None,
        replace(own, nodes=[]),
        replace(own, name="Home"),
        replace(own, nodes=[replace(node, host_name="c.test")]),
        replace(own, nodes=[replace(node, host_name="c.test", entered="")]),
        replace(own, nodes=[node, OTHER]),
        replace(own, nodes=[node, node]),
        replace(own, name="Home", nodes=[replace(node, host_name="c.test")]),
    ):
        assert entering_relay(own, after) == ""
    assert entering_relay(replace(own, nodes=[OTHER]), own) == ""  # another relay went
    assert entering_relay(replace(own, nodes=[OTHER]), replace(own, nodes=[node, OTHER])) == "900a"


@pytest.mark.parametrize("entered", ["", "0" * 16, "x"])
def test_a_digest_that_does_not_fit_is_none(entered: str) -> None:
    node = RelayNode(name="900a", host_name="a.test", entered=entered)
    assert entering_relay(None, RelayRegionDoc(region_id=900, code="gw", name="GW", nodes=[node])) == ""
