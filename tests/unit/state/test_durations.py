from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import UsageError
from gw.state.durations import LONGEST_S, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("1h30m", 5400), ("1.5h", 5400),
     ("250ms", 0.25), ("2w", 1209600), ("1y", 31536000), (" 5m ", 300), ("0s", 0)],
)  # fmt: skip
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "-5m", "m", "5 m", "5x", "1h30", "١s", "1e3s", "201y", "9999999999999s"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration") as caught:
        parse_duration(text)
    assert caught.value.hint is not None and "24h" in caught.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_bounded_number_or_usage_error(text: str) -> None:
    try:
        assert 0 <= parse_duration(text) <= LONGEST_S
    except UsageError:
        pass
