"""What people change by hand while the server runs: taken over at once, or refused loudly, the last good state kept.

Ref: gw.state.store.Store.watch
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from gw.control.events import HAND_EDIT, RELAY, acting_as
from gw.control.tailnet import Tailnet
from gw.errors import GwError
from gw.policy.checks import FAILED
from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.policy.reader import read_policy
from gw.policy.starting import DENY_ALL
from gw.policy.toml import SUFFIX, read_toml_policy
from gw.state.changes import ExternalChange
from gw.state.config import Config
from gw.state.documents import ApiKeyDoc, NodeDoc, PreauthKeyDoc, RelayRegionDoc, UserDoc
from gw.state.files import translate
from gw.state.paths import StatePaths
from gw.state.relayentries import entering_relay

logger = logging.getLogger(__name__)


class Watched(Protocol):
    def watch(self) -> AsyncIterator[ExternalChange]: ...


def load_policy(path: Path) -> Policy:
    """The policy at start. A missing or empty file allows nothing, and so does a broken one; the log says so."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = b""
    except OSError as error:
        logger.error("%s: nothing is allowed until it can be read", translate(error, "read", path).message)
        return DENY_ALL
    if not raw.strip():
        logger.warning("no policy in %s: nothing is allowed; `gwctl init` shows how to write one", path)
        return DENY_ALL
    try:
        policy = read_spelled(raw, path)
    except PolicyError as error:
        logger.error("%s: nothing is allowed until the policy is repaired", located(path, error))
        return DENY_ALL
    _warn_of_openness(policy, path)
    return policy


def read_spelled(raw: bytes, path: Path) -> Policy:
    """A policy in HuJSON, or in TOML where the file's name says so. Raises PolicyError."""
    return read_toml_policy(raw) if path.suffix == SUFFIX else read_policy(raw)


def located(path: Path, error: PolicyError) -> str:
    """`path:line:column: what`"""
    place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
    return f"{place}: {error.message}"


def _warn_of_openness(policy: Policy, path: Path) -> None:
    if policy.grants is None:
        logger.warning('%s has neither "acls" nor "grants": as with Tailscale, everything is allowed', path)


async def follow_edits(store: Watched, tailnet: Tailnet, paths: StatePaths) -> None:
    """Take over hand edits until cancelled."""
    async for change in store.watch():
        with acting_as(HAND_EDIT):
            try:
                take_over(change, tailnet, paths)
            except GwError as error:
                logger.error("%s", error.message)


def take_over(change: ExternalChange, tailnet: Tailnet, paths: StatePaths) -> None:
    """Show one hand edit in the tailnet. Broken ones were logged by the store."""
    if change.error is not None:
        tailnet.record("edit-refused", f"{change.kind}:{change.key}")
        return
    fault = ""
    match change.kind, change.doc:
        case "policy", doc if change.key == paths.policy_file.name:
            _take_over_policy(tailnet, paths.root / str(change.key), doc if isinstance(doc, str) else "")
        case "config", Config() as config:
            if config == tailnet.commons.written:
                return  # written through this server
            with acting_as(tailnet.commons.writer or HAND_EDIT):
                stuck = tailnet.commons.set_config(config)
            logger.info("config.toml was edited%s", f"; restart for: {', '.join(stuck)}" if stuck else "")
        case "relay", RelayRegionDoc() | None as doc:
            entering = entering_relay(tailnet.commons.relays.get(int(change.key)), doc)
            if entering:
                with acting_as(RELAY + entering):
                    tailnet.commons.set_relay(int(change.key), doc, "relay-entered")
                return
            tailnet.commons.set_relay(int(change.key), doc)
        case "node", NodeDoc() | None as doc:
            fault = take_over_node(tailnet, int(change.key), doc)
        case "user", UserDoc() | None as doc:
            fault = _take_over_user(tailnet, str(change.key), doc)
        case "preauthkey", PreauthKeyDoc() | None as doc:
            _take_over_preauth_key(tailnet, str(change.key), doc)
        case "apikey", ApiKeyDoc() | None as doc:
            _take_over_api_key(tailnet, str(change.key), doc)
        case _:
            pass
    if not fault and tailnet.undo is not None and change.kind not in ("policy", "dns"):
        tailnet.undo.note_hand_edit(change.kind, change.key)
    if fault:
        logger.error("%s `%s`: %s: the edit is refused, the last good state stays", change.kind, change.key, fault)
        tailnet.record("edit-refused", f"{change.kind}:{change.key}")


def _take_over_policy(tailnet: Tailnet, path: Path, text: str) -> None:
    """Put an edited policy in force, if it is one and its own tests hold."""
    try:
        policy = read_spelled(text.encode(), path) if text.strip() else DENY_ALL
        failures = tailnet.policy.failures(policy)
        if failures:
            raise PolicyError(FAILED, details=failures)
        with acting_as(tailnet.rules.author_of(policy.text)):
            tailnet.rules.put_in_force(policy)
    except PolicyError as error:
        logger.error("%s: the last good policy stays", located(path, error))
        for detail in error.details if len(error.details) > 1 or error.message == FAILED else ():
            logger.error("%s: %s", path, detail)
        tailnet.record("policy-refused", "policy")
        return
    if policy is DENY_ALL:
        logger.warning("%s says nothing: nothing is allowed", path)
    else:
        logger.info("policy in force: %d rules", len(policy.grants or ()))
        _warn_of_openness(policy, path)


def take_over_node(tailnet: Tailnet, node_id: int, doc: NodeDoc | None) -> str:
    """Show a node's file as a person changed, wrote or removed it. Returns why that cannot be, or ""."""
    roster, node = tailnet.roster, tailnet.nodes.get(node_id)
    if doc is None:
        if node is not None:
            tailnet.drop(node, "node-deleted")
        return ""
    if doc.id != node_id:
        return f"`id` is {doc.id}, the file's name says {node_id}"
    if node is None:
        fault = roster.admissible(doc)
        if not fault:
            tailnet.add_node(doc, None, "node-added")
        return fault
    if doc.machine_key != node.doc.machine_key:
        return "`machine_key` cannot be changed"
    roster.unindex(node)
    fault = roster.admissible(doc)
    roster.index(node)
    if not fault and doc != node.doc:
        tailnet.replace_doc(node, doc, "node-edited")
    return fault


def _take_over_preauth_key(tailnet: Tailnet, prefix: str, doc: PreauthKeyDoc | None) -> None:
    before = tailnet.preauth_keys.pop(prefix, None)
    if before is not None:
        tailnet.promised.end(before)
    if doc is not None:
        tailnet.preauth_keys[prefix] = doc
        tailnet.promised.keep(doc)
    tailnet.record("preauthkey-edited" if doc else "preauthkey-deleted", f"preauthkey:{prefix}", before, doc)


def _take_over_api_key(tailnet: Tailnet, prefix: str, doc: ApiKeyDoc | None) -> None:
    before = tailnet.api_keys.pop(prefix, None)
    if doc is not None:
        tailnet.api_keys[prefix] = doc
    tailnet.record("apikey-edited" if doc else "apikey-deleted", f"apikey:{prefix}", before, doc)


def _take_over_user(tailnet: Tailnet, name: str, doc: UserDoc | None) -> str:
    before = tailnet.users.get(name)
    if doc is None:
        if tailnet.roster.of_user(name):
            return "the user still has nodes"
        tailnet.drop_user(name)
        if before is not None:
            tailnet.record("user-deleted", f"user:{name}", before)
        return ""
    if doc.name != name:
        return f"`name` is `{doc.name}`"
    if doc != before:
        tailnet.put_user(doc)
        tailnet.record("user-edited" if before is not None else "user-created", f"user:{name}", before, doc)
    return ""
