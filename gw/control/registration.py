"""Register requests turned into changes of the tailnet, and their outcome into a response.

Refusals are HTTP 200 with `Error`, because clients show that text; only `NodeKeyExpired` makes a client change its key.

Ref: control protocol §4
"""

from __future__ import annotations

from gw.control import enrolment
from gw.control.mapper import TAGGED_USER_ID, TAGGED_USER_NAME
from gw.control.records import NodeRecord
from gw.control.tailnet import Tailnet
from gw.errors import AuthRequired, GwError
from gw.model.gojson import ZERO_TIME
from gw.model.keys import MachineKey
from gw.model.registration import Login, RegisterRequest, RegisterResponse, User


async def register(tailnet: Tailnet, machine: MachineKey, request: RegisterRequest) -> RegisterResponse:
    """Answer one register request of a machine that proved its key. Waits where a follow-up waits for its verdict."""
    try:
        return await _register(tailnet, str(machine), request)
    except enrolment.NewKeyNeeded:
        return RegisterResponse(node_key_expired=True)
    except AuthRequired as error:
        return RegisterResponse(error=error.message)
    except GwError as error:
        return RegisterResponse(error=f"server: {error.message}")


async def _register(tailnet: Tailnet, machine: str, request: RegisterRequest) -> RegisterResponse:
    node = tailnet.by_node_key.get(request.node_key.lower())
    if node is not None and node.doc.machine_key != machine:
        raise AuthRequired("node key is in use by another machine")
    if request.expiry != ZERO_TIME:
        return await _change_expiry(tailnet, node, request)
    if request.auth is not None and request.auth.auth_key:
        return accepted(tailnet, await enrolment.register_preauth(tailnet, machine, request))
    if request.followup:
        approved = await _verdict(tailnet, machine, request.followup)
        if approved is not None:
            return accepted(tailnet, approved)
    elif node is not None:
        return RegisterResponse(node_key_expired=True) if tailnet.is_expired(node) else accepted(tailnet, node)
    auth_id = enrolment.begin_auth(tailnet, machine, request)
    return RegisterResponse(auth_url=f"{tailnet.config.server_url.rstrip('/')}/register/{auth_id}")


async def _change_expiry(tailnet: Tailnet, node: NodeRecord | None, request: RegisterRequest) -> RegisterResponse:
    """A time in the past is a logout; one in the future may only shorten what is left."""
    if request.expiry <= tailnet.clock():
        if node is not None:
            await tailnet.logout(node)
        return RegisterResponse(node_key_expired=True)
    if node is None:
        raise AuthRequired("no such node")
    if node.doc.expiry is not None and request.expiry > node.doc.expiry:
        raise AuthRequired("extending key is not allowed")
    await tailnet.expire(node, request.expiry)
    return accepted(tailnet, node)


async def _verdict(tailnet: Tailnet, machine: str, followup: str) -> NodeRecord | None:
    """The node of an approved login, None where a new login has to begin."""
    auth_id = followup.rpartition("/")[2]
    login = tailnet.logins.get(auth_id, tailnet.clock().timestamp())
    if login is None or login.machine_key != machine:
        return None
    return await enrolment.wait_auth(tailnet, auth_id)


def accepted(tailnet: Tailnet, node: NodeRecord) -> RegisterResponse:
    """The response for a node that is in."""
    if tailnet.is_expired(node):
        return RegisterResponse(node_key_expired=True)
    tailnet.upkeep.expect(node)
    user = tailnet.users.get(node.user)
    number = user.id if user is not None else TAGGED_USER_ID
    name = user.name if user is not None else TAGGED_USER_NAME
    picture = user.picture if user is not None else ""
    provider = (user.provider if user is not None else "") or "ghostwire"
    shown = (user.display_name or user.name) if user is not None else "Tagged Devices"
    return RegisterResponse(
        user=User(id=number, display_name=shown, profile_pic_url=picture),
        login=Login(
            id=number,
            provider=provider,
            login_name=name,
            display_name=shown,
        ),
        machine_authorized=node.doc.approved,
    )
