"""`gwctl nodes`: the machines of the tailnet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_preauthkeys import lifetime, split_list
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
    pending: Annotated[bool, typer.Option("--pending", help="Only devices that wait for approval.")] = False,
    output: Output = None,
) -> None:
    """List the nodes. `online` means that the node holds a connection to the server now."""
    check_format(output)
    query = {**({"user": user} if user else {}), **({"pending": "true"} if pending else {})}
    nodes = ask("GET", "node", query=query)["nodes"]
    headings = ["ID", "NAME", "HOSTNAME", "USER", "ADDRESSES", "ONLINE", "LAST SEEN", "EXPIRES"] + ["TAGS"] * tags
    show(nodes, output, lambda: table(headings, [_row(node, tags=tags) for node in nodes]))


def _row(node: dict[str, Any], *, tags: bool) -> list[str]:
    row = [
        node["id"], node["givenName"], node["name"] or "-", node["user"]["name"], ",".join(node["ipAddresses"]),
        yes(node["online"]) if node.get("approved", True) else "waits", moment(node["lastSeen"]),
        moment(node["expiry"], "never"),
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


@app.command("extend")
def extend(
    node: NodeArgument = None,
    identifier: Identifier = None,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="From now: 24h, 90d; 0 = it never expires.")
    ] = "90d",
    output: Output = None,
) -> None:
    """Let a node's login last longer, or again: a node that had expired needs no new login.

    gwctl nodes extend laptop --for 90d
    """
    check_format(output)
    until = lifetime(duration)
    body = {"expiry": until} if until else {"disableExpiry": True}
    changed = ask("POST", "node", _named(node, identifier), "expire", body=body)["node"]
    when = f"expires {moment(changed['expiry'])}" if changed["expiry"] else "never expires"
    show(changed, output, lambda: f"node {changed['givenName']} {when}")


@app.command("approve")
def approve(
    node: NodeArgument = None,
    identifier: Identifier = None,
    every: Annotated[bool, typer.Option("--all", help="Every device that waits.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
    output: Output = None,
) -> None:
    """Approve a device that waits (setting node.require_approval); until then it reaches nobody.

    gwctl nodes list --pending
    gwctl nodes approve laptop
    """
    check_format(output)
    if every:
        named = [each["id"] for each in ask("GET", "node", query={"pending": "true"})["nodes"]]
    else:
        named = [_named(node, identifier)]
    body = {"approved": not withdraw}
    changed = [ask("POST", "node", each, "approve", body=body)["node"] for each in named]
    done = "no longer approved" if withdraw else "approved"
    show(
        changed if every else changed[0], output,
        lambda: "\n".join(f"node {each['givenName']} is {done}" for each in changed) or "no device waits",
    )  # fmt: skip


@app.command("set-ip")
def set_ip(
    words: Annotated[list[str] | None, typer.Argument(metavar="[NODE] ADDRESS…")] = None,
    identifier: Identifier = None,
    output: Output = None,
) -> None:
    """Choose a node's addresses, one of a family at most; the other family's stays.

    gwctl nodes set-ip nas 100.64.0.53
    """
    check_format(output)
    given = list(words or [])
    node = identifier or (given.pop(0) if given else None)
    if node is None or not given:
        raise UsageError("needs a node and an address", hint="gwctl nodes set-ip NODE 100.64.0.7")
    changed = ask("POST", "node", node, "set_ip", body={"ipAddresses": given})["node"]
    show(changed, output, lambda: f"node {changed['givenName']} has {', '.join(changed['ipAddresses'])}")


@app.command("backfill-ips")
@app.command("backfillips", hidden=True)
def backfill(force: Force = False, output: Output = None) -> None:
    """Give every node an address of each family that it lacks, after a pool was added to [prefixes]."""
    check_format(output)
    confirm("Give addresses to all nodes that lack one", force=force)
    changes = ask("POST", "node", "backfillips", query={"confirmed": "true"})["changes"]
    show(changes, output, lambda: "\n".join(changes) or "no node lacks an address")


@app.command("move")
@app.command("mv-user", hidden=True)
def move(node: NodeArgument = None, identifier: Identifier = None, user: User = None, output: Output = None) -> None:
    """Give a node to another user; a tagged node loses its tags."""
    check_format(output)
    if not user:
        raise UsageError("whose is it to be?", hint="gwctl nodes move NODE --user NAME")
    changed = ask("POST", "node", _named(node, identifier), "user", body={"user": user})["node"]
    show(changed, output, lambda: f"node {changed['givenName']} is {changed['user']['name']}'s")


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
