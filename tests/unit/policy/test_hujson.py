"""The HuJSON reader: spec policy §1."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.policy.hujson import MAX_DEPTH, HuJSONError, compact, parse, position

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_every_json_text_reads_as_json_does(value: object) -> None:
    assert parse(json.dumps(value).encode()).plain() == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[],:"/*\\ \n1atrue', max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_the_one_error(raw: bytes) -> None:
    try:
        value = parse(raw)
    except HuJSONError as error:
        assert error.line >= 1
        assert error.column >= 1
    else:
        assert 0 <= value.start < value.end <= len(raw)


def test_comments_and_trailing_commas_are_read_over() -> None:
    raw = b'// head\n{ "a": [1, /* two */ 2,], // rest\n "b": "// no comment", }\n/* tail */'
    assert parse(raw).plain() == {"a": [1, 2], "b": "// no comment"}


def test_every_value_knows_its_bytes() -> None:
    """So that an editor can replace one and keep every comment around it."""
    raw = b'{ /* why */ "a": [10, "x"] }'
    root = parse(raw)
    assert isinstance(root.data, dict)
    member = root.data["a"]
    assert raw[member.start :].startswith(b'"a"')
    assert raw[member.value.start : member.value.end] == b'[10, "x"]'
    assert isinstance(member.value.data, list)
    assert [raw[item.start : item.end] for item in member.value.data] == [b"10", b'"x"']


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"1e400", float("inf")),
        (b"-1e999", float("-inf")),
        (b"1e-400", 0.0),
        (rb'"a\ud800b"', "a\ufffdb"),
        (rb'"\uDC00\ud83d\ude00\uD83D"', "\ufffd\U0001f600\ufffd"),
        (rb'"\\ud800"', "\\ud800"),
        (rb'"\ud800\\udc00"', "\ufffd\\udc00"),
    ],
)
def test_what_go_takes_as_json_is_json(raw: bytes, data: object) -> None:
    """encoding/json checks the form of numbers and escapes; half a surrogate pair reads as U+FFFD."""
    assert parse(raw).plain() == data
    assert compact(raw, parse(raw)) == raw.decode()


@given(JSON_VALUES)
def test_compact_leaves_out_space_and_comments_alone(value: object) -> None:
    raw = json.dumps(value, indent=1).encode()
    assert compact(raw, parse(raw)) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "line 1, column 1: parsing value: unexpected EOF"),
        (b"  // only\n", "line 2, column 1: parsing value: unexpected EOF"),
        (b"{} // no newline", "line 1, column 17: parsing comment: unexpected EOF"),
        (b"{ /* open", "line 1, column 10: parsing comment: unexpected EOF"),
        (b"[,]", "line 1, column 2: invalid character ',' at start of value"),
        (b"{,}", "line 1, column 2: invalid character ',' at start of object name"),
        (b"[1,,2]", "line 1, column 4: invalid character ',' at start of value"),
        (b"[1 2]", "line 1, column 4: invalid character '2' after array value (expecting ',' or ']')"),
        (b'{"a":1 "b"}', "line 1, column 8: invalid character '\"' after object value (expecting ',' or '}')"),
        (b'{"a" 1}', "line 1, column 6: invalid character '1' after object name"),
        (b'{"a"', "line 1, column 5: parsing object after name: unexpected EOF"),
        (b'{"a":1', "line 1, column 7: parsing object after value: unexpected EOF"),
        (b"[1", "line 1, column 3: parsing array after value: unexpected EOF"),
        (b'"a', "line 1, column 3: parsing string: unexpected EOF"),
        (b"{} {}", "line 1, column 4: invalid character '{' after top-level value"),
        (b"{\n  a: 1}", "line 2, column 3: invalid character 'a' at start of object name"),
        (b"\xef\xbb\xbf{}", "line 1, column 1: invalid character '\\ufeff' at start of value"),
        (b"NaN", "line 1, column 1: invalid literal: NaN"),
        (b"0x10", "line 1, column 1: invalid literal: 0x10"),
        (b"+1", "line 1, column 1: invalid literal: +1"),
        (b'"\x01"', 'line 1, column 1: invalid literal: "\x01"'),
        (b"/* \xff */ 1", "line 1, column 1: invalid UTF-8 in comment"),
        (b'{"a":1,\n "a":2}', "line 2, column 2: duplicate object name 'a'"),
    ],
)
def test_what_is_not_hujson_is_refused_where_it_stands(raw: bytes, message: str) -> None:
    with pytest.raises(HuJSONError) as caught:
        parse(raw)
    assert str(caught.value) == f"hujson: {message}"


def test_depth_has_a_limit_and_no_recursion_error() -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(HuJSONError, match="levels deep"):
        parse(b"[" * 100_000)


@given(st.text(alphabet="a\né", max_size=40))
def test_columns_count_bytes_from_the_line_start(text: str) -> None:
    raw = text.encode()
    for offset in range(len(raw) + 1):
        before = raw[:offset].split(b"\n")
        assert position(raw, offset) == (len(before), len(before[-1]) + 1)
