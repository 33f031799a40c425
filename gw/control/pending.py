"""Interactive logins that wait for a person: an id a request, at most 1,024, each for 15 minutes.

    request without key → id (`hskey-authreq-` + 24 hex) in the AuthURL → administrator approves or rejects the id
    follow-up request   → waits here for the verdict

Verdicts stay until the entry ages out, so that a client that lost its connection still gets the answer.

Ref: control protocol §4.3, §4.4
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, final

from gw.control.records import NodeRecord
from gw.errors import NotFound
from gw.model.registration import RegisterRequest

ID_PREFIX: Final = "hskey-authreq-"
ID_RANDOM_BYTES: Final = 12
MAX_PENDING: Final = 1024
LIFETIME_S: Final = 900.0


@final
@dataclass(eq=False, slots=True)
class PendingLogin:
    """One login under way. settled: set at the verdict, or when it aged out without one (no node, not rejected)."""

    auth_id: str
    machine_key: str
    request: RegisterRequest
    deadline: float
    node: NodeRecord | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    approving: bool = False
    rejected: bool = False

    def settle(self, node: NodeRecord) -> None:
        self.node = node
        self.settled.set()

    def reject(self) -> None:
        self.rejected = True
        self.settled.set()


@final
class PendingLogins:
    """All logins under way, oldest out first."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, PendingLogin] = OrderedDict()
        self._by_node: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def begin(self, machine_key: str, request: RegisterRequest, now: float, auth_id: str = "") -> str:
        """The id for this request; the same machine asking again for the same node key gets the same one.

        auth_id: chosen by the caller, for trials.
        """
        self.drop_old(now)
        known = self._by_id.get(self._by_node.get((machine_key, request.node_key), ""))
        if known is not None and not known.settled.is_set():
            known.request = request
            known.deadline = now + LIFETIME_S
            self._by_id.move_to_end(known.auth_id)
            return known.auth_id
        while len(self._by_id) >= MAX_PENDING:
            self._drop(next(iter(self._by_id.values())))
        auth_id = auth_id or ID_PREFIX + secrets.token_hex(ID_RANDOM_BYTES)
        self._by_id[auth_id] = PendingLogin(auth_id, machine_key, request, now + LIFETIME_S)
        self._by_node[machine_key, request.node_key] = auth_id
        return auth_id

    def get(self, auth_id: str, now: float) -> PendingLogin | None:
        self.drop_old(now)
        return self._by_id.get(auth_id)

    def require(self, auth_id: str, now: float) -> PendingLogin:
        """A login without a verdict. Raises NotFound."""
        login = self.get(auth_id, now)
        if login is None or login.settled.is_set() or login.approving:
            raise NotFound(
                f"no login waits under `{auth_id}`", hint="run `tailscale up` or `gw up` again and use the new id"
            )
        return login

    def waiting(self, now: float) -> list[PendingLogin]:
        """Logins without a verdict, oldest first."""
        self.drop_old(now)
        return [login for login in self._by_id.values() if not login.settled.is_set()]

    def drop_old(self, now: float) -> None:
        """Forget what is older than 15 minutes; who waits for it is told that it is gone."""
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            if oldest.deadline > now:
                return
            self._drop(oldest)

    def _drop(self, login: PendingLogin) -> None:
        del self._by_id[login.auth_id]
        if self._by_node.get((login.machine_key, login.request.node_key)) == login.auth_id:
            del self._by_node[login.machine_key, login.request.node_key]
        login.settled.set()
