"""`gwrelay`: the relay for nodes that find no direct path."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import NotFound, UsageError

app = shell.new_app("gwrelay", "A relay (DERP over TLS, STUN) for nodes that find no direct path.")


@app.command("serve")
def serve(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Default: 0.0.0.0:443.")] = "",
    tls_cert: Annotated[str, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain, PEM.")] = "",
    tls_key: Annotated[str, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = "",
    self_signed: Annotated[bool, typer.Option("--self-signed", help="Make a certificate that clients pin.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No TLS: behind a proxy that has it.")] = False,
    stun: Annotated[str, typer.Option("--stun", metavar="HOST:PORT|off", help="Default: 0.0.0.0:3478.")] = "",
    admit: Annotated[str, typer.Option("--admit", metavar="state|all|URL", help="Who may use it.")] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="Name or address that nodes reach it by.")] = "",
    region_id: Annotated[int, typer.Option("--region-id", help="Number of its region.")] = 0,
    region_code: Annotated[str, typer.Option("--region-code", help="Short name of its region.")] = "",
) -> None:
    """Run the relay until SIGTERM.

    Sharing the control server's state directory, it enters itself in the relay map and lets in the nodes that the
    control server knows. Without a certificate it makes one and clients pin it. Next: gwctl health, gw status.
    """
    from urllib.parse import urlsplit

    from gw.state.config import Config, RelaySettings, load_config, split_listen
    from gw.state.paths import StatePaths

    paths = StatePaths(shell.state_dir())
    config: Config | None = None
    try:
        config = load_config(paths.config_file)
    except NotFound:
        if admit in ("", "state"):
            raise
    kept = config.relay if config is not None else RelaySettings()
    if sum([plain, self_signed, bool(tls_cert)]) > 1:
        raise UsageError("`--plain`, `--self-signed` and `--tls-cert` exclude each other")
    if bool(tls_cert) != bool(tls_key):
        raise UsageError("`--tls-cert` and `--tls-key` belong together")
    chosen_stun = stun or kept.stun
    if chosen_stun != "off":
        split_listen(chosen_stun)
    split_listen(listen or kept.listen)
    name = hostname or kept.hostname or (urlsplit(config.server_url).hostname or "" if config is not None else "")
    own = not (plain or self_signed)

    async def start(service: shell.Service) -> None:
        from gw.relay.server import Settings
        from gw.relay.server import serve as run

        settings = Settings(
            listen=listen or kept.listen,
            stun=chosen_stun,
            hostname=name,
            region_id=region_id or kept.region_id,
            region_code=region_code or kept.region_code,
            region_name=kept.region_name,
            admit=admit or kept.admit,
            certificate=tls_cert or (kept.tls_cert_file if own else ""),
            key=tls_key or (kept.tls_key_file if own else ""),
            plain=plain,
        )
        await run(paths, settings, service.ready, service.on_reload)

    shell.service_main(start)


def main() -> None:
    shell.run(app, "gwrelay")
