"""How `gwctl` prints: `-o json|json-line|yaml` as Headscale has it, `--json`, or a table for people."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from gw.commands import shell
from gw.errors import UsageError

FORMATS: Final = ("json", "json-line", "yaml")
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="FORMAT", help="json, json-line or yaml.")]

_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./@-]*")
_RESERVED: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def check_format(chosen: str | None) -> str:
    """The format in force: `-o`, else `--json`, else "" for people. Raises UsageError."""
    if chosen not in (None, "", *FORMATS):
        raise UsageError(f"unknown output format: `{chosen}`", hint=f"one of {', '.join(FORMATS)}")
    return chosen or ("json" if shell.settings().json else "")


def show(value: Any, chosen: str | None, people: Callable[[], str]) -> None:
    """Print a result. value: JSON-able; people: its text for a person, asked for only if it is printed."""
    match check_format(chosen):
        case "":
            shell.say(people())
        case "yaml":
            shell.say(yaml_text(value))
        case "json-line":
            shell.say(_json(value, indent=0))
        case _:
            shell.say(_json(value, indent=2))


def _json(value: Any, *, indent: int) -> str:
    import msgspec

    from gw.model.gojson import mend_surrogates

    raw = mend_surrogates(msgspec.json.encode(value))
    return (msgspec.json.format(raw, indent=indent) if indent else raw).decode()


def yaml_text(value: Any, depth: int = 0) -> str:
    """The value in YAML's block style; strings that YAML could misread are quoted as in JSON."""
    pad = "  " * depth
    if isinstance(value, dict) and value:
        return "\n".join(f"{pad}{_scalar(key)}:{_nested(item, depth)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "\n".join(f"{pad}- {yaml_text(item, depth + 1).lstrip()}" for item in value)
    return pad + _scalar(value)


def _nested(value: Any, depth: int) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + yaml_text(value, depth + 1)
    return " " + _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return _json(value, indent=0)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two blanks apart, below their headings."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def moment(text: str | None, nothing: str = "-") -> str:
    """A time of the API as a person reads it, in the local zone."""
    if not text:
        return nothing
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def yes(value: object) -> str:
    return "yes" if value else "no"


def confirm(question: str, *, force: bool) -> None:
    """Ask before something that cannot be undone. Without a terminal the answer is no: `--force` says yes."""
    if force:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question[:1].lower()}{question[1:]} needs a confirmation", hint="add --force")
    if not typer.confirm(question + "?", err=True):
        raise typer.Abort


Force = Annotated[bool, typer.Option("--force", "-f", "--yes", "-y", help="Do not ask.")]
