"""The network map against a plain model of the same rules, and each rule on its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from gw.model.derpmap import DERPHomeParams, DERPMap, DERPRegion
from gw.model.dnsconfig import DNSConfig
from gw.model.filterrule import FilterRule
from gw.model.gojson import ZERO_TIME
from gw.model.mapping import MapResponse
from gw.model.node import Node, PeerChange, UserProfile
from gw.node.netmap import Netmap, NetmapChange

WALL = datetime(2030, 1, 1, tzinfo=UTC)


def node(id_: int, **fields: Any) -> Node:
    return Node(id=id_, key=f"nodekey:{id_:064x}", **fields)


def netmap(*peers: Node, **fields: Any) -> Netmap:
    made = Netmap()
    made.apply(MapResponse(node=node(1), peers=list(peers), **fields), WALL)
    return made


def rule(source: str) -> FilterRule:
    return FilterRule(src_ips=[source])


# Against a model: a dict of dicts, rebuilt by the written rules

ids = st.integers(2, 6)
online = st.one_of(st.none(), st.booleans())
nodes = st.builds(node, ids, online=online, home_derp=st.integers(0, 2), name=st.sampled_from(["a.", "b."]))
patches = st.builds(
    PeerChange,
    node_id=ids,
    online=online,
    derp_region=st.integers(0, 2),
    disco_key=st.sampled_from([None, "discokey:1"]),
)
some = st.lists(nodes, max_size=3, unique_by=lambda each: each.id)
messages = st.one_of(
    st.builds(MapResponse, peers=some),
    st.builds(
        MapResponse,
        peers_changed=st.one_of(st.none(), some),
        peers_removed=st.one_of(st.none(), st.lists(ids, max_size=2)),
        peers_changed_patch=st.one_of(st.none(), st.lists(patches, max_size=2)),
        online_change=st.one_of(st.none(), st.dictionaries(ids, st.booleans(), max_size=2)),
        peer_seen_change=st.one_of(st.none(), st.dictionaries(ids, st.booleans(), max_size=2)),
    ),
    st.just(MapResponse(keep_alive=True)),
    st.just(None),  # the stream ends and another one begins
)


def model_step(peers: dict[int, dict[str, Any]], message: MapResponse, *, is_first: bool) -> dict[int, dict[str, Any]]:
    def fields(each: Node) -> dict[str, Any]:
        return {"name": each.name, "online": each.online, "home": each.home_derp, "disco": each.disco_key, "seen": None}

    if message.peers or is_first:
        return {each.id: fields(each) for each in message.peers or []}
    new = {id_: dict(value) for id_, value in peers.items() if id_ not in (message.peers_removed or [])}
    for each in message.peers_changed or []:
        new[each.id] = fields(each)
    for id_, value in (message.peer_seen_change or {}).items():
        if id_ in new:
            new[id_]["seen"] = WALL if value else None
    for id_, value in (message.online_change or {}).items():
        if id_ in new:
            new[id_]["online"] = value
    for patch in message.peers_changed_patch or []:
        if patch.node_id in new:
            peer = new[patch.node_id]
            peer["home"] = patch.derp_region or peer["home"]
            peer["disco"] = patch.disco_key or peer["disco"]
            peer["online"] = peer["online"] if patch.online is None else patch.online
    return new


def shown(made: Netmap) -> dict[int, dict[str, Any]]:
    return {
        id_: {"name": n.name, "online": n.online, "home": n.home_derp, "disco": n.disco_key, "seen": n.last_seen}
        for id_, n in made.peers.items()
    }


THERE_AND_BACK = [
    MapResponse(peers=[node(2, home_derp=2)]),
    MapResponse(peers_changed_patch=[PeerChange(node_id=2, derp_region=1), PeerChange(node_id=2, derp_region=2)]),
]


@given(st.lists(messages, max_size=12))
@example(THERE_AND_BACK)
def test_any_sequence_of_messages_gives_what_the_model_gives(sequence: list[MapResponse | None]) -> None:
    made, model, is_first = Netmap(), dict[int, dict[str, Any]](), True
    consumer: dict[int, Node] = {}
    for message in sequence:
        if message is None:
            made.begin()
            is_first = True
            continue
        change = made.apply(message, WALL)
        if not message.keep_alive:
            model = model_step(model, message, is_first=is_first)
            is_first = False
        assert shown(made) == model
        for gone in change.removed:
            assert consumer.pop(gone.id) == gone
        for id_ in change.upserted:
            assert consumer.get(id_) != made.peers[id_]
            consumer[id_] = made.peers[id_]
        assert consumer == made.peers


@given(st.lists(st.dictionaries(st.sampled_from(["*", "a", "base"]), st.one_of(st.none(), st.just([rule("x")])))))
def test_named_filters_are_set_dropped_and_cleared_in_any_order(
    sequence: list[dict[str, list[FilterRule] | None]],
) -> None:
    """Control protocol §6.4: `"*": null` drops all names before the others of its message count."""
    made, model = netmap(), dict[str, list[FilterRule]]()
    for filters in sequence:
        before = [rule for name in sorted(model) for rule in model[name]]
        if "*" in filters and filters["*"] is None:
            model = {}
        for name, rules in filters.items():
            if name != "*" and rules is None:
                model.pop(name, None)
            elif name != "*" and rules is not None:
                model[name] = rules
        change = made.apply(MapResponse(packet_filters=filters), WALL)
        after = [rule for name in sorted(model) for rule in model[name]]
        assert made.packet_filter == after
        assert change.filter_changed == (before != after)


# One rule each


def test_the_old_filter_field_is_the_base_filter() -> None:
    made = netmap(packet_filters={"base": [rule("a")], "more": [rule("b")]})
    assert made.apply(MapResponse(packet_filter=[rule("c")]), WALL).filter_changed
    assert made.packet_filter == [rule("c"), rule("b")]


def test_a_new_stream_without_filters_lets_nothing_in() -> None:
    """A filter of the stream before must not outlive it: absence of any filter blocks all."""
    made = netmap(packet_filter=[rule("a")])
    made.begin()
    assert made.packet_filter == [rule("a")]
    assert made.apply(MapResponse(node=node(1)), WALL).filter_changed
    assert made.packet_filter == []


def test_an_empty_list_of_peers_in_a_running_stream_changes_nothing() -> None:
    """Control protocol §6.1: empty is unchanged, never "no peers"; only a stream's first message says so."""
    made = netmap(node(2))
    assert not made.apply(MapResponse(peers=[]), WALL)
    made.begin()
    assert [gone.id for gone in made.apply(MapResponse(node=node(1), peers=[]), WALL).removed] == [2]


def test_the_first_message_of_a_new_stream_tells_only_the_difference() -> None:
    made = netmap(node(2), node(3), node(4))
    made.begin()
    change = made.apply(MapResponse(node=node(1), peers=[node(2), node(3, online=True)]), WALL)
    assert change == NetmapChange(upserted=(3,), removed=(node(4),))


def test_a_peer_that_leaves_and_returns_in_one_message_is_there() -> None:
    made = netmap(node(2))
    change = made.apply(MapResponse(peers_removed=[2], peers_changed=[node(2, name="new.")]), WALL)
    assert ([gone.id for gone in change.removed], change.upserted) == ([2], (2,))
    assert made.peers[2].name == "new."


def test_a_patch_for_a_stranger_is_ignored() -> None:
    made = netmap(node(2))
    assert not made.apply(MapResponse(peers_changed_patch=[PeerChange(node_id=9, online=True)]), WALL)
    assert list(made.peers) == [2]


def test_a_patch_replaces_only_what_it_names() -> None:
    made = netmap(node(2, endpoints=["192.0.2.1:1"], name="b.", home_derp=1))
    made.apply(MapResponse(peers_changed_patch=[PeerChange(node_id=2, endpoints=[], derp_region=7)]), WALL)
    peer = made.peers[2]
    assert (peer.endpoints, peer.name, peer.home_derp, peer.derp) == ([], "b.", 7, "127.3.3.40:7")


def test_a_patch_with_the_zero_time_clears_the_expiry() -> None:
    made = netmap(node(2, key_expiry=WALL, expired=True))
    made.apply(MapResponse(peers_changed_patch=[PeerChange(node_id=2, key_expiry=ZERO_TIME)]), WALL)
    assert made.peers[2].key_expiry is None
    assert not made.is_expired(made.peers[2], WALL)


def test_a_new_key_makes_an_expired_peer_valid_again() -> None:
    made = netmap(node(2, expired=True))
    made.apply(MapResponse(peers_changed_patch=[PeerChange(node_id=2, key="nodekey:" + "7" * 64)]), WALL)
    assert not made.peers[2].expired


def test_an_earlier_expiry_leaves_an_expired_peer_expired() -> None:
    made = netmap(node(2, expired=True, key_expiry=WALL))
    made.apply(MapResponse(peers_changed_patch=[PeerChange(node_id=2, key_expiry=WALL - timedelta(1))]), WALL)
    assert made.peers[2].expired


def test_a_disco_key_older_than_what_we_know_is_refused() -> None:
    made = netmap(node(2, disco_key="discokey:new", last_seen=WALL))
    old = PeerChange(node_id=2, disco_key="discokey:old", online=False, last_seen=WALL - timedelta(seconds=9))
    made.apply(MapResponse(peers_changed_patch=[old]), WALL)
    assert made.peers[2].disco_key == "discokey:new"


def test_absent_allowed_addresses_are_the_nodes_own() -> None:
    made = netmap(node(2, addresses=["100.64.0.2/32"], derp="127.3.3.40:5", key_expiry=ZERO_TIME))
    peer = made.peers[2]
    assert (peer.allowed_ips, peer.home_derp, peer.key_expiry) == (["100.64.0.2/32"], 5, None)


def test_expiry_counts_by_the_servers_clock_when_ours_is_off() -> None:
    made = netmap(control_time=WALL + timedelta(hours=1))
    peer = node(2, key_expiry=WALL + timedelta(minutes=30))
    assert made.is_expired(peer, WALL)
    made.apply(MapResponse(control_time=WALL + timedelta(seconds=20)), WALL)
    assert not made.is_expired(peer, WALL)


def test_a_peer_without_disco_and_relay_is_not_usable() -> None:
    """Control protocol §6.2."""
    made = netmap()
    zero = "discokey:" + "0" * 64
    assert not made.is_usable(node(2, disco_key=zero), WALL)
    assert made.is_usable(node(2, disco_key=zero, home_derp=1), WALL)
    assert made.is_usable(node(2, disco_key="discokey:" + "1" * 64), WALL)
    assert made.is_usable(node(2, is_wire_guard_only=True), WALL)
    assert not made.is_usable(node(2, home_derp=1, expired=True), WALL)


def test_a_relay_map_without_regions_keeps_those_known() -> None:
    regions = {900: DERPRegion(region_id=900)}
    made = netmap(derp_map=DERPMap(regions=regions))
    scores = DERPHomeParams(region_score={900: 0.5})
    assert made.apply(MapResponse(derp_map=DERPMap(home_params=scores)), WALL).derp_changed
    assert (made.derp_map.regions, made.derp_map.home_params) == (regions, scores)
    made.begin()
    assert not made.apply(MapResponse(node=node(1)), WALL).derp_changed


def test_dns_health_profiles_and_domain_stay_until_told_anew() -> None:
    made = netmap(
        dns_config=DNSConfig(domains=["x"]),
        health=["bad"],
        domain="net",
        user_profiles=[UserProfile(id=1, login_name="a")],
    )
    assert not made.apply(MapResponse(peers_changed=[]), WALL)
    assert (made.dns_config.domains, made.health, made.domain) == (["x"], ["bad"], "net")
    assert made.apply(MapResponse(health=[]), WALL).health_changed
    assert made.apply(MapResponse(dns_config=DNSConfig()), WALL).dns_changed
    made.apply(MapResponse(user_profiles=[UserProfile(id=2)]), WALL)
    assert sorted(made.user_profiles) == [1, 2]


def test_a_keepalive_carries_nothing_else() -> None:
    made = Netmap()
    assert not made.apply(MapResponse(keep_alive=True, node=node(1), peers=[node(2)]), WALL)
    assert (made.self_node, made.peers) == (None, {})
    assert made.apply(MapResponse(node=node(1), peers=[node(2)]), WALL).upserted == (2,)


def test_a_change_of_one_peer_leaves_the_objects_of_the_others_alone() -> None:
    made = netmap(*(node(number) for number in range(2, 50)))
    before = dict(made.peers)
    made.apply(MapResponse(online_change={7: True}), WALL)
    assert [id_ for id_, peer in made.peers.items() if peer is not before[id_]] == [7]
    assert msgspec.structs.replace(made.peers[7], online=None) == before[7]
