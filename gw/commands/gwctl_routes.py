"""`gwctl routes`: subnets and exit nodes; the same commands as `gwctl nodes list-routes` and `approve-routes`."""

from __future__ import annotations

from gw.commands import shell
from gw.commands.gwctl_nodes import approve_routes, list_routes

app = shell.group("routes", "Subnets and exit nodes: gwctl routes approve NODE -r 10.0.0.0/8")
app.command("list")(list_routes)
app.command("ls", hidden=True)(list_routes)
app.command("approve")(approve_routes)
app.command("enable", hidden=True)(approve_routes)
