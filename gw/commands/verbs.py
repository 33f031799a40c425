"""The verbs of a script, each a module `<script>_<verb>` with a function `command` or a Typer group `app`.

A command line loads the verb that it names and no other: making Typer's parameters of all of them costs more than any
command does. Where no verb is named (help, a shell completing words) the others stand as their names and help alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType

import typer

from gw.commands import shell


def build(script: str, help: str, verbs: Sequence[str], *, outlined: Sequence[str] = ()) -> typer.Typer:
    """The application with these verbs in full, those in `outlined` as name and help; in the order of `verbs`."""
    app = shell.new_app(script, help)
    for verb in verbs:
        add(app, _module(script, verb), verb, outline=verb in outlined)
    return app


def _module(script: str, verb: str) -> ModuleType:
    return import_module(f"gw.commands.{script}_{verb.replace('-', '')}")


def add(app: typer.Typer, module: ModuleType, name: str, *, outline: bool = False, hidden: bool = False) -> None:
    """Add one verb under this name."""
    inner = getattr(module, "app", None)
    if outline:
        app.command(name, help=inner.info.help if inner is not None else module.command.__doc__)(_nothing)
    elif inner is not None:
        app.add_typer(inner, name=name, hidden=hidden)
    else:
        app.command(name, hidden=hidden)(module.command)


def _nothing() -> None:
    """Stands for a verb in the list of verbs."""


def application(
    script: str, help: str, verbs: Sequence[str], argv: Sequence[str], aliases: Mapping[str, str] | None = None
) -> typer.Typer:
    """The application for this command line (without the program). aliases: other words for verbs."""
    completing = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    named = shell.verb(list(argv) or completing.split()[1:])
    meant = (aliases or {}).get(named, named)
    chosen = [meant] if meant in verbs and not completing else verbs
    app = build(script, help, chosen, outlined=[verb for verb in chosen if verb != meant])
    if meant != named:
        add(app, _module(script, meant), named, hidden=True)
    return app
