"""The tests that a policy carries along: `tests` for packets, `sshTests` for logins.

Ref: spec policy §13 (tests)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar, final

from gw.model.sshpolicy import SSHRule
from gw.policy.bits import ones
from gw.policy.compiled import Unit
from gw.policy.membership import audience, is_meant
from gw.policy.model import PolicyTest, SshTest
from gw.policy.selectors import Kind, Selector, parse_selector
from gw.policy.services import UNSTATED, WITH_PORTS, parse_ports, parse_protocol
from gw.policy.spans import Span, SpanSet, address_at, overlap
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
            sources = self._places(self._selector(test.source))
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
                if self._is_allowed(sources, targets, port, protocol) is not expected:
                    found.append(_line(f"{test.source} -> {text}", test.protocol, expected))
        return found

    def _is_allowed(self, sources: SpanSet, targets: list[Span], port: int, protocol: int) -> bool:
        """For every source some rule must allow it."""
        fitting = [unit for unit in self._units(port, protocol) if self._leads_to(unit, targets)]
        return all(any(self._view.source_spans(unit).overlaps(source) for unit in fitting) for source in sources)

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

    def _leads_to(self, unit: Unit, targets: list[Span]) -> bool:
        meant = unit.destinations
        if meant.everybody:
            return True
        if any(meant.literals.overlaps(target) for target in targets):
            return True
        return any(
            meant.has_owner(entry.facts.owner, entry.facts.tags)
            for target in targets
            for entry in self._view.entries.values()
            if any(overlap(target, (place, place)) for place in entry.facts.places)
        )

    def _destination(self, text: str) -> tuple[list[Span], int]:
        """Addresses and one port. Raises ValueError."""
        host, colon, ports = text.strip().rpartition(":")
        if not colon:
            raise ValueError("hostport must contain a colon")
        found = parse_ports(ports)
        if len(found) != 1 or found[0][0] != found[0][1]:
            raise ValueError("one single port is needed")
        selector = self._selector(host.removeprefix("[").removesuffix("]"))
        is_wide = selector.kind in (Kind.ADDRESS, Kind.HOST) and selector.at[0] != selector.at[1]
        if selector.kind in (Kind.ANY, Kind.IPSET) or is_wide or "/" in host:
            raise ValueError("one single host is needed")
        if selector.is_autogroup("internet", "self", "danger-all"):
            raise ValueError(f"`{selector}` cannot be tested")
        targets = list(self._places(selector))
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
        logins = [("accept", each) for each in test.accept]
        logins += [("check", each) for each in test.check] + [("deny", each) for each in test.deny]
        if not callers or not meant or not logins or any(not login for _, login in logins):
            return [f"{test.source}: nothing to test"]
        section = SshSection[N](view.compiled)
        found: list[str] = []
        for selector in meant:
            targets = self._ssh_targets(selector, callers)
            if not targets:
                found.append(f"{test.source} -> {selector}: matches no node")
            for target in targets:
                rules = section.rules_for(view, target.node)
                for verb, login in logins:
                    for caller in callers:
                        outcomes = {_ssh_outcome(rules, str(address_at(place)), login) for place in caller.facts.places}
                        if not _is_as_expected(verb, outcomes):
                            found.append(_ssh_line(test.source, login, selector, verb))
        return list(dict.fromkeys(found))

    def _ssh_targets(self, selector: Selector, callers: list[Entry[N]]) -> list[Entry[N]]:
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
        compiled = self._view.compiled
        meant = audience(compiled, [selector])
        spans: list[Span] = list(meant.literals)
        if meant.everybody:
            spans += compiled.pools
        spans += [
            (place, place)
            for entry in self._view.entries.values()
            if meant.has_owner(entry.facts.owner, entry.facts.tags)
            for place in entry.facts.places
        ]
        return SpanSet(spans)


def _ssh_outcome(rules: list[SSHRule], address: str, login: str) -> str:
    """`accept`, `check` or `deny`: the first rule that lists the address and maps the login to somebody."""
    for rule in rules:
        if not any(principal.any or principal.node_ip == address for principal in rule.principals):
            continue
        local = rule.ssh_users.get(login, rule.ssh_users.get("*", ""))
        if local:
            return "check" if rule.action.hold_and_delegate else "accept"
    return "deny"


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
