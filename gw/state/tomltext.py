"""Reading TOML into structs, with errors that name file, line and key.

Ref: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import tomli

from gw.errors import ConfigError, GwError, NotFound, PermissionNeeded
from gw.state.tomlpositions import KeyPath, line_of

T = TypeVar("T")

MAX_FILE_BYTES: Final = 4 << 20  # no document of ours comes near; a file put here by mistake must not fill the memory

_AT: Final = re.compile(r"^(?P<text>.*?)(?: - at `(?P<at>[^`]*)`)?$", re.DOTALL)
_FIELD: Final = re.compile(r"^Object (?P<what>contains unknown|missing required) field `(?P<name>[^`]*)`$")
_STEP: Final = re.compile(r"\.([A-Za-z0-9_]+)|\[(\d+)\]|(\[\.\.\.\])|`?([^`]+)`?")


class NewerSchema(ConfigError):
    """The file was written by a newer version: nothing in it may be touched."""


def read_bytes(path: Path, *, what: str, hint: str = "`gwctl init --server-url URL` makes a new one") -> bytes:
    """The file's content. hint: where there is none.

    Raises NotFound, PermissionNeeded or ConfigError (too large, or no regular file).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"no {what}: `{path}`", hint=hint) from None
    except PermissionError:
        raise PermissionNeeded(f"may not read `{path}`", hint="use sudo, or run as the user who owns it") from None
    except OSError as error:
        raise GwError(f"cannot read `{path}`: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"larger than {MAX_FILE_BYTES >> 20} MiB", path=str(path))
    return raw


def text_of(raw: bytes, where: str) -> str:
    """The UTF-8 text of a file. Raises ConfigError with the line."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text", path=where, line=raw.count(b"\n", 0, error.start) + 1) from None


def parse(raw: bytes, where: str) -> dict[str, Any]:
    """The tables of a TOML file. where: what to call the file. Raises ConfigError with the line, nothing else."""
    text = text_of(raw, where)
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = error.msg[:1].lower() + error.msg[1:]
        raise ConfigError(f"not TOML: {message}", path=where, line=error.lineno) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets of thousands of levels
        raise ConfigError(f"not TOML: {error}", path=where) from None


def decode(raw: bytes, kind: type[T], where: str) -> T:
    """The struct in a TOML file. Raises ConfigError with line and key."""
    return convert(parse(raw, where), kind, raw, where)


def convert(tables: dict[str, Any], kind: type[T], raw: bytes, where: str) -> T:
    """The struct in already parsed tables of the file `raw`. Raises ConfigError with line and key."""
    try:
        return msgspec.convert(tables, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        text, path = _explain(str(error))
        raise fault(raw, where, path, text) from None


def refuse_newer(tables: dict[str, Any], newest: int, raw: bytes, where: str) -> None:
    """Raise NewerSchema if the file's `schema` is above what this version reads."""
    schema = tables.get("schema", newest)
    if isinstance(schema, int) and schema > newest:
        message = f"written by a newer GhostWire: schema {schema}, this version reads up to {newest}"
        line = line_of(raw.decode(errors="replace"), ("schema",))
        raise NewerSchema(message, path=where, line=line, key="schema", hint="install the newer version")


def fault(raw: bytes, where: str, path: KeyPath, message: str, *, hint: str | None = None) -> ConfigError:
    """A ConfigError at the key `path` of the file `raw`."""
    key = ".".join(str(step) for step in path)
    return ConfigError(message, path=where, line=line_of(raw.decode(errors="replace"), path), key=key, hint=hint)


def _explain(message: str) -> tuple[str, KeyPath]:
    """msgspec's message as ours, and the path of the key it speaks of."""
    match = _AT.match(message)
    text, at = (match["text"], match["at"] or "$") if match is not None else (message, "$")
    path: list[str | int] = []
    for name, index, _any, _other in _STEP.findall(at.removeprefix("$")):
        if name:
            path.append(name)
        elif index:
            path.append(int(index))
        else:
            break
    field = _FIELD.match(text)
    if field is not None:
        path.append(field["name"])
        return ("unknown key" if field["what"].startswith("contains") else "missing"), tuple(path)
    return text[:1].lower() + text[1:], tuple(path)
