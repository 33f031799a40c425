"""Who sees whom and which packets come in, for both policies and through changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from gw.model.filterrule import FilterRule, NetPortRange
from gw.policy.document import Policy
from gw.policy.view import PolicyView

POOLS = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"]
USERS = ["ann", "ben", ""]


@dataclass(eq=False)
class Device:
    id: int
    user: str = "ann"
    tags: list[str] = field(default_factory=list)
    served_routes: list[str] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [f"100.64.0.{self.id}", f"fd7a:115c:a1e0::{self.id:x}"]


def view_of(policy: Policy, *devices: Device) -> PolicyView[Device]:
    view: PolicyView[Device] = PolicyView(policy, POOLS)
    for device in devices:
        view.add(device)
    return view


def everything(*addresses: str) -> list[NetPortRange]:
    return [NetPortRange(ip=address) for address in addresses]


def test_own_devices_reach_each_other_and_nothing_else() -> None:
    phone, laptop, other, server = Device(1), Device(2), Device(3, "ben"), Device(4, "", ["tag:x"])
    view = view_of(Policy.OWN_DEVICES, phone, laptop, other, server)
    assert view.peers_of(phone) == [laptop]
    assert view.peers_of(other) == view.peers_of(server) == []
    assert view.filter_for(laptop) == [
        FilterRule(
            src_ips=["100.64.0.1-100.64.0.2", "fd7a:115c:a1e0::1-fd7a:115c:a1e0::2"],
            dst_ports=everything("100.64.0.2", "fd7a:115c:a1e0::2"),
        )
    ]
    assert view.filter_for(server) == []


def test_a_single_device_has_the_filter_that_the_public_service_sends() -> None:
    """Vector acl-a04: source and destinations are the device's own addresses."""
    device = Device(40)
    view = view_of(Policy.OWN_DEVICES, device)
    assert view.filter_for(device) == [FilterRule(src_ips=device.addresses, dst_ports=everything(*device.addresses))]


def test_allow_all_admits_the_pools_and_every_served_subnet() -> None:
    router = Device(1, served_routes=["10.33.0.0/16", "0.0.0.0/0", "::/0"])
    other = Device(2, "ben")
    view = view_of(Policy.ALLOW_ALL, router, other)
    assert view.visible(router, other)
    assert view.filter_for(other) == [
        FilterRule(
            src_ips=[
                "100.64.0.0-100.115.91.255", "100.115.94.0-100.127.255.255", "fd7a:115c:a1e0::/48", "10.33.0.0/16",
            ],
            dst_ports=everything("*"),
        )
    ]  # fmt: skip
    assert view.filter_for(router) is view.filter_for(other)


def test_nothing_is_allowed_without_a_policy() -> None:
    one, two = Device(1), Device(2)
    view = view_of(Policy.NOTHING, one, two)
    assert not view.visible(one, two)
    assert view.peers_of(one) == []
    assert view.filter_for(one) == []


def test_subnet_routes_are_not_opened_by_own_devices() -> None:
    """`autogroup:self` means addresses of devices, never the subnets behind them."""
    router, phone = Device(1, served_routes=["10.0.0.0/8"]), Device(2)
    assert not view_of(Policy.OWN_DEVICES, router, phone).routes_usable(phone, router)
    assert view_of(Policy.ALLOW_ALL, router, phone).routes_usable(phone, router)


def test_a_new_device_changes_the_filters_of_its_household_only() -> None:
    phone, other = Device(1), Device(3, "ben")
    view = view_of(Policy.OWN_DEVICES, phone, other)
    laptop = Device(2)
    assert {device.id for device in view.add(laptop).filters} == {1, 2}


def test_a_new_device_changes_no_filter_under_allow_all() -> None:
    view = view_of(Policy.ALLOW_ALL, Device(1))
    assert list(view.add(Device(2)).filters) == []


def test_a_tagged_device_is_lost_to_its_household() -> None:
    phone, laptop, other = Device(1), Device(2), Device(3, "ben")
    view = view_of(Policy.OWN_DEVICES, phone, laptop, other)
    laptop.tags, laptop.user = ["tag:x"], ""
    effect = view.update(laptop)
    assert list(effect.lost) == [phone]
    assert {device.id for device in effect.filters} == {1, 2}


def test_the_epoch_counts_changes_of_the_policy() -> None:
    view = view_of(Policy.OWN_DEVICES)
    assert not view.set_policy(Policy.OWN_DEVICES)
    assert view.set_policy(Policy.ALLOW_ALL)
    assert view.epoch == 2


STEPS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from(USERS), st.sampled_from([[], ["10.0.0.0/8"]]), st.booleans())
)


@given(st.sampled_from(Policy), STEPS)
def test_effects_name_everyone_whose_filter_or_sight_changed(
    policy: Policy, steps: list[tuple[int, str, list[str], bool]]
) -> None:
    """Held against asking every node before and after each change."""
    view = view_of(policy)
    devices: dict[int, Device] = {}
    for number, user, routes, stays in steps:
        filters = {each: view.filter_for(device) for each, device in devices.items()}
        sights = {each: {peer.id for peer in view.peers_of(device)} for each, device in devices.items()}
        device = devices.get(number)
        if device is None:
            device = devices[number] = Device(number, user, [] if user else ["tag:x"], routes)
            effect = view.add(device)
        elif stays:
            device.user, device.tags, device.served_routes = user, [] if user else ["tag:x"], routes
            effect = view.update(device)
        else:
            del devices[number]
            effect = view.remove(device)
        changed = {each for each in devices if each in filters and view.filter_for(devices[each]) != filters[each]}
        assert changed <= {peer.id for peer in effect.filters} <= set(devices)
        now = {each: {peer.id for peer in view.peers_of(device)} for each, device in devices.items()}
        lost = {each for each in devices if number in sights.get(each, ()) and number not in now[each]}
        assert {peer.id for peer in effect.lost} == lost
        for one in devices.values():
            assert now[one.id] == {two.id for two in devices.values() if view.visible(one, two)}
