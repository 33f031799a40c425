"""Words of the command line to values, without pydantic.

Typer builds a pydantic adapter for each parameter as soon as a command runs: 0.1 s of imports to find out that a string
is a string. The plain types that our commands take are read here; anything else goes Typer's own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import typer
from typer import core

_TRUE: Final = frozenset(("1", "true", "t", "yes", "y", "on"))
_FALSE: Final = frozenset(("", "0", "false", "f", "no", "n", "off"))


def _boolean(word: str) -> bool:
    lowered = word.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError
    return lowered in _TRUE


def _decimal(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError
    return number


_READERS: Final[dict[Any, tuple[Callable[[str], Any], str]]] = {
    str: (str, "text"),
    bool: (_boolean, "true or false"),
    int: (int, "a whole number"),
    float: (_decimal, "a number"),
    Path: (Path, "a path"),
}


@final
@dataclass(frozen=True)
class PlainParam:
    """Typer's `RuntimeParam` for one plain type, or a list of it. least, most: the bounds, both included."""

    kind: Any
    many: bool
    least: float | None
    most: float | None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the command's annotation has it; raises `BadParameter`."""
        if value is None:
            return () if self.many else None
        if self.many:
            return [self._one(each, param, ctx) for each in value]
        return self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        read, meaning = _READERS[self.kind]
        try:
            found = read(value) if isinstance(value, str) else self.kind(value)
        except ValueError as error:
            raise typer.BadParameter(f"`{value}` is not {meaning}", ctx=ctx, param=param) from error
        if (self.least is not None and found < self.least) or (self.most is not None and found > self.most):
            raise typer.BadParameter(f"`{value}` is not {self._allowed()}", ctx=ctx, param=param)
        return found

    def _allowed(self) -> str:
        if self.most is None:
            return f"{self.least} or more"
        return f"{self.most} or less" if self.least is None else f"in {self.least} to {self.most}"


def plain(descriptor: Any) -> PlainParam | None:
    """Our reader for a parameter; None where it needs more than a plain type with bounds."""
    info = descriptor.parameter_info
    kind, many = descriptor.annotation, False
    if getattr(kind, "__origin__", None) is list:
        kind, many = kind.__args__[0], True
    known = kind in _READERS if isinstance(kind, type) else False
    special = info.parser is not None or info.clamp or descriptor.is_choice or descriptor.is_file
    checked = kind is Path and any(
        (info.exists, info.writable, info.resolve_path, info.allow_dash, info.path_type, not info.file_okay)
    )
    return None if not known or special or checked else PlainParam(kind, many, info.min, info.max)


def install() -> None:
    """Put our reader before Typer's. A Typer that has moved its hook keeps its own way, only slower."""
    general = getattr(core, "build_runtime_param", None)
    if general is None or getattr(general, "plain", False):
        return

    def build(descriptor: Any) -> Any:
        return plain(descriptor) or general(descriptor)

    build.plain = True  # type: ignore[attr-defined]
    core.build_runtime_param = build  # type: ignore[attr-defined]
