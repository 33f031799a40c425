"""How a node's packet filter decides, from its rules as they are sent. Ref: spec policy §4.4 (client facts)"""

from __future__ import annotations

from gw.model.filterrule import FilterRule
from gw.policy.spans import EVERYTHING, Span, number, span


def spans_of(text: str) -> list[Span]:
    if text == "*":
        return list(EVERYTHING)
    low, dash, high = text.partition("-")
    return [(number(low), number(high))] if dash else [span(text)]


def holds(texts: list[str], place: int) -> bool:
    return any(first <= place <= last for text in texts for first, last in spans_of(text))


def accepts(rules: list[FilterRule], source: str, target: str, protocol: int, port: int) -> bool:
    for rule in rules:
        if not holds(rule.src_ips or [], number(source)):
            continue
        for opened in rule.dst_ports or []:
            if not holds([opened.ip], number(target)):
                continue
            ports = (opened.ports.first, opened.ports.last)
            if protocol in (1, 58):
                return True
            if protocol not in (rule.ip_proto or [6, 17, 1, 58]):
                continue
            if (ports[0] <= port <= ports[1]) if protocol in (6, 17, 132) else ports == (0, 65535):
                return True
    return False
