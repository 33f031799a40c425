"""Which process serves which plane and lane, on which core."""

from __future__ import annotations

import pytest

from gw.engine.workers import Place, layout, usual_lanes

OUT, BOTH = ("outbound",), ("outbound", "inbound")


@pytest.mark.parametrize(
    ("usable", "lanes", "expected"),
    [
        ([0], 1, [("both", BOTH, 0, -1, 0)]),
        ([0], 2, [("both", BOTH, 0, -1, 0), ("both", BOTH, 1, -1, 1)]),
        ([0, 1], 1, [("outbound", OUT, 0, 0, 0), ("inbound", BOTH, 0, 1, 1)]),
        ([2, 5, 7], 1, [("outbound", OUT, 0, 2, 0), ("inbound", BOTH, 0, 5, 1)]),
        (
            [0, 1],
            2,
            [
                ("outbound", OUT, 0, 0, 0),
                ("inbound", BOTH, 0, 1, 2),
                ("outbound", OUT, 1, 0, 1),
                ("inbound", BOTH, 1, 1, 3),
            ],
        ),
        (
            [0, 1, 2, 3],
            2,
            [
                ("outbound", OUT, 0, 0, 0),
                ("inbound", BOTH, 0, 1, 2),
                ("outbound", OUT, 1, 2, 1),
                ("inbound", BOTH, 1, 3, 3),
            ],
        ),
    ],
)
def test_two_cores_take_a_plane_each_and_one_takes_both(usable: list[int], lanes: int, expected: list[tuple]) -> None:
    assert layout(usable, lanes) == [Place(*each) for each in expected]


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 4), (64, 4)])
def test_more_cores_more_lanes(cores: int, lanes: int) -> None:
    assert usual_lanes(cores) == lanes
