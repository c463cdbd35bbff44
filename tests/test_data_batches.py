"""The pipeline: order, sharding, resumption, flips."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffax.data import Split, batches


def numbered(num, shape=(1,)):
    """Examples that carry their own number."""
    x = np.arange(num, dtype=np.float32).reshape((num,) + (1,) * len(shape))
    return Split(np.broadcast_to(x, (num, *shape)).copy(), np.arange(num, dtype=np.int32))


def take(iterator, num):
    return [batch["label"] for batch in itertools.islice(iterator, num)]


def test_batch_holds_examples_and_their_labels():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (50, 3, 4, 2), np.uint8), np.arange(50, dtype=np.int32))
    batch = next(batches(split, 16, seed=1))
    assert batch["x"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["x"], split.array(batch["label"]))
    unlabelled = next(batches(Split(split.x), 16, seed=1))
    assert unlabelled["label"] is None
    np.testing.assert_array_equal(unlabelled["x"], batch["x"])


@given(num=st.integers(2, 40), data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_visits_every_example_once(num, data, seed):
    size = data.draw(st.integers(1, num))
    epochs = 3
    order = np.concatenate(take(batches(numbered(num), size, seed, num_threads=0), epochs * num))
    for epoch in range(epochs):
        seen = order[epoch * num : (epoch + 1) * num]
        assert sorted(seen) == list(range(num))


def test_epochs_and_seeds_differ_and_repeat_exactly():
    split = numbered(500)
    first, again, other = (
        np.concatenate(take(batches(split, 100, seed), 10)) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    # Two random permutations of 500 agree in one place on average (Poisson: above 12 in 1e-10).
    for a, b in ((first, other), (first[:500], first[500:]), (first[:500], np.arange(500))):
        assert np.sum(a == b) <= 2 * 12


def test_order_is_frozen():
    """A changed order would change every run that is resumed: it must never happen unnoticed."""
    first, second = take(batches(numbered(10), 10, seed=0), 2)
    assert first.tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert second.tolist() == [8, 7, 4, 2, 6, 5, 9, 0, 1, 3]


def test_shuffle_is_uniform():
    """The first place of 4,000 epochs of 8 examples: chi-square with 7 degrees, p > 1e-6."""
    order = np.concatenate(take(batches(numbered(8), 8, seed=3, num_threads=0), 4000))
    counts = np.bincount(order.reshape(4000, 8)[:, 0], minlength=8)
    assert np.sum((counts - 500) ** 2 / 500) < 40.5


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_order_does_not_depend_on_threads(num_threads):
    expected = take(batches(numbered(30), 7, seed=5, num_threads=0), 40)
    got = take(batches(numbered(30), 7, seed=5, num_threads=num_threads), 40)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shard_count", [2, 3, 6])
def test_shards_joined_are_the_batch_of_one_host(shard_count):
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (20, 4, 4, 1), np.uint8), np.arange(20, dtype=np.int32))
    whole = batches(split, 12, seed=9, flip=True)
    shards = [batches(split, 12, 9, True, k, shard_count) for k in range(shard_count)]
    for _ in range(5):  # over the ends of epochs
        expected, pieces = next(whole), [next(shard) for shard in shards]
        for key in ("x", "label"):
            joined = np.concatenate([piece[key] for piece in pieces])
            np.testing.assert_array_equal(joined, expected[key])


@pytest.mark.parametrize("consumed", [0, 1, 3, 11])
def test_resumes_exactly_in_the_middle_of_an_epoch(consumed):
    split = numbered(25, (4, 4, 1))
    iterator = batches(split, 4, seed=2, flip=True)
    take(iterator, consumed)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 20)
    fresh = batches(split, 4, seed=2, flip=True)
    fresh.set_state(state)
    np.testing.assert_array_equal(take(fresh, 20), expected)
    # Also backwards, in an iterator that has read ahead.
    iterator.set_state(state)
    np.testing.assert_array_equal(take(iterator, 20), expected)
    assert iterator.get_state() == fresh.get_state()


def test_flip_mirrors_each_image_with_probability_one_half():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (64, 3, 5, 2), np.uint8), np.arange(64, dtype=np.int32))
    stored = split.x.copy()
    flipped = total = 0
    patterns = []
    for batch in itertools.islice(batches(split, 64, seed=4, flip=True), 40):
        plain = split.array(batch["label"])
        mirrored = np.all(batch["x"] == plain[:, :, ::-1], axis=(1, 2, 3))
        same = np.all(batch["x"] == plain, axis=(1, 2, 3))
        assert np.all(mirrored ^ same)
        patterns.append(mirrored[np.argsort(batch["label"])])
        flipped, total = flipped + mirrored.sum(), total + len(mirrored)
    assert abs(flipped - total / 2) < 5 * np.sqrt(total / 4)
    # An example is flipped in some epochs and not in others.
    assert 0 < np.mean(patterns, axis=0).min()
    assert np.mean(patterns, axis=0).max() < 1
    np.testing.assert_array_equal(split.x, stored)


def test_flip_leaves_the_order_alone():
    split = numbered(30, (4, 4, 1))
    np.testing.assert_array_equal(
        take(batches(split, 7, seed=1, flip=True), 9), take(batches(split, 7, seed=1), 9)
    )


def test_writing_into_a_batch_leaves_the_data_alone():
    split = numbered(8)
    batch = next(batches(split, 8, seed=0))
    batch["x"][:] = -1
    batch["label"][:] = -1
    np.testing.assert_array_equal(split.label, np.arange(8))
    np.testing.assert_array_equal(split.x[:, 0], np.arange(8))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 31}, r"training\.batch_size=31 must be from 1 to 30"),
        ({"batch_size": 0}, r"training\.batch_size=0 must be from 1 to 30"),
        ({"shard_count": 3}, r"training\.batch_size=4 must be a multiple of the 3 hosts"),
        ({"shard_index": 2, "shard_count": 2}, r"shard_index=2 must be from 0 to 1"),
        ({"seed": -1}, r"seed=-1 must be"),
        ({"flip": True}, r"data\.flip=True mirrors images \(H, W, C\), not .* \(1,\)"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(30), **{"batch_size": 4, "seed": 0, **arguments})
