"""The last administrative changes, to be taken back: the newest first, and only while nothing was built on it.

A step is one commit: the documents as they were and as they became, kept in `control/undo.jsonl` (without it nothing is
lost but the way back). Taking a step back sets only the fields that it changed, and only where they still hold what it
left there; otherwise the world has moved on, and the change has to be made by hand.

What machines, the policy and the server do by themselves makes no step. A hand edit makes one that cannot be taken back
here: it says who has to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, Final, final

import msgspec

from gw.control import accounts, relays
from gw.control.configfile import change_settings, setting
from gw.control.events import actor, is_administrative
from gw.control.policyfile import policy_file
from gw.control.records import NodeRecord
from gw.control.rules import revision_of
from gw.control.tailnet import Tailnet
from gw.errors import Conflict, NotFound
from gw.state.changes import Change, Delete, Put
from gw.state.documents import (
    PLACES,
    AnyDocument,
    ApiKeyDoc,
    Key,
    Kind,
    NodeDoc,
    PreauthKeyDoc,
    RelayRegionDoc,
    UserDoc,
)
from gw.state.files import inherit_owner

logger = logging.getLogger(__name__)

FILE: Final = "undo.jsonl"
KEPT: Final = 100  # steps that are found again after a restart
MAX_BYTES: Final = 4 << 20
PASSING: Final = frozenset({"revision", "schema", "last_seen", "last_used"})  # not what a step is about
SHOWN: Final = ("given_name", "name", "prefix")


class Altered(msgspec.Struct, omit_defaults=True):
    """One document of a step; None = there was, or is, none. kind `policy`: texts."""

    kind: str
    key: str | int
    before: Any = None
    after: Any = None


class Step(msgspec.Struct, omit_defaults=True):
    """One administrative change. by_hand: in an editor; taken_back: it is no more."""

    time: datetime
    actor: str
    changes: list[Altered] = []
    by_hand: bool = False
    taken_back: bool = False


_undoing: Final[ContextVar[bool]] = ContextVar("gw_undoing", default=False)
_decode: Final = msgspec.json.Decoder(Step).decode


@final
class History:
    """The steps of a tailnet, oldest first."""

    def __init__(self, path: Path | None) -> None:
        """path: of the file, None to remember only while the program runs."""
        self._path = path
        self._steps: list[Step] | None = None

    def steps(self) -> list[Step]:
        if self._steps is None:
            self._steps = list(self._read())
        return self._steps

    def last(self) -> Step | None:
        """The newest step that was not taken back."""
        return next((step for step in reversed(self.steps()) if not step.taken_back), None)

    def add(self, step: Step) -> None:
        self.steps().append(step)
        del self.steps()[:-KEPT]
        self._append(step)

    def take_back(self, step: Step) -> None:
        """The step is no more."""
        step.taken_back = True
        self._append(step)

    def _read(self) -> Iterator[Step]:
        found: dict[datetime, Step] = {}
        try:
            lines = self._path.read_bytes().splitlines() if self._path is not None else []
        except OSError:
            lines = []
        for line in lines:
            try:
                step = _decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            found[step.time] = step
        yield from list(found.values())[-KEPT:]

    def _append(self, step: Step) -> None:
        if self._path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
            try:
                inherit_owner(descriptor, self._path.parent)
                text = msgspec.json.encode(step) + b"\n"
                if os.fstat(descriptor).st_size > MAX_BYTES:
                    os.ftruncate(descriptor, 0)
                    text = b"".join(msgspec.json.encode(each) + b"\n" for each in self.steps())
                os.write(descriptor, text)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("the last change cannot be undone later: %s", error)


@final
class Undo:
    """Notes the changes of a tailnet as they are committed, and takes the last one back."""

    def __init__(self, tailnet: Tailnet, path: Path | None = None) -> None:
        self._tailnet = tailnet
        self.history = History(path)
        tailnet.undo = self

    # Noting

    def note(self, changes: Iterable[Change], before: Mapping[tuple[Kind, Key], AnyDocument]) -> None:
        """Documents were committed. before: those that were replaced or removed."""
        if _undoing.get() or not is_administrative(actor()):
            return
        altered = []
        for change in changes:
            kind = change.document.kind if isinstance(change, Put) else change.kind
            key = change.document.key if isinstance(change, Put) else change.key
            if kind != "server":
                old = before.get((kind, key))
                new = change.document if isinstance(change, Put) else None
                altered.append(Altered(kind, key, _plain(old), _plain(new)))
        if altered:
            self.history.add(Step(self._tailnet.clock(), actor(), altered))

    def note_policy(self, before: bytes, after: bytes) -> None:
        """A policy was put in force."""
        if _undoing.get():
            return
        if not is_administrative(actor()):
            self.note_hand_edit("policy", "policy")
            return
        texts = [text.decode(errors="replace") for text in (before, after)]
        self.history.add(Step(self._tailnet.clock(), actor(), [Altered("policy", "policy", *texts)]))

    def note_settings(self, changes: Mapping[str, tuple[object, object]]) -> None:
        """Settings were changed by an administrator. changes: dotted name → before, after."""
        if changes and not _undoing.get() and is_administrative(actor()):
            altered = [Altered("config", name, msgspec.to_builtins(old), msgspec.to_builtins(new))
                       for name, (old, new) in changes.items()]  # fmt: skip
            self.history.add(Step(self._tailnet.clock(), actor(), altered))

    def note_hand_edit(self, kind: str, key: str | int) -> None:
        """A person changed a file: nobody shall take back something older by mistake."""
        self.history.add(Step(self._tailnet.clock(), "hand edit", [Altered(kind, key)], by_hand=True))

    # Taking back

    async def undo(self, *, dry_run: bool = False) -> Step:
        """Take the last step back; returns it. Raises NotFound (there is none), Conflict (the world has moved on)."""
        return await self._tailnet.durably(self._undo(dry_run=dry_run))

    async def _undo(self, *, dry_run: bool) -> Step:
        async with self._tailnet.holds.locked("undo"):
            step = self.history.last()
            if step is None:
                raise NotFound("there is no administrative change to take back", hint="see `gwctl events`")
            if step.by_hand:
                what = f"{step.changes[0].kind} {step.changes[0].key}"
                raise Conflict(f"the last change was a hand edit: `{what}`", hint="take it back in the file")
            for altered in step.changes:
                self._check(altered)
            if dry_run:
                return step
            token = _undoing.set(True)
            try:
                await self._take_back(step)
            finally:
                _undoing.reset(token)
            self.history.take_back(step)
            self._tailnet.record("change-undone", _subject(step), None, _What(step.actor, step.time))
            return step

    def _check(self, altered: Altered) -> None:
        """Whether what the step left is still there. Raises Conflict."""
        subject = f"{altered.kind} {altered.key}"
        if altered.kind == "policy":
            if revision_of(altered.after.encode()) != revision_of(self._tailnet.policy.policy.text):
                raise _moved_on("the policy was changed since")
            return
        if altered.kind == "config":
            if msgspec.to_builtins(setting(self._tailnet.commons.written, str(altered.key))) != altered.after:
                raise _moved_on(f"`{altered.key}` was changed since")
            return
        current = self._tailnet.current(altered.kind, altered.key)
        if altered.after is None:
            if current is not None:
                raise _moved_on(f"`{subject}` exists again")
            return
        if current is None:
            raise _moved_on(f"`{subject}` is gone")
        now = _plain(current)
        old = altered.before if altered.before is not None else {}
        fields = altered.after if altered.before is None else {
            name: value for name, value in altered.after.items() if old.get(name) != value
        }  # fmt: skip
        for name, value in fields.items():
            if name not in PASSING and now.get(name) != value:
                raise _moved_on(f"`{name}` of `{subject}` was changed since")

    async def _take_back(self, step: Step) -> None:
        settings = {str(each.key): each.before for each in step.changes if each.kind == "config"}
        if settings:
            await change_settings(self._tailnet, settings)
            return
        renamed = _renaming(step)
        if renamed is not None:
            old, new = renamed
            await accounts.rename_user(self._tailnet, self._tailnet.people.of_name(new), old)
            return
        # what was made goes before what comes back, users come before what is theirs
        order = {"node": 0, "preauthkey": 1, "apikey": 2, "user": 3, "policy": 4}
        made = sorted((each for each in step.changes if each.before is None), key=lambda each: order.get(each.kind, 9))
        rest = sorted(
            (each for each in step.changes if each.before is not None), key=lambda each: -order.get(each.kind, 9)
        )
        for altered in (*made, *rest):
            await self._take_back_one(altered)

    async def _take_back_one(self, altered: Altered) -> None:
        tailnet = self._tailnet
        if altered.kind == "policy":
            await policy_file(tailnet).replace(tailnet, altered.before.encode(), revision_of(altered.after.encode()))
            return
        if altered.kind == "relay":
            region = None if altered.before is None else msgspec.convert(altered.before, RelayRegionDoc)
            await self._take_back_region(int(altered.key), region)
            return
        if altered.kind not in ("node", "user", "preauthkey", "apikey"):
            raise Conflict(f"a change of a {altered.kind} cannot be taken back here")
        current = tailnet.current(altered.kind, altered.key)
        if altered.before is None:
            await self._remove(current)
            return
        before = msgspec.convert(altered.before, PLACES[_kind(altered.kind)].type)
        if current is None:
            await self._bring_back(before)
        else:
            fields = {
                name: getattr(before, name)
                for name in altered.before
                if name not in PASSING and altered.before[name] != altered.after.get(name)
            }
            await self._set(current, fields)

    async def _take_back_region(self, region_id: int, before: RelayRegionDoc | None) -> None:
        tailnet = self._tailnet
        async with tailnet.holds.locked("relays"):
            current = tailnet.commons.relays.get(region_id)
            if before is not None:
                taken = {
                    node.name for doc in tailnet.commons.relays.values() if doc is not current for node in doc.nodes
                }
                twice = taken & {node.name for node in before.nodes}
                if twice:
                    raise _moved_on(f"relay `{min(twice)}` is in another region")
                revision = before.revision if current is None else current.revision
                before = msgspec.structs.replace(before, revision=revision + 1)
            await relays.put_region(tailnet, region_id, before)

    async def _remove(self, current: AnyDocument | None) -> None:
        tailnet = self._tailnet
        match current:
            case UserDoc():
                await accounts.destroy_user(tailnet, current)
            case NodeDoc():
                await tailnet.delete(tailnet.roster.node(current.id))
            case PreauthKeyDoc():
                await accounts.delete_preauth_key(tailnet, current)
            case ApiKeyDoc():
                await tailnet.commit([Delete("apikey", current.prefix), tailnet.numbers.put()])
                tailnet.api_keys.pop(current.prefix, None)
            case _:
                pass

    async def _bring_back(self, before: AnyDocument) -> None:
        tailnet = self._tailnet
        document = before.edited()
        if isinstance(document, NodeDoc):
            fault = tailnet.roster.admissible(document)
            if fault:
                raise _moved_on(fault)
            tailnet.names.claim(document.given_name)
            for address in document.addresses:
                tailnet.addresses.claim(address)
            try:
                await tailnet.commit([Put(document)])
            except BaseException:
                tailnet.names.release(document.given_name)
                tailnet.addresses.release(document.addresses)
                raise
            tailnet.add_node(document, None, "node-brought-back")
            return
        if isinstance(document, UserDoc) and tailnet.has_user_like(document.name):
            raise _moved_on(f"there is another user `{document.name}`")
        await tailnet.commit([Put(document)])
        self._show(document)
        tailnet.record(f"{document.kind}-brought-back", f"{document.kind}:{document.key}", None, document)

    async def _set(self, current: AnyDocument, fields: dict[str, Any]) -> None:
        tailnet = self._tailnet
        if isinstance(current, NodeDoc):
            await self._set_node(tailnet.roster.node(current.id), fields)
            return
        after = current.edited(**fields)
        await tailnet.commit([Put(after)])
        self._show(after)
        tailnet.record(f"{current.kind}-change-undone", f"{current.kind}:{current.key}", current, after)

    async def _set_node(self, node: NodeRecord, fields: dict[str, Any]) -> None:
        tailnet = self._tailnet
        async with node.lock:
            name, addresses = fields.get("given_name", node.doc.given_name), fields.get("addresses", node.doc.addresses)
            fresh = [address for address in addresses if address not in node.doc.addresses]
            if name != node.doc.given_name and name in tailnet.names:
                raise _moved_on(f"name `{name}` belongs to another node")
            if fields.get("user") and fields["user"] not in tailnet.users:
                raise _moved_on(f"no such user: `{fields['user']}`")
            claimed = [address for address in fresh if tailnet.addresses.claim(address)]
            if claimed != fresh:
                tailnet.addresses.release(claimed)
                raise _moved_on("an address belongs to another node")
            if name != node.doc.given_name:
                tailnet.names.claim(name)
            after = node.doc.edited(**fields)
            try:
                await tailnet.commit([Put(after)])
            except BaseException:
                tailnet.addresses.release(claimed)
                if name != node.doc.given_name:
                    tailnet.names.release(name)
                raise
            tailnet.replace_doc(node, after, "node-change-undone")

    def _show(self, document: AnyDocument) -> None:
        match document:
            case UserDoc():
                self._tailnet.put_user(document)
            case PreauthKeyDoc():
                self._tailnet.preauth_keys[document.prefix] = document
                self._tailnet.promised.keep(document)
            case ApiKeyDoc():
                self._tailnet.api_keys[document.prefix] = document
            case _:
                pass


class _What(msgspec.Struct, frozen=True):
    """What the trail keeps of an undoing: whose change it was, and when."""

    of: str
    made: datetime


def _plain(document: AnyDocument | None) -> Any:
    return None if document is None else msgspec.to_builtins(document)


def _kind(text: str) -> Kind:
    found: Kind = text  # type: ignore[assignment]
    return found


def _subject(step: Step) -> str:
    first = step.changes[0]
    return first.kind if first.kind == "policy" else f"{first.kind}:{first.key}"


def _renaming(step: Step) -> tuple[str, str] | None:
    """Old and new name, where the step renamed a user and with it the nodes and keys."""
    users = [each for each in step.changes if each.kind == "user"]
    gone = next((each for each in users if each.after is None), None)
    made = next((each for each in users if each.before is None), None)
    return (str(gone.key), str(made.key)) if gone is not None and made is not None else None


def _moved_on(why: str) -> Conflict:
    return Conflict(f"the last change cannot be taken back: {why}", hint="make the change by hand")


def describe(step: Step) -> list[str]:
    """A line for each document of a step: what it was and became."""
    lines = []
    for each in step.changes:
        shown = each.after or each.before
        label = f"{each.kind} {each.key}"
        if isinstance(shown, dict):
            label = f"{each.kind} {next((shown[name] for name in SHOWN if shown.get(name)), each.key)}"
        if each.kind == "policy":
            lines.append("policy: the text before")
        elif each.kind == "config":
            value = "not set" if each.before is None else f"= {msgspec.json.encode(each.before).decode()}"
            lines.append(f"config: {each.key} {value}")
        elif each.before is None:
            lines.append(f"{label}: removed")
        elif each.after is None:
            lines.append(f"{label}: brought back")
        else:
            lines.append(f"{label}: " + ", ".join(_differences(each.before, each.after)))
    return lines


def _differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What fields were before; of a region the relays that differ, each by name."""
    for name, value in after.items():
        if name in PASSING or before.get(name) == value:
            continue
        if name != "nodes":
            yield f"{name} = {before.get(name)!r}"
            continue
        old, new = ({node["name"]: node for node in nodes} for nodes in (before[name], value))
        for relay in sorted({*old, *new}):
            if relay not in old:
                yield f"{relay} removed"
            elif relay not in new:
                yield f"{relay} brought back"
            else:
                yield from (f"{relay}.{diff}" for diff in _differences(old[relay], new[relay]))
