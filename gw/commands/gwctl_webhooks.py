"""`gwctl webhooks`: whether receivers of events take them."""

from __future__ import annotations

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Output, check_format, moment, show, table

app = shell.group("webhooks", "Where events are sent, and whether they arrive: gwctl webhooks list")


@app.command("list")
@app.command("ls", hidden=True)
def list_webhooks(output: Output = None) -> None:
    """List the webhooks of config.toml, as the running server sees them.

    `waiting` events are sent again until the receiver takes them; the reason stands beside. `head` is how far the trail
    goes by the last signed head that the receiver took. Next: docs/events.md tells how to add one.
    """
    check_format(output)
    hooks = ask("GET", "webhooks")["webhooks"]
    headings = ("NAME", "RECEIVER", "EVENTS", "TAKEN", "WAITING", "HEAD", "STATE")
    rows = [
        [
            each["name"],
            each["receiver"],
            ",".join(each["events"]) or "all",
            str(each["taken"]),
            str(each["waiting"]),
            str(each["head"] or "-"),
            f"{each['problem']}, since {moment(each['since'])}" if each["problem"] else "well",
        ]
        for each in hooks
    ]
    show(hooks, output, lambda: table(headings, rows))
