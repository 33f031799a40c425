"""The relay's queues and buckets of packets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gw.native.relaying import FairQueue, Port, Switch, is_disco, same_head
from gw.wire.derp.buckets import Bucket

FRAMES = st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.binary(min_size=1, max_size=8)), max_size=60)


@given(FRAMES, st.integers(1, 12))
def test_a_queue_keeps_the_newest_of_each_source_in_order_and_drops_from_the_greediest(
    frames: list[tuple[bytes, bytes]], limit: int
) -> None:
    queue = FairQueue(limit)
    model: dict[bytes, list[bytes]] = {}
    for source, frame in frames:
        count = sum(len(each) for each in model.values())
        dropped = queue.put(source, frame)
        if count >= limit:
            longest = model[queue.loser]
            assert len(longest) == max(map(len, model.values()))
            assert dropped == len(longest.pop(0))
        else:
            assert dropped == 0
        model.setdefault(source, []).append(frame)
        assert {key: each for key, each in model.items() if each} == queue.sources  # no empty one is kept
        assert queue.count == sum(map(len, queue.sources.values())) <= limit
    taken = queue.take_all()
    assert sorted(taken) == sorted(frame for each in model.values() for frame in each)
    assert queue.take_all() == []


def test_a_queue_is_as_good_as_new_when_it_was_emptied() -> None:
    queue = FairQueue(4)
    for round_ in range(3):
        for number in range(20):
            queue.put(b"%d" % (number % 3), b"%d %d" % (round_, number))
        assert len(queue.take_all()) == 4


def test_sources_take_turns() -> None:
    queue = FairQueue(10)
    for source, frame in ((b"a", b"1"), (b"a", b"2"), (b"a", b"3"), (b"b", b"x"), (b"c", b"y"), (b"c", b"z")):
        queue.put(source, frame)
    assert queue.take_all() == [b"1", b"x", b"y", b"2", b"z", b"3"]


def test_one_turn_does_not_pile_up_without_bounds_for_one_client() -> None:
    switch = Switch()
    sender, receiver = Port(None), Port(None)
    sender.key, receiver.key = b"s" * 32, b"r" * 32
    switch.local = {sender.key: sender, receiver.key: receiver}
    for _ in range(2000):
        assert switch.forward(sender, receiver.key, bytes(1400))
    assert receiver.out_bytes < 600_000
    assert switch.dropped_queue > 0
    assert switch.clear_dirty() == [receiver]
    first = switch.take(receiver)
    switch.taken(receiver)
    assert switch.clear_dirty() == [receiver]
    assert (len(first) + len(switch.take(receiver))) % 1437 == 0


@given(
    st.lists(st.sampled_from([b"12345678", b"12345679"]), min_size=1, max_size=5),
    st.integers(8, 20),
    st.integers(0, 30),
    st.integers(0, 3),
)
def test_datagrams_of_a_train_have_one_head_or_several(heads: list[bytes], step: int, cut: int, offset: int) -> None:
    step += offset
    train = b"".join((b"any"[:offset] + head).ljust(step, b"x") for head in heads)
    train = train[: max(len(train) - cut % step, 8 + offset)]
    pieces = [train[at : at + step][offset : offset + 8] for at in range(0, len(train), step)]
    assert same_head(train, step, offset) is (len(pieces[-1]) == 8 and len(set(pieces)) == 1)


def test_what_is_disco() -> None:
    disco = b"TS\xf0\x9f\x92\xac" + bytes(56)
    assert is_disco(disco, 0, len(disco))
    assert not is_disco(disco[:-1], 0, len(disco) - 1)
    assert not is_disco(bytes(62), 0, 62)
    assert is_disco(b"head" + disco, 4, 4 + len(disco))


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(64, 32)
    assert bucket.take(32, 1.0)
    assert not bucket.take(1, 1.0)
    assert bucket.take(8, 1.125)
    assert bucket.spend(16, 1.125) == 0.25
    assert bucket.spend(0, 1.375) == 0.0
    assert not bucket.take(33, 99.0)
    unlimited = Bucket(0, 0)
    assert unlimited.take(1e9, 1.0)
    assert unlimited.spend(1e9, 1.0) == 0.0
