"""The tests that a policy carries along: `tests` for packets, `sshTests` for logins.

Ref: spec policy §13 (tests)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar, final

from gw.model.sshpolicy import SSHRule
from gw.policy.audience import Audience
from gw.policy.bits import ones
from gw.policy.compiled import Unit
from gw.policy.membership import audience, is_meant
from gw.policy.model import PolicyTest, SshTest
from gw.policy.postures import held
from gw.policy.selectors import Kind, Selector, parse_selector, without_brackets
from gw.policy.services import UNSTATED, WITH_PORTS, parse_ports, parse_protocol
from gw.policy.spans import EVERYTHING, Span, SpanSet, address_at, networks, span, span_text
from gw.policy.sshrules import SshSection
from gw.policy.view import Entry, PolicyNode, PolicyView

N = TypeVar("N", bound=PolicyNode)

FAILED: Final = "test(s) failed"


@final
class Checks(Generic[N]):
    """All tests of the policy in a view. A line of detail for each expectation that does not hold; [] if all hold."""

    def __init__(self, view: PolicyView[N]) -> None:
        self._view = view
        self._policy = view.policy

    def failures(self) -> list[str]:
        found: list[str] = []
        for test in self._policy.tests:
            found += self._network(test)
        for ssh_test in self._policy.ssh_tests:
            found += self._ssh(ssh_test)
        return found

    # Packets

    def _network(self, test: PolicyTest) -> list[str]:
        try:
            source = self._selector(test.source)
            if source.is_autogroup("internet"):
                raise ValueError("is no source")
            sources = self._asked_of(source)
            protocol = parse_protocol(test.protocol)
        except ValueError as error:
            return [f"{test.source or 'test without src'}: {error}"]
        if not sources:
            return [f"{test.source}: matches no address"]
        if protocol and protocol not in WITH_PORTS:
            return [f"{test.source}: protocol {test.protocol} cannot be tested"]
        if not test.accept and not test.deny:
            return [f"{test.source}: neither accept nor deny"]
        found: list[str] = []
        for expected, destinations in ((True, test.accept), (False, test.deny)):
            for text in destinations:
                try:
                    targets, port = self._destination(text)
                except ValueError as error:
                    found.append(f"{test.source} -> {text}: {error}")
                    continue
                fitting = [unit for unit in self._units(port, protocol) if self._counts(unit, test)]
                if self._is_allowed(fitting, sources, targets, test) is not expected:
                    found.append(_line(f"{test.source} -> {text}", test.protocol, expected))
        return found

    def _is_allowed(self, units: list[Unit], sources: list[Span], targets: SpanSet, test: PolicyTest) -> bool:
        """For every source some rule must allow it."""
        owners = {
            (entry.facts.owner, entry.facts.tags)
            for entry in self._view.entries.values()
            if any(place in targets for place in entry.facts.places)
        }
        fitting = [self._sources_of(unit, test) for unit in units if _leads_to(unit, targets, owners)]
        return all(any(spans.overlaps(source) for spans in fitting) for source in sources)

    def _counts(self, unit: Unit, test: PolicyTest) -> bool:
        """Whether a source with the posture that the test states may use the rule."""
        if not unit.asks_posture or test.posture_attributes is None:
            return True
        return not held(self._policy.postures, test.posture_attributes).isdisjoint(unit.grant.postures)

    def _sources_of(self, unit: Unit, test: PolicyTest) -> SpanSet:
        """A test that states a posture asks nothing about those that the nodes are in."""
        if not unit.asks_posture or test.posture_attributes is None:
            return self._view.source_spans(unit)
        if unit.sources.anything:
            return SpanSet(EVERYTHING)
        routes = self._view.all_routes() if unit.sources.everybody else ()
        return SpanSet([*self._meant(unit.sources), *(span(route) for route in routes)])

    def _units(self, port: int, protocol: int) -> Iterable[Unit]:
        compiled = self._view.compiled
        bits = 0
        for each in (protocol,) if protocol else UNSTATED:
            bits |= compiled.services.opening(each, port) if each in WITH_PORTS else self._whole(each, port)
        return [compiled.units[index] for index in ones(bits & ~compiled.via)]

    def _whole(self, protocol: int, port: int) -> int:
        """Units whose rule names the protocol and covers the port, taken literally."""
        found = 0
        for unit in self._view.compiled.units:
            for service in unit.grant.services if self._view.compiled.network >> unit.index & 1 else ():
                if protocol in service.protocols() and service.ports[0] <= port <= service.ports[1]:
                    found |= 1 << unit.index
        return found

    def _destination(self, text: str) -> tuple[SpanSet, int]:
        """Addresses and one port. Raises ValueError."""
        host, colon, ports = text.strip().rpartition(":")
        if not colon:
            raise ValueError("hostport must contain a colon")
        found = parse_ports(ports)
        if len(found) != 1 or found[0][0] != found[0][1]:
            raise ValueError("one single port is needed")
        selector = self._selector(without_brackets(host))
        is_wide = selector.kind in (Kind.ADDRESS, Kind.HOST) and selector.at[0] != selector.at[1]
        if selector.kind in (Kind.ANY, Kind.IPSET) or is_wide or "/" in host:
            raise ValueError("one single host is needed")
        if selector.kind is Kind.AUTOGROUP and not selector.is_autogroup("member", "tagged"):
            raise ValueError(f"`{selector}` cannot be tested")
        targets = self._places(selector)
        if not targets:
            raise ValueError("matches no address")
        return targets, found[0][0]

    # Logins

    def _ssh(self, test: SshTest) -> list[str]:
        view = self._view
        try:
            source = self._selector(test.source)
            meant = [self._selector(text) for text in test.destinations]
        except ValueError as error:
            return [f"{test.source or 'sshTest without src'}: {error}"]
        callers = [entry for entry in view.entries.values() if self._is_meant(source, entry)]
        addresses = {str(address_at(place)) for caller in callers for place in caller.facts.places}
        if source.kind in (Kind.ADDRESS, Kind.HOST) and not callers:
            addresses.add(span_text(source.at))  # nobody's yet: no rule lets it in
        logins = [("accept", each) for each in test.accept]
        logins += [("check", each) for each in test.check] + [("deny", each) for each in test.deny]
        if not addresses or not meant or not logins or any(not login for _, login in logins):
            return [f"{test.source}: nothing to test"]
        section = SshSection[N](view.compiled)
        found: list[str] = []
        for selector in meant:
            targets = self._ssh_targets(selector, callers)
            if not targets:
                found.append(f"{test.source} -> {selector}: matches no node")
            alike = [section.rules_for(view, target.node) for target in targets]
            for rules in {tuple(map(id, each)): each for each in alike}.values():  # most nodes share theirs
                for verb, login in logins:
                    outcomes = _ssh_outcomes(rules, login)
                    if not _is_as_expected(verb, {outcomes.get(address, "deny") for address in addresses}):
                        found.append(_ssh_line(test.source, login, selector, verb))
        return list(dict.fromkeys(found))

    def _ssh_targets(self, selector: Selector, callers: list[Entry[N]]) -> list[Entry[N]]:
        if selector.kind is Kind.HOST and selector.at[0] != selector.at[1]:
            return []  # as of other prefixes: a test is about single nodes
        if selector.is_autogroup("self"):
            owners = {caller.facts.owner for caller in callers} - {""}
            return [entry for owner in owners for entry in self._view.household(owner)]
        return [entry for entry in self._view.entries.values() if self._is_meant(selector, entry)]

    # Selectors

    def _selector(self, text: str) -> Selector:
        """One selector whose names are defined. Raises ValueError."""
        selector = parse_selector(text)
        policy = self._policy
        known = {
            Kind.TAG: policy.tag_owners, Kind.GROUP: policy.groups, Kind.HOST: policy.hosts, Kind.IPSET: policy.ipsets,
        }  # fmt: skip
        if selector.kind in known and selector.name not in known[selector.kind]:
            raise ValueError(f"`{text}` is not defined")
        if selector.kind is Kind.HOST:
            return Selector(Kind.HOST, selector.name, policy.hosts[selector.name])
        if selector.kind is Kind.USER and not self._view.compiled.people.is_known(selector.name):
            raise ValueError(f"no such user: `{text}`")
        return selector

    def _is_meant(self, selector: Selector, entry: Entry[N]) -> bool:
        compiled = self._view.compiled
        return is_meant(audience(compiled, [selector]), entry, compiled)

    def _places(self, selector: Selector) -> SpanSet:
        """The addresses that a selector stands for."""
        return SpanSet(self._meant(audience(self._view.compiled, [selector])))

    def _asked_of(self, source: Selector) -> list[Span]:
        """What is asked one by one: each address of a node, also beside that of another, and each prefix."""
        spans = sorted(set(self._meant(audience(self._view.compiled, [source]))))
        return [span(str(network)) for each in spans for network in networks(each)]

    def _meant(self, meant: Audience) -> list[Span]:
        spans = [*meant.literals, *(self._view.compiled.pools if meant.everybody else ())]
        spans += [(place, place) for entry in self._view.owned(meant).values() for place in entry.facts.places]
        return spans


def _leads_to(unit: Unit, targets: SpanSet, owners: Iterable[tuple[str, frozenset[str]]]) -> bool:
    """owners: owner and tags of the nodes among the targets."""
    meant = unit.destinations
    if meant.everybody or any(meant.literals.overlaps(target) for target in targets):
        return True
    return any(meant.has_owner(owner, tags) for owner, tags in owners)


def _ssh_outcomes(rules: list[SSHRule], login: str) -> dict[str | None, str]:
    """Address -> `accept` or `check`: the first rule that lists it and maps the login to somebody."""
    found: dict[str | None, str] = {}
    for rule in rules:
        if rule.ssh_users.get(login, rule.ssh_users.get("*", "")):
            outcome = "check" if rule.action.hold_and_delegate else "accept"
            for principal in rule.principals:
                found.setdefault(principal.node_ip, outcome)
    return found


def _is_as_expected(verb: str, outcomes: set[str]) -> bool:
    match verb:
        case "accept":
            return "deny" not in outcomes
        case "check":
            return outcomes == {"check"}
        case _:
            return outcomes == {"deny"}


def _line(pair: str, protocol: str, expected: bool) -> str:
    shown = f" ({protocol})" if protocol else ""
    wanted, got = ("ALLOWED", "DENIED") if expected else ("DENIED", "ALLOWED")
    return f"{pair}{shown}: expected {wanted}, got {got}"


def _ssh_line(source: str, login: str, target: Selector, verb: str) -> str:
    wanted = {"accept": "ALLOWED", "check": "ALLOWED via check", "deny": "DENIED"}[verb]
    return f"{source}/{login} -> {target}: expected {wanted}, got {'ALLOWED' if verb == 'deny' else 'DENIED'}"
