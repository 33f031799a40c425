"""Typed access to a HuJSON object: every key is known, every value has its type, every fault has its place.

Ref: spec policy §1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar, final

from gw.policy.hujson import Member, Value

T = TypeVar("T")


@final
class Faults:
    """What is wrong with a policy, in the order of the text. `add` notes (byte, message)."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []

    def add(self, at: int, message: str) -> None:
        self.found.append((at, message))

    def guard(self, at: int, parse: Callable[[str], T], text: str, *, prefix: str = "") -> T | None:
        """What the text says, or None where `parse` raised ValueError, which is noted."""
        try:
            return parse(text)
        except ValueError as error:
            self.add(at, f"{prefix}{error}")
            return None


@final
class Fields:
    """One object. known: the keys it may have; letter case does not count. Other keys are faults."""

    def __init__(self, value: Value, known: tuple[str, ...], faults: Faults, where: str, *, lenient: str = "") -> None:
        """lenient: keys that begin so are ignored."""
        self.at: Final = value.start
        self._faults = faults
        self._where = where
        self._members: dict[str, Member] = {}
        if not isinstance(value.data, dict):
            faults.add(value.start, f"{where}: expected an object")
            return
        spelled = {name.lower(): name for name in known}
        for name, member in value.data.items():
            key = spelled.get(name.lower())
            if key is None:
                if not (lenient and name.startswith(lenient)):
                    faults.add(member.start, f'unknown field: "{name}"')
            elif key in self._members:
                faults.add(member.start, f'duplicate field: "{name}"')
            elif member.value.data is not None:
                self._members[key] = member

    def __contains__(self, key: str) -> bool:
        """Whether it is there, and not null."""
        return key in self._members

    def place(self, key: str) -> int:
        member = self._members.get(key)
        return member.value.start if member else self.at

    def value(self, key: str) -> Value | None:
        member = self._members.get(key)
        return member.value if member else None

    def text(self, key: str) -> str:
        """ "" where it is missing."""
        value = self.value(key)
        if value is None:
            return ""
        if not isinstance(value.data, str):
            self._faults.add(value.start, f"{self._where}.{key}: expected a string")
            return ""
        return value.data

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if value is None:
            return False
        if not isinstance(value.data, bool):
            self._faults.add(value.start, f"{self._where}.{key}: expected true or false")
            return False
        return value.data

    def texts(self, key: str) -> list[tuple[int, str]]:
        """A list of strings, each with its place."""
        value = self.value(key)
        return [] if value is None else texts(value, self._faults, f"{self._where}.{key}")

    def items(self, key: str) -> list[Value]:
        value = self.value(key)
        if value is None:
            return []
        if not isinstance(value.data, list):
            self._faults.add(value.start, f"{self._where}.{key}: expected a list")
            return []
        return value.data

    def members(self, key: str) -> Iterator[tuple[str, int, Value]]:
        """Name, its place, and value of each member of an object."""
        value = self.value(key)
        if value is None:
            return
        if not isinstance(value.data, dict):
            self._faults.add(value.start, f"{self._where}.{key}: expected an object")
            return
        for name, member in value.data.items():
            yield name, member.start, member.value


def texts(value: Value, faults: Faults, where: str) -> list[tuple[int, str]]:
    """A list of strings, each with its place; null is the empty list."""
    if value.data is None:
        return []
    if not isinstance(value.data, list):
        faults.add(value.start, f"{where}: expected a list of strings")
        return []
    found: list[tuple[int, str]] = []
    for item in value.data:
        if isinstance(item.data, str):
            found.append((item.start, item.data))
        else:
            faults.add(item.start, f"{where}: expected a string")
    return found
