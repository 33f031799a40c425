"""A document as TOML text and back.

`encode` writes one canonical form: a key a line in the order of the struct, lists on one line, tables last. Reading
50,000 documents is the start-up of a control server, so text of exactly that form takes a short cut: checked by one
regular expression, it is rearranged into JSON and decoded straight into the struct. Everything else (comments, other
spellings, escapes, tables) goes through tomli. Both ways give the same value, which a property test holds.

`rewrite` keeps what a person wrote around the values: comments, order, blank lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import msgspec

from gw.errors import ConfigError, UsageError
from gw.state.documents import PLACES, SCHEMA, AnyDocument, Document, Kind, file_name
from gw.state.migrations import Migrations, migrate
from gw.state.tomltext import convert, fault, parse, refuse_newer

_STRING: Final = rb'"[^"\\\x00-\x1f\x7f]*"'
_CANONICAL: Final = re.compile(
    rb"(?:[a-z][a-z0-9_]* = (?:" + _STRING + rb"|0|[1-9][0-9]{0,17}|true|false|\[\]|\[" + _STRING + rb"(?:, " + _STRING
    + rb")*\]|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})?Z)\n)+"
)  # fmt: skip
_DIGITS: Final = frozenset(b"0123456789")


def decode(kind: Kind, name: str, raw: bytes, where: str, migrations: Migrations) -> tuple[AnyDocument, bool]:
    """The document in a file, and whether it had to be migrated.

    name: of the file, which the key in it must match; where: what errors call the file.
    Raises ConfigError with line and key; NewerSchema, a kind of it, for a schema that only a newer version reads.
    """
    document = _decode_canonical(kind, raw)
    migrated = False
    if document is None or document.schema != SCHEMA:
        tables = parse(raw, where)
        refuse_newer(tables, SCHEMA, raw, where)
        migrated = migrate(kind, tables, SCHEMA, migrations)
        document = convert(tables, PLACES[kind].type, raw, where)
    try:
        expected = file_name(document.key)
    except UsageError:
        expected = ""
    if expected != name:
        key = {"user": "name", "preauthkey": "prefix", "apikey": "prefix", "relay": "region_id"}.get(kind, "id")
        raise fault(
            raw, where, (key,), f"`{document.key}` does not fit the name of the file",
            hint=f"the file of `{document.key}` is `{expected}`" if expected else None,
        )  # fmt: skip
    return document, migrated


@cache
def _json_decoder(kind: Kind) -> msgspec.json.Decoder[AnyDocument]:
    return msgspec.json.Decoder(PLACES[kind].type)


def _decode_canonical(kind: Kind, raw: bytes) -> AnyDocument | None:
    if _CANONICAL.fullmatch(raw) is None:
        return None
    pairs: list[bytes] = []
    keys: set[bytes] = set()
    for line in raw[:-1].split(b"\n"):
        key, _, value = line.partition(b" = ")
        keys.add(key)
        if value[0] in _DIGITS and value[-1] == 90:  # a time, ends in Z
            pairs.append(b'"%b":"%b"' % (key, value))
        else:
            pairs.append(b'"%b":%b' % (key, value))
    if len(keys) != len(pairs):
        return None
    try:
        return _json_decoder(kind).decode(b"{" + b",".join(pairs) + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def encode(document: Document) -> bytes:
    """The canonical text of a document. Raises UsageError for text that is no Unicode."""
    try:
        return "".join(_lines(document)).encode()
    except UnicodeEncodeError:
        raise UsageError(f"not Unicode text in {document.kind} `{document.key!r}`") from None


def _lines(struct: msgspec.Struct) -> list[str]:
    lines: list[str] = []
    tables: list[str] = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if value is None:
            continue
        if isinstance(value, list) and value and isinstance(value[0], msgspec.Struct):
            for item in value:
                tables.append(f"\n[[{name}]]\n")
                tables += _lines(item)
        else:
            lines.append(f"{name} = {_value(value)}\n")
    return lines + tables


def _value(value: object) -> str:
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    raise TypeError(f"no TOML for {type(value).__name__}")


def rewrite(old: bytes, document: AnyDocument) -> bytes:
    """The text of `document` that keeps the comments, order and spacing of the file `old`."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    plain = encode(document)
    try:
        kept = tomlkit.parse(old.decode())
        _update(kept, parse(plain, ""))
        text = tomlkit.dumps(kept).encode()
        decoded, _ = decode(document.kind, file_name(document.key), text, "", {})
    except (TOMLKitError, ConfigError, ValueError, RecursionError):
        return plain
    return text if decoded == document else plain


def _update(kept: Any, wanted: Mapping[str, Any]) -> None:
    """Bring tomlkit's table to the wanted values, touching only what differs."""
    for key in [key for key in kept if key not in wanted]:
        del kept[key]
    for key, value in wanted.items():
        if key not in kept:
            kept[key] = value
        elif kept[key] != value:
            old = kept[key]
            if isinstance(value, list) and value and isinstance(value[0], dict) and len(old) == len(value):
                for old_item, item in zip(old, value, strict=True):
                    _update(old_item, item)
            else:
                kept[key] = value
