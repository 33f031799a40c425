"""`gw ip`: tailnet addresses."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import AuthRequired, UsageError


def command(
    peer: Annotated[str, typer.Argument(help="A peer's name; this node where left out.")] = "",
    four: Annotated[bool, typer.Option("-4", "--ipv4", help="Only the IPv4 address.")] = False,
    six: Annotated[bool, typer.Option("-6", "--ipv6", help="Only the IPv6 address.")] = False,
    one: Annotated[bool, typer.Option("-1", help="Only the first address.")] = False,
) -> None:
    """Print the tailnet addresses of this node or of a peer, one a line.

    gw ip            gw ip -4 nas
    """
    from gw.commands.nodeclient import daemon

    if four and six:
        raise UsageError("`-4` and `-6` exclude each other")
    status = daemon().status()
    if peer:
        addresses = list(status.find(peer).tailscale_ips or [])
    else:
        addresses = list(status.tailscale_ips or [])
        if not addresses:
            raise AuthRequired("this node has no address yet", hint="gw up --login-server URL --auth-key file:PATH")
    if four or six:
        addresses = [address for address in addresses if (":" in address) == six]
    if one:
        addresses = addresses[:1]
    if shell.settings().json:
        shell.print_json(addresses)
        return
    for address in addresses:
        shell.say(address)
