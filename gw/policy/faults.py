"""Why a policy is refused."""

from __future__ import annotations


class PolicyError(Exception):
    """A policy that is refused. message: the first fault; details: all.

    line and column count from 1, 0 where unknown; located: (line, column, message) of every fault.
    """

    def __init__(
        self,
        message: str,
        *,
        details: list[str] | None = None,
        line: int = 0,
        column: int = 0,
        located: list[tuple[int, int, str]] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or [message]
        self.line = line
        self.column = column
        self.located = located or []
