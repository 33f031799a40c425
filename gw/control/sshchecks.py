"""SSH connections that a person has to confirm: rules with `"action": "check"`.

    the node that is connected to            the server                            a person
      GET /machine/ssh/action/SRC/to/DST ──▶ approved within the rule's period?
                                    accept ◀── yes
                   a message, where to ask ◀── no: an address for the person ────▶ /auth/ID, as the owner of SRC
      GET … &auth_id=ID ─────────────────▶ waits for the verdict                   or: gwctl auth approve ID
                          accept or reject ◀───────────────────────────────────────┘

Only the node that is connected to may ask, proven by its machine key. An approval is for a pair of nodes and the owner
of the one that connects; it lives in memory, so that a restart asks again.

Ref: control protocol §9.2; spec policy §9.1 (checkPeriod)
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, final
from urllib.parse import parse_qs

import msgspec

from gw.control.records import NodeRecord
from gw.errors import NotFound, PermissionNeeded
from gw.model.sshpolicy import SSHAction
from gw.policy.sshrules import ACCEPT, HOLD

if TYPE_CHECKING:
    from gw.control.tailnet import Tailnet

PATH: Final = "/machine/ssh/action/"
ID_PREFIX: Final = "hskey-sshcheck-"
ID_RANDOM_BYTES: Final = 12
LIFETIME_S: Final = 900.0
MAX_WAITING: Final = 1024
MAX_APPROVED: Final = 65_536
MAX_USER_CHARS: Final = 64
_PLACE: Final = re.compile(r"/machine/ssh/action/(\d{1,18})/to/(\d{1,18})", re.ASCII)

_Pair = tuple[int, int, str]  # from, to, and who owned the first


@final
@dataclass(eq=False, slots=True)
class SshCheck:
    """A connection that waits. settled: at the verdict, or when nobody gave one in time (not approved)."""

    auth_id: str
    source: NodeRecord
    destination: NodeRecord
    local_user: str
    deadline: float
    approved: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pair(self) -> _Pair:
        return self.source.id, self.destination.id, self.source.user


class _Told(msgspec.Struct, frozen=True):
    """What the event trail says of a verdict."""

    destination: int
    local_user: str


@final
class SshChecks:
    """Of one tailnet."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self._waiting: OrderedDict[str, SshCheck] = OrderedDict()
        self._approved: OrderedDict[_Pair, float] = OrderedDict()  # when, UTC seconds

    # The node's side

    async def answer(self, machine: str, target: str) -> SSHAction:
        """What the node with this machine key is to do. target: path and query. Waits where the verdict is asked for.

        Raises NotFound, PermissionNeeded.
        """
        path, _, query = target.partition("?")
        asked = {name: values[0] for name, values in parse_qs(query, max_num_fields=8).items()}
        source, destination = self._nodes(machine, path)
        period = self._tailnet.policy.ssh_check_period(source, destination)
        if period is None or self._tailnet.is_expired(source):
            return SSHAction(reject=True, message="no rule lets this connection in\r\n")
        auth_id = asked.get("auth_id", "")
        if auth_id:
            check = self.get(auth_id)
            if check is None or (check.source, check.destination) != (source, destination):
                return SSHAction(reject=True, message="this check is over: connect again\r\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, check.deadline - self._now())):
                    await check.settled.wait()
            return ACCEPT if check.approved else SSHAction(reject=True, message="the connection was not confirmed\r\n")
        if self._now() - self._approved.get((source.id, destination.id, source.user), float("-inf")) < period:
            return ACCEPT
        check = self._begin(source, destination, asked.get("local_user", "")[:MAX_USER_CHARS])
        url = f"{self._tailnet.config.server_url.rstrip('/')}/auth/{check.auth_id}"
        return SSHAction(
            message=f"# This connection has to be confirmed. Open:\r\n#\r\n#   {url}\r\n#\r\n",
            hold_and_delegate=f"{HOLD}&auth_id={check.auth_id}",
        )

    def _nodes(self, machine: str, path: str) -> tuple[NodeRecord, NodeRecord]:
        place = _PLACE.fullmatch(path)
        source = self._tailnet.nodes.get(int(place[1])) if place else None
        destination = self._tailnet.nodes.get(int(place[2])) if place else None
        if source is None or destination is None:
            raise NotFound("no such node")
        if destination.doc.machine_key != machine:
            raise PermissionNeeded("only the node that is connected to may ask")
        return source, destination

    def _begin(self, source: NodeRecord, destination: NodeRecord, local_user: str) -> SshCheck:
        self._drop_old()
        for known in self._waiting.values():
            same = (known.source, known.destination, known.local_user) == (source, destination, local_user)
            if same and not known.settled.is_set():
                return known
        while len(self._waiting) >= MAX_WAITING:
            self._drop(next(iter(self._waiting.values())))
        auth_id = ID_PREFIX + secrets.token_hex(ID_RANDOM_BYTES)
        check = SshCheck(auth_id, source, destination, local_user, self._now() + LIFETIME_S)
        self._waiting[auth_id] = check
        return check

    # The person's side

    def get(self, auth_id: str) -> SshCheck | None:
        self._drop_old()
        return self._waiting.get(auth_id)

    def require(self, auth_id: str) -> SshCheck:
        """A check without a verdict. Raises NotFound."""
        check = self.get(auth_id)
        if check is None or check.settled.is_set() or not self._tailnet.roster.has(check.source):
            raise NotFound(f"no connection waits under `{auth_id[:80]}`", hint="connect again and use the new address")
        return check

    def waiting(self) -> list[SshCheck]:
        """Those without a verdict, oldest first."""
        self._drop_old()
        return [check for check in self._waiting.values() if not check.settled.is_set()]

    def decide(self, check: SshCheck, *, approved: bool) -> None:
        """The verdict of whoever acts."""
        check.approved = approved
        if approved:
            self._approved.pop(check.pair, None)
            self._approved[check.pair] = self._now()
            while len(self._approved) > MAX_APPROVED:
                self._approved.popitem(last=False)
        check.settled.set()
        told = _Told(check.destination.id, check.local_user)
        name = "ssh-check-approved" if approved else "ssh-check-rejected"
        self._tailnet.record(name, f"node:{check.source.id}", None, told)

    # Inside

    def _now(self) -> float:
        return self._tailnet.clock().timestamp()

    def _drop_old(self) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if oldest.deadline > self._now():
                return
            self._drop(oldest)

    def _drop(self, check: SshCheck) -> None:
        del self._waiting[check.auth_id]
        check.settled.set()
