"""`gw lab`: a whole mesh on this machine."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gw.commands import shell
from gw.errors import PermissionNeeded, UsageError

if TYPE_CHECKING:
    from gw.lab import NodeSpec

app = shell.group("lab", "A whole mesh on this one machine, in network namespaces.")

Nodes = Annotated[
    str,
    typer.Option(
        "--nodes",
        metavar="NAME[:NAT],…",
        help="NAT: none, endpoint-independent, symmetric, udp-blocked.",
    ),
]
DEFAULT_NODES = "ann,bob:endpoint-independent,cat:symmetric"


@app.command("demo")
def demo(nodes: Nodes = DEFAULT_NODES) -> None:
    """Build a mesh, ping by name through its NATs, measure it, and remove it again.

    sudo gw lab demo

    Ends with 0 only if every step held. Nothing outside its own namespaces is touched. Next: gw lab up.
    """
    from gw.lab.demo import demo as run
    from gw.lab.unprivileged import ensure_root

    _stop_in_order()
    ensure_root(["lab", "demo", "--nodes", nodes])
    run(shell.say, tuple(_parse(nodes)))


@app.command("up")
def up(nodes: Nodes = DEFAULT_NODES) -> None:
    """Build a mesh and leave it running.

    sudo gw lab up --nodes ann,bob:symmetric

    Next: sudo gw lab exec ann gw tui, and at the end: sudo gw lab down.
    """
    import os

    from gw.lab import Lab
    from gw.lab.unprivileged import ensure_tun

    if os.geteuid() != 0:
        raise PermissionNeeded("a lab that stays needs root", hint="sudo gw lab up; without root: gw lab demo")
    ensure_tun()
    _stop_in_order()
    lab = Lab(_parse(nodes), say=shell.note)
    lab.up()
    lab.leave()
    first = lab.nodes[0].name
    shell.say(f"up: {', '.join(node.name for node in lab.nodes)}; logs in {lab.folder}")
    shell.say(f"step in:     sudo gw lab exec {first} bash")
    shell.say(f"look at it:  sudo gw lab exec {first} gw tui")
    shell.say("remove it:   sudo gw lab down")


@app.command("down")
def down() -> None:
    """Remove the lab that is up, or what a killed one left. Harmless when there is none."""
    from gw.lab.ledger import Ledger, lab_folder

    ledger = Ledger.open(lab_folder())
    if ledger is None:
        shell.note("no lab is up")
        return
    ledger.remove_all()
    shell.note("the lab is gone")


@app.command("status")
def status() -> None:
    """The nodes of the lab that is up, with addresses and paths as the first one sees them."""
    from gw.lab import Lab

    lab = Lab.standing()
    if shell.settings().json:
        shell.print_json({node.name: lab.status(node.name) for node in lab.nodes})
        return
    for node in lab.nodes:
        shell.say(f"{node.name}:")
        for line in lab.run(node.name, "gw", "status").splitlines():
            shell.say(f"    {line}")


@app.command("move")
def move(node: Annotated[str, typer.Argument(help="A node of the lab that is up.")]) -> None:
    """Put a node into another network, as a laptop that leaves the house: all its addresses change at once.

    sudo gw lab move cat

    Behind a NAT the inner network and the NAT's outer address are others too. Connections inside the tunnel live on.
    """
    from gw.errors import NotFound
    from gw.lab import Lab
    from gw.lab.topology import move as run

    lab = Lab.standing()
    if node not in {each.name for each in lab.nodes}:
        raise NotFound(f"no such node: `{node}`", hint="gw lab status")
    before, after = run(lab.ledger, node)
    shell.say(f"{node}: {before} -> {after}")


@app.command("roam")
def roam(
    by: Annotated[
        str, typer.Option("--by", metavar="WAY,…", help="relay: over the QUIC relay; quic: directly over QUIC.")
    ] = "relay,quic",
    seconds: Annotated[int, typer.Option("--seconds", min=6, max=3600, help="Length of each iperf3 run.")] = 15,
) -> None:
    """Change a node's network in the middle of an iperf3 run; its TCP connection has to live on.

    sudo gw lab roam

    Prints what arrived each second, the longest pause, and whether a QUIC connection or a WireGuard handshake had to be
    made. Ends with 0 only if none was and iperf3 ended well. Needs iperf3. Next: gw lab up, gw lab move.
    """
    from gw.lab.roaming import WAYS
    from gw.lab.roaming import roam as run
    from gw.lab.unprivileged import ensure_root

    ways = [each.strip() for each in by.split(",")]
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"no such way: `{way}`", hint=f"one or more of {', '.join(WAYS)}")
    _stop_in_order()
    as_json = shell.settings().json
    ensure_root(["lab", "roam", "--by", by, "--seconds", str(seconds), *(["--json"] if as_json else [])])
    runs = run(shell.note if as_json else shell.say, ways, seconds)
    if as_json:
        shell.print_json(runs)


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def exec_(context: typer.Context, node: Annotated[str, typer.Argument(help="A node, or hub.")]) -> None:
    """Run a command inside a node of the lab.

    sudo gw lab exec ann gw status
    """
    import os

    from gw.errors import NotFound
    from gw.lab import Lab

    if not context.args:
        raise UsageError("no command given", hint=f"gw lab exec {node} bash")
    lab = Lab.standing()
    if node not in ("hub", *(each.name for each in lab.nodes)):
        raise NotFound(f"no such node: `{node}`", hint="gw lab status")
    argv = lab.argv(node, *context.args)
    sys.stdout.flush()
    os.execvpe(argv[0], argv, lab.environment(node))


def _parse(text: str) -> list[NodeSpec]:
    from gw.lab import Nat, NodeSpec

    specs = []
    for part in text.split(","):
        name, _, nat = part.strip().partition(":")
        try:
            specs.append(NodeSpec(name, Nat(nat or "none")))
        except ValueError:
            kinds = ", ".join(kind.value for kind in Nat)
            raise UsageError(f"no such NAT: `{nat}`", hint=f"one of {kinds}") from None
    return specs


def _stop_in_order() -> None:
    """SIGTERM and SIGHUP end the lab as Ctrl-C does: with everything taken down."""

    def stop(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
