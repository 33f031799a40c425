"""Headscale's REST v1: logins that wait for a person. `GET /api/v1/auth`, which lists them, is ours."""

from __future__ import annotations

import re
import secrets
from typing import Final

import msgspec

from gw.control import accounts, enrolment
from gw.control.api.calls import Answer, Call, Listing, Operation, reading
from gw.control.claims import clean_hostinfo
from gw.control.names import label_of
from gw.control.pending import ID_PREFIX, PendingLogin
from gw.control.records import NodeRecord
from gw.control.shapes import LoginShape, NodeAnswer, Nothing, check_shape, login_shape, node_shape
from gw.control.sshchecks import ID_PREFIX as CHECK_PREFIX
from gw.control.sshchecks import SshCheck
from gw.control.tailnet import Tailnet
from gw.errors import UsageError
from gw.model.hostinfo import Hostinfo
from gw.model.registration import RegisterRequest
from gw.state.documents import NodeDoc, UserDoc

SCOPE: Final = "devices:core"
TRIAL_KEY: Final = re.compile(ID_PREFIX + "[0-9a-f]{24}", re.ASCII)


class Auth(msgspec.Struct, rename="camel"):
    """user: id or name; may be left out where there is one user."""

    auth_id: str = ""
    user: str = ""


class TrialNode(msgspec.Struct):
    user: str = ""
    key: str = ""
    name: str = ""
    routes: list[str] = []


async def list_logins(call: Call) -> Answer:
    """SSH connections that have to be confirmed wait among them."""
    tailnet = call.tailnet
    found = [*tailnet.logins.waiting(tailnet.clock().timestamp()), *tailnet.ssh_checks.waiting()]
    return Listing("pending", found, _waiting_shape)


def _waiting_shape(each: PendingLogin | SshCheck) -> LoginShape:
    return check_shape(each) if isinstance(each, SshCheck) else login_shape(each)


async def approve(call: Call) -> Answer:
    wanted = call.read(Auth)
    return await approve_login(call.tailnet, wanted.auth_id, wanted.user)


async def approve_login(tailnet: Tailnet, auth_id: str, user: str) -> NodeAnswer:
    """Let a waiting login, or SSH connection, in. Raises NotFound, UsageError, AuthRequired."""
    if auth_id.startswith(CHECK_PREFIX):
        check = tailnet.ssh_checks.require(auth_id)
        tailnet.ssh_checks.decide(check, approved=True)
        return NodeAnswer(node_shape(tailnet, check.source))
    node = await enrolment.approve(tailnet, auth_id, _user_for_login(tailnet, user))
    return NodeAnswer(node_shape(tailnet, node))


def _user_for_login(tailnet: Tailnet, text: str) -> UserDoc:
    if text:
        return accounts.find_user(tailnet, text)
    if len(tailnet.users) == 1:
        return next(iter(tailnet.users.values()))
    if not tailnet.users:
        raise UsageError("there is no user yet", hint="gwctl users create NAME")
    raise UsageError("whose node is it?", hint=f"add --user {'|'.join(sorted(tailnet.users)[:5])}")


async def reject(call: Call) -> Answer:
    auth_id, checks = call.read(Auth).auth_id, call.tailnet.ssh_checks
    if auth_id.startswith(CHECK_PREFIX):
        checks.decide(checks.require(auth_id), approved=False)
    else:
        enrolment.reject(call.tailnet, auth_id)
    return Nothing()


async def debug_node(call: Call) -> Answer:
    """A login of a machine that does not exist, for trying out scripts: it waits under the id that `key` names."""
    wanted = call.read(TrialNode)
    tailnet = call.tailnet
    user = accounts.find_user(tailnet, wanted.user)
    if not TRIAL_KEY.fullmatch(wanted.key):
        raise UsageError("not the id of a login: `key`", hint="write `hskey-authreq-` and 24 hexadecimal digits")
    request = RegisterRequest(
        node_key=f"nodekey:{secrets.token_hex(32)}",
        hostinfo=Hostinfo(hostname=wanted.name, routable_ips=wanted.routes),
    )
    machine_key = f"mkey:{secrets.token_hex(32)}"
    tailnet.logins.begin(machine_key, request, tailnet.clock().timestamp(), auth_id=wanted.key)
    doc = NodeDoc(
        id=0, machine_key=machine_key, node_key=request.node_key, user=user.name, given_name=label_of(wanted.name),
        hostname=wanted.name, created=tailnet.clock(),
    )  # fmt: skip
    shown = NodeRecord(doc, tailnet.domain)
    shown.hostinfo = clean_hostinfo(request.hostinfo or Hostinfo())
    return NodeAnswer(node_shape(tailnet, shown))


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/auth", handler=list_logins, scope=reading(SCOPE),
        summary="List the logins that wait", answer=LoginShape, listing="pending",
    ),
    Operation(
        method="POST", path="/api/v1/auth/register", handler=approve, scope=SCOPE,
        summary="Let a waiting login in as a user", body=Auth, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/auth/approve", handler=approve, scope=SCOPE,
        summary="The same", body=Auth, answer=NodeAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/auth/reject", handler=reject, scope=SCOPE, summary="Refuse a waiting login",
        body=Auth, answer=Nothing,
    ),
    Operation(
        method="POST", path="/api/v1/debug/node", handler=debug_node, scope=SCOPE,
        summary="Let a machine that does not exist wait for approval, to try out scripts", body=TrialNode,
        answer=NodeAnswer,
    ),
]  # fmt: skip
