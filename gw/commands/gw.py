"""`gw`: what a person types on a node."""

from __future__ import annotations

import sys
from typing import Final

import typer

from gw.commands import shell, verbs

HELP: Final = "A node of the mesh: gw up, gw status, gw ping NAME, gw tui."
VERBS: Final = (
    "up",
    "set",
    "down",
    "status",
    "ping",
    "ip",
    "logout",
    "top",
    "tui",
    "metrics",
    "lab",
    "service",
    "uninstall",
)


def build() -> typer.Typer:
    """The whole application."""
    return verbs.build("gw", HELP, VERBS)


def main() -> None:
    shell.run(verbs.application("gw", HELP, VERBS, sys.argv[1:]), "gw")
