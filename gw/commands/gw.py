"""`gw`: what a person types on a node."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

import typer

from gw.commands import shell

HELP: Final = "A node of the mesh: gw up, gw status, gw ping NAME, gw tui."
VERBS: Final = ("up", "down", "status", "ping", "ip", "logout", "tui", "lab", "service", "uninstall")


def build(verbs: tuple[str, ...] = VERBS) -> typer.Typer:
    """The application with these verbs. Each is a module `gw_<verb>` with a function or a group of that name."""
    app = shell.new_app("gw", HELP)
    for verb in verbs:
        module = import_module(f"gw.commands.gw_{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(module.command)
    return app


def main() -> None:
    """Load only the verb that was asked for: the others would cost their imports at every start."""
    word = shell.verb(sys.argv[1:])
    chosen = tuple(verb for verb in VERBS if verb == word)
    shell.run(build(chosen or VERBS), "gw")
