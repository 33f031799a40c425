"""`gwctl serve`: the control server, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell


def command(
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="For this run, instead of config.toml's.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=0,
            max=64,
            metavar="N",
            help="Connection workers: processes that hold the connections. Default 0: one process does all. A process "
            "holds as many clients as it has descriptors (ulimit -n).",
        ),
    ] = 0,
) -> None:
    """Run the control server until SIGTERM; edited files are noticed by themselves, SIGHUP reads the certificate again.

    gwctl --state-dir /var/lib/ghostwire serve

    Logs to stderr. Next: gwctl users create NAME
    """
    import msgspec

    from gw.commands.controlclient import state_paths
    from gw.state.config import load_config, split_listen

    paths = state_paths()
    config = load_config(paths.config_file)
    if listen is not None:
        split_listen(listen)
        config = msgspec.structs.replace(config, listen=listen)

    async def start(service: shell.Service) -> None:
        from gw.control.server import serve

        await serve(paths, config, service.ready, workers, service.on_reload)

    shell.service_main(start)
