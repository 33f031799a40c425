"""What the person at this node wants, kept over restarts: `node/prefs.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from gw.errors import ConfigError, UsageError
from gw.localapi.prefs import Prefs
from gw.state.files import make_folder, write_atomic

FILE: Final = "prefs.toml"
SCHEMA: Final = 1


def load_prefs(folder: Path) -> Prefs:
    """The kept preferences, or those of a new node. Raises ConfigError."""
    path = folder / FILE
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Prefs(corp_dns=True)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=str(path)) from error
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ConfigError(
            f"schema {schema} is not known here",
            path=str(path),
            key="schema",
            hint="use the gwd that wrote it, or newer",
        )
    known = {field.name for field in msgspec.structs.fields(Prefs)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError("no such preference", path=str(path), key=unknown[0])
    try:
        return msgspec.convert({_wire(name): value for name, value in values.items()}, Prefs)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), path=str(path)) from None


def save_prefs(folder: Path, prefs: Prefs) -> None:
    """Durable when it returns."""
    lines = ["# written by gwd; change it with gw up and gw set", f"schema = {SCHEMA}"]
    for name, value in msgspec.structs.asdict(prefs).items():
        lines.append(f"{name} = {_toml(value)}")
    make_folder(folder, 0o700)
    write_atomic(folder / FILE, ("\n".join(lines) + "\n").encode(), 0o600)


def edited(prefs: Prefs, masked: dict[str, Any]) -> Prefs:
    """Preferences after a MaskedPrefs object: each field whose `…Set` flag is true. Raises UsageError."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(Prefs):
        if masked.get(f"{field.encode_name}Set"):
            changes[field.encode_name] = masked.get(field.encode_name)
    known = {name for field in msgspec.structs.fields(Prefs) for name in (field.encode_name, f"{field.encode_name}Set")}
    for name, value in masked.items():
        if name.endswith("Set") and value and name not in known:
            raise UsageError(f"no such preference: `{name.removesuffix('Set')}`")
    try:
        return msgspec.convert({**msgspec.to_builtins(prefs), **changes}, Prefs)
    except msgspec.ValidationError as error:
        raise UsageError(f"preference refused: {error}") from None


def _wire(name: str) -> str:
    return next(field.encode_name for field in msgspec.structs.fields(Prefs) if field.name == name)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return msgspec.json.encode(value).decode()  # a JSON string is a TOML basic string
