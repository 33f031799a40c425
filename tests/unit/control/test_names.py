"""DNS labels of nodes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gw.control.names import Names, check_label, follows, label_of
from gw.errors import Conflict, UsageError

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


@given(st.text(max_size=200))
def test_any_host_name_gives_a_valid_label(hostname: str) -> None:
    assert LABEL.fullmatch(label_of(hostname))


@given(st.lists(st.sampled_from(["box", "box-1", "Box", "", "x" * 80, "ü"]), max_size=30), st.integers(0, 29))
def test_labels_are_valid_and_unique_and_follow_their_host(hostnames: list[str], freed: int) -> None:
    names = Names()
    taken: list[str] = []
    for index, hostname in enumerate(hostnames):
        name = names.take(hostname)
        assert LABEL.fullmatch(name)
        assert name not in taken
        assert follows(name, hostname)
        taken.append(name)
        if index == freed:
            names.release(taken.pop(0))


@pytest.mark.parametrize(
    ("hostname", "label"),
    [
        ("Ann's MacBook.local", "ann-s-macbook"),
        ("web01.example.org", "web01-example-org"),
        ("Büro", "buro"),
        ("日本", "node"),
        ("--", "node"),
        ("x" * 100, "x" * 63),
    ],
)
def test_label_of(hostname: str, label: str) -> None:
    assert label_of(hostname) == label


def test_equal_hosts_are_numbered_and_a_freed_number_comes_again() -> None:
    names = Names()
    assert [names.take("box") for _ in range(4)] == ["box", "box-1", "box-2", "box-3"]
    names.release("box-1")
    assert names.take("BOX") == "box-1"
    assert names.take("box") == "box-4"


def test_a_name_in_use_cannot_be_claimed() -> None:
    names = Names()
    names.claim("nas")
    with pytest.raises(Conflict, match="name is taken: `nas`"):
        names.claim("nas")


@pytest.mark.parametrize("name", ["", "-a", "a-", "a.b", "a_b", "ü", "x" * 64, "a\n"])
def test_what_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_label(name)


def test_a_chosen_name_does_not_follow_the_host() -> None:
    assert follows("box-12", "box")
    assert not follows("nas", "box")
    assert not follows("box-a", "box")
