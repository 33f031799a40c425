"""One writer a directory: an advisory lock that the kernel takes back when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final, Self, final

from gw.errors import Conflict
from gw.state.files import inherit_owner, make_folder, translate

LOCK_NAME: Final = "lock"
RETRY_S: Final = 0.05


@final
class DirectoryLock:
    """Held from `__init__` to `release`. The file stays; its text is the holder's process id."""

    def __init__(self, folder: Path, wait_s: float = 0.0, *, program: str = "server", mode: int = 0o755) -> None:
        """Take the lock of a folder, which is made with this mode if need be, waiting at most `wait_s` (blocking).

        program: what errors call a holder. Raises Conflict naming the holder, or GwError.
        """
        path = folder / LOCK_NAME
        self._descriptor = -1
        until = time.monotonic() + wait_s
        try:
            make_folder(folder, mode)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise translate(error, "lock", path) from error
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    os.close(descriptor)
                    raise Conflict(
                        f"another {program} holds `{folder}`: process {holder}",
                        hint="stop it first, or choose another `--state-dir`",
                    ) from None
                time.sleep(RETRY_S)
        self._descriptor = descriptor
        try:
            inherit_owner(descriptor, folder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:  # a full disk: the lock holds all the same, only its text is missing
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back. Twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
