"""Every error GhostWire raises on purpose.

    GwError                 1   something failed; the message says what, the hint what to do
    ├── UsageError          2   the command line or an argument is wrong
    ├── NotRunning          3   the daemon or server that should answer is not there
    ├── NotFound            4   the named thing does not exist
    ├── PermissionNeeded    5   the caller may not do this
    ├── AuthRequired        6   not logged in, or the key was refused
    ├── TimedOut            7   no answer in time
    ├── Conflict            8   it exists already, or somebody else holds it
    └── ConfigError         9   a file a person wrote is wrong: file, line, key
    WireError                   a peer sent nonsense: counted, never shown
    StateError                  we misused our own code: a bug

The number is the exit code of a command that ends with the error. Any other exception is a bug and ends with 70.
"""

from __future__ import annotations

from typing import ClassVar, Final

EXIT_BUG: Final = 70
EXIT_INTERRUPTED: Final = 130


class GwError(Exception):
    """A failure to tell a person about: `message` says what failed, `hint` one thing to try."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GwError):
    exit_code = 2
    code = "usage"


class NotRunning(GwError):
    exit_code = 3
    code = "not-running"


class NotFound(GwError):
    exit_code = 4
    code = "not-found"


class PermissionNeeded(GwError):
    exit_code = 5
    code = "permission-needed"


class AuthRequired(GwError):
    exit_code = 6
    code = "auth-required"


class TimedOut(GwError):
    exit_code = 7
    code = "timed-out"


class Conflict(GwError):
    exit_code = 8
    code = "conflict"


class ConfigError(GwError):
    """A file a person wrote is wrong. `where` is `path`, `path:line` or `path:line: key`."""

    exit_code = 9
    code = "config"

    def __init__(
        self, message: str, *, path: str = "", line: int | None = None, key: str | None = None, hint: str | None = None
    ) -> None:
        self.path, self.line, self.key, self.reason = path, line, key, message
        where = path if line is None else f"{path}:{line}"
        if key:
            where = f"{where}: `{key}`" if where else f"`{key}`"
        super().__init__(f"{where}: {message}" if where else message, hint=hint)


BY_CODE: Final[dict[str, type[GwError]]] = {
    kind.code: kind
    for kind in (GwError, UsageError, NotRunning, NotFound, PermissionNeeded, AuthRequired, TimedOut, Conflict)
}


def from_code(code: str, message: str, hint: str | None = None) -> GwError:
    """Rebuild an error that crossed a socket as (code, message, hint); unknown codes give a plain `GwError`."""
    if code == ConfigError.code:
        return ConfigError(message, hint=hint)
    return BY_CODE.get(code, GwError)(message, hint=hint)


class WireError(Exception):
    """A peer sent bytes that no correct peer sends. The input is dropped, a counter goes up, life goes on."""


class StateError(Exception):
    """Our own code was called in a state that does not allow it. Always a bug on this side."""
