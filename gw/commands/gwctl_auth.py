"""`gwctl auth`: machines that wait for a person to let them in."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.gwctl_nodes import User, auth_id
from gw.commands.output import Output, check_format, moment, show, table
from gw.errors import UsageError

app = shell.group("auth", "Machines that wait to be let in: gwctl auth approve ID --user ann")

Id = Annotated[str | None, typer.Argument(metavar="ID", help="The id, or the whole address the machine showed.")]
IdOption = Annotated[str | None, typer.Option("--auth-id", metavar="ID")]


@app.command("list")
@app.command("ls", hidden=True)
def list_logins(output: Output = None) -> None:
    """List the machines that wait."""
    check_format(output)
    pending = ask("GET", "auth")["pending"]
    show(pending, output, lambda: table(("ID", "HOSTNAME", "OS", "UNTIL"), [_row(login) for login in pending]))


def _row(login: dict[str, Any]) -> list[str]:
    return [login["authId"], login["hostname"] or "-", login["os"] or "-", moment(login["expiresAt"])]


@app.command("approve")
@app.command("register", hidden=True)
def approve(login: Id = None, login_id: IdOption = None, user: User = None, output: Output = None) -> None:
    """Let a machine in as a device of this user; with a single user in the tailnet, --user may be left out."""
    check_format(output)
    body = {"authId": _named(login, login_id), "user": user or ""}
    node = ask("POST", "auth", "approve", body=body)["node"]
    show(node, output, lambda: f"approved: {node['givenName']} ({', '.join(node['ipAddresses'])})")


@app.command("reject")
@app.command("deny", hidden=True)
def reject(login: Id = None, login_id: IdOption = None, output: Output = None) -> None:
    """Refuse a machine."""
    check_format(output)
    ask("POST", "auth", "reject", body={"authId": _named(login, login_id)})
    show({}, output, lambda: "rejected")


def _named(login: str | None, login_id: str | None) -> str:
    if not (login or login_id):
        raise UsageError("which login?", hint="see `gwctl auth list`")
    return auth_id(login or login_id or "")
