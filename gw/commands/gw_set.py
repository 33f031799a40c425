"""`gw set`: change settings of this node, and no others."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.errors import UsageError

TRANSPORTS = ("auto", "quic", "udp")


def command(
    transport: Annotated[
        str,
        typer.Option(
            "--transport",
            metavar="|".join(TRANSPORTS),
            help="How data goes to peers with a direct path.",
            autocompletion=lambda: list(TRANSPORTS),
        ),
    ] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="Name to ask for instead of the host's.")] = "",
    accept_dns: Annotated[bool | None, typer.Option("--accept-dns/--no-accept-dns", help="Use the mesh's DNS.")] = None,
    shields_up: Annotated[
        bool | None, typer.Option("--shields-up/--no-shields-up", help="Refuse whatever others begin.")
    ] = None,
) -> None:
    """Change settings; those that are not named keep their value.

    gw set --transport quic

    Transports: `auto` sends WireGuard over UDP, and inside QUIC where it is measured that UDP does not get through or
    is throttled; `quic` always inside QUIC; `udp` never. QUIC takes a GhostWire node at the other end too. Next: gw
    status.
    """
    from gw.commands.nodeclient import daemon

    changes: dict[str, Any] = {}
    if transport:
        if transport not in TRANSPORTS:
            raise UsageError(f"no such transport: `{transport}`", hint=f"one of {', '.join(TRANSPORTS)}")
        changes["transport"] = transport
    if hostname:
        changes["hostname"] = hostname
    if accept_dns is not None:
        changes["corp_dns"] = accept_dns
    if shields_up is not None:
        changes["shields_up"] = shields_up
    if not changes:
        raise UsageError("nothing to set", hint="gw set --help")
    daemon().edit_prefs(**changes)
    shell.note("set: " + ", ".join(f"{name.replace('_', '-')} {_shown(value)}" for name, value in changes.items()))


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
