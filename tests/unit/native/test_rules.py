"""The index of filter rules answers as reading all of them would."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gw.native.rules import ANY_PORT, EVERY_PORT, RuleSet

PROTOCOLS = [1, 6, 17, 47, 58, 132]
PORTS = [0, 1, 22, 80, 443, 65534, 65535]


@dataclass(frozen=True)
class Range:
    v6: bool
    first: int
    last: int

    def raw(self) -> tuple[bool, bytes, bytes]:
        size = 16 if self.v6 else 4
        return self.v6, self.first.to_bytes(size, "big"), self.last.to_bytes(size, "big")


@dataclass(frozen=True)
class Rule:
    protocols: list[int]
    sources: list[Range]
    destinations: list[tuple[Range, int, int]]

    def holds(self, v6: bool, source: int, destination: int, protocol: int, port: int) -> bool:
        if not any(each.v6 == v6 and each.first <= source <= each.last for each in self.sources):
            return False
        for target, low, high in self.destinations:
            if target.v6 != v6 or not target.first <= destination <= target.last:
                continue
            if port == ANY_PORT:
                return True
            is_opened = (low, high) == (0, 65535) if port == EVERY_PORT else low <= port <= high
            if is_opened and protocol in self.protocols:
                return True
        return False


def edges(v6: bool) -> st.SearchStrategy[int]:
    """Few numbers, at the ends of the space and around powers of two, so that ranges meet."""
    top = (1 << (128 if v6 else 32)) - 1
    return st.sampled_from([0, 1, 2, 3, 7, 8, 255, 256, top // 2, top // 2 + 1, top - 256, top - 1, top])


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    v6 = draw(st.booleans())
    first, last = sorted((draw(edges(v6)), draw(edges(v6))))
    return Range(v6, first, last)


ports = st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(lambda pair: (min(pair), max(pair)))
rules = st.builds(
    Rule,
    st.lists(st.sampled_from(PROTOCOLS), max_size=3),
    st.lists(ranges(), max_size=3),
    st.lists(st.tuples(ranges(), ports).map(lambda each: (each[0], *each[1])), max_size=3),
)


@given(st.lists(rules, max_size=6), st.data())
def test_the_index_answers_as_reading_all_rules_would(found: list[Rule], data: st.DataObject) -> None:
    index = RuleSet()
    for each in found:
        index.add(
            each.protocols,
            [source.raw() for source in each.sources],
            [(*target.raw(), low, high) for target, low, high in each.destinations],
        )
    for _ in range(8):
        v6 = data.draw(st.booleans())
        source, destination = data.draw(edges(v6)), data.draw(edges(v6))
        protocol = data.draw(st.sampled_from(PROTOCOLS))
        port = data.draw(st.sampled_from([*PORTS, ANY_PORT, EVERY_PORT]))
        expected = any(each.holds(v6, source, destination, protocol, port) for each in found)
        assert index.allow(v6, source, destination, protocol, port) is expected


def test_a_range_is_kept_as_its_fewest_prefixes() -> None:
    index = RuleSet()
    everything = (False, bytes(4), b"\xff" * 4)
    index.add([6], [everything], [(*everything, 0, 65535)])
    assert {span: len(table) for span, table in index.sources.v4.items()} == {32: 1}
    index.add([6], [(False, b"\x0a\0\0\1", b"\x0a\0\0\x06")], [])
    assert {span: len(table) for span, table in index.sources.v4.items()} == {32: 1, 0: 2, 1: 2}
