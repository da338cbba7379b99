from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_course import data


def numbered(n: int):
    """Examples that say their own number, and labels that say it in another way."""
    return np.arange(n, dtype=np.float32)[:, None] + 0.5, 3 * np.arange(n)


def take(count: int, *args, **kwargs) -> list:
    return list(islice(data.batches(*args, **kwargs), count))


@st.composite
def settings_of_a_run(draw):
    n = draw(st.integers(1, 60))
    return n, draw(st.integers(1, n)), draw(st.integers(0, 2**70)), draw(st.integers(0, 40))


@settings(deadline=None)
@given(settings_of_a_run())
def test_a_run_resumed_at_step_k_sees_what_the_first_run_saw(run):
    n, size, seed, k = run
    uninterrupted = take(k + 5, numbered(n), size, seed)
    resumed = take(5, numbered(n), size, seed, start=k)
    for (x, labels), (x_again, labels_again) in zip(uninterrupted[k:], resumed, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(labels, labels_again)


@settings(deadline=None)
@given(settings_of_a_run())
def test_an_epoch_visits_no_example_twice_and_drops_only_the_remainder(run):
    n, size, seed, _ = run
    epoch = np.concatenate([labels for _, labels in take(n // size, numbered(n), size, seed)])
    assert len(epoch) == n - n % size
    assert len(np.unique(epoch)) == len(epoch)


def test_labels_stay_with_their_examples():
    for x, labels in take(20, numbered(53), 7, seed=1):
        assert x.shape == (7, 1) and x.dtype == np.float32
        np.testing.assert_array_equal(3 * (x[:, 0] - 0.5), labels)


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = take(2, numbered(53), 53, seed=1)
    (other,) = take(1, numbered(53), 53, seed=2)
    orders = {tuple(labels) for _, labels in (first, second, other)}
    assert len(orders) == 3 and tuple(3 * np.arange(53)) not in orders


def test_over_many_epochs_every_example_is_seen_as_often():
    # 53 = 7 * 7 + 4, so 4 of 53 are dropped per epoch: 49/53 of 600 epochs is 554.7 visits, with
    # a standard deviation of 6.5; five of those leave room for the most extreme of 53 counts.
    seen = np.concatenate([labels for _, labels in take(600 * 7, numbered(53), 7, seed=4)]) // 3
    assert np.abs(np.bincount(seen, minlength=53) - 600 * 49 / 53).max() < 5 * 6.5


def test_a_dataset_and_its_arrays_give_the_same_batches():
    digits = data.load("digits", "test")
    ((x, labels),) = take(1, digits, 16, seed=5)
    ((x_again, labels_again),) = take(1, (digits.x, digits.labels), 16, seed=5)
    np.testing.assert_array_equal(x, x_again)
    np.testing.assert_array_equal(labels, labels_again)
    assert x.shape == (16, 8, 8, 1) and labels.dtype == np.int32


def test_changing_a_batch_leaves_the_data_alone():
    x, labels = numbered(9)
    ((batch, _),) = take(1, (x, labels), 9, seed=0)
    batch[:] = -1
    assert x.min() == 0.5


@pytest.mark.parametrize(
    ("argument", "value"),
    [("size", 0), ("size", 10), ("size", 2.0), ("seed", -1), ("seed", None), ("start", -1)],
)
def test_a_bad_argument_is_refused_at_the_call(argument, value):
    arguments = {"size": 3, "seed": 0, "start": 0} | {argument: value}
    with pytest.raises(ValueError, match=rf"{argument} must be .*got {value}"):
        data.batches(numbered(9), **arguments)


@pytest.mark.parametrize(
    "bad", [np.zeros((9, 2)), (np.zeros(9), np.zeros(8)), ([], []), "data", (1, 2), (np.zeros(9),)]
)
def test_data_that_is_no_pair_of_equal_length_is_refused(bad):
    with pytest.raises(ValueError, match=r"data must .*got "):
        data.batches(bad, 1, seed=0)
