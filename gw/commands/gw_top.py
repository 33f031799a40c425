"""`gw top`: who moves how much, and by which path, as a table that renews itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from gw.commands import shell
from gw.errors import NotRunning, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from gw.tui.viewmodel import MeshView

BEAT_S: Final = 1.0  # how often the daemon tells its counters
RETRY_S: Final = 2.0
ENTER: Final = "\x1b[?1049h\x1b[?25l"  # a screen of its own, no cursor
LEAVE: Final = "\x1b[?25h\x1b[?1049l"
HOME: Final = "\x1b[H"
REST_OF_LINE: Final = "\x1b[K"
REST_OF_SCREEN: Final = "\x1b[J"


def command(
    once: Annotated[bool, typer.Option("--once", help="Print one table and leave; as without a terminal.")] = False,
    count: Annotated[int, typer.Option("-n", "--count", metavar="COUNT", help="Leave after so many; 0 = never.")] = 0,
    seconds: Annotated[
        float, typer.Option("-d", "--delay", metavar="SECONDS", help="Between two of them; 1 at least.")
    ] = 2.0,
) -> None:
    """Show peers by the traffic they have now, renewed until q or Ctrl-C.

    Rates are bits a second, averaged over the delay; packets and drops are counted since gwd began. Where the policy
    dropped packets of a peer, it stands in yellow. With --json there is one object for each refresh, rates in bytes a
    second.
    """
    import asyncio
    import os

    from gw.commands.nodeclient import daemon
    from gw.state.paths import StatePaths

    if seconds < BEAT_S or count < 0:
        raise UsageError("a delay below 1 s or a count below 0", hint="gw top -d 1 -n 5")
    daemon()  # for its words where gwd does not run
    live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not shell.settings().json
    if once or not (live or count or shell.settings().json):
        count, live = 1, False
    socket = StatePaths(shell.state_dir()).node_socket
    asyncio.run(_follow(socket, count, seconds, live=live))


async def _follow(socket: Path, count: int, seconds: float, *, live: bool) -> None:
    """Print until `count` is reached (0: never) or somebody leaves. Where somebody is watching, a daemon that goes away
    is waited for."""
    import asyncio

    from gw.tui.viewmodel import MeshView, Situation

    mesh = MeshView()
    task = asyncio.current_task()
    assert task is not None
    with _screen(live, task.cancel):
        try:
            while True:
                try:
                    await _refresh(socket, mesh, count, seconds, live=live)
                    return
                except NotRunning as error:
                    if not live:
                        raise
                    mesh.fail(Situation.DAEMON_DOWN, error.message)
                    _print(mesh, live=True)
                await asyncio.sleep(RETRY_S)
        except asyncio.CancelledError:
            if not live:
                raise


async def _refresh(socket: Path, mesh: MeshView, count: int, seconds: float, *, live: bool) -> None:
    """One print for each `seconds` of the daemon's time, so that rates are true however late events arrive."""
    from contextlib import aclosing

    from gw.localapi.client import events

    shown, last = 0, 0.0
    async with aclosing(events(socket)) as stream:
        async for event in stream:
            mesh.apply(event)
            at = float(event.get("At") or 0.0)
            if not last:
                mesh.tick(0.0)
                last = at
                if live:
                    _print(mesh, live=True)
            elif at - last >= seconds - BEAT_S / 2:
                mesh.tick(at - last)
                last = at
                if shown and not live and not shell.settings().json:
                    shell.say("")
                _print(mesh, live=live, at=at)
                shown += 1
                if shown == count:
                    return
    raise NotRunning("gwd closed the connection", hint="gw status")


def _print(mesh: MeshView, *, live: bool, at: float = 0.0) -> None:
    import os
    import shutil
    import time

    from gw.tui import toptable

    if shell.settings().json:
        shell.print_json(toptable.as_object(mesh, at))
        sys.stdout.flush()
        return
    is_terminal = sys.stdout.isatty()
    width, height = shutil.get_terminal_size() if is_terminal else (0, 0)
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    text = toptable.lines(mesh, time.time(), width=width, height=height if live else 0, colour=colour)
    if live:
        body = "\n".join(line + REST_OF_LINE for line in text)
        sys.stdout.write(HOME + body + REST_OF_SCREEN)
    else:
        shell.say("\n".join(text))
    sys.stdout.flush()


@contextmanager
def _screen(live: bool, leave: Callable[[], object]) -> Iterator[None]:
    """The terminal as a live table needs it, and as it was when the block is left. leave: called at `q`."""
    if not live:
        yield
        return
    import asyncio
    import os
    import termios
    import tty

    loop = asyncio.get_running_loop()
    keys = sys.stdin.fileno() if sys.stdin.isatty() else -1

    def pressed() -> None:
        if not (found := os.read(keys, 64)) or found[:1] in b"qQ":
            leave()

    before = termios.tcgetattr(keys) if keys >= 0 else []
    if keys >= 0:
        tty.setcbreak(keys)
        loop.add_reader(keys, pressed)
    sys.stdout.write(ENTER)
    try:
        yield
    finally:
        if keys >= 0:
            loop.remove_reader(keys)
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
