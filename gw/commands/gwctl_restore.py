"""`gwctl restore`: put a backup back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gw.commands import shell
from gw.commands.output import Output, check_format, show


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="From `gwctl backup`.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the state that is there; it is kept.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read FILE through and say whether it is whole.")] = False,
    output: Output = None,
) -> None:
    """Put a backup into the state directory. The server must not run.

    gwctl --state-dir /var/lib/ghostwire restore mesh.tar.gz

    Every file is checked against its hash before anything is touched. With --force the present state is moved to
    snapshots/. Devices that joined after the backup have to log in again. Next: gwctl serve, gwctl events verify
    """
    from gw.state.backup import read_manifest, restore
    from gw.state.paths import StatePaths

    check_format(output)
    paths = StatePaths(shell.state_dir())
    if check:
        manifest = read_manifest(file)
        shape = {"files": len(manifest.files), "time": manifest.time, "version": manifest.version}
        show(shape, output, lambda: f"the backup of {manifest.time} is whole: {len(manifest.files)} files")
        return
    manifest, kept = restore(file, paths, force=force)
    shape = {"files": len(manifest.files), "time": manifest.time, "kept": str(kept or "")}
    show(shape, output, lambda: f"restored {len(manifest.files)} files of {manifest.time} into {paths.root}")
    if kept is not None and not check_format(output):
        shell.note(f"what was there is in {kept}")
