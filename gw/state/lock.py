"""One writer a directory: an advisory lock that the kernel takes back when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final, final

from gw.errors import Conflict
from gw.state.files import inherit_owner, make_folder, translate
from gw.state.paths import StatePaths

RETRY_S: Final = 0.05


@final
class DirectoryLock:
    """Held from `__init__` to `release`. The file stays; its text is the holder's process id."""

    def __init__(self, paths: StatePaths, wait_s: float = 0.0) -> None:
        """Take the lock, waiting at most `wait_s` (blocking). Raises Conflict naming the holder, or GwError."""
        self._descriptor = -1
        until = time.monotonic() + wait_s
        try:
            make_folder(paths.root, 0o755)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(paths.lock_file, flags, 0o644)
        except OSError as error:
            raise translate(error, "lock", paths.lock_file) from error
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                    os.close(descriptor)
                    raise Conflict(
                        f"another server holds `{paths.root}`: process {holder}",
                        hint="stop it first, or choose another `--state-dir`",
                    ) from None
                time.sleep(RETRY_S)
        self._descriptor = descriptor
        try:
            inherit_owner(descriptor, paths.root)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        except OSError:  # a full disk: the lock holds all the same, only its text is missing
            pass

    def release(self) -> None:
        """Give the lock back. Twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
