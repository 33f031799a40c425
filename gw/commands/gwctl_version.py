"""`gwctl version`."""

from __future__ import annotations

from gw.commands import shell
from gw.commands.output import Output, show


def command(output: Output = None) -> None:
    """Print the version, and whether the packet core is compiled."""
    from gw import __version__
    from gw.native import COMPILED

    show({"version": __version__, "compiled": COMPILED}, output, lambda: shell.version_line("gwctl"))
