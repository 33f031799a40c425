"""`gw up`: bring the node up, logging in where needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gw.commands import shell
from gw.errors import AuthRequired, ConfigError, TimedOut, UsageError

if TYPE_CHECKING:
    from gw.localapi.client import Client


def command(
    login_server: Annotated[str, typer.Option("--login-server", metavar="URL", help="The control server.")] = "",
    auth_key: Annotated[
        str, typer.Option("--auth-key", "--authkey", metavar="file:PATH|KEY", help="Log in without a browser.")
    ] = "",
    hostname: Annotated[str, typer.Option("--hostname", help="Name to ask for instead of the host's.")] = "",
    accept_dns: Annotated[bool | None, typer.Option("--accept-dns/--no-accept-dns", help="Use the mesh's DNS.")] = None,
    shields_up: Annotated[
        bool | None, typer.Option("--shields-up/--no-shields-up", help="Refuse whatever others begin.")
    ] = None,
    force_reauth: Annotated[bool, typer.Option("--force-reauth", help="Log in again with a new key.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Give up after seconds; 0 = wait for ever.")] = 0.0,
) -> None:
    """Bring the node up; log in first where it is not.

    gw up --login-server https://control.example --auth-key file:/root/key

    Without --auth-key it prints a page to open, and waits until an administrator approves the login. Settings that are
    not named keep their value. Next: gw status, gw ping NAME.
    """
    from gw.commands.nodeclient import daemon

    changes: dict[str, Any] = {"want_running": True}
    if login_server:
        changes["control_url"] = _checked_url(login_server)
    if hostname:
        changes["hostname"] = hostname
    if accept_dns is not None:
        changes["corp_dns"] = accept_dns
    if shields_up is not None:
        changes["shields_up"] = shields_up
    key = read_key(auth_key)
    client = daemon()
    status = client.status()
    if not login_server and not client.prefs().control_url:
        raise UsageError("no control server known", hint="gw up --login-server https://control.example")
    if status.backend_state == "Running" and not force_reauth and not key and not login_server and not hostname:
        client.edit_prefs(**changes)
        shell.note("already up")
        return
    _bring_up(client, changes, key, force_reauth, timeout)


def read_key(text: str) -> str:
    """The key itself, from `file:PATH` or as given. Raises ConfigError where the file cannot be read or is empty."""
    if not text.startswith("file:"):
        return text
    path = Path(text.removeprefix("file:")).expanduser()
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the auth key: {getattr(error, 'strerror', 'not text')}",
            path=str(path),
            hint="the file holds the key that `gwctl preauthkeys create` printed",
        ) from error
    if not key:
        raise ConfigError("the auth key file is empty", path=str(path), hint="gwctl preauthkeys create -u NAME")
    return key


def _checked_url(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        is_port = parts.port != 0
    except ValueError:
        parts, is_port = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_port:
        raise UsageError(f"not a control server address: `{url}`", hint="like https://control.example")
    return url.rstrip("/")


def _bring_up(client: Client, changes: dict[str, Any], key: str, force: bool, timeout: float) -> None:
    """Watch the daemon while it starts, and say what it needs until it runs."""
    shown_url = problem = ""
    for note in client.watch(timeout_s=timeout or None, ready=lambda: client.start(changes, key, force)):
        if note.err_message:
            raise AuthRequired(note.err_message, hint="check the key and the server: gwctl preauthkeys list")
        if note.browse_to_url and note.browse_to_url != shown_url:
            shown_url = note.browse_to_url
            shell.note(f"To log in, open:\n\n    {shown_url}\n\nor type on the control server what that page says.")
        if note.state_name == "Starting":
            found = next(iter(client.status().health or []), "")
            if found and found != problem:
                problem = found
                shell.note(f"not yet: {problem}; trying again")
        if note.state_name == "NeedsMachineAuth":
            shell.note("waiting: an administrator has to approve this machine")
        if note.state_name == "Running":
            status = client.status()
            name = status.self_.dns_name.rstrip(".") if status.self_ else ""
            shell.note(f"up: {name} {' '.join(status.tailscale_ips or [])}")
            return
    if problem:
        raise TimedOut(f"the node did not come up in time: {problem}", hint="check --login-server and the network")
    raise TimedOut("the node did not come up in time", hint="gw status; the daemon's log says more")
