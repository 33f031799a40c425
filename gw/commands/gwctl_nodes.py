"""`gwctl nodes`: the machines of the tailnet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_preauthkeys import split_list
from gw.commands.output import Force, Output, check_format, confirm, moment, show, table, yes
from gw.errors import UsageError

app = shell.group("nodes", "The machines of the tailnet: gwctl nodes list")

Identifier = Annotated[
    str | None, typer.Option("--identifier", "-i", "--node", metavar="NODE", help="Id, name or address of the node.")
]
NodeArgument = Annotated[str | None, typer.Argument(metavar="[NODE]", help="Id, name or address.")]
User = Annotated[str | None, typer.Option("--user", "-u", metavar="USER", help="Name or id.")]


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_nodes(
    user: User = None,
    tags: Annotated[bool, typer.Option("--tags", "-t", help="Show the tags too.")] = False,
    output: Output = None,
) -> None:
    """List the nodes. `online` means that the node holds a connection to the server now."""
    check_format(output)
    nodes = ask("GET", "node", query={"user": user} if user else None)["nodes"]
    headings = ["ID", "NAME", "HOSTNAME", "USER", "ADDRESSES", "ONLINE", "LAST SEEN", "EXPIRES"] + ["TAGS"] * tags
    show(nodes, output, lambda: table(headings, [_row(node, tags=tags) for node in nodes]))


def _row(node: dict[str, Any], *, tags: bool) -> list[str]:
    row = [
        node["id"], node["givenName"], node["name"] or "-", node["user"]["name"], ",".join(node["ipAddresses"]),
        yes(node["online"]), moment(node["lastSeen"]), moment(node["expiry"], "never"),
    ]  # fmt: skip
    return [*row, ",".join(node["tags"]) or "-"] if tags else row


@app.command("register")
def register(
    key: Annotated[str, typer.Option("--key", "-k", metavar="ID", help="The id in the address the machine showed.")],
    user: User = None,
    output: Output = None,
) -> None:
    """Let a waiting machine in, as Headscale's command of this name does. See also: gwctl auth approve"""
    check_format(output)
    node = ask("POST", "node", "register", query={"user": user or "", "key": auth_id(key)})["node"]
    show(node, output, lambda: f"node registered: {node['givenName']} ({', '.join(node['ipAddresses'])})")


def auth_id(text: str) -> str:
    """The id of a waiting login, also out of its whole address."""
    return text.rstrip("/").rpartition("/")[2]


@app.command("expire")
@app.command("logout", hidden=True)
@app.command("exp", hidden=True)
@app.command("e", hidden=True)
def expire(
    node: NodeArgument = None,
    identifier: Identifier = None,
    expiry: Annotated[
        str | None, typer.Option("--expiry", "-e", metavar="TIME", help="2031-05-01T00:00:00Z; default: now.")
    ] = None,
    disable: Annotated[bool, typer.Option("--disable", "-d", help="Never expire.")] = False,
    output: Output = None,
) -> None:
    """End a node's login: it must log in again. Its addresses and name stay."""
    check_format(output)
    body = {"disableExpiry": True} if disable else {"expiry": expiry} if expiry else {}
    changed = ask("POST", "node", _named(node, identifier), "expire", body=body)["node"]
    when = f"expires {moment(changed['expiry'])}" if changed["expiry"] else "never expires"
    show(changed, output, lambda: f"node {changed['givenName']} {when}")


@app.command("rename")
@app.command("mv", hidden=True)
def rename(
    words: Annotated[list[str] | None, typer.Argument(metavar="[NODE] NEWNAME")] = None,
    identifier: Identifier = None,
    output: Output = None,
) -> None:
    """Give a node a name for good: gwctl nodes rename box nas"""
    check_format(output)
    given = list(words or [])
    old = identifier or (given.pop(0) if len(given) == 2 else None)
    if old is None or len(given) != 1:
        raise UsageError("needs a node and a new name", hint="gwctl nodes rename NODE NEWNAME")
    node = ask("POST", "node", old, "rename", given[0])["node"]
    show(node, output, lambda: f"node renamed: {node['givenName']}")


@app.command("delete")
@app.command("del", hidden=True)
@app.command("rm", hidden=True)
def delete(
    node: NodeArgument = None, identifier: Identifier = None, force: Force = False, output: Output = None
) -> None:
    """Remove a node from the tailnet; its addresses and name become free."""
    check_format(output)
    found = ask("GET", "node", _named(node, identifier))["node"]
    confirm(f"Remove node {found['givenName']}", force=force)
    ask("DELETE", "node", found["id"])
    show({}, output, lambda: f"node removed: {found['givenName']}")


@app.command("tag")
@app.command("tags", hidden=True)
@app.command("t", hidden=True)
def tag(
    node: NodeArgument = None,
    identifier: Identifier = None,
    tags: Annotated[list[str] | None, typer.Option("--tags", "-t", metavar="TAGS", help="tag:a,tag:b")] = None,
    output: Output = None,
) -> None:
    """Replace a node's tags. A tagged node belongs to its tags and no longer to a user."""
    check_format(output)
    changed = ask("POST", "node", _named(node, identifier), "tags", body={"tags": split_list(tags)})["node"]
    show(changed, output, lambda: f"node {changed['givenName']} has {', '.join(changed['tags'])}")


@app.command("approve-routes")
def approve_routes(
    node: NodeArgument = None,
    identifier: Identifier = None,
    routes: Annotated[
        list[str] | None,
        typer.Option("--routes", "-r", metavar="ROUTES", help="10.0.0.0/8,192.168.0.0/24; none: all off."),
    ] = None,
    output: Output = None,
) -> None:
    """Replace the routes a node may serve; what it advertises is in `list-routes`."""
    check_format(output)
    body = {"routes": split_list(routes)}
    changed = ask("POST", "node", _named(node, identifier), "approve_routes", body=body)["node"]
    show(
        changed, output, lambda: f"node {changed['givenName']} may serve {', '.join(changed['approvedRoutes']) or '-'}"
    )


@app.command("list-routes")
@app.command("lsr", hidden=True)
@app.command("routes", hidden=True)
def list_routes(node: NodeArgument = None, identifier: Identifier = None, output: Output = None) -> None:
    """List what nodes advertise, what was approved, and what they serve now."""
    check_format(output)
    if node or identifier:
        nodes = [ask("GET", "node", _named(node, identifier))["node"]]
    else:
        nodes = [each for each in ask("GET", "node")["nodes"] if each["availableRoutes"] or each["approvedRoutes"]]
    fields = ("availableRoutes", "approvedRoutes", "subnetRoutes")
    rows = [[each["id"], each["givenName"], *(",".join(each[field]) or "-" for field in fields)] for each in nodes]
    show(nodes, output, lambda: table(("ID", "NAME", "AVAILABLE", "APPROVED", "SERVING"), rows))


def _named(node: str | None, identifier: str | None) -> str:
    if not (identifier or node):
        raise UsageError("which node?", hint="name one, or give --identifier ID; see `gwctl nodes list`")
    return identifier or node or ""
