"""Map messages as bytes. A node is serialised once until it changes; every recipient gets the same bytes.

Ref: control protocol §6, §8
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, final

from msgspec import Raw
from msgspec.structs import replace

from gw.control.records import NodeRecord
from gw.control.tailnet import Tailnet
from gw.model.addresses import DERP_MAGIC_V4, EXIT_ROUTES
from gw.model.derpmap import DERPMap
from gw.model.dnsconfig import DNSConfig
from gw.model.gojson import encode
from gw.model.hostinfo import QUIC_PEER, Hostinfo
from gw.model.mapping import Debug, MapResponse
from gw.model.node import QUIC_PEER_CAP, Node, UserProfile
from gw.model.sshpolicy import SSHPolicy
from gw.policy.attributes import DISABLE_IPV4, SUGGEST_EXIT
from gw.policy.bits import ones
from gw.state.documents import UserDoc

TAGGED_USER_ID: Final = 2147455555
TAGGED_USER_NAME: Final = "tagged-devices"
SELF_CAPABILITIES: Final = (
    "https://tailscale.com/cap/is-admin", "https://tailscale.com/cap/file-sharing", "https://tailscale.com/cap/ssh",
)  # fmt: skip
_PAST: Final = datetime(2000, 1, 1, tzinfo=UTC)


@final
class Mapper:
    """Serialises the tailnet. Tell it with `forget` which node is another one now."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self._peers: dict[int, dict[tuple[bool, tuple[str, ...]], bytes]] = {}
        self._plain: dict[int, bytes] = {}
        self._serials: dict[str, tuple[UserDoc | None, int]] = {}
        self._profiles: list[bytes] = []  # serial -> the profile as JSON
        self._derp_map: tuple[DERPMap | None, bytes] = (None, b"")
        self._dns_config: tuple[DNSConfig | None, bytes] = (None, b"")

    def forget(self, node_id: int) -> None:
        """The node changed: serialise it anew."""
        self._peers.pop(node_id, None)
        self._plain.pop(node_id, None)

    def forget_all(self) -> None:
        self._peers.clear()
        self._plain.clear()

    def plain(self, node: NodeRecord) -> bytes:
        """`node` as everybody with IPv4 gets it; b"" where viewers get it differently."""
        raw = self._plain.get(node.id)
        if raw is None:
            is_same = not node.served_routes and self._tailnet.policy.has_ipv4(node)
            raw = self._plain[node.id] = encode(self._node(node, (), with_ipv4=True)) if is_same else b""
        return raw

    def peer(self, node: NodeRecord, viewer: NodeRecord) -> bytes:
        """`node` as `viewer` gets it."""
        policy = self._tailnet.policy
        routes = tuple(self._routes(node, viewer)) if node.served_routes else ()
        shape = (policy.has_ipv4(node) and policy.has_ipv4(viewer), routes)
        shapes = self._peers.setdefault(node.id, {})
        raw = shapes.get(shape)
        if raw is None:
            raw = shapes[shape] = encode(self._node(node, routes, with_ipv4=shape[0]))
        return raw

    def _routes(self, node: NodeRecord, viewer: NodeRecord) -> list[str]:
        tailnet = self._tailnet
        return tailnet.policy.routes_for(viewer, node, tailnet.routes.primary, _is_online)

    def own(self, node: NodeRecord, *, deleted: bool = False) -> bytes:
        """`node` as it sees itself. deleted: with its key expired long ago, so that the client shows "logged out"."""
        tailnet = self._tailnet
        exits = [route for route in node.served_routes if route in EXIT_ROUTES]
        routes = (*tailnet.routes.primaries_of(node), *exits)
        given: dict[str, list[str] | None] = {}
        if not deleted:  # else the policy knows it no more
            given = tailnet.policy.attributes_of(node, is_mac=node.hostinfo.os.lower() == "macos")
        mine = self._node(node, routes, with_ipv4=DISABLE_IPV4 not in given)
        mine.cap_map = {
            **{name: [] for name in SELF_CAPABILITIES},
            **{name: [Raw(each.encode()) for each in values or ()] for name, values in given.items()},
        }
        if deleted:
            mine.key_expiry, mine.expired = _PAST, True
        return encode(mine)

    def profile(self, node: NodeRecord) -> UserProfile:
        """Who owns the node, as peers are told."""
        user = self._tailnet.users.get(node.user)
        if user is None:
            return UserProfile(id=TAGGED_USER_ID, login_name=TAGGED_USER_NAME, display_name="Tagged Devices")
        return UserProfile(
            id=user.id,
            login_name=user.name,
            display_name=user.display_name or user.name,
            profile_pic_url=user.picture,
        )

    def profile_serial(self, node: NodeRecord) -> int:
        """A small number for the profile of the node's owner; another one when the profile is."""
        name = node.doc.user
        user = self._tailnet.users.get(name)
        known = self._serials.get(name)
        if known is None or known[0] is not user:
            known = self._serials[name] = user, len(self._profiles)
            self._profiles.append(encode(self.profile(node)))
        return known[1]

    def told_profiles(self, serials: int) -> bytes:
        """The profiles with these numbers (bits), for `UserProfiles`, without the brackets."""
        return b",".join([self._profiles[serial] for serial in ones(serials)])

    def filters(self, node: NodeRecord) -> bytes:
        """The node's packet filter, `{"base":[…]}`."""
        return b'{"base":' + encode(self._tailnet.policy.filter_for(node)) + b"}"

    def ssh(self, node: NodeRecord) -> bytes:
        """The node's SSH policy."""
        return encode(SSHPolicy(self._tailnet.policy.ssh_for(node)))

    def whole(self, node: NodeRecord, peers: list[NodeRecord], profiles: bytes) -> bytes:
        """Everything `node` needs, peers by id: the first message of a stream, a slow reader's instead of deltas."""
        tailnet = self._tailnet
        head = encode(
            MapResponse(
                control_time=tailnet.clock(),
                domain=tailnet.domain,
                collect_services=False,
                debug=Debug(disable_log_tail=True),
            )
        )
        parts = [
            head[:-1],
            b'"DERPMap":' + self._derp(),
            b'"DNSConfig":' + self.dns(node),
            b'"UserProfiles":[' + profiles + b"]",
            b'"Node":' + self.own(node),
            b'"PacketFilters":' + self.filters(node),
            b'"SSHPolicy":' + self.ssh(node),
            b'"Peers":[' + b",".join(self._bodies(node, peers)) + b"]",
        ]
        return b",".join(parts) + b"}"

    def _bodies(self, viewer: NodeRecord, peers: list[NodeRecord]) -> list[bytes]:
        if not self._tailnet.policy.has_ipv4(viewer):
            return [self.peer(peer, viewer) for peer in peers]
        ready = self._plain
        return [ready.get(peer.id) or self.plain(peer) or self.peer(peer, viewer) for peer in peers]

    def _derp(self) -> bytes:
        current = self._tailnet.commons.derp_map()
        if self._derp_map[0] is not current:
            self._derp_map = current, encode(current)
        return self._derp_map[1]

    def dns(self, node: NodeRecord) -> bytes:
        """The node's DNS settings; where a backend can prove its name, it may get certificates for it."""
        if self._tailnet.publisher is not None:
            return encode(replace(self._tailnet.commons.dns_config(), cert_domains=[node.fqdn]))
        current = self._tailnet.commons.dns_config()
        if self._dns_config[0] is not current:
            self._dns_config = current, encode(current)
        return self._dns_config[1]

    def _node(self, node: NodeRecord, routes: Sequence[str], *, with_ipv4: bool) -> Node:
        """routes: in its AllowedIPs beyond its own addresses."""
        doc, tailnet = node.doc, self._tailnet
        shown = [address for address in doc.addresses if with_ipv4 or ":" in address]
        addresses = [f"{address}/{128 if ':' in address else 32}" for address in shown]
        primaries = [route for route in routes if route not in EXIT_ROUTES]
        return Node(
            id=doc.id,
            stable_id=str(doc.id),
            name=f"{node.fqdn}.",
            user=self.profile(node).id,
            key=doc.node_key,
            key_expiry=doc.expiry,
            machine=doc.machine_key,
            disco_key=node.disco_key,
            addresses=addresses,
            allowed_ips=[*addresses, *routes],
            primary_routes=primaries or None,
            endpoints=node.endpoints or None,
            derp=f"{DERP_MAGIC_V4}:{node.home_derp}" if node.home_derp else "",
            home_derp=node.home_derp,
            hostinfo=_shared(node.hostinfo),
            created=doc.created,
            cap=node.cap,
            tags=list(doc.tags) or None,
            last_seen=None if node.online else node.last_seen,
            online=node.online,
            machine_authorized=doc.approved,
            cap_map=_abilities(node, offers_exit=len(primaries) < len(routes)),
            expired=tailnet.is_expired(node),
        )


def _abilities(node: NodeRecord, *, offers_exit: bool) -> dict[str, list[Raw] | None]:
    """What peers may make use of."""
    found: dict[str, list[Raw] | None] = {}
    if offers_exit:
        found[SUGGEST_EXIT] = []
    if any(service.proto == QUIC_PEER for service in node.hostinfo.services or ()):
        found[QUIC_PEER_CAP] = []
    return found


def _is_online(node: NodeRecord) -> bool:
    return node.is_alive


def _shared(info: Hostinfo) -> Hostinfo:
    """What peers may know of a host: no log ids, no network report."""
    return Hostinfo(
        os=info.os,
        os_version=info.os_version,
        hostname=info.hostname,
        services=info.services,
        routable_ips=info.routable_ips,
        ssh_host_keys=info.ssh_host_keys,
        app_connector=info.app_connector,
        peer_relay=info.peer_relay,
        shields_up=info.shields_up,
        distro=info.distro,
        ipn_version=info.ipn_version,
    )
