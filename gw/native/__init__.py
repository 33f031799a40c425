"""The packet core: per-packet code that gives the same results compiled by mypyc and interpreted."""

from __future__ import annotations

from typing import Final

COMPILED: Final = not __file__.endswith(".py")
