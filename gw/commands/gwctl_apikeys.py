"""`gwctl apikeys`: keys for the HTTP API, and OAuth clients."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_preauthkeys import lifetime, split_list
from gw.commands.output import Output, check_format, moment, show, table
from gw.errors import UsageError

app = shell.group("apikeys", "Keys for the HTTP API: gwctl apikeys create -e 90d")

KeyArgument = Annotated[str | None, typer.Argument(metavar="[KEY]", help="Id, prefix or the whole key.")]
Prefix = Annotated[str | None, typer.Option("--prefix", "-p", metavar="PREFIX")]
KeyId = Annotated[str | None, typer.Option("--id", "-i", metavar="ID")]


@app.command("create")
@app.command("c", hidden=True)
@app.command("new", hidden=True)
def create(
    expiration: Annotated[
        str, typer.Option("--expiration", "-e", metavar="TIME", help="How long it opens: 24h, 90d; 0 = for ever.")
    ] = "90d",
    scopes: Annotated[
        list[str] | None,
        typer.Option("--scopes", "-s", metavar="SCOPES", help="devices:core,policy_file:read, …; none: all."),
    ] = None,
    oauth: Annotated[
        bool, typer.Option("--oauth-client", help="A client that gets keys for an hour each by OAuth.")
    ] = False,
    tags: Annotated[
        list[str] | None,
        typer.Option("--tags", metavar="TAGS", help="What a client may make pre-auth keys for."),
    ] = None,
    description: Annotated[str, typer.Option("--description", "-d", metavar="TEXT")] = "",
    output: Output = None,
) -> None:
    """Make a key and print it: it is not stored and cannot be shown again.

    gwctl apikeys create --scopes devices:core:read -e 24h > api.key

    Next: curl -H "Authorization: Bearer $(cat api.key)" https://SERVER/api/v1/node
    """
    check_format(output)
    body = {
        "expiration": lifetime(expiration),
        "scopes": split_list(scopes),
        "role": "client" if oauth else "key",
        "tags": split_list(tags),
        "description": description,
    }
    key = ask("POST", "apikey", body=body)["apiKey"]
    show(key, output, lambda: str(key))


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_keys(output: Output = None) -> None:
    """List the keys; of each only the prefix is known."""
    check_format(output)
    keys = ask("GET", "apikey")["apiKeys"]
    headings = ("ID", "PREFIX", "SCOPES", "EXPIRES", "CREATED", "LAST USED", "DESCRIPTION")
    show(keys, output, lambda: table(headings, [_row(key) for key in keys]))


def _row(key: dict[str, Any]) -> list[str]:
    return [
        key["id"], key["prefix"], ",".join(key["scopes"]), moment(key["expiration"], "never"), moment(key["createdAt"]),
        moment(key["lastSeen"], "never"), key["description"] or "-",
    ]  # fmt: skip


@app.command("expire")
@app.command("revoke", hidden=True)
@app.command("exp", hidden=True)
@app.command("e", hidden=True)
def expire(key: KeyArgument = None, prefix: Prefix = None, key_id: KeyId = None, output: Output = None) -> None:
    """Let a key open nothing any more; with an OAuth client its tokens end too."""
    check_format(output)
    ask("POST", "apikey", "expire", body={"prefix": _named(key, prefix, key_id)})
    show({}, output, lambda: "key expired")


@app.command("delete")
@app.command("remove", hidden=True)
@app.command("del", hidden=True)
@app.command("rm", hidden=True)
def delete(key: KeyArgument = None, prefix: Prefix = None, key_id: KeyId = None, output: Output = None) -> None:
    """Forget a key."""
    check_format(output)
    ask("DELETE", "apikey", _named(key, prefix, key_id))
    show({}, output, lambda: "key deleted")


def _named(key: str | None, prefix: str | None, key_id: str | None) -> str:
    if not (key or prefix or key_id):
        raise UsageError("which key?", hint="see `gwctl apikeys list`")
    return key or prefix or key_id or ""
