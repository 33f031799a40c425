"""`gwd`: the node's daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell

app = shell.new_app("gwd", "The node daemon: the tunnel, its paths, routes and names.")


@app.callback()
def group() -> None:
    """The node daemon: the tunnel, its paths, routes and names."""


@app.command("run")
def run(
    tun: Annotated[str, typer.Option("--tun", metavar="NAME", help="Name of the tunnel's interface.")] = "gw0",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="UDP port; 0 = last time's, else 41641.")] = 0,
    socket: Annotated[str, typer.Option("--socket", metavar="PATH", help="Of the local API.")] = "",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Packet workers each way: 1, 2 or 4; 0 = what fits the cores.")
    ] = 0,
    offloads: Annotated[
        str,
        typer.Option("--offloads", metavar="LIST", help="all, none, or of tso,uso,gso,gro: for broken drivers."),
    ] = "all",
    operator: Annotated[str, typer.Option("--operator", metavar="USER", help="May use gw without sudo.")] = "",
) -> None:
    """Run the node daemon until SIGTERM. It needs root.

    sudo gwd run

    It keeps keys and preferences in the state directory, and comes back up after a restart. Next: gw up.
    """
    from pathlib import Path

    from gw.state.paths import StatePaths

    paths = StatePaths(shell.state_dir())

    async def start(service: shell.Service) -> None:
        from gw.net.offloads import Offloads
        from gw.node.daemon import Options
        from gw.node.daemon import run as run_daemon

        options = Options(
            tun=tun,
            port=port,
            socket=Path(socket) if socket else None,
            operator=operator,
            workers=workers,
            offloads=Offloads.parse(offloads),
        )
        await run_daemon(paths, options, service.ready)

    shell.service_main(start)


def main() -> None:
    shell.run(app, "gwd")
