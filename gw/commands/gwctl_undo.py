"""`gwctl undo`: take the last administrative change back."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Output, check_format, moment, show


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be taken back.")] = False,
    output: Output = None,
) -> None:
    """Take back the last change that an administrator made; again takes back the one before.

    gwctl undo --dry-run

    Users, nodes, keys and the policy come back as they were. It is refused where something was built on the change: a
    name given to another node, a key that admitted somebody, a field changed again. Hand edits are taken back by hand.
    """
    check_format(output)
    done = ask("POST", "undo", body={"dryRun": dry_run})
    lines = "\n".join(done["lines"])
    show(done, output, lambda: lines)
    if not check_format(output):
        word = "would take back" if done["dryRun"] else "took back"
        shell.note(f"{word} the change of {done['actor']}, {moment(done['time'])}")
