"""The checks at the door: what passes, what is refused, and what the message says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course import checks


def refusal(check, *arguments, **options):
    with pytest.raises(ValueError) as error:
        check(*arguments, **options)
    return str(error.value)


def test_names_are_refused_with_the_list_of_those_that_exist():
    assert checks.one_of("kind", "v", ("x0", "v")) == "v"
    assert refusal(checks.one_of, "kind", "V", ("x0", "v")) == "kind must be one of x0, v, got 'V'"
    for odd in (None, 3, ["v"], np.array(["v", "x0"])):
        assert "kind must be one of x0, v, got" in refusal(
            checks.one_of, "kind", odd, iter(["x0", "v"])
        )


@examples
@given(st.integers(-5, 12))
def test_whole_numbers_are_those_in_the_range(n):
    for given_ in (n, np.int64(n), np.asarray(n, np.int8), jnp.int32(n)):
        if 1 <= n <= 9:
            got = checks.integer("n", given_, 1, 9)
            assert got == n and type(got) is int
        else:
            assert refusal(checks.integer, "n", given_, 1, 9).startswith(
                "n must be a whole number in [1, 9], got"
            )
    if n >= 3:
        assert checks.integer("n", n, 3) == n


@pytest.mark.parametrize("odd", [True, 2.0, 2.5, "2", None, np.float32(2), np.array([2, 3]), [2]])
def test_what_is_no_whole_number_is_no_size(odd):
    assert refusal(checks.integer, "T", odd, 1) == (
        f"T must be a whole number at least 1, got {odd!r}"
    )


@pytest.mark.parametrize("ends", ["[]", "[)", "(]", "()"])
@pytest.mark.parametrize("kind", [float, np.float32, np.array, jnp.asarray, jnp.bfloat16])
def test_a_range_has_the_ends_that_it_names(ends, kind):
    checks.within("w", kind(0.5), 0, 2, ends=ends)
    for value, end, closed in ((0.0, 0, "["), (2.0, 1, "]")):
        if ends[end] == closed:
            checks.within("w", kind(value), 0, 2, ends=ends)
        else:
            expected = f"w must be in {ends[0]}0, 2{ends[1]}, got {value:g}"
            assert refusal(checks.within, "w", kind(value), 0, 2, ends=ends).startswith(expected)
    for value in (-1e-3, 2.02, float("nan"), float("inf")):
        assert "w must be in" in refusal(checks.within, "w", kind(value), 0, 2, ends=ends)


def test_the_first_bad_entry_of_an_array_is_named_with_its_place():
    values = np.array([[0.5, 1.0], [0.25, 1.5], [-1.0, 0.0]])
    want = "w must be in [0, 1], got 1.5 at index [1, 1] of shape [3, 2]"
    assert refusal(checks.within, "w", values, 0, 1) == want
    assert refusal(checks.within, "w", values.tolist(), 0, 1) == want
    want = "w must be positive and finite, got -1.0 at index [2, 0] of shape [3, 2]"
    assert refusal(checks.above, "w", values, 0) == want
    checks.within("w", np.zeros((0, 3)), 0, 1)  # nothing in it is wrong
    # As it was given, without the digits that float32 has in float64.
    assert refusal(checks.within, "w", np.float32(-0.1), 0, 1).endswith("got -0.1")
    assert "got -0.1 at index [0]" in refusal(checks.within, "w", np.float32([-0.1]), 0, 1)


@examples
@given(st.one_of(st.floats(width=32), st.integers(-3, 3)), st.sampled_from([0, 0.25, -1.5]))
def test_above_takes_finite_numbers_above_the_limit(value, low):
    if np.isfinite(value) and value > low:
        checks.above("a", value, low)
    else:
        rule = "positive" if low == 0 else f"above {low:g}"
        assert refusal(checks.above, "a", value, low) == (
            f"a must be {rule} and finite, got {value}"
        )


@pytest.mark.parametrize("odd", ["0.5", None, 1j, [1.0, [2.0]], object()])
@pytest.mark.parametrize("check", [checks.time, lambda name, v: checks.within(name, v, 0, 1),
                                   lambda name, v: checks.above(name, v, 0)])  # fmt: skip
def test_what_is_no_number_is_named_too(check, odd):
    assert refusal(check, "t", odd) == f"t must be a real number, got {odd!r}"


@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.array, jnp.float32])
def test_times_are_between_0_and_1_and_not_step_numbers(kind):
    for t in (0, 0.25, 1):
        checks.time("t", kind(t))
    for t in (500, -0.125, 2, float("nan"), float("inf")):
        message = refusal(checks.time, "s", kind(t))
        assert message.startswith(f"s must be in [0, 1], got {kind(t)}")
        assert message.endswith("step n of a chain of T steps is the time n/T")
    assert "at index [1] of shape [3]" in refusal(checks.time, "t", np.array([0.5, 3, 7]))
    checks.time("t", [0.1, 0.2])


def test_times_may_miss_1_by_what_float32_cannot_see():
    checks.time("t", sum([0.1] * 10) + 2e-16)
    checks.time("t", np.array([1 + 1e-9]))
    refusal(checks.time, "t", 1 + 1e-6)
    refusal(checks.time, "t", 1e300)


def test_shapes_are_compared_before_anything_can_broadcast():
    x = np.ones((3, 2))
    checks.same_shape("eps", jnp.ones((3, 2)), "x0", x)
    assert refusal(checks.same_shape, "eps", np.ones((3, 1)), "x0", x) == (
        "eps must have the shape of x0, [3, 2], got shape [3, 1]"
    )
    for shape in ((), (2,), (1, 1), (3, 1), (3, 2)):
        checks.broadcasts("mask", np.ones(shape), "x", x)
    for shape in ((3,), (1, 3, 2), (6, 2), (2, 3)):
        message = refusal(checks.broadcasts, "mask", np.ones(shape), "x", x)
        assert message == (
            f"mask must broadcast to the shape of x, [3, 2], got shape {list(shape)}"
        )


@pytest.mark.parametrize("given_", [0.5, [0.5, 1.0], np.ones(2), np.ones(2, np.float32)])
def test_states_are_float32(given_):
    checks.floating("x", given_)
    got = checks.state("x", given_)
    assert got.dtype == jnp.float32 and got.shape == np.shape(given_)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.uint8, "x must be floating-point numbers, got dtype uint8; pixels 0 … 255 become x ="),
        (np.int64, "x must be floating-point numbers, got dtype int64; pixels 0 … 255 become x ="),
        (bool, "x must be floating-point numbers, got dtype bool"),
        (complex, "x must be floating-point numbers, got dtype complex128"),
        (np.float16, "x must be float32 or float64 (a network may compute in half precision"),
        (jnp.bfloat16, "x must be float32 or float64 (a network may compute in half precision"),
    ],
)
def test_other_dtypes_are_refused_by_name(dtype, message):
    for check in (checks.floating, checks.state):
        assert refusal(check, "x", np.ones((2, 3), dtype)).startswith(message)
        assert np.dtype(dtype).name in refusal(check, "x", np.ones((2, 3), dtype))


def test_labels_are_whole_numbers_of_one_shape_and_range():
    for good in ([0, 3, 9], np.array([0, 3, 9], np.uint8), jnp.array([0, 3, 9])):
        checks.labels("y", good, (3,), 9)
    checks.labels("y", np.zeros((0,), int), (0,), 9)
    for odd in (np.zeros((3, 1), int), np.zeros(3), np.zeros(3, bool), np.zeros(2, int), 4):
        assert refusal(checks.labels, "y", odd, (3,), 9).startswith(
            "y must be whole numbers of shape [3], got"
        )
    assert refusal(checks.labels, "y", [1, 10, 2], (3,), 9) == "y must be in 0 … 9, got 1 … 10"
    assert refusal(checks.labels, "y", [1, -1, 2], (3,), 9) == "y must be in 0 … 9, got -1 … 2"


def test_under_tracing_values_pass_unseen_and_shapes_and_dtypes_do_not():
    def unseen(v, n):
        checks.within("w", v, 0, 1)
        checks.above("w", v, 100)
        checks.time("t", v)
        checks.labels("y", n, (3,), 2)
        assert not checks.concrete(v) and not checks.concrete({"a": [1.0, v]})
        return v

    v, n = jnp.array([-7.0, 8.0, np.nan]), jnp.array([50, 60, 70])
    assert checks.concrete(v, n, {"a": [1.0]}, None)
    jax.eval_shape(unseen, v, n)
    for bad in (
        lambda v: checks.floating("x", v.astype(jnp.bfloat16)),
        lambda v: checks.same_shape("x", v, "y", v[:2]),
        lambda v: checks.labels("y", v, (3,), 9),
    ):
        with pytest.raises(ValueError, match=re.compile("^[xy] must")):
            jax.eval_shape(bad, v)


@pytest.mark.parametrize("wrong", [-1e-9, np.inf, np.nan, "2"])
def test_non_negative_gives_a_number_that_is_finite_and_at_least_0(wrong):
    assert checks.non_negative("eta", np.float32(1.5)) == 1.5
    assert checks.non_negative("eta", 0) == 0.0
    assert refusal(checks.non_negative, "eta", wrong).startswith("eta must be")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.zeros(3, int), (3,)),
        (np.zeros((3, 2), int), (3, 2)),
        (np.zeros((3, 1), int), (3,)),  # a column would broadcast: measured against [B]
        (np.zeros((3, 2, 2), int), (3,)),
        (np.zeros((3, 0), int), (3,)),
        (4, ()),
    ],
)
def test_conditions_are_labels_or_rows_of_two_and_more(given, wanted):
    assert checks.rows_shape(given) == wanted
