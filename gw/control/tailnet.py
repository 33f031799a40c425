"""The tailnet: users, nodes, keys, relays and policy in memory, indexed, over the durable store.

    read      a dictionary look-up, no lock, no await
    change    check → reserve (address, name, key) → durable in the store → indexes → event → subscribers
    observe   endpoints, host information, presence: memory only, then subscribers

A change is never visible before it is durable, and once begun it runs to its end even if the caller goes away, so that
memory and disk cannot part. Changes of one node queue behind one another; changes of different nodes run side by side
and share the store's syncs. Nothing here walks all nodes except loading and a change of policy.

    roster, people   who there is           reports   what nodes say of themselves
    numbers, holds   what is being made     upkeep    what happens by itself
    commons, rules   what concerns all
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

import msgspec

from gw.control import events
from gw.control.claims import clean_hostinfo
from gw.control.commons import Commons
from gw.control.holds import Holds
from gw.control.names import check_label
from gw.control.numbers import Numbers
from gw.control.observed import Observed, recall
from gw.control.pending import PendingLogins
from gw.control.promises import Promises
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.control.reports import Reports
from gw.control.roster import Roster
from gw.control.routes import Routes
from gw.control.rules import Rules
from gw.control.spelling import check_node_key, check_tag
from gw.control.sshchecks import SshChecks
from gw.control.upkeep import Upkeep
from gw.control.userindex import UserIndex, policy_user
from gw.errors import Conflict, NotFound, UsageError
from gw.model.addresses import EXIT_ROUTES
from gw.model.hostinfo import Hostinfo
from gw.model.registration import RegisterRequest
from gw.policy.engine import PolicyEngine
from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.policy.starting import DENY_ALL
from gw.policy.view import Effect
from gw.state.changes import Change as Write
from gw.state.changes import Delete, Put
from gw.state.config import Config
from gw.state.documents import AnyDocument, ApiKeyDoc, Kind, NodeDoc, PreauthKeyDoc, UserDoc

if TYPE_CHECKING:
    from gw.acme.challenges import Publisher
    from gw.control.eventstream import EventStream
    from gw.control.undo import Undo
    from gw.control.webhooks import Webhook

logger = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]
Subscriber = Callable[[Change], None]


class Keeper(Protocol):
    """Where documents are kept. Ref: gw.state.store"""

    def load(self, kind: Kind) -> Mapping[Any, Any]: ...

    async def commit(self, changes: list[Write]) -> None:
        """Return when all changes are durable; raise GwError when none is."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@final
class Tailnet:
    """One tailnet. Use `Tailnet.load`, then `async with tailnet.running():` for what happens by itself.

    Logins and keys: `gw.control.enrolment`. Users: `gw.control.accounts`. Both change the tailnet only through here.
    """

    def __init__(
        self, store: Keeper, config: Config, policy: Policy, record: events.Recorder, clock: Clock = utc_now
    ) -> None:
        self.store = store
        self.config = config
        self.folder: Path | None = None  # where config.toml and the policy lie, if they may be changed from here
        self.seal = secrets.token_bytes(32)  # of OAuth tokens
        self.clock = clock
        self.started = clock()
        self.people = UserIndex()
        self.users = self.people.users
        self.roster = Roster(self._pools(), config.domain, self.users)
        self.nodes = self.roster.nodes
        self.by_node_key = self.roster.by_node_key
        self.by_machine_key = self.roster.by_machine_key
        self.by_name = self.roster.by_name
        self.addresses = self.roster.addresses
        self.names = self.roster.names
        self.preauth_keys: dict[str, PreauthKeyDoc] = {}
        self.api_keys: dict[str, ApiKeyDoc] = {}
        self.policy: PolicyEngine[NodeRecord] = PolicyEngine(policy, self._pools())
        self.routes = Routes()
        self.promised = Promises(self.addresses, clock)
        self.numbers = Numbers()
        self.holds = Holds()
        self.logins = PendingLogins()
        self.commons = Commons(self)
        self.rules = Rules(self)
        self.reports = Reports(self)
        self.upkeep = Upkeep(self)
        self.ssh_checks = SshChecks(self)
        self._record = record
        self._subscribers: list[Subscriber] = []
        self._tasks: asyncio.TaskGroup | None = None
        self.undo: Undo | None = None
        self.events: EventStream | None = None  # of a running server
        self.webhooks: dict[str, Webhook] = {}  # those that run
        self.publisher: Publisher | None = None  # the DNS backend for certificates

    @classmethod
    def load(
        cls,
        store: Keeper,
        config: Config,
        policy: Policy,
        record: events.Recorder = lambda entry: None,
        clock: Clock = utc_now,
        observed: Mapping[int, Observed] | None = None,
    ) -> Tailnet:
        """Read everything from the store: the only walk over all documents. observed: what nodes said before."""
        tailnet = cls(store, config, policy, record, clock)
        counters = store.load("server").get("server")
        tailnet.people.load(store.load("user").values())
        tailnet._understand(policy)
        tailnet.preauth_keys.update(store.load("preauthkey"))
        tailnet.api_keys.update(store.load("apikey"))
        tailnet.commons.relays.update(store.load("relay"))
        tailnet.numbers.load(counters, tailnet.users.values(), tailnet.preauth_keys.values(), tailnet.api_keys.values())
        for doc in sorted(store.load("node").values(), key=lambda doc: doc.id):
            fault = tailnet.roster.admissible(doc)
            if fault:
                logger.error("nodes/%d.toml: %s: the node is left out", doc.id, fault)
                continue
            node = NodeRecord(doc, config.domain, last_seen=doc.last_seen, awaited=tailnet.started)
            tailnet._enter(recall(node, (observed or {}).get(doc.id)))
        for key in tailnet.preauth_keys.values():
            tailnet.promised.keep(key)
        for failure in tailnet.policy.own_failures():
            logger.warning("a test of the policy fails, the policy holds all the same: %s", failure)
        return tailnet

    def _understand(self, policy: Policy) -> None:
        """The policy over the users there are; one that they make ambiguous allows nothing."""
        users = [policy_user(user) for user in self.users.values()]
        try:
            self.policy = PolicyEngine(policy, self._pools(), users)
        except PolicyError as error:
            logger.error("%s: nothing is allowed until the policy is repaired", error.message)
            self.policy = PolicyEngine(DENY_ALL, self._pools(), users)

    def _pools(self) -> list[str]:
        return [pool for pool in (self.config.prefixes.v4, self.config.prefixes.v6) if pool]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tailnet]:
        """Within the block keys expire, ephemeral nodes go, and changes outlive their callers."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            watch = tasks.create_task(self.upkeep.keep_time())
            try:
                yield self
            finally:
                watch.cancel()
                self._tasks = None

    @property
    def is_running(self) -> bool:
        """Whether a server is behind it, rather than one command."""
        return self._tasks is not None

    @property
    def domain(self) -> str:
        return self.config.domain

    def is_expired(self, node: NodeRecord) -> bool:
        return node.is_expired(self.clock())

    # Who wants to know

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with every change, on the loop, in order. Returns what ends the subscription."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def publish(self, change: Change) -> None:
        """Tell the subscribers; one that fails is logged and does not keep the others from hearing."""
        for callback in list(self._subscribers):
            try:
                callback(change)
            except Exception:
                logger.exception("a subscriber failed at %s", change.kind.value)

    def record(
        self, name: str, subject: str, before: msgspec.Struct | None = None, after: msgspec.Struct | None = None
    ) -> None:
        """Append to the event trail."""
        self._record(events.event(name, subject, before, after, at=self.clock()))

    # Changes of one node: durable, then visible

    async def expire(self, node: NodeRecord, when: datetime | None) -> None:
        """Let the node's key expire at `when` (now or later), or never."""
        await self.change_node(node, "node-expiry-set", expiry=when)

    async def logout(self, node: NodeRecord) -> None:
        """The node said good-bye: its key expires now; an ephemeral node is deleted."""
        if node.doc.ephemeral:
            await self.delete(node)
        else:
            await self.change_node(node, "node-logged-out", expiry=self.clock())

    async def delete(self, node: NodeRecord) -> None:
        """Remove the node and free its addresses and name. A node already gone is no error."""
        await self.durably(self._delete(node))

    async def rename(self, node: NodeRecord, name: str) -> None:
        """Give the node this name for good: it no longer follows the host name. Raises Conflict, UsageError."""
        label = check_label(name)
        if label == node.doc.given_name:
            return
        self.names.claim(label)
        try:
            await self.change_node(node, "node-renamed", given_name=label)
        finally:
            if self.by_name.get(label) is not node:
                self.names.release(label)

    async def set_tags(self, node: NodeRecord, tags: Iterable[str]) -> None:
        """Replace the tags. A tagged node belongs to its tags and to no user, and its key does not expire."""
        wanted = sorted({check_tag(tag) for tag in tags})
        if not wanted:
            raise UsageError("a node cannot lose its last tag", hint="log it in again as a user")
        await self.change_node(node, "node-tagged", tags=wanted, user="", expiry=None)

    async def approve_routes(self, node: NodeRecord, routes: Iterable[str]) -> None:
        """Replace the approved routes. One exit route brings the other family's along."""
        wanted: set[str] = set()
        for text in routes:
            try:
                wanted.add(str(ip_network(text)))
            except ValueError as error:
                raise UsageError(f"not a route: `{text}`", hint=str(error)) from None
        if wanted & set(EXIT_ROUTES):
            wanted |= set(EXIT_ROUTES)
        ordered = sorted(wanted, key=lambda text: (ip_network(text).version, ip_network(text)))
        await self.change_node(node, "node-routes-approved", approved_routes=ordered)

    async def rotate_key(self, node: NodeRecord, new_node_key: str, request: RegisterRequest) -> None:
        """Put a new node key in place of the old one; id, addresses and name stay. Raises Conflict if it is in use."""
        await self.change_node(node, "node-key-rotated", node_key=self.claimed_key(node, new_node_key))
        if request.hostinfo is not None:
            self.reports.observe(node, hostinfo=request.hostinfo)

    def claimed_key(self, node: NodeRecord | None, text: str) -> str:
        """A node key in canonical form that no other node has. Raises UsageError, Conflict."""
        key = check_node_key(text)
        holder = self.by_node_key.get(key)
        if holder is not None and holder is not node:
            raise Conflict("node key belongs to another node")
        return key

    async def change_node(self, node: NodeRecord, event: str, **fields: object) -> None:
        """Give the node's document other values, durably. Raises NotFound for a node that is gone."""
        await self.durably(self._change(node, event, **fields))

    async def _change(self, node: NodeRecord, event: str, **fields: object) -> None:
        async with node.lock:
            self.check_there(node)
            before = node.doc
            if all(getattr(before, name) == value for name, value in fields.items()):
                return
            after = before.edited(**fields, last_seen=node.last_seen or before.last_seen)
            await self.commit([Put(after)])
            self.replace_doc(node, after, event)

    async def _delete(self, node: NodeRecord) -> None:
        async with node.lock:
            if not self.roster.has(node):
                return
            await self.commit([Delete("node", node.id), self.numbers.put()])
            self.drop(node, "node-deleted")

    # What a change is made of

    async def commit(self, changes: list[Write], before: Iterable[AnyDocument] = ()) -> None:
        """Return when the changes are durable. before: what they replace, where it is hidden already."""
        undo = self.undo
        if undo is None or not events.is_administrative(events.actor()):
            await self.store.commit(changes)
            return
        replaced = {(doc.kind, doc.key): doc for doc in before}
        for change in changes:
            kind, key = (
                (change.document.kind, change.document.key) if isinstance(change, Put) else (change.kind, change.key)
            )
            known = self.current(kind, key)
            if known is not None:
                replaced[kind, key] = known
        await self.store.commit(changes)
        undo.note(changes, replaced)

    def current(self, kind: str, key: str | int) -> AnyDocument | None:
        """The document in force, of the kinds that administrators change."""
        match kind:
            case "node":
                node = self.nodes.get(int(key))
                return None if node is None else node.doc
            case "user":
                return self.users.get(str(key))
            case "preauthkey":
                return self.preauth_keys.get(str(key))
            case "apikey":
                return self.api_keys.get(str(key))
            case "relay":
                return self.commons.relays.get(int(key))
        return None

    async def durably(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end, even if the caller is cancelled meanwhile."""
        if self._tasks is None:
            return await work
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(_settle(work, done))
        return await asyncio.shield(done)

    def add_node(self, doc: NodeDoc, hostinfo: Hostinfo | None, event: str = "node-registered") -> NodeRecord:
        """Show a node whose document is durable, and whose address and name are reserved."""
        node = NodeRecord(doc, self.domain, last_seen=doc.last_seen, awaited=self.clock())
        if hostinfo is not None:
            node.hostinfo = clean_hostinfo(hostinfo)
        self.addresses.release(doc.addresses)
        self.names.release(doc.given_name)
        effect = self._enter(node)
        self.record(event, f"node:{doc.id}", None, doc)
        self.publish(Change(ChangeKind.ADDED, node, filters=effect.filters))
        self.upkeep.consider_routes(node)
        return node

    def replace_doc(self, node: NodeRecord, after: NodeDoc, event: str) -> None:
        """Show a node's new document, which is durable: indexes, event, subscribers."""
        before = node.doc
        self.roster.unindex(node)
        node.doc = after
        self.roster.index(node)
        node.expiry_told = self.is_expired(node)
        self.upkeep.arm(node)
        effect = self._judge(node)
        self.record(event, f"node:{node.id}", before, after)
        self._publish_whole(node, effect)

    def _judge(self, node: NodeRecord) -> Effect[NodeRecord]:
        """Let the policy look at a node again. It knows the approved ones alone: the others reach nobody."""
        if node.doc.approved:
            return self.policy.update(node) if self.policy.knows(node) else self.policy.add(node)
        if not self.policy.knows(node):
            return Effect()
        effect = self.policy.remove(node)
        return Effect([*effect.filters, node], effect.lost, anew=True)

    def republish(self, node: NodeRecord) -> None:
        """The node itself looks different to others, beyond what a patch can say."""
        self._publish_whole(node, self._judge(node))

    def _publish_whole(self, node: NodeRecord, effect: Effect[NodeRecord]) -> None:
        elected = self.routes.refresh(node)
        self.publish(Change(ChangeKind.CHANGED, node, filters=effect.filters, lost=effect.lost, anew=effect.anew))
        for router in {each.id: each for each in (*elected, *self.policy.rivals(node))}.values():
            if router is not node:
                self.publish(Change(ChangeKind.CHANGED, router))
        self.upkeep.consider_routes(node)

    def check_there(self, node: NodeRecord) -> None:
        """Raises NotFound for a node that was deleted meanwhile."""
        if not self.roster.has(node):
            raise NotFound(f"node is gone: `{node.doc.given_name}`")

    def _enter(self, node: NodeRecord) -> Effect[NodeRecord]:
        self.roster.enter(node)
        self.numbers.saw_node(node.id)
        node.expiry_told = self.is_expired(node)
        self.upkeep.arm(node)
        self.routes.refresh(node)
        return self.policy.add(node) if node.doc.approved else Effect()

    def drop(self, node: NodeRecord, event: str) -> None:
        """Hide a node whose document is gone: indexes, event, subscribers."""
        self.roster.leave(node)
        effect = self.policy.remove(node) if self.policy.knows(node) else Effect()
        elected = self.routes.refresh(node, gone=True)
        self.record(event, f"node:{node.id}", node.doc, None)
        self.publish(Change(ChangeKind.REMOVED, node, filters=effect.filters, lost=effect.lost))
        for router in elected:
            self.publish(Change(ChangeKind.CHANGED, router))

    def has_user_like(self, name: str) -> bool:
        """Whether a user of this name exists or is being made; letter case does not count."""
        return self.holds.is_user_reserved(name) or self.people.like(name) is not None

    def put_user(self, user: UserDoc) -> None:
        """Show a user that is new or different, and durable."""
        self.people.put(user)
        self.rules.user_changed(user)

    def drop_user(self, name: str) -> None:
        """Hide a user that was removed."""
        self.people.drop(name)
        self.rules.user_gone(name)


async def _settle(work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
    try:
        result = await work
    except Exception as error:
        if not done.done():
            done.set_exception(error)
    except BaseException:
        done.cancel()
        raise
    else:
        if not done.done():
            done.set_result(result)
