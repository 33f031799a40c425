"""`gw ping`: reach a peer below the tunnel and say by which path."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.errors import TimedOut


def command(
    peer: Annotated[str, typer.Argument(help="Name or tailnet address.")],
    count: Annotated[int, typer.Option("-c", "--count", help="How many pings; 0 = until interrupted.")] = 10,
    until_direct: Annotated[
        bool, typer.Option("--until-direct/--no-until-direct", help="Stop at the first pong by a direct path.")
    ] = True,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait for each pong.")] = 5.0,
) -> None:
    """Ping a peer and tell how the pong came: directly, from which address, or via which relay.

    A first pong via a relay and a later one by an address is normal: the relay carries traffic until a direct path is
    found, or a `peer-relay`: UDP through a relay. If it stays on one, both sides are
    probably behind symmetric NATs or UDP is blocked.
    """
    import time

    from gw.commands.nodeclient import daemon

    client = daemon()
    sent, answered, direct = 0, 0, False
    while count == 0 or sent < count:
        started = time.monotonic()
        sent += 1
        try:
            result = client.ping(peer, timeout_s=timeout)
        except TimedOut as error:
            shell.note(error.message)
        else:
            answered += 1
            direct = bool(result.endpoint)
            if shell.settings().json:
                shell.print_json(result)
            else:
                shell.say(result.describe())
            if direct and until_direct:
                break
        if count == 0 or sent < count:
            time.sleep(max(0.0, 1.0 - (time.monotonic() - started)))
    if not answered:
        raise TimedOut(f"no pong from `{peer}` in {sent} pings", hint="gw status tells whether the peer is online")
    if not direct:
        shell.note("direct path not found: traffic goes by a relay")
