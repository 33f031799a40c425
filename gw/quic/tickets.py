"""Resumption: tickets that a server takes once, and how a client keeps its own.

A ticket stands for the AUTH of the connection that it was issued on, so the server keeps the node key with it. It is
gone as soon as it was asked for: a replayed first flight finds none and gets a full handshake, without early data.

Ref: spec quic §10; RFC 8446 §8
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, final

import msgspec
from aioquic.tls import CipherSuite, SessionTicket

from gw.errors import WireError

LIFETIME_S: Final = 7200.0
MAX_TICKETS: Final = 65536


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a server knows of the connection before."""

    ticket: SessionTicket
    node: bytes
    until: float


@final
class TicketStore:
    """The server's tickets: each is given out once, and none that is old. Who resumes is admitted anew."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[bytes, Resumed] = OrderedDict()

    def keep(self, ticket: SessionTicket, node: bytes, now: float) -> None:
        """The ticket of a connection whose node key is proven."""
        self._tickets[ticket.ticket] = Resumed(ticket, node, now + LIFETIME_S)
        while self._tickets and (len(self._tickets) > MAX_TICKETS or next(iter(self._tickets.values())).until <= now):
            self._tickets.popitem(last=False)

    def take(self, name: bytes, now: float) -> Resumed | None:
        """The connection that a ticket stands for; never twice."""
        found = self._tickets.pop(name, None)
        return found if found is not None and found.until > now else None

    def __len__(self) -> int:
        return len(self._tickets)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's ticket as JSON; bytes are base64."""

    node: bytes
    first_cid: bytes
    age_add: int
    cipher_suite: int
    not_valid_before: float
    not_valid_after: float
    resumption_secret: bytes
    server_name: str
    ticket: bytes
    max_early_data_size: int
    extensions: list[tuple[int, bytes]]


def encode_ticket(ticket: SessionTicket, node: bytes, first_cid: bytes, now: float) -> bytes:
    """For a file that nobody else reads. node: whose it is. first_cid: a connection id of the server that issued it.

    now: unix seconds. A client believes no ticket for longer than the server keeps it.
    """
    kept = _Kept(
        node=node,
        first_cid=first_cid,
        age_add=ticket.age_add,
        cipher_suite=int(ticket.cipher_suite),
        not_valid_before=ticket.not_valid_before.timestamp(),
        not_valid_after=min(ticket.not_valid_after.timestamp(), now + LIFETIME_S),
        resumption_secret=ticket.resumption_secret,
        server_name=ticket.server_name,
        ticket=ticket.ticket,
        max_early_data_size=ticket.max_early_data_size or 0,
        extensions=[(int(kind), bytes(data)) for kind, data in ticket.other_extensions],
    )
    return base64.b64encode(msgspec.json.encode(kept))


def decode_ticket(raw: bytes, node: bytes, server_name: str, now: float) -> tuple[SessionTicket, bytes]:
    """The ticket and the server's connection id. Raises WireError for one of another node, server or time."""
    try:
        kept = msgspec.json.decode(base64.b64decode(raw, validate=True), type=_Kept)
        suite = CipherSuite(kept.cipher_suite)
        ticket = SessionTicket(
            age_add=kept.age_add,
            cipher_suite=suite,
            not_valid_before=datetime.fromtimestamp(kept.not_valid_before, UTC),
            not_valid_after=datetime.fromtimestamp(kept.not_valid_after, UTC),
            resumption_secret=kept.resumption_secret,
            server_name=kept.server_name,
            ticket=kept.ticket,
            max_early_data_size=kept.max_early_data_size or None,
            other_extensions=[(kind, data) for kind, data in kept.extensions],
        )
    except (ValueError, OverflowError, OSError):
        raise WireError("not a session ticket") from None
    if (
        kept.node != node
        or kept.server_name != server_name
        or not kept.not_valid_before <= now + 60 < kept.not_valid_after
    ):
        raise WireError("a session ticket of something else")
    return ticket, kept.first_cid
