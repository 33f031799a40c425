"""What people change by hand while the server runs: taken over at once, or refused loudly, the last good state kept.

Ref: gw.state.store.Store.watch
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from gw.control.events import acting_as
from gw.control.tailnet import Tailnet
from gw.errors import ConfigError, GwError
from gw.policy.document import Policy, read_policy
from gw.state.changes import ExternalChange
from gw.state.config import Config
from gw.state.documents import NodeDoc, PreauthKeyDoc, RelayRegionDoc, UserDoc
from gw.state.files import translate
from gw.state.paths import StatePaths

logger = logging.getLogger(__name__)


class Watched(Protocol):
    def watch(self) -> AsyncIterator[ExternalChange]: ...


def load_policy(path: Path) -> Policy:
    """The policy at start. A missing file allows nothing, and so does a broken one; the log says so."""
    try:
        policy = read_policy(path.read_bytes(), str(path))
    except FileNotFoundError:
        policy = Policy.NOTHING
    except (ConfigError, OSError) as error:
        fault = error if isinstance(error, GwError) else translate(error, "read", path)
        hint = f" ({fault.hint})" if fault.hint else ""
        logger.error("%s%s: nothing is allowed until the policy is repaired", fault.message, hint)
        return Policy.NOTHING
    if policy is Policy.NOTHING:
        logger.warning("no policy in %s: nothing is allowed; `gwctl init` shows how to write one", path)
    return policy


async def follow_edits(store: Watched, tailnet: Tailnet, paths: StatePaths) -> None:
    """Take over hand edits until cancelled."""
    async for change in store.watch():
        with acting_as("hand edit"):
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
            stuck = tailnet.set_config(config)
            logger.info("config.toml was edited%s", f"; restart for: {', '.join(stuck)}" if stuck else "")
        case "relay", RelayRegionDoc() | None as doc:
            tailnet.set_relay(int(change.key), doc)
        case "node", NodeDoc() | None as doc:
            fault = tailnet.take_over_node(int(change.key), doc)
        case "user", UserDoc() | None as doc:
            fault = _take_over_user(tailnet, str(change.key), doc)
        case "preauthkey", PreauthKeyDoc() | None as doc:
            if doc is None:
                tailnet.preauth_keys.pop(str(change.key), None)
            else:
                tailnet.preauth_keys[doc.prefix] = doc
        case _:
            pass
    if fault:
        logger.error("%s `%s`: %s: the edit is refused, the last good state stays", change.kind, change.key, fault)
        tailnet.record("edit-refused", f"{change.kind}:{change.key}")


def _take_over_policy(tailnet: Tailnet, path: Path, text: str) -> None:
    try:
        policy = read_policy(text.encode(), str(path))
    except ConfigError as error:
        logger.error("%s (%s): the last good policy (%s) stays", error.message, error.hint, tailnet.policy.policy.value)
        tailnet.record("policy-refused", f"policy:{tailnet.policy.policy.value}")
        return
    if policy is Policy.NOTHING:
        logger.warning("%s says nothing: nothing is allowed", path)
    else:
        logger.info("policy in force: %s", policy.value)
    tailnet.set_policy(policy)


def _take_over_user(tailnet: Tailnet, name: str, doc: UserDoc | None) -> str:
    if doc is None:
        if tailnet.nodes_of(name):
            return "the user still has nodes"
        tailnet.users.pop(name, None)
        return ""
    if doc.name != name:
        return f"`name` is `{doc.name}`"
    tailnet.users[name] = doc
    return ""
