"""The same policy spelled in TOML: `policy.toml` says what `policy.hujson` says, and each can be made of the other.

    acls = [...]                     [[acls]]
                                     action = "accept"
                                     src = ["group:admins"]
                                     dst = ["tag:nas:22"]

A TOML policy is read by way of its HuJSON, so that there is one reader; faults are told at their place in the TOML.

Ref: spec policy §3; toml.io v1.0
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection
from typing import Any, Final

from gw.policy.faults import PolicyError
from gw.policy.hujson import HuJSONError, parse, position, unheard_of
from gw.policy.model import Policy
from gw.policy.reader import read_policy

SUFFIX: Final = ".toml"
_PLACE: Final = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")


def read_toml_policy(raw: bytes, *, domains: Collection[str] | None = None) -> Policy:
    """The policy that a TOML text states. Raises PolicyError with lines of that text."""
    text = from_toml(raw)
    try:
        return read_policy(text, domains=domains)
    except PolicyError as error:
        located = [(*_place_in_toml(raw, text, line, column), message) for line, column, message in error.located]
        line, column = located[0][:2] if located else (0, 0)
        details = [f"line {line}, column {column}: {message}" for line, column, message in located]
        raise PolicyError(
            error.message, details=details or error.details, line=line, column=column, located=located
        ) from None


def from_toml(raw: bytes) -> bytes:
    """The HuJSON of a TOML policy; comments are not carried over. Raises PolicyError."""
    try:
        tables = tomllib.loads(raw.decode())
        return f"{json.dumps(tables, indent=1, ensure_ascii=False)}\n".encode()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        match = _PLACE.fullmatch(str(error))
        if match is None:
            raise PolicyError(f"not TOML: {error}") from None
        raise PolicyError(f"not TOML: {match[1]}", line=int(match[2]), column=int(match[3])) from None
    except ValueError as error:  # a number of more digits than `int` takes
        raise PolicyError(f"not TOML: {error}") from None
    except TypeError:
        raise PolicyError("not a policy: it has dates or times") from None


def to_toml(raw: bytes) -> bytes:
    """The TOML of a HuJSON policy; comments are not carried over. Raises PolicyError."""
    import tomlkit

    try:
        root = parse(raw)
    except HuJSONError as error:
        raise PolicyError(str(error), line=error.line, column=error.column) from None
    beyond = unheard_of(root)
    if beyond is not None:
        line, column = position(raw, beyond.start)
        raise PolicyError("TOML has no numbers beyond 64 bits", line=line, column=column)
    plain = root.plain()
    if not isinstance(plain, dict):
        raise PolicyError("policy: expected an object", line=1, column=1)
    return tomlkit.dumps(_without_null(plain)).encode()


def _without_null(value: Any) -> Any:
    """TOML has no null; in a policy it means the same as leaving out."""
    if isinstance(value, dict):
        return {name: _without_null(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value if item is not None]
    return value


def _place_in_toml(raw: bytes, text: bytes, line: int, column: int) -> tuple[int, int]:
    """Where the TOML says what the HuJSON says at a place: by the string that stands there, counted from the start."""
    start = sum(len(each) + 1 for each in text.split(b"\n")[: line - 1]) + column - 1
    match = re.compile(rb'"((?:[^"\\]|\\.)*)"').match(text, start)
    if match is None:
        return 0, 0
    word = match[1]
    before = len(re.findall(rb'"' + re.escape(word) + rb'"', text[:start]))
    name = re.escape(word)
    pattern = re.compile(rb"(?<![\w.-])(?:\"" + name + rb"\"|'" + name + rb"'|" + name + rb"(?=\s*[=.\]]))")
    places = [found.start() for found in pattern.finditer(raw)]
    if not places:
        return 0, 0
    at = places[min(before, len(places) - 1)]
    return raw.count(b"\n", 0, at) + 1, at - (raw.rfind(b"\n", 0, at) + 1) + 1
