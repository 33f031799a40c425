"""Which process serves which plane, on which core."""

from __future__ import annotations

import pytest

from gw.engine.workers import layout


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        ([0], [(("outbound", "inbound"), -1)]),
        ([0, 1], [(("outbound",), 0), (("inbound",), 1)]),
        ([2, 5, 7], [(("outbound",), 2), (("inbound",), 5)]),
    ],
)
def test_two_cores_take_a_plane_each_and_one_takes_both(usable: list[int], expected: object) -> None:
    assert layout(usable) == expected
