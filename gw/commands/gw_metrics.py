"""`gw metrics`: the node's counters for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from gw.errors import UsageError

HELP: Final = """Print or write the node's counters in Prometheus' text format.

Names and labels that start with tailscaled_ are Tailscale's, so its dashboards and alerts fit; ours start with
ghostwire_. Without a subcommand they are printed.
"""
Peers = Annotated[bool, typer.Option("--peers", help="Series of each peer too: many on a big tailnet.")]

app = typer.Typer(
    name="metrics", help=HELP, rich_markup_mode=None, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback()
def default(context: typer.Context, peers: Peers = False) -> None:
    if context.invoked_subcommand is None:
        print_(peers)
    elif peers:
        raise UsageError(
            "`--peers` stands after the subcommand", hint=f"gw metrics {context.invoked_subcommand} --peers"
        )


@app.command("print")
def print_(peers: Peers = False) -> None:
    """Print the counters."""
    from gw.commands.nodeclient import daemon

    print(daemon().metrics(peers=peers).decode(), end="")


@app.command("write")
def write(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .prom for the node exporter.")],
    peers: Peers = False,
) -> None:
    """Write the counters to a file, whole or not at all: for the node exporter's textfile collector.

    Run it from a timer: gw metrics write /var/lib/prometheus/node-exporter/ghostwire.prom
    """
    from gw.commands.nodeclient import daemon
    from gw.state.files import write_atomic

    write_atomic(file, daemon().metrics(peers=peers))
