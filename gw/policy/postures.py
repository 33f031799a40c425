"""Device postures: what must hold of a source node before a rule counts for it.

    "posture:latest": ["node:os IN ['macos', 'linux']", "node:tsVersion >= '1.40'", "custom:tier IS SET"]

A missing attribute fails every assertion but `IS NOT SET`: to deny is the safe reading.

Ref: spec policy §14
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, final

Attributes = Mapping[str, object]

_ASSERTION: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_-]+:[A-Za-z0-9_./-]+)\s*"
    r"(?P<operator>==|!=|>=|<=|>|<|\bNOT\s+IN\b|\bIN\b|\bIS\s+NOT\s+SET\b|\bIS\s+SET\b)(?P<operand>.*)",
    re.DOTALL,
)
_LITERAL: Final = re.compile(r"'([^']*)'|\"([^\"]*)\"|(true|false)|(-?[0-9]+(?:\.[0-9]+)?)")
_ITEM: Final = re.compile(rf"\s*({_LITERAL.pattern})\s*(,|$)")


@final
@dataclass(frozen=True, slots=True)
class Assertion:
    """name operator operands; no operands for IS SET and IS NOT SET."""

    name: str
    operator: str
    operands: tuple[object, ...] = ()

    def holds(self, attributes: Attributes) -> bool:
        found = attributes.get(self.name)
        match self.operator:
            case "IS SET":
                return found is not None
            case "IS NOT SET":
                return found is None
        if found is None:
            return False
        match self.operator:
            case "==" | "IN":
                return any(_same(found, operand) for operand in self.operands)
            case "!=" | "NOT IN":
                return not any(_same(found, operand) for operand in self.operands)
        order = _compare(found, self.operands[0])
        if order is None:
            return False
        return {">": order > 0, "<": order < 0, ">=": order >= 0, "<=": order <= 0}[self.operator]


def parse_assertion(text: str) -> Assertion:
    """Raises ValueError with the message to show."""
    match = _ASSERTION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"invalid posture assertion: {text!r}")
    operator = " ".join(match["operator"].split())
    operand = match["operand"].strip()
    if operator in ("IS SET", "IS NOT SET"):
        if operand:
            raise ValueError(f"invalid posture assertion: {text!r}")
        return Assertion(match["name"], operator)
    if operator in ("IN", "NOT IN"):
        if not (operand.startswith("[") and operand.endswith("]")):
            raise ValueError(f"invalid posture assertion: {text!r}: a list is needed after {operator}")
        return Assertion(match["name"], operator, tuple(_literals(operand[1:-1], text)))
    return Assertion(match["name"], operator, (_literal(operand, text),))


def held(postures: Mapping[str, tuple[Assertion, ...]], attributes: Attributes) -> frozenset[str]:
    """The postures that a node with these attributes is in."""
    return frozenset(
        name for name, assertions in postures.items() if all(assertion.holds(attributes) for assertion in assertions)
    )


def _literals(text: str, whole: str) -> Iterator[object]:
    """The values between the brackets of a list; a comma inside quotes separates nothing."""
    rest = text.rstrip()
    at = 0
    while at < len(rest):
        match = _ITEM.match(rest, at)
        if match is None:
            raise ValueError(f"invalid posture assertion: {whole!r}: bad value {rest[at:].strip()!r}")
        yield _literal(match[1], whole)
        at = match.end()


def _literal(text: str, whole: str) -> object:
    match = _LITERAL.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid posture assertion: {whole!r}: bad value {text!r}")
    if match[3]:
        return match[3] == "true"
    if match[4]:
        return float(match[4])
    return match[1] if match[1] is not None else match[2]


def _same(found: object, operand: object) -> bool:
    if isinstance(found, bool) or isinstance(operand, bool):
        return found is operand
    if isinstance(found, (int, float)) and isinstance(operand, (int, float)):
        return float(found) == float(operand)
    return str(found) == str(operand)


def _compare(found: object, operand: object) -> int | None:
    """As versions where both are texts, else as numbers; None where they cannot be compared."""
    if isinstance(found, bool) or isinstance(operand, bool):
        return None
    if isinstance(found, (int, float)) and isinstance(operand, (int, float)):
        return (found > operand) - (found < operand)
    one, other = _version(str(found)), _version(str(operand))
    return (one > other) - (one < other)


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Words before numbers, so that 1.40.1 follows 1.40 and 1.9 precedes 1.40.

    Numbers are compared as texts of digits: a node says what it likes of itself, also numbers that `int` refuses.
    """
    parts = re.findall(r"[0-9]+|[A-Za-z]+", text)
    return tuple((1, len(part.lstrip("0")), part.lstrip("0")) if part.isdigit() else (0, 0, part) for part in parts)
