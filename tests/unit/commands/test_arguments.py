"""Words to values: the plain types, their bounds, and what is left to Typer."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.models import OptionInfo

from gw.commands import arguments


def reader(kind: Any, **info: Any) -> arguments.PlainParam | None:
    described = SimpleNamespace(annotation=kind, parameter_info=OptionInfo(**info), is_choice=False, is_file=False)
    return arguments.plain(described)


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        (str, "x", "x"),
        (str, "", ""),
        (bool, "Yes", True),
        (bool, "0", False),
        (bool, "", False),
        (int, " 41641", 41641),
        (float, "0.5", 0.5),
        (Path, "~/key", Path("~/key")),
        (int, 7, 7),
        (bool, True, True),
        (str, None, None),
        (list[str], ("a", "b"), ["a", "b"]),
        (list[str], None, ()),
    ],
)
def test_plain_types_are_read(kind: Any, word: Any, value: Any) -> None:
    found = reader(kind)
    assert found is not None
    assert found.coerce(word, None, None) == value


@pytest.mark.parametrize(
    ("kind", "word", "text"),
    [
        (bool, "maybe", "`maybe` is not true or false"),
        (int, "1.5", "`1.5` is not a whole number"),
        (int, "", "`` is not a whole number"),
        (float, "nan", "`nan` is not a number"),
        (float, "inf", "`inf` is not a number"),
    ],
)
def test_what_cannot_be_read_is_a_bad_parameter(kind: Any, word: str, text: str) -> None:
    found = reader(kind)
    assert found is not None
    with pytest.raises(typer.BadParameter, match=text):
        found.coerce(word, None, None)


def test_bounds_are_held() -> None:
    found = reader(int, min=0, max=65535)
    assert found is not None
    assert found.coerce("65535", None, None) == 65535
    for word in ("-1", "65536"):
        with pytest.raises(typer.BadParameter, match="is not in 0 to 65535"):
            found.coerce(word, None, None)
    least = reader(int, min=1)
    assert least is not None
    with pytest.raises(typer.BadParameter, match="is not 1 or more"):
        least.coerce("0", None, None)


def test_other_types_are_left_to_typer() -> None:
    colour = Enum("colour", ["red"])
    assert reader(colour) is None
    assert reader(str, parser=str.upper) is None
    assert reader(int, clamp=True, max=3) is None
    assert reader(Path, exists=True) is None
    assert reader(tuple[int, int]) is None


def test_installing_twice_puts_it_in_once() -> None:
    arguments.install()
    first = typer.core.build_runtime_param
    arguments.install()
    assert typer.core.build_runtime_param is first
