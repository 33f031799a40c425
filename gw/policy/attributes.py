"""What a policy gives to single nodes: attributes, and approval of the routes they advertise.

Ref: spec policy §12, §13 (autoApprovers)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from gw.model.addresses import EXIT_ROUTES
from gw.policy.audience import Audience
from gw.policy.compiled import Compiled
from gw.policy.faults import PolicyError
from gw.policy.hujson import position
from gw.policy.membership import audience, is_meant
from gw.policy.selectors import Kind
from gw.policy.spans import EVERYTHING, Span, span
from gw.policy.view import Entry, PolicyNode

N = TypeVar("N", bound=PolicyNode)

RANDOM_PORT: Final = "randomize-client-port"
DISABLE_IPV4: Final = "disable-ipv4"
FUNNEL_PORTS: Final = "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000"
SUGGEST_EXIT: Final = "suggest-exit-node"
_ONE_CGNAT: Final = {"mac-always": "one-cgnat?v=true", "mac-never": "one-cgnat?v=false"}


def check_targets(compiled: Compiled) -> None:
    """Raises PolicyError where `nodeAttrs` names a user whom nobody knows, which is a slip of the pen.

    Only asked when a policy is written: that a user goes later breaks nothing.
    """
    policy = compiled.policy
    for entry in policy.node_attributes:
        for target in entry.targets:
            if target.kind is Kind.USER and not compiled.people.is_known(target.name):
                line, column = position(policy.text, entry.at)
                raise PolicyError(f'nodeAttrs: user not found: "{target.name}"', line=line, column=column)


class NodeGifts:
    """The sections `nodeAttrs` and `autoApprovers` of a compiled policy."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        policy = compiled.policy
        self._attributes = [(audience(compiled, entry.targets), entry) for entry in policy.node_attributes]
        self._routes: list[tuple[Span, Audience]] = [
            (route, audience(compiled, approvers)) for route, approvers in policy.auto_approvers.routes
        ]
        self._may_disable = policy.disable_ipv4 or any(DISABLE_IPV4 in each.attributes for _, each in self._attributes)
        self._exit = audience(compiled, policy.auto_approvers.exit_node)

    def attributes(self, entry: Entry[N], *, is_mac: bool = False) -> dict[str, list[str] | None]:
        """Name -> values as JSON texts, None for an attribute without any."""
        policy = self._compiled.policy
        found: dict[str, list[str] | None] = {}
        for meant, given in self._attributes:
            if not is_meant(meant, entry, self._compiled):
                continue
            found |= dict.fromkeys(given.attributes)
            for name, values in given.capabilities.items():
                found[name] = [*(found.get(name) or ()), *values] or None
            if "funnel" in given.attributes:
                found[FUNNEL_PORTS] = None
        if policy.randomize_client_port:
            found[RANDOM_PORT] = None
        if policy.disable_ipv4:
            found[DISABLE_IPV4] = None
        if is_mac and policy.one_cgnat_route:
            found[_ONE_CGNAT[policy.one_cgnat_route]] = None
        return found

    def has_ipv4(self, entry: Entry[N]) -> bool:
        """Whether the node and its view of others keep their IPv4 addresses."""
        return not self._may_disable or DISABLE_IPV4 not in self.attributes(entry)

    def approved(self, entry: Entry[N], advertised: Iterable[str]) -> list[str]:
        """Of the routes that a node advertises, those that need nobody's approval."""
        return [text for text in advertised if self._is_approved(entry, text)]

    def _is_approved(self, entry: Entry[N], text: str) -> bool:
        if text in EXIT_ROUTES:
            return is_meant(self._exit, entry, self._compiled)
        first, last = route = span(text)
        return route not in EVERYTHING and any(
            key[0] <= first and last <= key[1] and is_meant(meant, entry, self._compiled) for key, meant in self._routes
        )
