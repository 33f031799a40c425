"""The tailnet: users, nodes, keys, relays and policy in memory, indexed, over the durable store.

    read      a dictionary look-up, no lock, no await
    change    check → reserve (address, name, key) → durable in the store → indexes → event → subscribers
    observe   endpoints, host information, presence: memory only, then subscribers

A change is never visible before it is durable, and once begun it runs to its end even if the caller goes away, so that
memory and disk cannot part. Changes of one node queue behind one another; changes of different nodes run side by side
and share the store's syncs. Nothing here walks all nodes except loading and a change of policy.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, final

import msgspec

from gw.control import events
from gw.control.allocator import Allocator
from gw.control.claims import clean_disco_key, clean_endpoints, clean_hostinfo, same_for_peers
from gw.control.names import Names, check_label, follows, is_label
from gw.control.observed import Observed, recall
from gw.control.pending import PendingLogins
from gw.control.promises import Promises
from gw.control.records import Change, ChangeKind, NodeRecord
from gw.control.routes import Routes
from gw.control.settings import derp_map_of, dns_config_of
from gw.errors import AuthRequired, Conflict, GwError, NotFound, UsageError, WireError
from gw.model.addresses import EXIT_ROUTES
from gw.model.derpmap import DERPMap, DERPRegion
from gw.model.dnsconfig import DNSConfig, DNSRecord
from gw.model.hostinfo import Hostinfo
from gw.model.keys import NodeKey
from gw.model.node import PeerChange
from gw.model.registration import RegisterRequest
from gw.policy.engine import PolicyEngine
from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.policy.people import User
from gw.policy.starting import DENY_ALL
from gw.policy.view import Effect
from gw.state.changes import Change as Write
from gw.state.changes import Delete, Put
from gw.state.config import Config
from gw.state.documents import AnyDocument, ApiKeyDoc, Kind, NodeDoc, PreauthKeyDoc, RelayRegionDoc, ServerDoc, UserDoc

if TYPE_CHECKING:
    from gw.control.certificates import Publisher
    from gw.control.eventstream import EventStream
    from gw.control.undo import Undo

logger = logging.getLogger(__name__)

T = TypeVar("T")
Clock = Callable[[], datetime]
Subscriber = Callable[[Change], None]

MAX_TAG_CHARS: Final = 100
MAX_ID_DIGITS: Final = 18
RETRY_S: Final = 60.0


_NODE_KEY: Final = re.compile(r"nodekey:(?!0{64})[0-9a-f]{64}", re.ASCII)
_MACHINE_KEY: Final = re.compile(r"mkey:(?!0{64})[0-9a-f]{64}", re.ASCII)


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
        self.nodes: dict[int, NodeRecord] = {}
        self.by_node_key: dict[str, NodeRecord] = {}
        self.by_machine_key: dict[str, list[NodeRecord]] = {}
        self.by_name: dict[str, NodeRecord] = {}
        self.by_address: dict[str, NodeRecord] = {}
        self.users: dict[str, UserDoc] = {}
        self.preauth_keys: dict[str, PreauthKeyDoc] = {}
        self.api_keys: dict[str, ApiKeyDoc] = {}
        self.relays: dict[int, RelayRegionDoc] = {}
        self.policy: PolicyEngine[NodeRecord] = PolicyEngine(policy, self._pools())
        self.routes = Routes()
        self.addresses = Allocator(self._pools())
        self.names = Names()
        self.promised = Promises(self.addresses, clock)
        self._by_user: dict[str, dict[int, NodeRecord]] = {}
        self._by_identity: dict[str, str] = {}
        self._by_email: dict[str, str] = {}
        self._reserved_users: set[str] = set()
        self._reserved_keys: dict[str, str] = {}
        self._enrolling: Counter[str] = Counter()
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._record = record
        self._subscribers: list[Subscriber] = []
        self._server = ServerDoc()
        self._deadlines: list[tuple[float, int]] = []
        self._wake = asyncio.Event()
        self._renamed_hosts: dict[int, None] = {}
        self._announced = ("", "")  # revision of a policy, and who is about to write it
        self._advertising: dict[int, None] = {}  # nodes whose routes the policy may approve
        self.logins = PendingLogins()
        self._tasks: asyncio.TaskGroup | None = None
        self._derp_map: DERPMap | None = None
        self._dns_config: DNSConfig | None = None
        self._derp_sources: dict[int, DERPRegion] = {}
        self.extra_records: list[DNSRecord] = []  # of `dns.extra_records_file`
        self.undo: Undo | None = None
        self.events: EventStream | None = None  # of a running server
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
        tailnet._server = store.load("server").get("server") or ServerDoc()
        tailnet.users.update(store.load("user"))
        for user in tailnet.users.values():
            tailnet._index_user(user)
        tailnet._understand(policy)
        tailnet.preauth_keys.update(store.load("preauthkey"))
        tailnet.api_keys.update(store.load("apikey"))
        tailnet.relays.update(store.load("relay"))
        tailnet._raise_counters()
        for doc in sorted(store.load("node").values(), key=lambda doc: doc.id):
            fault = tailnet.admissible(doc)
            if fault:
                logger.error("nodes/%d.toml: %s: the node is left out", doc.id, fault)
                continue
            node = NodeRecord(doc, config.domain, last_seen=doc.last_seen)
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

    def _raise_counters(self) -> None:
        """Never below what the documents use: the counters are written only with deletions."""
        highest_user = max((user.id for user in self.users.values()), default=0)
        highest_key = max((key.id for key in self.preauth_keys.values()), default=0)
        highest_api_key = max((key.id for key in self.api_keys.values()), default=0)
        self._server = msgspec.structs.replace(
            self._server,
            next_user_id=max(self._server.next_user_id, highest_user + 1),
            next_preauthkey_id=max(self._server.next_preauthkey_id, highest_key + 1),
            next_apikey_id=max(self._server.next_apikey_id, highest_api_key + 1),
        )

    # What there is

    @property
    def domain(self) -> str:
        return self.config.domain

    def node(self, node_id: int) -> NodeRecord:
        """Raises NotFound."""
        found = self.nodes.get(node_id)
        if found is None:
            raise NotFound(f"no such node: `{node_id}`", hint="see `gwctl nodes list`")
        return found

    def find_node(self, text: str) -> NodeRecord:
        """A node by id, name, full name, or address. Raises NotFound."""
        numbered = self.nodes.get(number_of(text))
        if numbered is not None:
            return numbered
        name = text.lower().removesuffix(".").removesuffix(f".{self.domain}")
        found = self.by_name.get(name)
        if found is None:
            found = self.by_address.get(name)
        if found is None:
            raise NotFound(f"no such node: `{text[:80]}`", hint="see `gwctl nodes list`")
        return found

    def user(self, name: str) -> UserDoc:
        """Raises NotFound."""
        found = self.users.get(name)
        if found is None:
            raise NotFound(f"no such user: `{name}`", hint=f"gwctl users create {name}")
        return found

    def user_of_identity(self, provider_id: str) -> UserDoc | None:
        """The user that an identity provider knows by `issuer/subject`."""
        found = self.users.get(self._by_identity.get(provider_id, ""))
        return found if found is not None and found.provider_id == provider_id else None

    def user_of_email(self, email: str) -> UserDoc | None:
        """The user with this address; letter case does not count."""
        found = self.users.get(self._by_email.get(email.lower(), ""))
        return found if found is not None and found.email.lower() == email.lower() else None

    def _index_user(self, user: UserDoc) -> None:
        """Entries of users gone or changed stay until overwritten: who looks up checks."""
        if user.provider_id:
            self._by_identity[user.provider_id] = user.name
        if user.email:
            self._by_email[user.email.lower()] = user.name

    def has(self, node: NodeRecord) -> bool:
        """Whether the node is still part of the tailnet."""
        return self.nodes.get(node.id) is node

    def nodes_of(self, user: str) -> list[NodeRecord]:
        return list(self._by_user.get(user, {}).values())

    def is_expired(self, node: NodeRecord) -> bool:
        return node.is_expired(self.clock())

    def derp_map(self) -> DERPMap:
        """The relay map; the same object until it changes."""
        if self._derp_map is None:
            self._derp_map = derp_map_of(self.relays.values(), self.policy.policy.derp_regions, self._derp_sources)
        return self._derp_map

    def dns_config(self) -> DNSConfig:
        """DNS settings for every node; the same object until they change."""
        if self._dns_config is None:
            self._dns_config = dns_config_of(self.config, [*self.extra_records, *self.policy.policy.dns_records])
        return self._dns_config

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
            self.observe(node, hostinfo=request.hostinfo)

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
            if not self.has(node):
                return
            await self.commit([Delete("node", node.id), self.put_counters()])
            self._drop(node, "node-deleted")

    # The pieces registration is made of

    def new_node_id(self) -> int:
        """A number no node ever had."""
        fresh = self._server.next_node_id
        self._server = msgspec.structs.replace(self._server, next_node_id=fresh + 1)
        return fresh

    def new_user_id(self) -> int:
        fresh = self._server.next_user_id
        self._server = msgspec.structs.replace(self._server, next_user_id=fresh + 1)
        return fresh

    def new_preauth_key_id(self) -> int:
        fresh = self._server.next_preauthkey_id
        self._server = msgspec.structs.replace(self._server, next_preauthkey_id=fresh + 1)
        return fresh

    def new_api_key_id(self) -> int:
        fresh = self._server.next_apikey_id
        self._server = msgspec.structs.replace(self._server, next_apikey_id=fresh + 1)
        return fresh

    def put_counters(self) -> Put:
        """The counters as a document: to be committed with every deletion, so that no number is given twice."""
        self._server = self._server.edited()
        return Put(self._server)

    def has_user_like(self, name: str) -> bool:
        """Whether a user of this name exists or is being made; letter case does not count."""
        lowered = name.lower()
        return lowered in self._reserved_users or any(each.lower() == lowered for each in self.users)

    @contextmanager
    def reserved_user(self, name: str) -> Iterator[None]:
        """Keep others from making a user of this name meanwhile."""
        self._reserved_users.add(name.lower())
        try:
            yield
        finally:
            self._reserved_users.discard(name.lower())

    @contextmanager
    def enrolling(self, user: str) -> Iterator[None]:
        """Keep the user from being removed or renamed while a node logs in as it."""
        self._enrolling[user] += 1
        try:
            yield
        finally:
            self._enrolling[user] -= 1
            if not self._enrolling[user]:
                del self._enrolling[user]

    def is_enrolling(self, user: str) -> bool:
        return self._enrolling[user] > 0

    @contextmanager
    def reserved_key(self, node_key: str, machine_key: str) -> Iterator[None]:
        """Keep other machines from registering the same node key meanwhile. Raises AuthRequired if one is doing so."""
        holder = self._reserved_keys.setdefault(node_key, machine_key)
        if holder != machine_key:
            raise AuthRequired("node key is in use by another machine")
        try:
            yield
        finally:
            self._reserved_keys.pop(node_key, None)

    @asynccontextmanager
    async def locked(self, subject: str) -> AsyncIterator[None]:
        """One at a time for each subject. Order where several are held: machine, key, node."""
        lock, holders = self._locks.setdefault(subject, (asyncio.Lock(), []))
        holders.append(None)
        try:
            async with lock:
                yield
        finally:
            holders.pop()
            if not holders:
                self._locks.pop(subject, None)

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
        node = NodeRecord(doc, self.domain, last_seen=doc.last_seen)
        if hostinfo is not None:
            node.hostinfo = clean_hostinfo(hostinfo)
        self.addresses.release(doc.addresses)
        self.names.release(doc.given_name)
        effect = self._enter(node)
        self.record(event, f"node:{doc.id}", None, doc)
        self.publish(Change(ChangeKind.ADDED, node, filters=effect.filters))
        self._consider_routes(node)
        return node

    def replace_doc(self, node: NodeRecord, after: NodeDoc, event: str) -> None:
        """Show a node's new document, which is durable: indexes, event, subscribers."""
        before = node.doc
        self._unindex(node)
        node.doc = after
        self._index(node)
        node.expiry_told = self.is_expired(node)
        self._arm(node)
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

    def _publish_whole(self, node: NodeRecord, effect: Effect[NodeRecord]) -> None:
        elected = self.routes.refresh(node)
        self.publish(Change(ChangeKind.CHANGED, node, filters=effect.filters, lost=effect.lost, anew=effect.anew))
        for router in {each.id: each for each in (*elected, *self.policy.rivals(node))}.values():
            if router is not node:
                self.publish(Change(ChangeKind.CHANGED, router))
        self._consider_routes(node)

    def _consider_routes(self, node: NodeRecord) -> None:
        """The policy may approve what the node advertises."""
        if node.advertised_routes:
            self._advertising[node.id] = None
            self._wake.set()

    def check_there(self, node: NodeRecord) -> None:
        """Raises NotFound for a node that was deleted meanwhile."""
        if not self.has(node):
            raise NotFound(f"node is gone: `{node.doc.given_name}`")

    # Indexes

    def admissible(self, doc: NodeDoc) -> str:
        """Why a document cannot be taken in, "" if it can. What it says goes to every peer: one bad name or key would
        make their clients drop whole messages."""
        if not is_label(doc.given_name):
            return f"`given_name` is no DNS label: `{doc.given_name[:80]}`"
        if not _NODE_KEY.fullmatch(doc.node_key) or not _MACHINE_KEY.fullmatch(doc.machine_key):
            return "`node_key` or `machine_key` is no key"
        if doc.node_key in self.by_node_key:
            return f"node key belongs to node {self.by_node_key[doc.node_key].id}"
        if doc.given_name in self.by_name:
            return f"name `{doc.given_name}` belongs to node {self.by_name[doc.given_name].id}"
        if doc.user and doc.user not in self.users:
            return f"no such user: `{doc.user}`"
        if not doc.user and not doc.tags:
            return "neither user nor tags"
        for index, address in enumerate(doc.addresses):
            try:
                fault = "" if self.addresses.claim(address) else f"address `{address}` belongs to another node"
            except ValueError:
                fault = f"not an address: `{address[:80]}`"
            if fault:
                self.addresses.release(doc.addresses[:index])
                return fault
        self.addresses.release(doc.addresses)
        return ""

    def _enter(self, node: NodeRecord) -> Effect[NodeRecord]:
        self._index(node)
        self.nodes[node.id] = node
        self.by_machine_key.setdefault(node.doc.machine_key, []).append(node)
        if node.id >= self._server.next_node_id:
            self._server = msgspec.structs.replace(self._server, next_node_id=node.id + 1)
        node.expiry_told = self.is_expired(node)
        self._arm(node)
        self.routes.refresh(node)
        return self.policy.add(node) if node.doc.approved else Effect()

    def _drop(self, node: NodeRecord, event: str) -> None:
        self._unindex(node)
        del self.nodes[node.id]
        machine = self.by_machine_key[node.doc.machine_key]
        machine.remove(node)
        if not machine:
            del self.by_machine_key[node.doc.machine_key]
        effect = self.policy.remove(node) if self.policy.knows(node) else Effect()
        elected = self.routes.refresh(node, gone=True)
        self.record(event, f"node:{node.id}", node.doc, None)
        self.publish(Change(ChangeKind.REMOVED, node, filters=effect.filters, lost=effect.lost))
        for router in elected:
            self.publish(Change(ChangeKind.CHANGED, router))

    def _index(self, node: NodeRecord) -> None:
        doc = node.doc
        self.by_node_key[doc.node_key] = node
        self.by_name[doc.given_name] = node
        if doc.user:
            self._by_user.setdefault(doc.user, {})[node.id] = node
        if doc.given_name not in self.names:
            self.names.claim(doc.given_name)
        for address in doc.addresses:
            self.addresses.claim(address)
            self.by_address[address] = node

    def _unindex(self, node: NodeRecord) -> None:
        doc = node.doc
        del self.by_node_key[doc.node_key], self.by_name[doc.given_name]
        if doc.user:
            del self._by_user[doc.user][node.id]
        self.names.release(doc.given_name)
        self.addresses.release(doc.addresses)
        for address in doc.addresses:
            self.by_address.pop(address, None)

    async def _approve_by_policy(self, node: NodeRecord) -> None:
        """Approve what the policy approves by itself. It only ever adds: people remove."""
        fresh = [
            route
            for route in self.policy.approved(node, node.advertised_routes)
            if route not in node.doc.approved_routes
        ]
        if fresh:
            with events.acting_as("policy"):
                await self.approve_routes(node, [*node.doc.approved_routes, *fresh])

    # What nodes report: memory only

    def observe(
        self,
        node: NodeRecord,
        *,
        hostinfo: Hostinfo | None = None,
        endpoints: list[str] | None = None,
        disco_key: str | None = None,
        home_derp: int | None = None,
        cap: int | None = None,
    ) -> None:
        """Take in what a node says about itself; None keeps what is known. Peers hear only of real differences."""
        if not self.has(node):
            return
        patch = PeerChange(node_id=node.id)
        whole = False
        if hostinfo is not None:
            if hostinfo != node.hostinfo:  # most say what they said before, and that was cleaned
                whole = self._observe_hostinfo(node, clean_hostinfo(hostinfo))
            report = node.hostinfo.net_info
            if home_derp is None and report is not None and report.preferred_derp:
                home_derp = report.preferred_derp
        if endpoints is not None:
            clean = clean_endpoints(endpoints)
            if clean != node.endpoints:
                node.endpoints = patch.endpoints = clean
        if disco_key is not None:
            key = clean_disco_key(disco_key)
            if key and key != node.disco_key:
                node.disco_key = patch.disco_key = key
        if home_derp is not None and home_derp > 0 and home_derp != node.home_derp:
            node.home_derp = patch.derp_region = home_derp
        if cap is not None and cap != node.cap:
            node.cap = patch.cap = cap
        if whole:
            self._publish_whole(node, self._judge(node))
        elif patch != PeerChange(node_id=node.id):
            self.publish(Change(ChangeKind.PATCHED, node, patch))

    def _observe_hostinfo(self, node: NodeRecord, hostinfo: Hostinfo) -> bool:
        """Keep it; whether peers see a difference."""
        old = node.hostinfo
        if hostinfo.net_info is None and old.net_info is not None:
            hostinfo = msgspec.structs.replace(hostinfo, net_info=old.net_info)
        node.hostinfo = hostinfo
        if hostinfo.hostname and hostinfo.hostname != node.doc.hostname:
            self._renamed_hosts[node.id] = None
            self._wake.set()
        return not same_for_peers(old, hostinfo)

    def set_online(self, node: NodeRecord, online: bool) -> None:
        """Say that the node's map stream has opened or closed."""
        if node.online == online or not self.has(node):
            return
        node.online = online
        node.last_seen = self.clock()
        patch = PeerChange(node_id=node.id, online=online, last_seen=None if online else node.last_seen)
        self.publish(Change(ChangeKind.PATCHED, node, patch))
        self._elect_again(node)
        self._arm(node)

    def set_unwell(self, node: NodeRecord, unwell: bool) -> None:
        """Say that a router does not answer although its map stream stands, or that it answers again."""
        if node.is_unwell == unwell or not self.has(node):
            return
        node.is_unwell = unwell
        self.record("router-unwell" if unwell else "router-well", f"node:{node.id}")
        self._elect_again(node)

    def _elect_again(self, node: NodeRecord) -> None:
        """A router came, went, fell ill or got well: who serves its subnets now?"""
        elected = self.routes.refresh(node)
        for prefix in {route for each in elected for route in self.routes.primaries_of(each)} & {*node.served_routes}:
            self.record("route-taken-over", f"route:{prefix}", None, Router(self.routes.primary(prefix) or 0))
        for router in {each.id: each for each in (*elected, *self.policy.rivals(node))}.values():
            self.publish(Change(ChangeKind.CHANGED, router))

    # What concerns everybody

    def set_policy(self, policy: Policy) -> None:
        """Put a policy in force. Raises PolicyError; the last one stays then."""
        if policy.text == self.policy.policy.text:
            return
        before = self.policy.policy.text
        self.policy.set_policy(policy)
        self.record(
            "policy-changed", "policy", PolicyRevision(revision_of(before)), PolicyRevision(revision_of(policy.text))
        )
        if self.undo is not None:
            self.undo.note_policy(before, policy.text)
        self._policy_is_new()

    def announce_policy(self, text: bytes, before: bytes) -> None:
        """Somebody is about to write this text: the event trail shall name them, not a hand edit."""
        if self._tasks is None:  # no server runs to take it over
            was = PolicyRevision(revision_of(before)) if before else None
            self.record("policy-changed", "policy", was, PolicyRevision(revision_of(text)))
        else:
            self._announced = (revision_of(text), events.actor())

    def author_of(self, text: bytes) -> str:
        """Who announced this text; a person with an editor if nobody did."""
        revision, author = self._announced
        return author if revision == revision_of(text) else "hand edit"

    def _policy_is_new(self) -> None:
        self._derp_map = self._dns_config = None
        for node in self.nodes.values():
            self._consider_routes(node)
        self.publish(Change(ChangeKind.POLICY))

    def put_user(self, user: UserDoc) -> None:
        """Show a user that is new or different, and durable."""
        self.users[user.name] = user
        self._index_user(user)
        try:
            if self.policy.put_user(policy_user(user)):
                self._policy_is_new()
        except PolicyError as error:
            logger.error("%s: the rules stay as they were before user `%s`", error.message, user.name)

    def drop_user(self, name: str) -> None:
        """Hide a user that was removed."""
        self.users.pop(name, None)
        if self.policy.drop_user(name):
            self._policy_is_new()

    def set_config(self, config: Config) -> list[str]:
        """Take over changed settings. Returns the names of those that need a restart and stay as they were."""
        fixed = (
            "server_url",
            "listen",
            "metrics_listen",
            "domain",
            "tls_cert_file",
            "tls_key_file",
            "acme",
            "http_listen",
            "prefixes",
        )
        old = self.config
        stuck = [name for name in fixed if getattr(old, name) != getattr(config, name)]
        self.config = msgspec.structs.replace(config, **{name: getattr(old, name) for name in fixed})
        if self.config.dns != old.dns:
            self._dns_config = None
            self.publish(Change(ChangeKind.DNS))
        return stuck

    def set_derp_sources(self, regions: dict[int, DERPRegion]) -> None:
        """Take over the regions of foreign relay maps, all of them."""
        self._derp_sources = regions
        self._derp_map = None
        self.publish(Change(ChangeKind.RELAYS))

    def set_extra_records(self, records: list[DNSRecord]) -> None:
        """Take over the DNS records of a file, all of them."""
        if records == self.extra_records:
            return
        self.extra_records = records
        self._dns_config = None
        self.publish(Change(ChangeKind.DNS))

    def set_relay(self, key: int, doc: RelayRegionDoc | None) -> None:
        """Take over a region of the relay map, or its removal."""
        if doc == self.relays.get(key):
            return
        if doc is None:
            del self.relays[key]
        else:
            self.relays[key] = doc
        self._derp_map = None
        self.publish(Change(ChangeKind.RELAYS))

    def take_over_node(self, node_id: int, doc: NodeDoc | None) -> str:
        """Show a node's file as a person changed, wrote or removed it. Returns why that cannot be, or ""."""
        node = self.nodes.get(node_id)
        if doc is None:
            if node is not None:
                self._drop(node, "node-deleted")
            return ""
        if doc.id != node_id:
            return f"`id` is {doc.id}, the file's name says {node_id}"
        if node is None:
            fault = self.admissible(doc)
            if not fault:
                self.add_node(doc, None, "node-added")
            return fault
        if doc.machine_key != node.doc.machine_key:
            return "`machine_key` cannot be changed"
        self._unindex(node)
        fault = self.admissible(doc)
        self._index(node)
        if not fault and doc != node.doc:
            self.replace_doc(node, doc, "node-edited")
        return fault

    # What happens by itself

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tailnet]:
        """Within the block keys expire, ephemeral nodes go, and changes outlive their callers."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            watch = tasks.create_task(self._keep_time())
            try:
                yield self
            finally:
                watch.cancel()
                self._tasks = None

    async def _keep_time(self) -> None:
        while True:
            self._wake.clear()
            try:
                due = await self.maintain()
            except GwError as error:
                logger.error("clean-up failed and is tried again in a minute: %s", error.message)
                due = RETRY_S
            try:
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def maintain(self) -> float | None:
        """Do what is due now. Returns the seconds until the next thing is, None if nothing waits."""
        for node_id in list(self._renamed_hosts):
            del self._renamed_hosts[node_id]
            node = self.nodes.get(node_id)
            if node is not None:
                await self._follow_hostname(node)
        for node_id in list(self._advertising):
            del self._advertising[node_id]
            node = self.nodes.get(node_id)
            if node is not None:
                try:
                    await self._approve_by_policy(node)
                except GwError:
                    self._advertising[node_id] = None  # tried again with the rest
                    raise
        while self._deadlines:
            now = self.clock()
            when, node_id = self._deadlines[0]
            if when > now.timestamp():
                return when - now.timestamp()
            heapq.heappop(self._deadlines)
            node = self.nodes.get(node_id)
            if node is None or node.armed != when:
                continue
            node.armed = float("inf")
            if node.is_expired(now) and not node.expiry_told:
                node.expiry_told = True
                self.record("node-expired", f"node:{node.id}")
                self.publish(Change(ChangeKind.CHANGED, node))
            if self._ephemeral_deadline(node, now) <= now.timestamp():
                try:
                    await self.durably(self._delete(node))
                except GwError:
                    self._arm(node, now.timestamp() + RETRY_S)
                    raise
                logger.info("ephemeral node %s was away too long: removed", node.doc.given_name)
            else:
                self._arm(node)  # seen again since, or the time allowed was made longer
        return None

    def _ephemeral_deadline(self, node: NodeRecord, now: datetime) -> float:
        if not node.doc.ephemeral or node.online:
            return float("inf")
        seen = max(node.last_seen or self.started, self.started, node.doc.created)
        return (seen + timedelta(seconds=self.config.node.ephemeral_timeout_s)).timestamp()

    def _arm(self, node: NodeRecord, earliest: float = 0.0) -> None:
        """See to the node when its time has come. One entry a node: a later one is found when the earlier is due."""
        due = self._ephemeral_deadline(node, self.clock())
        if node.doc.expiry is not None and not node.expiry_told:
            due = min(due, node.doc.expiry.timestamp())
        due = max(due, earliest)
        if due < node.armed:
            node.armed = due
            heapq.heappush(self._deadlines, (due, node.id))
            if self._deadlines[0] == (due, node.id):
                self._wake.set()

    async def _follow_hostname(self, node: NodeRecord) -> None:
        hostname = node.hostinfo.hostname
        if hostname == node.doc.hostname:
            return
        if not follows(node.doc.given_name, node.doc.hostname):
            await self.change_node(node, "node-hostname-changed", hostname=hostname)
            return
        self.names.release(node.doc.given_name)
        label = self.names.take(hostname)
        if label != node.doc.given_name and node.doc.given_name not in self.names:
            self.names.claim(node.doc.given_name)
        try:
            await self.change_node(node, "node-hostname-changed", hostname=hostname, given_name=label)
        finally:
            if self.by_name.get(label) is not node:
                self.names.release(label)

    def _pools(self) -> list[str]:
        return [pool for pool in (self.config.prefixes.v4, self.config.prefixes.v6) if pool]


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


def number_of(text: str) -> int:
    """The number that an id's text says; 0, which nobody has, where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS else 0


def check_tag(tag: str) -> str:
    """A tag: `tag:`, a letter, then letters, digits and hyphens. Raises UsageError."""
    name = tag.removeprefix("tag:")
    plain = name.replace("-", "")
    if tag == name or not name[:1].isalpha() or not plain.isalnum() or not tag.isascii() or len(tag) > MAX_TAG_CHARS:
        raise UsageError(f"not a tag: `{tag}`", hint="write `tag:server`")
    return tag


def check_node_key(text: str) -> str:
    """A node key in canonical form. Raises UsageError for anything else, the zero key included."""
    try:
        key = NodeKey.parse(text)
    except WireError:
        raise UsageError("not a node key") from None
    if not key:
        raise UsageError("the zero node key")
    return str(key)


class PolicyRevision(msgspec.Struct, frozen=True):
    """What the event trail keeps of a policy."""

    policy: str


class Router(msgspec.Struct, frozen=True):
    """What the event trail says of a subnet: the id of the node that serves it."""

    router: int


def revision_of(text: bytes) -> str:
    """A short name of a policy's text: the same text has the same one."""
    return hashlib.sha256(text).hexdigest()[:16]


def policy_user(user: UserDoc) -> User:
    """A user as the policy names it."""
    email = user.email or (user.name if "@" in user.name else "")
    return User(user.name, email, id=user.id, groups=frozenset(user.groups))
