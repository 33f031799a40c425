"""The policy as administrators change it through the API: checked, durable in its file, then in force.

A hand edit of the file goes the other way: `gw.control.watching`. What is written here is no news to it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from gw.control.rules import revision_of
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, GwError, UsageError
from gw.policy.checks import FAILED
from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.policy.reader import read_policy
from gw.policy.toml import SUFFIX, from_toml
from gw.state.files import translate, write_atomic

MODE = 0o640


class Changed(Conflict):
    """The policy is not the one that the caller had read."""


class TestsFailed(UsageError):
    """The policy's own tests say no. failures: a line each."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__(f"the policy is refused: {FAILED}: {failures[0]}", hint="gwctl policy test FILE")
        self.failures = failures


def checked(tailnet: Tailnet, text: bytes) -> Policy:
    """The policy of a text that may be put in force. Raises UsageError with the place of the fault, TestsFailed."""
    try:
        policy = read_policy(text)
        failures = tailnet.policy.failures(policy)
    except PolicyError as error:
        place = f"{error.line}:{error.column}: " if error.line else ""
        raise UsageError(f"the policy is refused: {place}{error.message}", hint="gwctl policy check FILE") from None
    if failures:
        raise TestsFailed(failures)
    return policy


@final
class PolicyFile:
    """The file `policy.hujson` of a state directory."""

    def __init__(self, folder: Path) -> None:
        self._written, self._toml = folder / "policy.hujson", folder / f"policy{SUFFIX}"

    async def read(self) -> tuple[bytes, datetime | None]:
        """The text in HuJSON, and when it was written; nothing and None where there is no policy. Raises GwError."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> tuple[bytes, datetime | None]:
        path = self._path()
        try:
            raw = path.read_bytes()
            when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except FileNotFoundError:
            return b"", None
        except OSError as error:
            raise translate(error, "read", path) from error
        try:
            return (from_toml(raw) if path.suffix == SUFFIX else raw), when
        except PolicyError as error:
            raise GwError(f"{path.name}: {error.message}") from None

    async def is_in_force(self, tailnet: Tailnet, text: bytes) -> bool:
        """Whether the file says just this, and the tailnet follows it. Raises GwError where it cannot be read."""
        return text == tailnet.policy.policy.text and text == (await self.read())[0]

    async def replace(self, tailnet: Tailnet, text: bytes, expected: str = "") -> datetime | None:
        """Put a text in force; returns when it was written. expected: revision of the one it replaces, if that matters.

        Raises UsageError (no policy), TestsFailed, Changed, Conflict (the policy is written in TOML), GwError.
        """
        return await tailnet.durably(self._replace(tailnet, text, expected))

    async def _replace(self, tailnet: Tailnet, text: bytes, expected: str) -> datetime | None:
        async with tailnet.holds.locked("policy"):
            if self._path() == self._toml:
                raise Conflict("the policy is written in TOML: `policy.toml`", hint="gwctl policy convert, or edit it")
            before, _ = await self.read()
            if expected and expected != revision_of(before):
                raise Changed("the policy was changed meanwhile", hint="read it again")
            policy = checked(tailnet, text)
            await asyncio.to_thread(write_atomic, self._written, text, MODE)
            try:
                tailnet.rules.put_in_force(policy)
            except PolicyError as error:
                await asyncio.to_thread(write_atomic, self._written, before, MODE)
                raise UsageError(f"the policy is refused: {error.message}") from None
            return (await self.read())[1]

    def _path(self) -> Path:
        return self._toml if self._toml.exists() and not self._written.exists() else self._written


def policy_file(tailnet: Tailnet) -> PolicyFile:
    """The tailnet's file. Raises Conflict where it has none."""
    if tailnet.folder is None:
        raise Conflict("this server's policy is not kept in a file")
    return PolicyFile(tailnet.folder)
