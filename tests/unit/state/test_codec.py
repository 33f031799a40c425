from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from gw.errors import ConfigError, UsageError
from gw.state.codec import _CANONICAL, _decode_canonical, decode, encode, rewrite
from gw.state.documents import (
    PLACES,
    AnyDocument,
    Kind,
    NodeDoc,
    PreauthKeyDoc,
    RelayNode,
    RelayRegionDoc,
    ServerDoc,
    UserDoc,
    file_name,
    key_of,
)
from gw.state.tomltext import NewerSchema, convert, parse

text = st.text(st.characters(codec="utf-8"), max_size=12)
name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
number = st.integers(0, 2**62)
when = st.datetimes(timezones=st.just(UTC)) | st.datetimes(
    datetime(1000, 1, 1),  # noqa: DTZ001  the bounds hypothesis asks for are naive
    timezones=st.just(timezone(timedelta(hours=5, minutes=30))),
)
DOCUMENTS: st.SearchStrategy[AnyDocument] = st.one_of(
    st.builds(UserDoc, id=number, name=name, display_name=text, email=text, created=when, revision=number),
    st.builds(
        NodeDoc, id=number, machine_key=text, node_key=text, user=text, given_name=text,
        addresses=st.lists(text, max_size=3), created=when, expiry=st.none() | when,
        tags=st.lists(text, max_size=3), ephemeral=st.booleans(),
        register_method=st.sampled_from(["authkey", "cli"]), last_seen=st.none() | when,
    ),
    st.builds(PreauthKeyDoc, id=number, prefix=name, hash=text, created=when, expiration=st.none() | when),
    st.builds(
        RelayRegionDoc, region_id=number, code=text, name=text,
        nodes=st.lists(st.builds(RelayNode, name=text, host_name=text, stunport=st.integers(-1, 65535)), max_size=3),
    ),
    st.builds(ServerDoc, next_node_id=number),
)  # fmt: skip


def read(kind: Kind, raw: bytes, name: str | None = None) -> AnyDocument:
    document, _ = decode(kind, name or "7.toml", raw, "control/x.toml", {})
    return document


@given(DOCUMENTS)
def test_what_is_written_is_read_back_equal_and_is_toml(document: AnyDocument) -> None:
    try:
        file = file_name(document.key)
    except UsageError:
        return
    raw = encode(document)
    tomli.loads(raw.decode())
    assert decode(document.kind, file, raw, "x", {}) == (document, False)


@given(DOCUMENTS)
def test_the_short_cut_and_tomli_agree_on_what_we_write(document: AnyDocument) -> None:
    raw = encode(document)
    short = _decode_canonical(document.kind, raw)
    if short is not None:
        assert short == convert(parse(raw, ""), PLACES[document.kind].type, raw, "")


def test_our_own_plain_documents_take_the_short_cut(node: Callable[..., NodeDoc]) -> None:
    raw = encode(node(7, tags=["tag:a", "tag:b"], expiry=datetime(2027, 1, 1, tzinfo=UTC), hostname="zoë"))
    assert _decode_canonical("node", raw) is not None


@given(data=st.data())
def test_any_change_to_a_canonical_text_reads_the_same_both_ways(data: st.DataObject) -> None:
    """The short cut may refuse what TOML allows, never accept what TOML refuses or reads differently."""
    created = datetime(2026, 11, 24, 4, 30, 0, 250000, tzinfo=UTC)
    raw = encode(
        NodeDoc(id=7, machine_key="m", node_key="n", user="u", given_name="g", addresses=["a", "b"], created=created)
    )
    at = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.integers(0, 6))
    piece = data.draw(
        st.binary(max_size=3)
        | st.sampled_from([b"null", b"0", b"-1", b"01", b"1.0", b"1e3", b'"', b'""', b"\\", b"\n", b"id = 7\n", b"[]",
                           b"{}", b"[1]", b", ", b"true", b"Z", b"+00:00", b"99", b"\t", b"\x7f", b"\xc3", b"'", b"#"])
    )  # fmt: skip
    changed = raw[:at] + piece + raw[at + cut :]
    short = _decode_canonical("node", changed)
    if short is not None:
        assert short == convert(parse(changed, ""), NodeDoc, changed, "")


@given(st.sampled_from(list(PLACES)), st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_config_error(kind: Kind, raw: bytes) -> None:
    try:
        read(kind, raw)
    except ConfigError as error:
        assert error.path == "control/x.toml"
        assert error.line is None or error.line >= 1


@pytest.mark.parametrize(
    ("change", "line", "key", "says"),
    [
        (("user = ", "usr = "), 6, "usr", "unknown key"),
        (('given_name = "node-7"\n', ""), None, "given_name", "missing"),
        (("ephemeral = false", "ephemeral = 0"), 12, "ephemeral", "expected `bool`"),
        (('"100.64.0.8", ', "5, "), 8, "addresses.0", "expected `str`"),
        (("id = 7", "id = 8"), 3, "id", "does not fit the name of the file"),
        (("04:30:00Z", "04:30:00"), 10, "created", "timezone"),
        (("04:30:00Z", "04:61:00Z"), 10, None, "not TOML"),
        (('"cli"', '"magic"'), 12, "register_method", "magic"),
        (("schema = 1", "schema = 2"), 1, "schema", "newer GhostWire"),
        (("schema = 1", "schema = 0"), None, None, ""),
    ],
)
def test_a_broken_document_names_line_and_key(
    node: Callable[..., NodeDoc], change: tuple[str, str], line: int | None, key: str | None, says: str
) -> None:
    raw = encode(node(7)).decode().replace(*change)
    if change[1] == "schema = 0":
        assert decode("node", "7.toml", raw.encode(), "x", {})[1], "older schemas are migrated"
        return
    with pytest.raises(ConfigError, match=says) as caught:
        read("node", raw.encode())
    assert caught.value.key == key
    if key is not None and line is not None:
        assert raw.split("\n")[(caught.value.line or 0) - 1].startswith(key.partition(".")[0])


def test_a_newer_schema_is_told_apart(node: Callable[..., NodeDoc]) -> None:
    with pytest.raises(NewerSchema):
        read("node", encode(node(7)).replace(b"schema = 1", b"schema = 9\nbrand_new = 1"))


HAND_WRITTEN = b"""\
# Anna's laptop, see ticket 12
schema = 1

id = 7   # never change
given_name = "lap"
machine_key = "m"
node_key = "n"
created = 2026-11-24T04:30:00Z
tags = [
  "tag:a",  # first
  "tag:b",
]
"""


def test_rewriting_keeps_comments_order_and_blank_lines() -> None:
    document = read("node", HAND_WRITTEN)
    assert isinstance(document, NodeDoc)
    new = rewrite(HAND_WRITTEN, document.edited(given_name="laptop", user="anna")).decode()
    assert read("node", new.encode()) == document.edited(given_name="laptop", user="anna")
    for kept in ("# Anna's laptop", "id = 7   # never change", '  "tag:a",  # first', "\n\nid = 7"):
        assert kept in new
    assert new.index('given_name = "laptop"') < new.index("machine_key")


def test_rewriting_drops_what_is_no_longer_set(node: Callable[..., NodeDoc]) -> None:
    dated = node(7, expiry=datetime(2027, 1, 1, tzinfo=UTC))
    old = b"# mine\n" + encode(dated)
    new = rewrite(old, dated.edited(expiry=None))
    assert b"expiry" not in new and new.startswith(b"# mine\n")


def test_rewriting_a_table_array_keeps_the_comments_in_it() -> None:
    region = RelayRegionDoc(region_id=7, code="gw", name="x", nodes=[RelayNode(name="7a", host_name="old")])
    old = encode(region).replace(b'name = "7a"', b'name = "7a"  # the one in the cellar')
    edited = region.edited(nodes=[RelayNode(name="7a", host_name="new")])
    new = rewrite(old, edited)
    assert b"# the one in the cellar" in new and read("relay", new) == edited
    longer = region.edited(nodes=[*edited.nodes, RelayNode(name="7b", host_name="z")])
    assert read("relay", rewrite(old, longer)) == longer


@given(DOCUMENTS, st.binary(max_size=60))
def test_rewriting_over_any_text_gives_the_document(document: AnyDocument, old: bytes) -> None:
    try:
        file = file_name(document.key)
    except UsageError:
        return
    assert decode(document.kind, file, rewrite(old, document), "x", {})[0] == document


def test_text_that_is_no_unicode_is_refused_before_it_is_written(user: Callable[..., UserDoc]) -> None:
    with pytest.raises(UsageError, match="not Unicode"):
        encode(user("a", display_name="\ud800"))


@given(st.text(max_size=60))
def test_a_key_and_its_file_name_belong_together(key: str) -> None:
    try:
        file = file_name(key)
    except UsageError:
        return
    assert "/" not in file and "\0" not in file and not file.startswith(".") and len(file.encode()) <= 205
    assert key_of("user", file) == key


@pytest.mark.parametrize(
    ("key", "file"),
    [("anna@example.org", "anna@example.org.toml"), ("../etc/passwd", "%2E.%2Fetc%2Fpasswd.toml"), (".x", "%2Ex.toml"),
     ("zoë", "zoë.toml"), ("a/b", "a%2Fb.toml"), ("100%", "100%25.toml"), (7, "7.toml")],
)  # fmt: skip
def test_file_names_are_readable_and_never_leave_the_folder(key: str | int, file: str) -> None:
    assert file_name(key) == file


@pytest.mark.parametrize("name", ["x", "07.toml", "-1.toml", "a.toml", "7.toml~", "٧.toml", ".toml", "7.TOML"])
def test_other_names_are_no_nodes(name: str) -> None:
    assert key_of("node", name) is None


@pytest.mark.parametrize("key", ["", "x" * 201, "é" * 101, "\ud800"])
def test_keys_that_cannot_name_a_file_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        file_name(key)


def test_documents_do_not_change_in_place(user: Callable[..., UserDoc]) -> None:
    anna = user("anna")
    with pytest.raises(AttributeError):
        anna.email = "x"  # type: ignore[misc]
    assert anna.edited(email="x").revision == anna.revision + 1 and anna.email == ""


def test_a_region_becomes_the_protocols_region() -> None:
    region = RelayRegionDoc(
        region_id=900, code="gw", name="Home", nodes=[RelayNode(name="900a", host_name="h", derpport=8443)]
    ).derp_region()
    wire: dict[str, Any] = msgspec.to_builtins(region)
    assert (wire["RegionID"], wire["RegionCode"]) == (900, "gw")
    assert wire["Nodes"] == [{"Name": "900a", "RegionID": 900, "HostName": "h", "DERPPort": 8443}]


def test_the_pattern_is_linear_on_hostile_text() -> None:
    """No nested repetition that a crafted file could make exponential."""
    for piece in (b'a = "x"\n', b'a = ["x", "x", "x"]\n', b"a = 0\n"):
        assert _CANONICAL.fullmatch(piece * 20000 + b"!") is None
