"""`gwctl routes`: subnets and exit nodes, and who serves them."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_nodes import approve_routes
from gw.commands.output import Output, check_format, show, table, yes

app = shell.group("routes", "Subnets and exit nodes: gwctl routes list")


@app.command("list")
@app.command("ls", hidden=True)
def list_routes(
    node: Annotated[
        str | None,
        typer.Option("--identifier", "-i", "--node", metavar="NODE", help="Id, name or address of the node."),
    ] = None,
    output: Output = None,
) -> None:
    """List each prefix at each of its routers.

    `serving` is the router that traffic goes by now. Of several routers of one subnet the others stand by: they take
    over when it goes offline or stops answering, and it takes nothing back. Next: gwctl routes approve NODE -r PREFIX
    """
    check_format(output)
    routes = ask("GET", "routes", query={"node": node} if node else None)["routes"]
    headings = ("PREFIX", "NODE", "ADVERTISED", "APPROVED", "STATE")
    rows = [
        [
            each["prefix"],
            f"{each['node']} ({each['nodeId']})",
            yes(each["advertised"]),
            yes(each["approved"]),
            _state(each),
        ]
        for each in routes
    ]
    show(routes, output, lambda: table(headings, rows))


def _state(route: dict[str, bool]) -> str:
    if not route["advertised"]:
        return "not advertised"
    if not route["approved"]:
        return "waits for approval"
    well = "" if route["healthy"] else ", no answer" if route["online"] else ", offline"
    return ("exit node" if route["exit"] else "serving" if route["primary"] else "stands by") + well


app.command("approve")(approve_routes)
app.command("enable", hidden=True)(approve_routes)
