from __future__ import annotations

from typing import Any

import pytest
import tomli
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from gw.state.tomlpositions import KeyPath, line_of

TEXT = '''\
# a comment with = and [brackets]
title = "a # b"  # really
multi = """
x = 1
""\\"
"""
literal = \'\'\'
[no.table]
\'\'\'
numbers = [ # first
  1,
  2, 3,
  [ 4,
    5 ],
]
point = { x = 1, y.z = "}" }

[a."b.c".d]
key = 1979-05-27T07:32:00Z
dotted.deep = true

[[list]]
name = "one"
[list.sub]
x = 1
[[list]]
name = "two"
[[list.items]]
q = 1
[[list.items]]
q = 2
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2), (("multi",), 3), (("literal",), 7), (("numbers",), 10), (("numbers", 0), 11),
        (("numbers", 2), 12), (("numbers", 3, 1), 14), (("point", "x"), 16), (("point", "y", "z"), 16),
        (("a", "b.c", "d"), 18), (("a", "b.c", "d", "key"), 19), (("a", "b.c", "d", "dotted", "deep"), 20),
        (("list", 0, "name"), 23), (("list", 0, "sub", "x"), 25), (("list", 1, "name"), 27),
        (("list", 1, "items", 1, "q"), 31), (("list", 1, "absent"), 26), (("absent",), None), (("title", "sub"), 2),
    ],
)  # fmt: skip
def test_each_key_is_found_on_its_line(path: KeyPath, line: int | None) -> None:
    tomli.loads(TEXT)
    assert line_of(TEXT, path) == line
    assert line_of(TEXT.replace("\n", "\r\n"), path) == line


def test_text_that_is_no_toml_gives_no_line_and_no_error() -> None:
    for text in ("[", "a = [", 'a = "', "= 3", "a = {b", "[[x", "a.= 1"):
        assert line_of(text, ("zz",)) is None


keys = st.text(alphabet="abcxyz_-09 .\"'é#=[", min_size=1, max_size=6)
values = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=5))
def test_every_key_of_any_document_is_found_on_a_line_that_holds_it(tables: dict[str, Any]) -> None:
    text = tomlkit.dumps(tables)
    lines = text.replace("\r\n", "\n").split("\n")
    for key in tomli.loads(text):
        line = line_of(text, (key,))
        if all(char.isalnum() or char in "_-" for char in key) and key.isascii():
            assert line is not None and key in lines[line - 1]
