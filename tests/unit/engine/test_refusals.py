"""How far "nobody listens at that port" is believed: anybody may forge it. RFC 8085 §5.2."""

from __future__ import annotations

from gw.engine.refusals import Refusals


def test_one_word_is_a_reason_to_ask_and_no_more() -> None:
    refusals = Refusals()
    assert not refusals.refused(heard_at=1.0, rtt_s=0.01, now=2.0)
    assert refusals.may_ask(2.0)
    assert not refusals.refused(heard_at=1.0, rtt_s=0.01, now=2.05)
    assert not refusals.may_ask(2.05)  # a flood of words makes no flood of questions


def test_a_relay_of_which_nothing_is_heard_meanwhile_is_gone() -> None:
    refusals = Refusals()
    assert not refusals.refused(heard_at=1.0, rtt_s=0.01, now=2.0)
    assert not refusals.refused(heard_at=1.0, rtt_s=0.01, now=2.2)
    assert refusals.refused(heard_at=1.0, rtt_s=0.01, now=2.3)


def test_a_relay_that_answers_is_there_whoever_says_otherwise() -> None:
    """A stranger sends words as fast as it likes, and the relay's packets come in between."""
    refusals = Refusals()
    for tick in range(100):
        now = 2.0 + tick * 0.01
        assert not refusals.refused(heard_at=now - now % 0.2, rtt_s=0.01, now=now)


def test_a_far_relay_has_three_round_trips_to_answer() -> None:
    refusals = Refusals()
    assert not refusals.refused(heard_at=1.0, rtt_s=0.4, now=2.0)
    assert not refusals.refused(heard_at=1.0, rtt_s=0.4, now=3.1)
    assert refusals.refused(heard_at=1.0, rtt_s=0.4, now=3.3)
