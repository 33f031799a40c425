"""Which subnets and exit routes of a peer are in a node's network map.

Ref: spec policy §10
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gw.model.addresses import EXIT_ROUTES
from gw.policy.bits import ones
from gw.policy.spans import Span
from gw.policy.view import Entry, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)
Primary = Callable[[str], int | None]  # subnet -> id of the active router
IsOnline = Callable[[N], bool]


def routes_for(view: PolicyView[N], viewer: N, peer: N, primary: Primary, is_online: IsOnline[N]) -> list[str]:
    """Of the routes that `peer` serves, those that `viewer` may use, sorted; exit routes last."""
    one, other = view.entries[viewer.id], view.entries[peer.id]
    found = sorted(
        text for text, route in other.routes.items() if _is_for(view, one, other, text, route, primary, is_online)
    )
    if other.facts.is_exit and _may_exit(view, one, other):
        found += EXIT_ROUTES
    return found


def _is_for(
    view: PolicyView[N],
    viewer: Entry[N],
    peer: Entry[N],
    text: str,
    route: Span,
    primary: Primary,
    is_online: IsOnline[N],
) -> bool:
    compiled, standing = view.compiled, viewer.standing
    is_open = bool(standing.seen & compiled.reaching(route))
    steering = standing.source & compiled.steering(route)
    if steering and not is_open:
        return any(_first_via(view, text, compiled.units[index].grant.via, is_online) == peer.node.id
                   for index in ones(steering))  # fmt: skip
    if primary(text) != peer.node.id:
        return False
    return is_open or text in viewer.routes or bool(standing.receives & compiled.returning(route))


def _first_via(view: PolicyView[N], route: str, via: tuple[str, ...], is_online: IsOnline[N]) -> int | None:
    """The router that a `via` rule leads by: of those online the one that was there first."""
    candidates = [id_ for id_, entry in view.serving(route).items() if not entry.facts.tags.isdisjoint(via)]
    online = [id_ for id_ in candidates if is_online(view.entries[id_].node)]
    return min(online or candidates, default=None)


def _may_exit(view: PolicyView[N], viewer: Entry[N], peer: Entry[N]) -> bool:
    """By a rule to everything or to the internet, or by a `via` rule that leads by this very peer."""
    compiled, standing = view.compiled, viewer.standing
    if standing.source & compiled.to_exits() & peer.standing.receives:
        return True
    steering = standing.source & compiled.to_internet & compiled.via
    return bool(steering & compiled.with_via(peer.facts.tags))
