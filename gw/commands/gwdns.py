"""`gwdns`: names of the mesh for everybody on it."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell

app = shell.new_app("gwdns", "DNS for the mesh: names of nodes, everything else from upstreams.")


@app.callback()
def group() -> None:
    """DNS for the mesh: names of nodes, everything else from upstreams."""


@app.command("serve")
def serve(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Default: 0.0.0.0:53.")] = "",
) -> None:
    """Run the DNS server until SIGTERM; SIGHUP reads the configuration again.

    gwdns serve --listen 192.0.2.1:53

    It knows the nodes of the state directory it shares with gwctl, live as they come and go; other questions go to
    `upstreams` of `[dns_server]` in config.toml. Only the mesh, private networks and the networks in `clients` are
    answered. Have nodes ask it: `nameservers` of `[dns]`. Next: dig @HOST NODE.
    """
    from gw.state.config import load_config, split_listen
    from gw.state.paths import StatePaths

    paths = StatePaths(shell.state_dir())
    chosen = listen or load_config(paths.config_file).dns_server.listen
    split_listen(chosen)

    async def start(service: shell.Service) -> None:
        from gw.dns.server import Settings
        from gw.dns.server import serve as run

        await run(paths, Settings(chosen), service.ready, service.on_reload)

    shell.service_main(start)


def main() -> None:
    shell.run(app, "gwdns")
