"""`gwctl backup`: the whole state in one file, also of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gw.commands import shell
from gw.commands.controlclient import ask
from gw.commands.output import Output, check_format, show
from gw.errors import Conflict, NotFound


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="mesh.tar.gz")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace FILE.")] = False,
    output: Output = None,
) -> None:
    """Write a backup: settings, policy, users, nodes, keys, relays, DNS records, events, and the server's secrets.

    gwctl backup /mnt/elsewhere/mesh-$(date +%F).tar.gz

    All of one instant, while the server goes on. FILE can be read by its owner alone: who has it has the server.
    Next, on another machine: gwctl restore FILE
    """
    import os
    import shutil

    from gw.state.files import translate

    check_format(output)
    target = file.absolute()
    if target.exists() and not force:
        raise Conflict(f"`{file}` exists", hint="choose another name, or --force")
    if not target.parent.is_dir():
        raise NotFound(f"no such folder: `{target.parent}`", hint="make it first")
    made = ask("POST", "backup")
    source = Path(made["path"])
    part = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with source.open("rb") as data, os.fdopen(descriptor, "wb") as copy:
            shutil.copyfileobj(data, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        part.rename(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise translate(error, "write the backup", target) from error
    finally:
        source.unlink(missing_ok=True)
    made["path"] = str(target)
    show(made, output, lambda: f"wrote {target}: {made['files']} files, {made['bytes']} bytes")
    if not check_format(output):
        shell.note("it holds the server's keys: keep it as safe as the server")
