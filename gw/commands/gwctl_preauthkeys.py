"""`gwctl preauthkeys`: keys that let machines in without a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Output, check_format, moment, show, table, yes
from gw.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

app = shell.group("preauthkeys", "Keys that let machines in: gwctl preauthkeys create -u ann --reusable -e 24h")

User = Annotated[str | None, typer.Option("--user", "-u", metavar="USER", help="Name or id.")]
KeyArgument = Annotated[str | None, typer.Argument(metavar="[KEY]", help="Id, prefix or the whole key.")]
KeyId = Annotated[str | None, typer.Option("--id", "-i", metavar="ID")]


@app.command("create")
@app.command("c", hidden=True)
@app.command("new", hidden=True)
def create(
    user: User = None,
    reusable: Annotated[bool, typer.Option("--reusable", help="Admit any number of machines, not one.")] = False,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Remove the nodes when they have been away.")] = False,
    expiration: Annotated[
        str, typer.Option("--expiration", "-e", metavar="TIME", help="How long it admits: 30m, 24h, 7d; 0 = for ever.")
    ] = "1h",
    tags: Annotated[
        list[str] | None, typer.Option("--tags", metavar="TAGS", help="tag:a,tag:b: the nodes belong to the tags.")
    ] = None,
    addresses: Annotated[
        list[str] | None, typer.Option("--ip", metavar="ADDRESS", help="What its node gets; kept free until then.")
    ] = None,
    preapproved: Annotated[
        bool, typer.Option("--pre-approved", help="Its nodes need no approval where devices do.")
    ] = False,
    description: Annotated[str, typer.Option("--description", "-d", metavar="TEXT")] = "",
    output: Output = None,
) -> None:
    """Make a key and print it: it is not stored and cannot be shown again.

    gwctl preauthkeys create -u ann --reusable -e 24h > ann.key

    Next, on the machine: gw up --login-server URL --auth-key file:ann.key
    """
    check_format(output)
    body = {
        "user": user or "",
        "reusable": reusable,
        "ephemeral": ephemeral,
        "expiration": lifetime(expiration),
        "aclTags": split_list(tags),
        "ipAddresses": split_list(addresses),
        "preApproved": preapproved,
        "description": description,
    }
    key = ask("POST", "preauthkey", body=body)["preAuthKey"]
    show(key, output, lambda: str(key["key"]))


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_keys(user: User = None, output: Output = None) -> None:
    """List the keys; of each only the prefix is known."""
    check_format(output)
    keys = ask("GET", "preauthkey", query={"user": user} if user else None)["preAuthKeys"]
    headings = ("ID", "KEY", "USER", "REUSABLE", "EPHEMERAL", "USED", "EXPIRES", "CREATED", "TAGS")
    show(keys, output, lambda: table(headings, [_row(key) for key in keys]))


def _row(key: dict[str, Any]) -> list[str]:
    return [
        key["id"], key["key"], key["user"]["name"] if key["user"] else "-", yes(key["reusable"]), yes(key["ephemeral"]),
        yes(key["used"]), moment(key["expiration"], "never"), moment(key["createdAt"]), ",".join(key["aclTags"]) or "-",
    ]  # fmt: skip


@app.command("expire")
@app.command("revoke", hidden=True)
@app.command("exp", hidden=True)
@app.command("e", hidden=True)
def expire(key: KeyArgument = None, key_id: KeyId = None, user: User = None, output: Output = None) -> None:
    """Let a key admit nobody any more; the nodes it admitted stay."""
    check_format(output)
    ask("POST", "preauthkey", "expire", body={"id": _named(key, key_id)})
    show({}, output, lambda: "key expired")


@app.command("delete")
@app.command("del", hidden=True)
@app.command("rm", hidden=True)
@app.command("d", hidden=True)
def delete(key: KeyArgument = None, key_id: KeyId = None, user: User = None, output: Output = None) -> None:
    """Forget a key; the nodes it admitted stay."""
    check_format(output)
    ask("DELETE", "preauthkey", query={"id": _named(key, key_id)})
    show({}, output, lambda: "key deleted")


def _named(key: str | None, key_id: str | None) -> str:
    if not (key_id or key):
        raise UsageError("which key?", hint="see `gwctl preauthkeys list`")
    return key_id or key or ""


def lifetime(text: str) -> datetime | None:
    """When something ends that lives for `24h` from now; None for `0`. Raises UsageError."""
    from datetime import UTC, datetime, timedelta

    from gw.state.durations import parse_duration

    lifetime_s = parse_duration(text)
    return datetime.now(UTC) + timedelta(seconds=lifetime_s) if lifetime_s else None


def split_list(values: list[str] | None) -> list[str]:
    """Items of an option that may be repeated and may hold several, separated by commas."""
    return [item.strip() for value in values or [] for item in value.split(",") if item.strip()]
