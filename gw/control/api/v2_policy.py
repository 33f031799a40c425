"""Tailscale's API v2: the policy, here named acl. Its text is HuJSON, comments and all; `ETag` names what was read.

GET /acl            HuJSON, or JSON with `Accept: application/json`
POST /acl           HuJSON or JSON; `If-Match` refuses to overwrite what the caller has not read (412)
POST /acl/validate  a policy: is it one, do its tests hold?   or a list of tests against the policy in force
POST /acl/preview   which rules are about a user (?type=user) or an address and port (?type=ipport)
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from gw.control.api.calls import Answer, Call, Operation, Reply, reading
from gw.control.api.v2_devices import check_tailnet
from gw.control.policyfile import TestsFailed, checked, policy_file
from gw.control.rules import revision_of
from gw.control.tailnet import Tailnet
from gw.errors import UsageError
from gw.policy.compiled import Compiled, Unit, UnitKind
from gw.policy.faults import PolicyError
from gw.policy.hujson import HuJSONError, parse, position
from gw.policy.people import People, User
from gw.policy.reader import read_policy
from gw.policy.services import ALL_PORTS
from gw.policy.spans import number

SCOPE: Final = "policy_file"
HUJSON: Final = "application/hujson"
JSON: Final = "application/json"
DEFAULT_ETAG: Final = "ts-default"


class AclJson(msgspec.Struct):
    """The policy as an object; its members are the policy's sections."""


class Match(msgspec.Struct, rename="camel"):
    """One rule. lineNumber: in the text; 0 for the default policy."""

    users: list[str]
    ports: list[str]
    line_number: int


class Preview(msgspec.Struct, rename="camel"):
    matches: list[Match]
    type: str
    preview_for: str


class Verdict(msgspec.Struct, omit_defaults=True):
    """Empty where all is well."""

    message: str = ""
    data: list[dict[str, Any]] = []


def _etag(text: bytes) -> str:
    return f'"{revision_of(text)}"'


def _policy(call: Call, text: bytes) -> Reply:
    wants_json = JSON in call.headers.get("accept", "")
    body = msgspec.json.encode(_plain(text)) if wants_json else text
    return Reply(body, media_type=JSON if wants_json else HUJSON, headers={"ETag": _etag(text)})


def _plain(text: bytes) -> object:
    try:
        return parse(text).plain() if text.strip() else {}
    except HuJSONError as error:
        raise UsageError(f"the policy is refused: {error.line}:{error.column}: {error.reason}") from None


async def get_acl(call: Call) -> Answer:
    check_tailnet(call)
    text, _ = await policy_file(call.tailnet).read()
    return _policy(call, text)


async def set_acl(call: Call) -> Answer:
    check_tailnet(call)
    expected = call.headers.get("if-match", "").strip().strip('"')
    if expected == DEFAULT_ETAG:
        raise UsageError("`ts-default` is no policy of this server", hint="send the ETag of GET")
    await policy_file(call.tailnet).replace(call.tailnet, call.body, expected if expected != "*" else "")
    return _policy(call, call.body)


async def validate(call: Call) -> Answer:
    check_tailnet(call)
    text = call.body
    try:
        if text.lstrip()[:1] == b"[":
            text = _with_tests(call.tailnet, text)
        checked(call.tailnet, text)
    except TestsFailed as error:
        return Verdict("test(s) failed", [{"user": "", "errors": error.failures}])
    except UsageError as error:
        return Verdict(error.message)
    return Verdict()


def _with_tests(tailnet: Tailnet, tests: bytes) -> bytes:
    """The policy in force with these tests instead of its own."""
    whole = _plain(tailnet.policy.policy.text)
    assert isinstance(whole, dict)
    return msgspec.json.encode({**{k: v for k, v in whole.items() if k != "sshTests"}, "tests": _plain(tests)})


async def preview(call: Call) -> Answer:
    check_tailnet(call)
    kind, subject = call.query.get("type", ""), call.query.get("previewFor", "")
    tailnet = call.tailnet
    compiled = tailnet.policy.view.compiled
    if call.body.strip():
        try:
            policy = read_policy(call.body)
            people = People(compiled.people.by_name.values(), policy.groups)
            compiled = Compiled(policy, people, tailnet.policy.view.pools)
        except PolicyError as error:
            raise UsageError(f"the policy is refused: {error.line}:{error.column}: {error.message}") from None
    if kind == "user":
        units = list(_about_user(compiled, subject))
    elif kind == "ipport":
        units = list(_about_place(compiled, subject))
    else:
        raise UsageError(f"`type` is neither `user` nor `ipport`: `{kind[:40]}`")
    return Preview([_match(compiled, unit) for unit in units], kind, subject)


def _units(compiled: Compiled) -> Iterator[Unit]:
    yield from (unit for unit in (*compiled.units, *compiled.own_units) if unit.kind is UnitKind.NETWORK)


def _about_user(compiled: Compiled, subject: str) -> Iterator[Unit]:
    user: User | None = next(
        (each for each in compiled.people.by_name.values() if subject and subject in (each.name, each.email)), None
    )
    if user is None:
        raise UsageError(f"no such user: `{subject[:80]}`")
    for unit in _units(compiled):
        sources = unit.sources
        if sources.everybody or sources.anything or sources.has_owner(user.name, frozenset()):
            yield unit


def _about_place(compiled: Compiled, subject: str) -> Iterator[Unit]:
    host, _, port = subject.rpartition(":")
    try:
        place = number(str(ip_address(host.strip("[]"))))
        wanted = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1
    except ValueError:
        wanted = place = -1
    if wanted < 0:
        raise UsageError(f"not an address and a port: `{subject[:80]}`", hint="write 100.64.0.7:443")
    for unit in _units(compiled):
        meant = unit.destinations
        if not (meant.everybody or meant.anything or place in meant.literals):
            continue
        if any(service.ports[0] <= wanted <= service.ports[1] for service in unit.grant.services):
            yield unit


def _match(compiled: Compiled, unit: Unit) -> Match:
    grant = unit.grant
    ports = sorted({_ports(service.ports) for service in grant.services} or {"*"})
    line = position(compiled.policy.text, grant.at)[0] if compiled.policy.grants is not None else 0
    return Match(
        [str(each) for each in grant.sources],
        [f"{where}:{port}" for where in grant.destinations for port in ports],
        line,
    )


def _ports(ports: tuple[int, int]) -> str:
    if ports == ALL_PORTS:
        return "*"
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


_ACL: Final = "/api/v2/tailnet/{tailnet}/acl"

OPERATIONS: Final = [
    Operation(
        method="GET", path=_ACL, handler=get_acl, scope=reading(SCOPE), summary="The policy", media_type=HUJSON,
        answer=AclJson,
    ),
    Operation(
        method="POST", path=_ACL, handler=set_acl, scope=SCOPE, summary="Put a policy in force", media_type=HUJSON,
        body=AclJson, answer=AclJson,
    ),
    Operation(
        method="POST", path=f"{_ACL}/validate", handler=validate, scope=reading(SCOPE),
        summary="Whether a policy may be put in force, or what tests say of the one in force", body=AclJson,
        answer=Verdict,
    ),
    Operation(
        method="POST", path=f"{_ACL}/preview", handler=preview, scope=reading(SCOPE),
        summary="The rules about a user or an address and port", body=AclJson, answer=Preview,
        query={"type": "`user` or `ipport`.", "previewFor": "Name or e-mail address; address and port."},
    ),
]  # fmt: skip
