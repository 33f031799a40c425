"""`gwrelay`: the relay for nodes that find no direct path."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import UsageError

app = shell.new_app("gwrelay", "A relay (DERP over TLS, STUN) for nodes that find no direct path.")


@app.command("serve")
def serve(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Default: 0.0.0.0:443.")] = "",
    tls_cert: Annotated[str, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM.")] = "",
    tls_key: Annotated[str, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = "",
    self_signed: Annotated[bool, typer.Option("--self-signed", help="Make a certificate that clients pin.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No TLS: behind a proxy that has it.")] = False,
    stun: Annotated[str, typer.Option("--stun", metavar="HOST:PORT|off", help="Default: 0.0.0.0:3478.")] = "",
    http: Annotated[
        str, typer.Option("--http", metavar="HOST:PORT|off", help="Plain HTTP for captive-portal checks.")
    ] = "",
    metrics: Annotated[str, typer.Option("--metrics", metavar="HOST:PORT|off", help="Prometheus metrics.")] = "",
    admit: Annotated[str, typer.Option("--admit", metavar="state|all|URL", help="Who may use it.")] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="Name or address that nodes reach it by.")] = "",
    public_port: Annotated[
        int, typer.Option("--public-port", metavar="PORT", help="Where nodes reach it, if not at --listen's port.")
    ] = 0,
    region_id: Annotated[int, typer.Option("--region-id", help="Number of its region.")] = 0,
    region_code: Annotated[str, typer.Option("--region-code", help="Short name of its region.")] = "",
    node_name: Annotated[str, typer.Option("--node-name", help="Its name among the relays of the region.")] = "",
    mesh_key_file: Annotated[
        str, typer.Option("--mesh-key-file", metavar="FILE", help="Key of the region's relays: 64 hex digits.")
    ] = "",
    mesh_with: Annotated[
        list[str] | None,
        typer.Option("--mesh-with", metavar="HOST:PORT", help="Another relay of the region; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes that forward.")] = 0,
) -> None:
    """Run the relay until SIGTERM.

    Sharing the control server's state directory, it enters itself in the relay map and lets in the nodes that the
    control server knows. Without a certificate it makes one and clients pin it. SIGHUP: read config.toml and the
    certificate again; clients stay connected. Next: gwctl health, gw status.
    """
    if sum([plain, self_signed, bool(tls_cert)]) > 1:
        raise UsageError("`--plain`, `--self-signed` and `--tls-cert` exclude each other")
    if bool(tls_cert) != bool(tls_key):
        raise UsageError("`--tls-cert` and `--tls-key` belong together")
    from gw.relay.settings import Overrides, load_settings
    from gw.state.paths import StatePaths

    flags = Overrides(
        listen=listen, stun=stun, http=http, metrics=metrics, hostname=hostname, public_port=public_port,
        node_name=node_name, region_id=region_id, region_code=region_code, admit=admit, tls_cert_file=tls_cert,
        tls_key_file=tls_key, self_signed=self_signed, plain=plain, mesh_key_file=mesh_key_file,
        mesh_with=mesh_with or [], workers=workers,
    )  # fmt: skip
    paths = StatePaths(shell.state_dir())
    processes = load_settings(paths, flags).workers

    async def start(service: shell.Service) -> None:
        if processes == 1:
            from gw.relay.server import serve as run

            await run(paths, lambda: load_settings(paths, flags), service.ready, service.on_reload)
        else:
            import os

            from gw.relay.workers import supervise

            os.environ["GW_LOG_LEVEL"] = shell.settings().log_level
            os.environ["GW_LOG_FORMAT"] = shell.settings().log_format
            await supervise(paths, flags, service.ready, service.on_reload)

    shell.service_main(start)


@app.command("worker", hidden=True)
def worker(channel: Annotated[int, typer.Argument(help="Inherited descriptor that tells it what to do.")]) -> None:
    """One process of `gwrelay serve --workers N`; it is started by that, never by hand."""

    async def start(service: shell.Service) -> None:
        from gw.relay.workers import work

        await work(channel, service.on_reload)

    shell.service_main(start)


def main() -> None:
    shell.run(app, "gwrelay")
