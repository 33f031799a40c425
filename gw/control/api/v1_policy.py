"""Headscale's REST v1: the policy, and whether the server is well. `topology` is ours, for `gwctl policy`."""

from __future__ import annotations

from typing import Final

import msgspec

from gw.control.api.calls import ANY_KEY, Answer, Call, Operation, reading
from gw.control.policyfile import checked, policy_file
from gw.control.rules import revision_of
from gw.control.shapes import time_shape
from gw.control.userindex import policy_user
from gw.errors import GwError
from gw.policy.topology import DescribedNode, Topology, TopologyRoutes, TopologyUser

SCOPE: Final = "policy_file"


class PolicyText(msgspec.Struct):
    """A policy. announce: the caller is about to write this text as the policy itself."""

    policy: str = ""
    announce: bool = False


class PolicyAnswer(msgspec.Struct, rename="camel", omit_defaults=True):
    """unchanged: what was put is what was there; nothing was written."""

    policy: str
    updated_at: str | None
    unchanged: bool = False


class CheckAnswer(msgspec.Struct, omit_defaults=True):
    """rules: how many; revision: a short name of the text. unchanged: it is the policy's already."""

    rules: int
    revision: str
    unchanged: bool = False


class Health(msgspec.Struct, rename="camel"):
    database_connectivity: bool


async def get_policy(call: Call) -> Answer:
    text, updated = await policy_file(call.tailnet).read()
    return PolicyAnswer(text.decode(errors="replace"), time_shape(updated))


async def put_policy(call: Call) -> Answer:
    text = call.read(PolicyText).policy.encode(errors="surrogateescape")
    file = policy_file(call.tailnet)
    if await file.is_in_force(call.tailnet, text):
        _, written = await file.read()
        return PolicyAnswer(text.decode(errors="replace"), time_shape(written), unchanged=True)
    updated = await file.replace(call.tailnet, text)
    return PolicyAnswer(text.decode(errors="replace"), time_shape(updated))


async def check_policy(call: Call) -> Answer:
    asked = call.read(PolicyText)
    text = asked.policy.encode(errors="surrogateescape")
    policy = checked(call.tailnet, text)
    is_there = False
    if asked.announce:
        try:
            before, _ = await policy_file(call.tailnet).read()
        except GwError:  # broken: it is about to be replaced
            before = b""
        is_there = text == before
        call.tailnet.rules.announce(text, before)
    return CheckAnswer(len(policy.grants or ()), revision_of(text), is_there)


async def topology(call: Call) -> Answer:
    tailnet = call.tailnet
    people = [policy_user(user) for user in tailnet.users.values()]
    return Topology(
        users=[TopologyUser(each.name, each.id, each.email, each.role) for each in people],
        nodes=[
            DescribedNode(
                node.doc.given_name,
                node.id,
                node.user or None,
                list(node.tags),
                list(node.addresses),
                TopologyRoutes(list(node.advertised_routes), list(node.doc.approved_routes)),
                dict(node.posture_attributes),
            )
            for node in sorted(tailnet.nodes.values(), key=lambda node: node.id)
            if node.doc.approved
        ],
        domains=sorted({user.domain for user in people} - {""}),
    )


async def health(_: Call) -> Answer:
    return Health(database_connectivity=True)


OPERATIONS: Final = [
    Operation(
        method="GET", path="/api/v1/policy", handler=get_policy, scope=reading(SCOPE), summary="The policy's text",
        answer=PolicyAnswer,
    ),
    Operation(
        method="PUT", path="/api/v1/policy", handler=put_policy, scope=SCOPE,
        summary="Put a policy in force, if it is one and its own tests hold", body=PolicyText, answer=PolicyAnswer,
    ),
    Operation(
        method="POST", path="/api/v1/policy/check", handler=check_policy, scope=SCOPE,
        summary="Whether a text may be put in force", body=PolicyText, answer=CheckAnswer,
    ),
    Operation(
        method="GET", path="/api/v1/policy/topology", handler=topology, scope=reading(SCOPE),
        summary="Users and nodes as `gwctl policy` takes them",
    ),
    Operation(
        method="GET", path="/api/v1/health", handler=health, scope=ANY_KEY,
        summary="Whether the server is well", answer=Health,
    ),
]  # fmt: skip
