"""Users that an identity provider makes: found by issuer and subject, made at first login, kept up at later ones."""

from __future__ import annotations

import logging
from typing import Final

from gw.control.oidc.identity import Identity, names_for
from gw.control.oidc.refusals import LoginRefused
from gw.control.tailnet import Tailnet
from gw.state.changes import Put
from gw.state.documents import UserDoc

logger = logging.getLogger(__name__)

PROVIDER: Final = "oidc"


async def settle_user(tailnet: Tailnet, identity: Identity) -> UserDoc:
    """The user of this identity, durable, with the profile that the provider tells now. Raises LoginRefused.

    A user made by hand whose e-mail address the provider has proven becomes this identity's.
    """
    return await tailnet.durably(_settle_user(tailnet, identity))


async def _settle_user(tailnet: Tailnet, identity: Identity) -> UserDoc:
    async with tailnet.holds.locked("users"):
        known = tailnet.people.of_identity(identity.provider_id)
        namesake = _of_address(tailnet, identity.email)
        if known is None and namesake is not None:
            if namesake.provider_id:
                raise LoginRefused(
                    "another account of this network has your e-mail address",
                    detail=f"user `{namesake.name}` is {namesake.provider_id}, this is {identity.provider_id}",
                    hint="ask the administrator: one of the two has to go",
                )
            known = namesake
        if known is not None:
            return await _keep_up(tailnet, known, identity, namesake)
        return await _create(tailnet, identity)


def _of_address(tailnet: Tailnet, email: str) -> UserDoc | None:
    """The user who is reached there, or is called so."""
    return (tailnet.people.of_email(email) or tailnet.users.get(email.lower())) if email else None


async def _keep_up(tailnet: Tailnet, user: UserDoc, identity: Identity, namesake: UserDoc | None) -> UserDoc:
    email = identity.email
    if namesake is not None and namesake.name != user.name:
        logger.warning("user `%s` keeps the e-mail address it had: `%s` has the new one", user.name, namesake.name)
        email = user.email
    wanted = {
        "provider": PROVIDER,
        "provider_id": identity.provider_id,
        "display_name": identity.display_name or user.display_name,
        "email": email,
        "picture": identity.picture,
        "groups": list(identity.groups),
    }
    if all(getattr(user, name) == value for name, value in wanted.items()):
        return user
    changed = user.edited(**wanted)
    await tailnet.commit([Put(changed)])
    tailnet.put_user(changed)
    tailnet.record("user-profile-changed", f"user:{user.name}", user, changed)
    return changed


async def _create(tailnet: Tailnet, identity: Identity) -> UserDoc:
    name = next(name for name in names_for(identity) if not tailnet.has_user_like(name))
    user = UserDoc(
        id=tailnet.numbers.new_user(),
        name=name,
        display_name=identity.display_name,
        email=identity.email,
        provider=PROVIDER,
        provider_id=identity.provider_id,
        picture=identity.picture,
        groups=list(identity.groups),
        created=tailnet.clock(),
    )
    with tailnet.holds.reserved_user(name):
        await tailnet.commit([Put(user)])
        tailnet.put_user(user)
    tailnet.record("user-created", f"user:{name}", None, user)
    return user
