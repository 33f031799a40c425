"""`gwctl oauth-clients`: programs that get API keys for an hour each, as Headscale's command of this name has them."""

from __future__ import annotations

from typing import Annotated

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_preauthkeys import split_list
from gw.commands.output import Output, check_format, moment, show, table
from gw.errors import NotFound, UsageError

app = shell.group("oauth-clients", "Programs that get keys for an hour each: gwctl oauth-clients create -s auth_keys")

CLIENT: str = "client"


@app.command("create")
@app.command("c", hidden=True)
@app.command("new", hidden=True)
def create(
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scope", "--scopes", "-s", metavar="SCOPES", help="auth_keys, devices:core:read, all, …"),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", "--tags", "-t", metavar="TAGS", help="What it may make pre-auth keys for: tag:ci"),
    ] = None,
    description: Annotated[str, typer.Option("--description", "-d", metavar="TEXT")] = "",
    output: Output = None,
) -> None:
    """Make a client and print its secret: it is not stored and cannot be shown again.

    gwctl oauth-clients create -s auth_keys -t tag:ci > client.key

    Next: curl -d "client_secret=$(cat client.key)" https://SERVER/api/v2/oauth/token
    """
    check_format(output)
    wanted = split_list(scopes)
    if not wanted:
        raise UsageError("what may it do?", hint="--scope auth_keys, or --scope all")
    body = {"role": CLIENT, "scopes": wanted, "tags": split_list(tags), "description": description}
    secret = ask("POST", "apikey", body=body)["apiKey"]
    show({"id": secret.split("-")[2], "key": secret}, output, lambda: str(secret))


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_clients(output: Output = None) -> None:
    """List the clients; their secrets are not known."""
    check_format(output)
    clients = [each for each in ask("GET", "apikey")["apiKeys"] if each["role"] == CLIENT]
    headings = ("ID", "SCOPES", "TAGS", "DESCRIPTION", "CREATED", "LAST USED")
    rows = [
        [
            each["prefix"].split("-")[2],
            ",".join(each["scopes"]),
            ",".join(each["tags"]) or "-",
            each["description"] or "-",
            moment(each["createdAt"]),
            moment(each["lastSeen"], "never"),
        ]
        for each in clients
    ]
    show(clients, output, lambda: table(headings, rows))


@app.command("delete")
@app.command("remove", hidden=True)
@app.command("rm", hidden=True)
@app.command("del", hidden=True)
def delete(
    client: Annotated[str | None, typer.Argument(metavar="[CLIENT]", help="Its id.")] = None,
    identifier: Annotated[str | None, typer.Option("--id", "-i", metavar="ID")] = None,
    output: Output = None,
) -> None:
    """Forget a client; its tokens end with it."""
    check_format(output)
    wanted = identifier or client
    if not wanted:
        raise UsageError("which client?", hint="see `gwctl oauth-clients list`")
    known = [each for each in ask("GET", "apikey")["apiKeys"] if each["role"] == CLIENT]
    found = next((e for e in known if wanted in (e["id"], e["prefix"].split("-")[2])), None)
    if found is None:
        raise NotFound(f"no such client: `{wanted}`", hint="see `gwctl oauth-clients list`")
    ask("DELETE", "apikey", found["id"])
    show({"id": wanted}, output, lambda: f"client deleted: {wanted}")
