"""Each pattern is told where it is true of every wrong case, and only there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.grading.exercise import Exercise, Failure, Part
from diffusion_course.grading.patterns import difference, is_right

ANY = Exercise("07.1", "A test", "f", (Part("all", 1, lambda rng: []),), lambda x: x)
many = settings(examples, max_examples=40)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(5,), (4, 3), (3, 3), (2, 3, 4)])


def drawn(seed, shape, cases=2):
    """Right arrays without a pattern of their own: no zeros, both signs, no two of one size."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    arrays = []
    for _ in range(cases):
        sizes = rng.permutation(np.linspace(0.4, 3.1, size)) + rng.uniform(-0.02, 0.02, size)
        signs = rng.permutation(np.where(np.arange(size) % 2, 1.0, -1.0))
        arrays.append((sizes * signs).reshape(shape))
    return arrays


def told(rights, gots):
    """What is said about these results; all of them are wrong."""
    cases = [((right,), (got,)) for right, got in zip(rights, gots, strict=True)]
    assert not any(is_right(ANY, *case) for case in cases)
    return difference(ANY, cases)


def square(x):
    return x**2


# name -> (what is done to the right array, what is said, what the shape must have)
EVERYWHERE = {
    "sign": (lambda x: -x, "the sign is wrong everywhere"),
    "factor": (lambda x: 1.44 * x, "times one and the same factor, about 1.4"),
    "small factor": (lambda x: 1.01 * x, "times one and the same factor, about 1.01"),
    "negative factor": (lambda x: -2 * x, "times one and the same factor, about -2"),
    "shift": (lambda x: x + 0.7, "too high by one and the same amount, about 0.7"),
    "shift down": (lambda x: x - 0.25, "too low by one and the same amount, about 0.25"),
    "reversed": (lambda x: x[::-1], "the order along the first axis is reversed"),
    "rolled": (lambda x: np.roll(x, 1, 0), "off by one place along the first axis"),
    "last entry": (
        lambda x: np.concatenate([x[:-1], 9 + 2 * x[-1:] ** 2]),
        "all is right but the last entry along the first axis",
    ),
    "first entry": (
        lambda x: np.concatenate([9 + 2 * x[:1] ** 2, x[1:]]),
        "all is right but the first entry along the first axis",
    ),
    "reciprocal": (lambda x: 1 / x, "every value is the reciprocal of the right one"),
    "complement": (lambda x: 1 - x, "every value is 1 minus the right one"),
    "exponential": (np.exp, "every value is the exponential of the right one"),
    "sizes": (np.abs, "the sizes are right, but some signs are wrong"),
    "sorted": (lambda x: np.sort(x, None).reshape(x.shape), "right, but in another order"),
}


@pytest.mark.parametrize("name", EVERYWHERE)
@many
@given(seed=seeds, shape=shapes)
def test_a_pattern_of_every_case_is_told(name, seed, shape):
    change, says = EVERYWHERE[name]
    if name in ("last entry", "first entry", "rolled", "reversed") and shape[0] < 3:
        shape = (4, 3)  # of two rows each is the first or the last
    rights = drawn(seed, shape)
    text = told(rights, [change(right) for right in rights])
    assert says in text


POSITIVE = {
    "square": (square, "every value is the square of the right one"),
    "root": (np.sqrt, "every value is the square root of the right one"),
    "logarithm": (np.log, "every value is the logarithm of the right one"),
}


@pytest.mark.parametrize("name", POSITIVE)
@many
@given(seed=seeds, shape=shapes)
def test_functions_of_positive_values_are_told(name, seed, shape):
    change, says = POSITIVE[name]
    rights = [np.abs(right) for right in drawn(seed, shape)]
    assert says in told(rights, [change(right) for right in rights])


MATRICES = {
    "transposed": (lambda x: x.T, "axes 0 and 1 are exchanged"),
    "columns reversed": (lambda x: x[:, ::-1], "the order along the second axis is reversed"),
    "a factor per row": (
        lambda x: x * np.array([[1.3], [0.6], [-2.0]]),
        "off by a factor of their own for each index of the first axis",
    ),
    "a factor per column": (
        lambda x: x * np.array([1.3, 0.6, -2.0]),
        "off by a factor of their own for each index of the last axis",
    ),
    "a shift per row": (
        lambda x: x + np.array([[1.3], [0.6], [-2.0]]),
        "too low by an amount of their own for each index of the first axis",
    ),
}


@pytest.mark.parametrize("name", MATRICES)
@many
@given(seed=seeds)
def test_patterns_of_matrices_are_told(name, seed):
    change, says = MATRICES[name]
    rights = drawn(seed, (3, 3))
    assert says in told(rights, [change(right) for right in rights])


@many
@given(seed=seeds, shape=shapes)
def test_numbers_without_a_pattern_get_none(seed, shape):
    rights = drawn(seed, shape)
    noise = np.random.default_rng(seed + 1).uniform(0.4, 1.9, (2, *shape))
    text = told(rights, [right * factors for right, factors in zip(rights, noise, strict=True)])
    assert text.startswith(("every value differs; the first, at ", f"{rights[0].size} of "))
    assert "the largest error is " in text


def test_a_finite_answer_where_the_right_one_is_infinite_has_no_largest_error():
    right = np.array([[2.0, np.inf, 5.0], [7.0, 3.0, 1.5]])
    text = told([right], [np.where(np.isinf(right), 8.25, right)])
    assert text == "1 of 6 values differ; the first, at index [0, 1], is 8.25: too low"


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_pattern_of_some_cases_only_is_not_told(name):
    change, says = EVERYWHERE[name]
    first, second = drawn(3, (4, 3))
    other = np.random.default_rng(8).permuted(second * np.linspace(0.5, 1.9, 12).reshape(4, 3))
    assert says not in told([first, second], [change(first), other])
    assert says not in difference(
        ANY, [((first,), (change(first),)), ((second,), Failure("error", "it raised"))]
    )


def test_a_factor_that_changes_from_call_to_call_is_told_as_such():
    first, second = drawn(5, (4, 3))
    text = told([first, second], [2 * first, 3 * second])
    assert (
        text == "every value is off by one and the same factor, which is another one in each call"
    )
    text = told([first, second], [first + 2, second - 3])
    assert (
        text == "every value is off by one and the same amount, which is another one in each call"
    )


def test_single_values_show_a_factor_together():
    rights = [np.array(1.3), np.array(-2.9), np.array(0.7)]
    assert "factor, about 2" in told(rights, [2 * right for right in rights])
    # Each by itself is some factor off: that says nothing.
    assert "the value is 2.6: too high" in told(
        rights, [rights[0] * 2, rights[1] * 3, rights[2] * 5]
    )
    assert "the value is 2.6: too high" in told(rights[:1], [2 * rights[0]])


def test_values_below_zero_that_are_scaled_are_not_called_large():
    bits = np.array([-1.3, -4.2, -0.7])
    text = told([bits], [bits / np.log(2)])
    assert "factor, about 1.4" in text and "large" not in text


def test_equal_values_fit_too_many_patterns_to_tell_one():
    text = told([np.full(4, 2.0)], [np.full(4, 3.0)])
    assert "every value differs" in text and "3: too high" in text


@pytest.mark.parametrize(("shape", "axes"), [((2, 3), (1, 0)), ((2, 3, 4), (0, 2, 1))])
def test_axes_in_another_order_are_told_with_the_shape(shape, axes):
    (right,) = drawn(1, shape, cases=1)
    text = told([right], [right.transpose(axes)])
    assert text.startswith("expected shape")
    assert text.endswith(", with the right numbers: its axes are in another order")


def test_a_lost_axis_is_told_with_the_shape():
    (right,) = drawn(1, (4, 1), cases=1)
    assert told([right], [right[:, 0]]).endswith("got [4], with the right numbers in it")
    assert told([right], [right[:, 0] * 2]).endswith("got [4]")


def test_the_value_of_a_tuple_is_named_where_it_alone_is_wrong():
    first, second = drawn(2, (4,))
    case = ((first, second), (first, 2 * second))
    assert difference(ANY, [case]).startswith("value 2 of the result: every value is the right one")


def test_whole_numbers_are_exact_in_patterns_too():
    right = np.array([9_999, 70_000, 3])
    assert "1 of 3 values differ" in told([right], [right + np.array([0, -1, 0])])
    assert "too high by one and the same amount, about 1" in told([right], [right + 1])
