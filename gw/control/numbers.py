"""Numbers that are never given twice: ids of nodes, users and keys.

The counters are a document of their own, written with deletions only: what was not deleted says itself which numbers
are in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import msgspec

from gw.state.changes import Put
from gw.state.documents import ApiKeyDoc, PreauthKeyDoc, ServerDoc, UserDoc


@final
class Numbers:
    """The next number of each kind. Taking one is not durable by itself: the document that carries it is."""

    def __init__(self) -> None:
        self._doc = ServerDoc()

    def load(
        self,
        doc: ServerDoc | None,
        users: Iterable[UserDoc],
        preauth_keys: Iterable[PreauthKeyDoc],
        api_keys: Iterable[ApiKeyDoc],
    ) -> None:
        """Begin with the stored counters, but never below what the documents use. Nodes: see `saw_node`."""
        known = doc or ServerDoc()
        self._doc = msgspec.structs.replace(
            known,
            next_user_id=max(known.next_user_id, 1 + max((user.id for user in users), default=0)),
            next_preauthkey_id=max(known.next_preauthkey_id, 1 + max((key.id for key in preauth_keys), default=0)),
            next_apikey_id=max(known.next_apikey_id, 1 + max((key.id for key in api_keys), default=0)),
        )

    def saw_node(self, node_id: int) -> None:
        """A node has this number."""
        if node_id >= self._doc.next_node_id:
            self._doc = msgspec.structs.replace(self._doc, next_node_id=node_id + 1)

    def new_node(self) -> int:
        """A number no node ever had."""
        fresh = self._doc.next_node_id
        self._doc = msgspec.structs.replace(self._doc, next_node_id=fresh + 1)
        return fresh

    def new_user(self) -> int:
        fresh = self._doc.next_user_id
        self._doc = msgspec.structs.replace(self._doc, next_user_id=fresh + 1)
        return fresh

    def new_preauth_key(self) -> int:
        fresh = self._doc.next_preauthkey_id
        self._doc = msgspec.structs.replace(self._doc, next_preauthkey_id=fresh + 1)
        return fresh

    def new_api_key(self) -> int:
        fresh = self._doc.next_apikey_id
        self._doc = msgspec.structs.replace(self._doc, next_apikey_id=fresh + 1)
        return fresh

    def put(self) -> Put:
        """The counters as a document: to be committed with every deletion."""
        self._doc = self._doc.edited()
        return Put(self._doc)
