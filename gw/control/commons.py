"""What every node gets alike: the relay map and the DNS settings, and the settings they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final
from urllib.parse import urlsplit

import msgspec

from gw.control.records import Change, ChangeKind
from gw.control.settings import derp_map_of, dns_config_of
from gw.model.derpmap import DERPMap, DERPRegion
from gw.model.dnsconfig import DNSConfig, DNSRecord
from gw.state.config import Config, WebhookSettings
from gw.state.documents import RelayRegionDoc

if TYPE_CHECKING:
    from gw.control.tailnet import Tailnet

FIXED: Final = (
    "server_url", "listen", "metrics_listen", "domain", "tls_cert_file", "tls_key_file", "acme", "http_listen",
    "prefixes",
)  # fmt: skip


class _Value(msgspec.Struct, frozen=True):
    """One setting, for the event trail."""

    value: object


def differences(old: msgspec.Struct, new: msgspec.Struct, place: str = "") -> dict[str, tuple[object, object]]:
    """Settings that differ: dotted name -> before, after."""
    found: dict[str, tuple[object, object]] = {}
    for name in new.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            found |= differences(before, after, f"{place}{name}.")
        else:
            found[place + name] = _shown(before), _shown(after)
    return found


def _shown(value: object) -> object:
    """A setting as the trail may tell it, which is sent to every webhook: URLs of others may hold secrets."""
    if not isinstance(value, list):
        return value
    return [_without_url(each) if isinstance(each, WebhookSettings) else each for each in value]


def _without_url(webhook: WebhookSettings) -> WebhookSettings:
    place = urlsplit(webhook.url)
    return msgspec.structs.replace(webhook, url=f"{place.scheme}://{place.hostname or ''}/…")


@final
class Commons:
    """Of one tailnet. relays: regions with a document; extra_records: of `dns.extra_records_file`."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self.relays: dict[int, RelayRegionDoc] = {}
        self.extra_records: list[DNSRecord] = []
        self._derp_sources: dict[int, DERPRegion] = {}
        self.writer = ""  # who is writing the file through this server: its change is no hand edit
        self.written = tailnet.config  # what the file says, settings that wait for a restart included
        self._derp_map: DERPMap | None = None
        self._dns_config: DNSConfig | None = None

    def derp_map(self) -> DERPMap:
        """The relay map; the same object until it changes."""
        if self._derp_map is None:
            policy = self._tailnet.policy.policy
            self._derp_map = derp_map_of(self.relays.values(), policy.derp_regions, self._derp_sources)
        return self._derp_map

    def dns_config(self) -> DNSConfig:
        """DNS settings for every node; the same object until they change."""
        if self._dns_config is None:
            records = [*self.extra_records, *self._tailnet.policy.policy.dns_records]
            self._dns_config = dns_config_of(self._tailnet.config, records)
        return self._dns_config

    def policy_changed(self) -> None:
        """The policy may bring records and regions of its own."""
        self._derp_map = self._dns_config = None

    def set_config(self, config: Config) -> list[str]:
        """Take over changed settings, each told in the event trail. Returns the names of those that need a restart
        and stay as they were."""
        old = self._tailnet.config
        for name, (before, after) in differences(self.written, config).items():
            self._tailnet.record("setting-changed", f"config:{name}", _Value(before), _Value(after))
        self.written = config
        stuck = [name for name in FIXED if getattr(old, name) != getattr(config, name)]
        self._tailnet.config = msgspec.structs.replace(config, **{name: getattr(old, name) for name in FIXED})
        if config.dns != old.dns:
            self._dns_config = None
            self._tailnet.publish(Change(ChangeKind.DNS))
        return stuck

    def set_extra_records(self, records: list[DNSRecord]) -> None:
        """Take over the DNS records of a file, all of them."""
        if records == self.extra_records:
            return
        self.extra_records = records
        self._dns_config = None
        self._tailnet.publish(Change(ChangeKind.DNS))

    def set_relay(self, key: int, doc: RelayRegionDoc | None, event: str = "") -> None:
        """Take over a region of the relay map, or its removal. event: its name in the trail, if not by what differs."""
        before = self.relays.get(key)
        if doc == before:
            return
        name = "relay-removed" if doc is None else "relay-added" if before is None else "relay-changed"
        self._tailnet.record(event or name, f"relay:{key}", before, doc)
        if doc is None:
            del self.relays[key]
        else:
            self.relays[key] = doc
        self._derp_map = None
        self._tailnet.publish(Change(ChangeKind.RELAYS))

    def set_derp_sources(self, regions: dict[int, DERPRegion]) -> None:
        """Take over the regions of foreign relay maps, all of them."""
        self._derp_sources = regions
        self._derp_map = None
        self._tailnet.publish(Change(ChangeKind.RELAYS))
