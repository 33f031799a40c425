"""The table of `gw top` on terminals of any size."""

from __future__ import annotations

from typing import Any

import pytest

from gw.tui.toptable import as_object, lines
from gw.tui.viewmodel import MeshView

WALL = 1_800_000_000.0


def mesh_of(count: int, **status: Any) -> MeshView:
    peers = {
        f"nodekey:{number}": {
            "DNSName": f"a-rather-long-host-name-{number}.mesh.", "Online": True, "RxBytes": count - number,
            "CurAddr": "[2001:db8:1111:2222:3333:4444:5555:6666]:41641", "LastHandshake": "2027-01-15T07:59:30Z",
        }
        for number in range(count)
    }  # fmt: skip
    mesh = MeshView()
    mesh.apply({"Status": {"BackendState": "Running", "Self": {"DNSName": "me.mesh."}, "Peer": peers, **status}})
    return mesh


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 10), (20, 3), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_a_table_never_leaves_its_screen(size: tuple[int, int], count: int) -> None:
    width, height = size
    text = lines(mesh_of(count, Health=["the disk is full"]), WALL, width=width, height=height)
    assert all(len(line) <= width for line in text)
    assert len(text) <= max(height, 6)


def test_what_does_not_fit_is_counted() -> None:
    text = lines(mesh_of(500), WALL, width=100, height=24)
    assert len(text) == 24
    assert text[-1] == "… 480 more"
    assert text[3].startswith("a-rather")


def test_colours_are_kept_off_where_nobody_wants_them() -> None:
    mesh = mesh_of(2)
    mesh.apply({"Peers": {"nodekey:0": {"Drops": {"acl": 1}}}})
    assert "\x1b" not in "".join(lines(mesh, WALL, width=100, height=24))
    coloured = lines(mesh, WALL, width=100, height=24, colour=True)
    assert coloured[3].startswith("\x1b[33ma-rather")
    assert coloured[4].startswith("a-rather")


def test_a_node_that_is_not_up_says_so() -> None:
    mesh = MeshView()
    mesh.apply({"Status": {"BackendState": "NeedsLogin"}})
    assert lines(mesh, WALL)[0] == "this node  needs-login  (gw status tells what to do)"
    assert as_object(mesh, WALL)["State"] == "needs-login"
