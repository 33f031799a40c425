"""The policy in force: put there, announced before it is written, and told in the event trail."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, final

import msgspec

from gw.control import events
from gw.control.records import Change, ChangeKind
from gw.control.userindex import policy_user
from gw.policy.faults import PolicyError
from gw.policy.model import Policy
from gw.state.documents import UserDoc

if TYPE_CHECKING:
    from gw.control.tailnet import Tailnet

logger = logging.getLogger(__name__)


class PolicyRevision(msgspec.Struct, frozen=True):
    """What the event trail keeps of a policy."""

    policy: str


def revision_of(text: bytes) -> str:
    """A short name of a policy's text: the same text has the same one."""
    return hashlib.sha256(text).hexdigest()[:16]


@final
class Rules:
    """Changes of a tailnet's policy, and of the users it names. The engine itself is `tailnet.policy`."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self._announced = ("", "")  # revision of a policy, and who is about to write it

    def put_in_force(self, policy: Policy) -> None:
        """Raises PolicyError; the last one stays then."""
        tailnet = self._tailnet
        before = tailnet.policy.policy.text
        if policy.text == before:
            return
        tailnet.policy.set_policy(policy)
        self._record(before, policy.text)
        if tailnet.undo is not None:
            tailnet.undo.note_policy(before, policy.text)
        self._is_new()

    def announce(self, text: bytes, before: bytes) -> None:
        """Somebody is about to write this text: the event trail shall name them, not a hand edit."""
        if text == before:
            return
        if self._tailnet.is_running:
            self._announced = (revision_of(text), events.actor())
        else:  # no server takes it over
            self._record(before, text)

    def author_of(self, text: bytes) -> str:
        """Who announced this text; a person with an editor if nobody did."""
        revision, author = self._announced
        return author if revision == revision_of(text) else events.HAND_EDIT

    def user_changed(self, user: UserDoc) -> None:
        """A user is new or different."""
        try:
            if self._tailnet.policy.put_user(policy_user(user)):
                self._is_new()
        except PolicyError as error:
            logger.error("%s: the rules stay as they were before user `%s`", error.message, user.name)

    def user_gone(self, name: str) -> None:
        if self._tailnet.policy.drop_user(name):
            self._is_new()

    def _record(self, before: bytes, after: bytes) -> None:
        old = PolicyRevision(revision_of(before)) if before else None
        self._tailnet.record("policy-changed", "policy", old, PolicyRevision(revision_of(after)))

    def _is_new(self) -> None:
        self._tailnet.commons.policy_changed()
        for node in self._tailnet.nodes.values():
            self._tailnet.upkeep.consider_routes(node)
        self._tailnet.publish(Change(ChangeKind.POLICY))
