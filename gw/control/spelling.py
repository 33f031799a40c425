"""What people and clients write, checked: ids, tags, node keys."""

from __future__ import annotations

from typing import Final

from gw.errors import UsageError, WireError
from gw.model.keys import NodeKey

MAX_TAG_CHARS: Final = 100
MAX_ID_DIGITS: Final = 18


def number_of(text: str) -> int:
    """The number that an id's text says; 0, which nobody has, where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS else 0


def check_tag(tag: str) -> str:
    """A tag: `tag:`, a letter, then letters, digits and hyphens. Raises UsageError."""
    name = tag.removeprefix("tag:")
    plain = name.replace("-", "")
    if tag == name or not name[:1].isalpha() or not plain.isalnum() or not tag.isascii() or len(tag) > MAX_TAG_CHARS:
        raise UsageError(f"not a tag: `{tag}`", hint="write `tag:server`")
    return tag


def check_node_key(text: str) -> str:
    """A node key in canonical form. Raises UsageError for anything else, the zero key included."""
    try:
        key = NodeKey.parse(text)
    except WireError:
        raise UsageError("not a node key") from None
    if not key:
        raise UsageError("the zero node key")
    return str(key)
