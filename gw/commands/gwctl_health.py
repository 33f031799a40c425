"""`gwctl health`: whether the control server answers."""

from __future__ import annotations

from gw.commands import remote
from gw.commands.output import Output, check_format, show
from gw.errors import NotRunning


def command(output: Output = None) -> None:
    """Ask the running control server whether it is well; exit code 3 if none runs."""
    from gw.commands.controlclient import state_paths
    from gw.localapi import unixhttp

    check_format(output)
    if remote.address():
        remote.request("GET", "/api/v1/health")
        show({"status": "pass"}, output, lambda: "pass")
        return
    paths = state_paths()
    try:
        answer = unixhttp.request(paths.control_socket, "GET", "/health").json()
    except NotRunning as error:
        raise NotRunning("the control server is not running", hint=f"gwctl serve ({error.message})") from None
    show(answer, output, lambda: str(answer["status"]))
