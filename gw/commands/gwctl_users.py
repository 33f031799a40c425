"""`gwctl users`: the people whose devices are in the tailnet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Force, Output, check_format, confirm, moment, show, table
from gw.errors import NotFound, UsageError

app = shell.group("users", "People whose devices are in the tailnet: gwctl users create ann")

Identifier = Annotated[str | None, typer.Option("--identifier", "-i", "--id", metavar="ID", help="Id of the user.")]
Name = Annotated[str | None, typer.Option("--name", "-n", metavar="NAME", help="Name of the user.")]


@app.command("create")
@app.command("c", hidden=True)
@app.command("new", hidden=True)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    display_name: Annotated[str, typer.Option("--display-name", "-d", help="Shown to people.")] = "",
    email: Annotated[str, typer.Option("--email", "-e")] = "",
    picture: Annotated[str, typer.Option("--picture-url", "-p", metavar="URL", help="Shown to people.")] = "",
    output: Output = None,
) -> None:
    """Make a user. Next: gwctl preauthkeys create -u NAME"""
    check_format(output)
    body = {"name": name, "displayName": display_name, "email": email, "pictureUrl": picture}
    user = ask("POST", "user", body=body)["user"]
    show(user, output, lambda: f"user created: {user['name']}")


@app.command("list")
@app.command("ls", hidden=True)
@app.command("show", hidden=True)
def list_users(
    identifier: Identifier = None,
    name: Name = None,
    email: Annotated[str | None, typer.Option("--email", "-e")] = None,
    output: Output = None,
) -> None:
    """List the users."""
    check_format(output)
    wanted = {key: value for key, value in (("id", identifier), ("name", name), ("email", email)) if value}
    users = ask("GET", "user", query=wanted)["users"]
    show(users, output, lambda: table(("ID", "NAME", "DISPLAY NAME", "EMAIL", "CREATED"), [_row(u) for u in users]))


def _row(user: dict[str, Any]) -> list[str]:
    return [user["id"], user["name"], user["displayName"] or "-", user["email"] or "-", moment(user["createdAt"])]


@app.command("destroy")
@app.command("delete", hidden=True)
def destroy(
    user: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    identifier: Identifier = None,
    name: Name = None,
    force: Force = False,
    output: Output = None,
) -> None:
    """Remove a user who has no nodes, and the user's pre-auth keys."""
    check_format(output)
    found = _find(user or name or identifier)
    confirm(f"Remove user {found['name']}", force=force)
    ask("DELETE", "user", found["id"])
    show({}, output, lambda: f"user removed: {found['name']}")


@app.command("rename")
@app.command("mv", hidden=True)
def rename(
    words: Annotated[list[str] | None, typer.Argument(metavar="[OLD] NEW")] = None,
    identifier: Identifier = None,
    name: Name = None,
    new_name: Annotated[str | None, typer.Option("--new-name", "-r", metavar="NEW")] = None,
    output: Output = None,
) -> None:
    """Rename a user: gwctl users rename ann anna"""
    check_format(output)
    given = list(words or [])
    old = name or identifier or (given.pop(0) if given else None)
    new = new_name or (given.pop(0) if given else None)
    if new is None or given:
        raise UsageError("needs an old and a new name", hint="gwctl users rename OLD NEW")
    found = _find(old)
    user = ask("POST", "user", found["id"], "rename", new)["user"]
    show(user, output, lambda: f"user renamed: {found['name']} is {user['name']}")


def _find(text: str | None) -> dict[str, Any]:
    if not text:
        raise UsageError("which user?", hint="name one, or give --identifier ID")
    users: list[dict[str, Any]] = ask("GET", "user")["users"]
    for field in ("name", "id"):
        for user in users:
            if user[field] == text:
                return user
    raise NotFound(f"no such user: `{text}`", hint="see `gwctl users list`")
