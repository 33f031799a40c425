"""Addresses promised to a pre-auth key: nobody else gets them while the key can still be used.

    gwctl preauthkeys create -u ann --ip 100.64.0.53     the node that comes by this key has that address

A promise ends when the key is used, expired or deleted. One whose time ran out ends when somebody asks for its address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import final

from gw.control.allocator import Allocator
from gw.errors import Conflict
from gw.state.documents import PreauthKeyDoc


@final
class Promises:
    """What keys hold of an allocator's addresses."""

    def __init__(self, addresses: Allocator, clock: Callable[[], datetime]) -> None:
        self._addresses = addresses
        self._clock = clock
        self._held: dict[str, PreauthKeyDoc] = {}

    def keep(self, key: PreauthKeyDoc) -> None:
        """Hold what a key of the store was promised, as far as it is free."""
        if self._is_usable(key):
            self._held |= {
                each: key for each in key.addresses if each not in self._held and self._addresses.claim(each)
            }

    def claim(self, chosen: Iterable[str]) -> list[str]:
        """Take the chosen addresses, all or none; returned in canonical form, IPv4 first.

        Raises UsageError for one that no node may have, Conflict for one that is taken.
        """
        wanted = self._addresses.check_chosen(chosen)
        taken: list[str] = []
        for address in wanted:
            key = self._held.get(address)
            if key is not None and not self._is_usable(key):
                self.end(key)
            if not self._addresses.claim(address):
                self._addresses.release(taken)
                by = f"pre-auth key {key.prefix}" if address in self._held and key is not None else "another node"
                raise Conflict(f"address is taken: `{address}` ({by})", hint="choose another one; `gwctl nodes list`")
            taken.append(address)
        return wanted

    def promise(self, key: PreauthKeyDoc) -> None:
        """Note that the key's addresses, claimed before, are held for it."""
        self._held |= dict.fromkeys(key.addresses, key)

    def end(self, key: PreauthKeyDoc, given: Iterable[str] = ()) -> None:
        """Let go of what the key holds. given: addresses that a node took over: they stay taken."""
        kept = set(given)
        for address in key.addresses:
            holder = self._held.get(address)
            if holder is not None and holder.prefix == key.prefix:
                del self._held[address]
                if address not in kept:
                    self._addresses.release([address])

    def _is_usable(self, key: PreauthKeyDoc) -> bool:
        is_over = key.revoked or (key.used and not key.reusable)
        return not is_over and (key.expiration is None or key.expiration > self._clock())
