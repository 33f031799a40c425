"""`gwctl init`: lay out the state directory of a control server."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import ConfigError, UsageError


def command(
    server_url: Annotated[
        str, typer.Option("--server-url", metavar="URL", help="Where nodes reach this server: https://mesh.example.org")
    ],
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Default: every address, the port of the URL.")
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Let every device reach every other one, instead of only its owner's.")
    ] = False,
) -> None:
    """Write config.toml and policy.hujson into the state directory; nothing that is there is overwritten.

    gwctl init --server-url https://mesh.example.org

    The policy lets the devices of one user reach each other and nothing else. Next: gwctl serve
    """
    from gw.policy.starting import ALLOW_ALL_TEXT, OWN_DEVICES_TEXT
    from gw.state.config import decode_config
    from gw.state.layout import init_state_dir
    from gw.state.paths import StatePaths

    paths = StatePaths(shell.state_dir())
    text = config_text(server_url, listen)
    try:
        decode_config(text.encode(), paths.config_file)
    except ConfigError as error:
        raise UsageError(error.message.partition(": ")[2], hint="see `gwctl init --help`") from None
    init_state_dir(paths, config=text, policy=ALLOW_ALL_TEXT if is_open else OWN_DEVICES_TEXT)
    if shell.settings().json:
        shell.print_json({"stateDir": str(paths.root), "config": str(paths.config_file)})
        return
    shell.say(f"wrote {paths.config_file}")
    shell.say(f"wrote {paths.policy_file}: {'every device reaches every other one' if is_open else 'own devices only'}")
    shell.note("next: gwctl serve, gwctl users create NAME, gwctl preauthkeys create -u NAME")


def config_text(server_url: str, listen: str | None) -> str:
    """A `config.toml` with these settings; what it leaves out has its default."""
    lines = [
        "# Settings of the mesh. `gwctl config explain` lists every key and where its value comes from.",
        "schema = 1",
        f"server_url = {_quoted(server_url)}  # where nodes reach this server",
    ]
    if listen is not None:
        lines.append(f"listen = {_quoted(listen)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)  # a JSON string is a TOML basic string
