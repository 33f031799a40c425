"""From the text of a policy to its model, or to every fault in it, worded as Tailscale's service words them.

Ref: spec policy §3 to §5
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from typing import Final, final

from gw.errors import WireError
from gw.model.derpmap import DERPRegion
from gw.model.dnsconfig import DNSRecord
from gw.model.gojson import GoStruct, decoder, encode
from gw.policy import durations
from gw.policy.faults import PolicyError
from gw.policy.fields import Faults, Fields, texts
from gw.policy.hujson import HuJSONError, Value, compact, parse, positions, unheard_of
from gw.policy.ipsets import IpSets
from gw.policy.model import (
    AutoApprovers,
    Capabilities,
    Grant,
    NodeAttribute,
    Policy,
    PolicyTest,
    SshRule,
    SshTest,
)
from gw.policy.postures import Assertion, parse_assertion
from gw.policy.selectors import ROLES, Kind, Selector, parse_selector, without_brackets
from gw.policy.services import ALL_PORTS, WITH_PORTS, Service, parse_ports, parse_protocol, parse_service
from gw.policy.spans import EVERYTHING, Span, overlap, span

SECTIONS: Final = (
    "acls", "grants", "groups", "hosts", "ipsets", "tagOwners", "autoApprovers", "ssh", "nodeAttrs", "postures",
    "defaultSrcPosture", "tests", "sshTests", "randomizeClientPort", "disableIPv4", "OneCGNATRoute", "derpMap",
    "extraDNSRecords",
)  # fmt: skip
MAX_TOLD: Final = 100  # faults; nobody reads more
CHECK_PERIOD_S: Final = 12 * 3600.0
MAX_CHECK_PERIOD_NS: Final = 168 * 3600 * 10**9
POOL: Final = span("100.64.0.0/10")
RESERVED_POOLS: Final = (span("100.100.100.0/24"), span("100.115.92.0/23"))
OPEN_CAPABILITIES: Final = ("drive", "relay", "webui", "kubernetes", "tsidp", "secrets")
NODE_CAPABILITIES: Final = ("tailscale.com/app-connectors",)
ONE_CGNAT_ROUTE: Final = ("", "mac-always", "mac-never")
SELF_SOURCES: Final = ("member", *ROLES)
_CAPABILITY: Final = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+/.+")


def read_policy(text: bytes, *, domains: Collection[str] | None = None) -> Policy:
    """The policy that a HuJSON text states; no bytes at all state the default one, which allows everything.

    domains: e-mail domains of the tailnet, None where they are not known. Raises PolicyError.
    """
    if not text:
        return Policy()
    try:
        root = parse(text)
    except HuJSONError as error:
        raise PolicyError(str(error), line=error.line, column=error.column) from None
    faults = Faults()
    policy = _Reader(text, faults, domains).policy(root)
    if faults.found:
        told = faults.found[:MAX_TOLD]
        places = positions(text, [at for at, _ in told])
        located = [(*place, message) for place, (_, message) in zip(places, told, strict=True)]
        line, column, message = located[0]
        details = [f"line {line}, column {column}: {message}" for line, column, message in located]
        if len(told) < len(faults.found):
            details.append(f"and {len(faults.found) - len(told)} more")
        raise PolicyError(message, details=details, line=line, column=column, located=located)
    return policy


class _DerpMap(GoStruct):
    regions: dict[int, DERPRegion | None] | None = None


_read_derp_map: Final = decoder(_DerpMap)


@final
class _Reader:
    def __init__(self, text: bytes, faults: Faults, domains: Collection[str] | None) -> None:
        self.raw = text
        self.faults = faults
        self.domains = domains
        self.groups: dict[str, tuple[str, ...]] = {}
        self.hosts: dict[str, Span] = {}
        self.tags: set[str] = set()
        self.postures: dict[str, tuple[Assertion, ...]] = {}
        self.default_postures: tuple[str, ...] = ()
        self.ipsets = IpSets(self.hosts)

    def policy(self, root: Value) -> Policy:
        fields = Fields(root, SECTIONS, self.faults, "policy")
        self._groups(fields)
        self._hosts(fields)
        self._ipsets(fields)
        self._postures(fields)
        tag_owners = self._tag_owners(fields)
        grants: list[Grant] = []
        for item in fields.items("grants"):
            grants += self._grant(item)
        for item in fields.items("acls"):
            grants += self._acl(item)
        has_rules = "grants" in fields or "acls" in fields
        route = fields.text("OneCGNATRoute")
        if route not in ONE_CGNAT_ROUTE:
            self.faults.add(fields.place("OneCGNATRoute"), f'invalid OneCGNATRoute: "{route}"')
        return Policy(
            text=self.raw,
            grants=tuple(grants) if has_rules else None,
            groups=self.groups,
            hosts=self.hosts,
            ipsets=self.ipsets.resolved,
            tag_owners=tag_owners,
            auto_approvers=self._auto_approvers(fields),
            ssh=tuple(rule for item in fields.items("ssh") for rule in self._ssh(item)),
            node_attributes=tuple(self._node_attribute(item) for item in fields.items("nodeAttrs")),
            postures=self.postures,
            tests=tuple(self._test(item) for item in fields.items("tests")),
            ssh_tests=tuple(self._ssh_test(item) for item in fields.items("sshTests")),
            randomize_client_port=fields.flag("randomizeClientPort"),
            disable_ipv4=fields.flag("disableIPv4"),
            one_cgnat_route=route,
            derp_regions=self._derp_regions(fields),
            dns_records=tuple(self._dns_record(item) for item in fields.items("extraDNSRecords")),
        )

    # Names

    def _groups(self, fields: Fields) -> None:
        nested: list[tuple[str, int, str]] = []
        for name, at, value in fields.members("groups"):
            if not name.startswith("group:"):
                self.faults.add(at, f"group must start with 'group:', got: \"{name}\"")
            members: list[str] = []
            for place, text in texts(value, self.faults, f'groups["{name}"]'):
                member = text.strip()
                if member.startswith("group:"):
                    nested.append((name, place, member))
                elif "@" not in member:
                    self.faults.add(place, f'username must contain @, got: "{member}"')
                else:
                    members.append(member)
            self.groups[name] = tuple(members)
        if nested:
            name, place, member = max(nested, key=lambda each: each[0])
            self.faults.add(place, f'groups["{name}"]: "{member}": group members cannot be recursive')

    def _hosts(self, fields: Fields) -> None:
        for name, at, value in fields.members("hosts"):
            text = value.data if isinstance(value.data, str) else ""
            if "@" in name or ":" in name:
                self.faults.add(at, f'hostname "{name}" must not contain @ or :')
            try:
                self.hosts[name] = span(text.strip())
            except ValueError:
                self.faults.add(
                    value.start, f'hostname contains invalid IP address: hostname "{name}" address "{text}"'
                )

    def _ipsets(self, fields: Fields) -> None:
        for name, at, value in fields.members("ipsets"):
            if not name.startswith("ipset:"):
                self.faults.add(at, f"ipset must start with 'ipset:', got: \"{name}\"")
            self.ipsets.define(name.removeprefix("ipset:"), at, texts(value, self.faults, f'ipsets["{name}"]'))
        self.ipsets.resolve(self.faults)

    def _postures(self, fields: Fields) -> None:
        for name, at, value in fields.members("postures"):
            if not name.startswith("posture:"):
                self.faults.add(at, f"posture must start with 'posture:', got: \"{name}\"")
            found: list[Assertion] = []
            for place, text in texts(value, self.faults, f'postures["{name}"]'):
                try:
                    found.append(parse_assertion(text))
                except ValueError as error:
                    self.faults.add(place, str(error))
            self.postures[name] = tuple(found)
        self.default_postures = self._posture_names(fields, "defaultSrcPosture")

    def _posture_names(self, fields: Fields, key: str) -> tuple[str, ...]:
        names = fields.texts(key)
        for place, name in names:
            if name not in self.postures:
                self.faults.add(place, f'posture not defined in policy: "{name}"')
        return tuple(name for _, name in names)

    def _source_postures(self, fields: Fields) -> tuple[str, ...]:
        return self._posture_names(fields, "srcPosture") if "srcPosture" in fields else self.default_postures

    def _tag_owners(self, fields: Fields) -> dict[str, tuple[Selector, ...]]:
        entries = list(fields.members("tagOwners"))
        self.tags = {name for name, _, _ in entries}
        found: dict[str, tuple[Selector, ...]] = {}
        for name, at, value in entries:
            fault = _tag_fault(name)
            if fault:
                self.faults.add(at, f'tagOwners["{name}"]: {fault}')
            owners: list[Selector] = []
            for place, text in texts(value, self.faults, f'tagOwners["{name}"]'):
                owner = self._selector(place, text)
                if owner is None:
                    continue
                if owner.kind is Kind.TAG and owner.name not in self.tags:
                    self.faults.add(place, f'tag "{name}" references undefined tag "{owner.name}"')
                elif not _is_owner(owner):
                    self.faults.add(place, f'tagOwners["{name}"]: "{owner}" cannot own a tag')
                else:
                    owners.append(owner)
                    self._must_be_known(place, owner)
            found[name] = tuple(owners)
        return found

    # Selectors

    def _selector(self, at: int, text: str, *, prefix: str = "") -> Selector | None:
        found = self.faults.guard(at, parse_selector, text, prefix=prefix)
        if found is not None and found.kind is Kind.HOST and found.name in self.hosts:
            return Selector(Kind.HOST, found.name, self.hosts[found.name])
        return found

    def _must_be_known(self, at: int, selector: Selector, *, prefix: str = "", domain_prefix: str = "") -> bool:
        """Whether what the selector names is defined; else it is a fault."""
        name = selector.name
        fault = ""
        match selector.kind:
            case Kind.TAG if name not in self.tags:
                fault = f'{prefix}tag not found: "{name}"'
            case Kind.GROUP if name not in self.groups:
                fault = f'group not defined in policy: "{name}"'
            case Kind.HOST if name not in self.hosts:
                fault = f'host not defined in policy: "{name}"'
            case Kind.IPSET if name not in self.ipsets.resolved:
                fault = f'ipset not defined in policy: "ipset:{name}"'
            case Kind.DOMAIN:
                fault = self._domain_fault(name, domain_prefix)
        if fault:
            self.faults.add(at, fault)
        return not fault

    def _domain_fault(self, domain: str, prefix: str = "") -> str:
        if self.domains is None or domain in self.domains:
            return ""
        return f"{prefix}{domain} is not associated with this Tailnet and cannot be used in user:*@<domain> expressions"

    def _sources(self, fields: Fields, key: str) -> tuple[Selector, ...]:
        found: list[Selector] = []
        for at, text in fields.texts(key):
            source = self._selector(at, text)
            if source is None or not self._must_be_known(at, source, prefix="src="):
                continue
            if source.is_autogroup("self"):
                self.faults.add(at, '"autogroup:self" not valid on the src side of a rule')
            elif source.is_autogroup("internet"):
                self.faults.add(at, "autogroup:internet can only be used in ACL destinations")
            elif source.is_autogroup("nonroot"):
                self.faults.add(at, '"autogroup:nonroot" not valid on the src side of a rule')
            else:
                found.append(source)
        return tuple(found)

    def _may_be_destination(self, at: int, text: str, selector: Selector) -> bool:
        if selector.is_autogroup("danger-all"):
            self.faults.add(at, "cannot use autogroup:danger-all as a dst")
        elif selector.is_autogroup("nonroot"):
            self.faults.add(at, f'"{selector}" not valid on the dst side of a rule')
        else:
            return self._must_be_known(at, selector, prefix=f'dst="{text}": ')
        return False

    def _check_self(self, at: int, sources: Iterable[Selector], *, is_acl: bool) -> None:
        for source in sources:
            is_fine = (
                source.kind in (Kind.USER, Kind.GROUP, Kind.DOMAIN)
                or source.is_autogroup(*SELF_SOURCES)
                or (is_acl and source.kind is Kind.ANY)
            )
            if not is_fine:
                self.faults.add(at, "autogroup:self can only be used with users, groups, or supported autogroups")
                return

    # Rules

    def _acl(self, value: Value) -> list[Grant]:
        keys = ("action", "proto", "src", "dst", "users", "ports", "srcPosture")
        fields = Fields(value, keys, self.faults, "acls", lenient="#")
        action = fields.text("action").strip()
        if action != "accept":
            self.faults.add(fields.place("action"), f'action="{action}" is not supported')
        sources = self._sources(fields, "users" if "users" in fields and "src" not in fields else "src")
        protocol = self.faults.guard(fields.place("proto"), parse_protocol, fields.text("proto").strip()) or 0
        postures = self._source_postures(fields)
        by_ports: dict[tuple[Service, ...], list[Selector]] = {}
        for at, text in fields.texts("ports" if "ports" in fields and "dst" not in fields else "dst"):
            found = self._host_port(at, text)
            if found is None:
                continue
            selector, ports = found
            if protocol and protocol not in WITH_PORTS and ports != [ALL_PORTS]:
                name = fields.text("proto")
                self.faults.add(at, f'protocol does not support specific ports: "{name}", only "*" is allowed')
            if not self._may_be_destination(at, str(selector), selector):
                continue
            if selector.is_autogroup("self"):
                self._check_self(at, sources, is_acl=True)
            by_ports.setdefault(tuple(Service(protocol, each) for each in ports), []).append(selector)
        return [
            Grant("acls", value.start, sources, tuple(destinations), services, postures=postures)
            for services, destinations in by_ports.items()
        ]

    def _host_port(self, at: int, text: str) -> tuple[Selector, list[tuple[int, int]]] | None:
        host, colon, ports = text.rpartition(":")
        if not colon:
            self.faults.add(at, f'dst="{text}": hostport must contain a colon')
            return None
        prefix = f'dst="{text}": '
        spans = self.faults.guard(at, parse_ports, ports, prefix=prefix)
        bare = self.faults.guard(at, without_brackets, host, prefix=prefix) if spans is not None else None
        if spans is None or bare is None:
            return None
        selector = self._selector(at, bare, prefix=prefix)
        return None if selector is None else (selector, spans)

    def _grant(self, value: Value) -> list[Grant]:
        fields = Fields(value, ("src", "dst", "ip", "app", "via", "srcPosture"), self.faults, "grants")
        sources = self._sources(fields, "src")
        destinations: list[Selector] = []
        for at, text in fields.texts("dst"):
            selector = self._selector(at, text)
            if selector is None or not self._may_be_destination(at, text, selector):
                continue
            if selector.kind is Kind.ADDRESS and selector.at in EVERYTHING:
                self.faults.add(at, f'dst "{text.strip()}": to allow all IP addresses, use "*" or "autogroup:internet"')
                continue
            if selector.is_autogroup("self"):
                self._check_self(at, sources, is_acl=False)
            destinations.append(selector)
        services: list[Service] = []
        for at, text in fields.texts("ip"):
            services += self.faults.guard(at, parse_service, text) or []
        capabilities = self._capabilities(fields)
        if not services and not fields.items("ip") and not capabilities:
            self.faults.add(value.start, "ip and app can not both be empty")
        if capabilities and any(each.is_autogroup("internet") for each in destinations):
            self.faults.add(fields.place("app"), "cannot use app grants with autogroup:internet")
        return [
            Grant(
                "grants",
                value.start,
                sources,
                tuple(destinations),
                tuple(services),
                capabilities,
                self._via(fields),
                self._source_postures(fields),
            )
        ]

    def _via(self, fields: Fields) -> tuple[str, ...]:
        found: list[str] = []
        for at, text in fields.texts("via"):
            tag = text.strip()
            if not tag.startswith("tag:"):
                self.faults.add(at, "via can only be a tag")
            elif tag not in self.tags:
                self.faults.add(at, f'tag "{tag}" not found')
            else:
                found.append(tag)
        return tuple(found)

    def _capabilities(self, fields: Fields, own: tuple[str, ...] = ()) -> Capabilities:
        """own: names of Tailscale's domain that are free to give besides the usual ones."""
        found: dict[str, tuple[str, ...]] = {}
        for name, at, value in fields.members("app"):
            if "://" in name or not _CAPABILITY.fullmatch(name):
                self.faults.add(at, "capability name must have the form {domain}/{path}")
            domain, _, path = name.partition("/")
            is_open = name in own or path in {f"cap/{each}" for each in OPEN_CAPABILITIES}
            if domain.lower() == "tailscale.com" and not is_open:
                self.faults.add(at, "capability name must not be in the tailscale.com domain")
            if value.data is not None and not isinstance(value.data, list):
                self.faults.add(value.start, f'app["{name}"]: expected a list')
            items = value.data if isinstance(value.data, list) else []
            found[name] = tuple(compact(self.raw, item) for item in items)
        return found

    def _auto_approvers(self, fields: Fields) -> AutoApprovers:
        value = fields.value("autoApprovers")
        if value is None:
            return AutoApprovers()
        section = Fields(value, ("routes", "exitNode"), self.faults, "autoApprovers")
        routes: list[tuple[Span, tuple[Selector, ...]]] = []
        for name, at, approvers in section.members("routes"):
            selectors = self._approvers(texts(approvers, self.faults, f'autoApprovers.routes["{name}"]'))
            route = self.faults.guard(at, span, name)
            if route is not None:
                routes.append((route, selectors))
        return AutoApprovers(tuple(routes), self._approvers(section.texts("exitNode")))

    def _approvers(self, entries: list[tuple[int, str]]) -> tuple[Selector, ...]:
        found: list[Selector] = []
        for at, text in entries:
            selector = self._selector(at, text)
            if selector is None:
                continue
            if not _is_owner(selector):
                self.faults.add(at, f'autoApprovers: "{selector}" cannot approve')
            elif self._must_be_known(at, selector):
                found.append(selector)
        return tuple(found)

    # SSH

    def _ssh(self, value: Value) -> list[SshRule]:
        keys = ("action", "src", "dst", "users", "checkPeriod", "acceptEnv", "srcPosture")
        fields = Fields(value, keys, self.faults, "ssh")
        action = fields.text("action").strip()
        if not action:
            self.faults.add(fields.place("action"), "action must be specified")
        elif action not in ("accept", "check"):
            self.faults.add(fields.place("action"), f'"{action}" is not a valid action')
        sources = self._ssh_sources(fields)
        destinations = self._ssh_destinations(fields, sources)
        users = self._ssh_users(fields)
        environment = [text for _, text in fields.texts("acceptEnv")]
        if "" in environment:
            self.faults.add(fields.place("acceptEnv"), "acceptEnv values cannot be empty")
        period = self._check_period(fields, action)
        return [
            SshRule(
                value.start, sources, destinations, users, period, tuple(environment), self._source_postures(fields)
            )
        ]

    def _ssh_sources(self, fields: Fields) -> tuple[Selector, ...]:
        found: list[Selector] = []
        for at, text in fields.texts("src"):
            selector = self._selector(at, text)
            if selector is None:
                continue
            is_people = selector.kind in (Kind.USER, Kind.DOMAIN, Kind.GROUP, Kind.TAG)
            if not is_people and not selector.is_autogroup("member", "tagged", *ROLES):
                self.faults.add(at, f'invalid src "{text.strip()}"')
            elif self._must_be_known(at, selector, prefix="src=", domain_prefix="[ssh] "):
                found.append(selector)
        return tuple(found)

    def _ssh_destinations(self, fields: Fields, sources: tuple[Selector, ...]) -> tuple[Selector, ...]:
        found: list[Selector] = []
        for at, text in fields.texts("dst"):
            selector = self._selector(at, text)
            if selector is None:
                continue
            is_place = selector.kind in (Kind.USER, Kind.DOMAIN, Kind.TAG)
            if not is_place and not selector.is_autogroup("member", "tagged", "self"):
                self.faults.add(at, f'invalid dst "{text.strip()}"')
                continue
            if selector.kind in (Kind.USER, Kind.DOMAIN) and sources != (selector,):
                self.faults.add(at, f'invalid dst "{text.strip()}": a user is reached only by the same user')
                continue
            is_personal = selector.is_autogroup("member", "self")
            if is_personal and any(source.kind is Kind.TAG or source.is_autogroup("tagged") for source in sources):
                self.faults.add(at, f'invalid dst "{text.strip()}": tagged nodes may not reach the devices of users')
                continue
            if self._must_be_known(at, selector, prefix=f'dst="{text.strip()}": ', domain_prefix="[ssh] "):
                found.append(selector)
        return tuple(found)

    def _ssh_users(self, fields: Fields) -> tuple[str, ...]:
        entries = fields.texts("users")
        if not entries:
            self.faults.add(fields.place("users"), "users must be specified")
        for at, text in entries:
            name = text.strip()
            if name in ("", "*"):
                self.faults.add(at, f'user "{name}" is not valid')
            elif name.startswith("localpart:*@") and name != "localpart:*@":
                fault = self._domain_fault(name.removeprefix("localpart:*@"))
                if fault:
                    self.faults.add(at, fault)
        return tuple(text.strip() for _, text in entries)

    def _check_period(self, fields: Fields, action: str) -> float | None:
        text = fields.text("checkPeriod")
        if action != "check":
            if text:
                self.faults.add(fields.place("checkPeriod"), "checkPeriod is only valid with the action check")
            return None
        if not text:
            return CHECK_PERIOD_S
        if text == "always":
            return 0.0
        period = self.faults.guard(fields.place("checkPeriod"), durations.parse, text)
        if period is None:
            return CHECK_PERIOD_S
        if period < 0:
            shown = durations.text_of(period)
            self.faults.add(fields.place("checkPeriod"), f"checkPeriod {shown} must be a positive duration")
        elif period > MAX_CHECK_PERIOD_NS:
            shown = durations.text_of(period)
            self.faults.add(fields.place("checkPeriod"), f"checkPeriod {shown} is above the max (168h)")
        return period / 1e9

    # Attributes and tests

    def _node_attribute(self, value: Value) -> NodeAttribute:
        fields = Fields(value, ("target", "attr", "ipPool", "app"), self.faults, "nodeAttrs")
        targets: list[Selector] = []
        for at, text in fields.texts("target"):
            selector = self._selector(at, text)
            if selector is None:
                continue
            if selector.is_autogroup("self", "internet", "danger-all", "nonroot"):
                self.faults.add(at, f'"{selector}" cannot be a target')
            elif selector.kind is Kind.HOST and selector.name not in self.hosts:
                self.faults.add(at, f'"{selector.name}": invalid address')
            elif self._must_be_known(at, selector):
                targets.append(selector)
        pools: list[Span] = []
        for at, text in fields.texts("ipPool"):
            pool = self.faults.guard(at, span, text)
            if pool is None:
                continue
            if not (POOL[0] <= pool[0] and pool[1] <= POOL[1]) or any(overlap(pool, each) for each in RESERVED_POOLS):
                self.faults.add(at, f"IPPool({text}): network within reserved range")
            pools.append(pool)
        return NodeAttribute(
            value.start,
            tuple(targets),
            tuple(text for _, text in fields.texts("attr")),
            tuple(pools),
            self._capabilities(fields, own=NODE_CAPABILITIES),
        )

    def _derp_regions(self, fields: Fields) -> dict[int, DERPRegion | None]:
        value = fields.value("derpMap")
        if value is None or self._is_beyond(value, "derpMap"):
            return {}
        try:
            return _read_derp_map(encode(value.plain())).regions or {}
        except WireError as error:
            self.faults.add(value.start, f"derpMap: {error}")
            return {}

    def _dns_record(self, value: Value) -> DNSRecord:
        fields = Fields(value, ("Name", "Type", "Value"), self.faults, "extraDNSRecords")
        name, kind, text = (fields.text(key).strip() for key in ("Name", "Type", "Value"))
        try:
            address = ip_address(text)
            if kind and kind != ("A" if address.version == 4 else "AAAA"):
                self.faults.add(fields.place("Type"), f'extraDNSRecords: "{text}" is not for a record of type {kind}')
        except ValueError:
            self.faults.add(fields.place("Value"), f'extraDNSRecords: invalid address "{text}"')
        if not name or len(name) > 253:
            self.faults.add(fields.place("Name"), f'extraDNSRecords: invalid name "{name}"')
        return DNSRecord(name=name.rstrip(".").lower(), type=kind, value=text)

    def _is_beyond(self, value: Value, where: str) -> bool:
        """Whether a number in it is beyond what can be read, which is noted. In `app` it may stand."""
        found = unheard_of(value)
        if found is not None:
            shown = self.raw[found.start : found.end][:60].decode()
            self.faults.add(found.start, f"{where}: number out of range: {shown}")
        return found is not None

    def _test(self, value: Value) -> PolicyTest:
        keys = ("src", "proto", "accept", "deny", "srcPostureAttrs")
        fields = Fields(value, keys, self.faults, "tests")
        attributes = fields.value("srcPostureAttrs")
        if attributes is not None and self._is_beyond(attributes, "tests.srcPostureAttrs"):
            attributes = None
        plain = attributes.plain() if attributes is not None else None
        if not isinstance(plain, dict | None):
            self.faults.add(fields.place("srcPostureAttrs"), "tests.srcPostureAttrs: expected an object")
        return PolicyTest(
            value.start,
            fields.text("src").strip(),
            fields.text("proto").strip(),
            tuple(text for _, text in fields.texts("accept")),
            tuple(text for _, text in fields.texts("deny")),
            plain if isinstance(plain, dict) else None,
        )

    def _ssh_test(self, value: Value) -> SshTest:
        fields = Fields(value, ("src", "dst", "accept", "deny", "check"), self.faults, "sshTests")
        for at, text in fields.texts("dst"):
            try:
                selector = parse_selector(text)
            except ValueError:
                selector = None
            if selector is not None and selector.kind is Kind.TAG and selector.name not in self.tags:
                self.faults.add(at, f'SSH tests dst contains unknown tag "{text.strip()}"')
            elif selector is None or not _is_ssh_test_destination(selector):
                self.faults.add(at, f'SSH tests dst contains disallowed element "{text.strip()}"')
        return SshTest(
            value.start,
            fields.text("src").strip(),
            tuple(text.strip() for _, text in fields.texts("dst")),
            tuple(text for _, text in fields.texts("accept")),
            tuple(text for _, text in fields.texts("deny")),
            tuple(text for _, text in fields.texts("check")),
        )


def _tag_fault(text: str) -> str:
    """What is wrong with the name of a tag; "" for a good one. Ref: tailscale tailcfg CheckTag"""
    if not text.startswith("tag:"):
        return "tags must start with 'tag:'"
    name = text.removeprefix("tag:")
    if not name:
        return "tag names must not be empty"
    if not (name.isascii() and name[0].isalpha()):
        return "tag names must start with a letter, after 'tag:'"
    if not name.replace("-", "").isalnum():
        return "tag names can only contain numbers, letters, or dashes"
    return ""


def _is_owner(selector: Selector) -> bool:
    """Users, groups, tags, and the autogroups of users and tagged nodes."""
    is_named = selector.kind in (Kind.USER, Kind.DOMAIN, Kind.GROUP, Kind.TAG)
    return is_named or selector.is_autogroup("member", "tagged", *ROLES)


def _is_ssh_test_destination(selector: Selector) -> bool:
    if selector.kind is Kind.ADDRESS:
        return selector.at[0] == selector.at[1] and "/" not in selector.name
    is_named = selector.kind in (Kind.USER, Kind.DOMAIN, Kind.GROUP, Kind.TAG, Kind.HOST)
    return is_named or selector.is_autogroup("member", "tagged", "self")
