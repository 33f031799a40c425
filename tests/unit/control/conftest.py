"""A tailnet over a store in memory, whose disk can be held up or break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gw.control import enrolment
from gw.control.events import Event
from gw.control.records import Change, NodeRecord
from gw.control.tailnet import Tailnet
from gw.errors import GwError
from gw.model.hostinfo import Hostinfo
from gw.model.registration import RegisterAuth, RegisterRequest
from gw.policy.model import Policy
from gw.policy.reader import read_policy
from gw.policy.starting import ALLOW_ALL_TEXT, OWN_DEVICES_TEXT
from gw.state.changes import Change as Write
from gw.state.changes import Put
from gw.state.config import Config
from gw.state.documents import Kind, UserDoc

OWN_DEVICES = read_policy(OWN_DEVICES_TEXT.encode())
ALLOW_ALL = read_policy(ALLOW_ALL_TEXT.encode())
START = datetime(2031, 5, 1, tzinfo=UTC)


class MemoryStore:
    """Keeps documents. gate: commits wait while it is cleared; broken: they fail."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, Any], Any] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.commits: list[list[Write]] = []

    def load(self, kind: Kind) -> dict[Any, Any]:
        return {key: doc for (each, key), doc in self.documents.items() if each == kind}

    async def commit(self, changes: list[Write]) -> None:
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.broken:
            raise GwError("no space left")
        self.commits.append(list(changes))
        for change in changes:
            if isinstance(change, Put):
                self.documents[change.document.kind, change.document.key] = change.document
            else:
                self.documents.pop((change.kind, change.key), None)


class World:
    """A tailnet, its store, its clock, and all it told."""

    def __init__(self, store: MemoryStore, policy: Policy, **settings: Any) -> None:
        self.store = store
        self.now = START
        self.events: list[Event] = []
        self.changes: list[Change] = []
        self.settings = settings
        config = Config(server_url="http://mesh.test", **settings)
        self.tailnet = Tailnet.load(store, config, policy, self.events.append, lambda: self.now)
        self.tailnet.subscribe(self.changes.append)
        self._number = 0

    def forward(self, **time: float) -> None:
        self.now += timedelta(**time)

    def reloaded(self) -> World:
        """The same store read again, as after a restart."""
        again = World(self.store, self.tailnet.policy.policy, **self.settings)
        again.now = self.now
        return again

    async def user(self, name: str = "ann") -> UserDoc:
        from gw.control.accounts import create_user

        return self.tailnet.users.get(name) or await create_user(self.tailnet, name)

    async def key(self, user: str | None = "ann", **options: Any) -> str:
        from gw.control.accounts import create_preauth_key

        owner = await self.user(user) if user else None
        return (await create_preauth_key(self.tailnet, user=owner, **options))[1]

    def fresh(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number:064x}"

    def request(self, key: str = "", hostname: str = "box", node_key: str = "", **more: Any) -> RegisterRequest:
        return RegisterRequest(
            node_key=node_key or self.fresh("nodekey:"),
            auth=RegisterAuth(auth_key=key) if key else None,
            hostinfo=Hostinfo(hostname=hostname),
            **more,
        )

    async def node(self, user: str = "ann", hostname: str = "box", machine: str = "", **options: Any) -> NodeRecord:
        """A node, registered with a key of its own."""
        key = await self.key(user or None, **options)
        return await enrolment.register_preauth(
            self.tailnet, machine or self.fresh("mkey:"), self.request(key, hostname)
        )


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> MakeWorld:
    def make(policy: Policy = OWN_DEVICES, **settings: Any) -> World:
        return World(MemoryStore(), policy, **settings)

    return make


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return make_world()
