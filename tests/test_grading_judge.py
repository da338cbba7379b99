"""Judging: what is right, what the student reads about what is wrong, and what is never said."""

import linecache
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import examples

from diffusion_course.grading import answers, check, checking
from diffusion_course.grading.arrays import as_result
from diffusion_course.grading.calling import call
from diffusion_course.grading.exercise import (
    CALLED,
    Exercise,
    Failure,
    Part,
    Written,
)
from diffusion_course.grading.judging import judge

many = settings(examples, max_examples=100)

X = np.array([0.83, -2.47, 5.12, 1.96], np.float32)
Y = np.array([[3.71, 0.58, -1.33], [-4.29, 2.17, 6.43]], np.float32)


def exercise(oracle, *cases, mistakes=None, **changes):
    """An exercise of one part that is called with these arguments."""
    given = {
        "id": "07.1",
        "title": "A test",
        "function": "f",
        "parts": (Part("all of it", 3, lambda rng: list(cases or [(X,)])),),
        "oracle": oracle,
        "mistakes": mistakes or {},
    }
    return Exercise(**(given | changes))


def verdict(oracle, answer, *cases, **changes):
    return checking.verdict_of(exercise(oracle, *cases, **changes), answer)


def message(oracle, answer, *cases, **changes):
    """What is said about an answer that must be wrong."""
    found = verdict(oracle, answer, *cases, **changes)
    assert found.points == 0 and found.status != "right"
    return found.message


def affine(x):
    return 1.7 * x + 0.9


# -------------------------------------------------------------------------- right and wrong


def test_a_right_answer_earns_every_point_and_no_message():
    found = verdict(affine, lambda x: 1.7 * x + 0.9)
    assert (found.status, found.points, found.possible, found.message) == ("right", 3, 3, "")


def test_a_part_that_is_right_earns_its_points():
    parts = (
        Part("short arrays", 1, lambda rng: [(X,), (X[:2],)]),
        Part("matrices", 2, lambda rng: [(Y,)]),
    )
    found = verdict(affine, lambda x: affine(x) if x.ndim == 1 else 2.3 * x - 1, parts=parts)
    assert (found.status, found.points, found.possible) == ("partly right", 1, 3)
    assert found.parts[0].message == "" and "every value differs" in found.parts[1].message


def test_one_wrong_case_of_a_part_costs_the_part():
    found = verdict(affine, lambda x: affine(x) if x.ndim == 1 else x, (X,), (Y,))
    assert (found.status, found.points) == ("wrong", 0)
    assert found.message.endswith("(called with x of shape [2, 3])")


def test_the_same_message_of_two_parts_is_said_once():
    parts = tuple(Part(name, 1, lambda rng: [(X,)]) for name in ("first", "second"))
    text = message(affine, lambda x: -affine(x), parts=parts)
    assert text.count("the sign is wrong everywhere") == 1


def test_a_stub_is_not_attempted():
    def stub(x):
        raise NotImplementedError("return an array of x's shape")

    found = verdict(affine, stub)
    assert (found.status, found.points, found.message) == ("not attempted", 0, "not attempted yet")


def test_the_allowed_error_is_relative_to_each_value_and_to_the_largest():
    wide = np.array([1e3, 1.0, 0.0], np.float32)
    for error, right in [([0.15, 0, 0], True), ([0.5, 0, 0], False), ([0, 0, 0.015], True),
                         ([0, 0, 0.03], False)]:  # fmt: skip
        found = verdict(lambda x: x, lambda x, e=error: x + jnp.array(e), (wide,))
        assert (found.status == "right") == right, error


def test_cases_are_drawn_from_the_seed_and_differ_from_part_to_part():
    part = Part("random", 1, lambda rng: [(rng.normal(size=3),)])
    wanted = exercise(affine, parts=(part, part))
    (a,), (b,) = ([case[0] for case in part] for part in wanted.cases((3, 4)))
    (c,), (d,) = ([case[0] for case in part] for part in wanted.cases((3, 4)))
    np.testing.assert_array_equal([a, b], [c, d])
    assert not np.allclose(a, b) and not np.allclose(a, wanted.cases((3, 5))[0][0][0])


# ------------------------------------------------------------------------------- no result


def run(source, name):
    """The function f of a cell, as a kernel compiles it."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    space = {"jnp": jnp, "np": np}
    exec(compile(source, name, "exec"), space)
    return space["f"]


@pytest.mark.parametrize(
    "name", ["/tmp/ipykernel_71/5.py", "/var/T/ipykernel_71/5.py", "<cell 4>",
             "<ipython-input-3-f00>", "/tmp/ipython-input-3-55.py"],
)  # fmt: skip
def test_an_error_is_told_with_the_students_own_line(name):
    f = run("def f(x):\n    y = 1.5 * x\n    return jnp.reshape(y, (3, 7))\n", name)
    text = message(affine, f)
    assert text.startswith("your code raised TypeError: ")
    assert "(line 3: return jnp.reshape(y, (3, 7))) (called with x = [0.83, -2.47" in text


def test_a_long_error_is_cut_to_one_line():
    def f(x):
        raise ValueError("much\n to say " * 500)

    text = message(affine, f).partition(CALLED)[0]
    assert len(text) <= 300 and text.endswith("…") and "\n" not in text


def test_a_long_error_still_tells_the_line():
    f = run("def f(x):\n    raise ValueError('much to say ' * 500)\n", "<cell 9>")
    text = message(affine, f).partition(CALLED)[0]
    assert len(text) <= 300 and text.endswith("… (line 2: raise ValueError('much to say ' * 500))")


def test_a_function_that_returns_nothing_is_asked_for_its_return_statement():
    text = message(affine, lambda x: None)
    assert text == "your function returned None: is its return statement missing?"


def test_a_function_with_other_arguments_is_told_so():
    text = message(affine, lambda: X)
    assert text == "your function takes (), but it is called with (x)"
    text = message(lambda x, y: x, lambda x, *, t=1.5: x, (X, Y))
    assert text == "your function takes (x, *, t=1.5), but it is called with (x, y)"


def test_arguments_that_go_by_name_only_are_given_by_name():
    def f(*, y, x):
        return y - x

    assert verdict(lambda x, y: y - x, f, (X, X + 1)).status == "right"
    assert call(f, (X, X + 1)).message.endswith("but it is called with (2 positional arguments)")


def test_a_function_whose_signature_cannot_be_read_is_called():
    class Strange:
        __signature__ = 3

        def __call__(self, x):
            return affine(x)

    assert verdict(affine, Strange()).status == "right"


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SystemExit(0), "remove exit()"),
        (RecursionError("deep"), "RecursionError"),
        (MemoryError(), "MemoryError"),
        (StopIteration(3), "StopIteration"),
        (ExceptionGroup("two", [ValueError("a"), TypeError("b")]), "ExceptionGroup"),
        (Unspeakable(), "Unspeakable"),
    ],
)
def test_whatever_a_function_raises_is_a_failure(error, says):
    def f(x):
        raise error

    found = call(f, (X,))
    assert isinstance(found, Failure) and found.status == "error" and says in found.message


class NoArray:
    def __array__(self, *arguments, **options):
        raise RuntimeError("never")


class Hostile:
    def __float__(self):
        raise RuntimeError("no number")

    __repr__ = __str__ = __len__ = __iter__ = __getitem__ = __float__


@pytest.mark.parametrize(
    "value",
    [NoArray(), Hostile(), "1.5", b"1.5", {"a": 1}, {1.5}, object(), lambda: 1, np.array("text"),
     np.array([1.5, None]), np.array(["2020-01-01"], "datetime64[D]"), np.zeros(2, "f4,i4"), ...],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_what_is_no_array_is_named_by_its_type(value):
    text = message(affine, lambda x: value)
    assert text.startswith(
        f"the result must be an array or a tuple of arrays, got {type(value).__name__}"
    )


def test_an_object_in_a_tuple_is_named_by_its_place():
    text = message(lambda x: (x, x), lambda x: (x, NoArray()))
    assert text == "value 2 of the result must be an array, got NoArray (RuntimeError)"


def test_a_ragged_list_is_no_array():
    assert "value 2 of the result must be an array" in message(affine, lambda x: [1, [[2], [3, 4]]])


def test_inputs_are_copies():
    table = np.array([0.31, 0.77, 0.95])

    def cheat(t):
        t[:] = 0.0
        return np.zeros(3)

    def careless(t):
        right = 2 * t
        t *= 5.0
        return right

    assert "every value differs" in message(lambda t: 2 * t, cheat, (table,))
    assert verdict(lambda t: 2 * t, careless, (table,), (table,)).status == "right"
    np.testing.assert_array_equal(table, [0.31, 0.77, 0.95])


def test_float32_and_integers_reach_the_student_as_jax_arrays_and_tables_as_numpy():
    seen = []
    arguments = (X, np.arange(3, dtype=np.int32), np.zeros(3), 0.7, 3, "vp")
    call(lambda *given: seen.extend(given), arguments)
    assert [isinstance(v, jnp.ndarray) for v in seen] == [True, True] + [False] * 4
    assert type(seen[2]) is np.ndarray and seen[3:] == [0.7, 3, "vp"]


def test_oracles_compute_in_float64():
    seen = []

    def oracle(x):
        seen.append(x.dtype)
        return x

    assert verdict(oracle, lambda x: x).status == "right" and seen == [np.float64]


# ------------------------------------------------------------------------- shapes and dtypes


def test_a_wrong_number_of_results_states_both():
    assert "expected a tuple of 2 arrays, got one array" in message(lambda x: (x, x), affine)
    assert "expected one array, got a tuple of 3 arrays" in message(affine, lambda x: (x, x, x))
    assert "expected one array, got a tuple of 0 arrays" in message(affine, lambda x: ())


def test_a_list_or_a_stack_of_arrays_is_as_good_as_a_tuple():
    assert verdict(lambda x: (x, 2 * x), lambda x: [x, 2 * x]).status == "right"
    assert verdict(lambda x: (x, 2 * x), lambda x: jnp.stack([x, 2 * x])).status == "right"
    assert verdict(lambda x: (x, x[:2]), lambda x: [x, x[:2]]).status == "right"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_list_is_as_good_as_one_array(size):
    x = np.linspace(0.3, 1.1, size)
    assert verdict(affine, lambda x: list(affine(x)), (x,)).status == "right"
    assert verdict(affine, lambda x: affine(x).tolist(), (x,)).status == "right"
    assert verdict(lambda x: affine(x)[None], lambda x: [affine(x)], (x,)).status == "right"
    text = message(lambda x: affine(x)[None], affine, (x,))
    assert "expected shape" in text


def test_bfloat16_is_named():
    text = message(affine, lambda x: affine(x).astype(jnp.bfloat16))
    assert text == "the result must be float32 (or float64), got dtype bfloat16"
    text = message(lambda x: (x, x), lambda x: (x, x.astype(jnp.bfloat16)))
    assert "got dtype bfloat16" in text


def test_a_wrong_shape_states_both():
    assert "expected shape [2, 3], got [3, 2]" in message(affine, lambda x: affine(x).T, (Y,))
    assert "expected shape [2, 3], got []" in message(affine, lambda x: 1.0, (Y,))
    assert "expected shape [], got [1]" in message(lambda x: x.sum(), lambda x: x[:1], (X,))


def test_the_value_that_is_wrong_is_named_by_its_place():
    text = message(lambda x: (x, x[:2]), lambda x: (x, x[:3]))
    assert "value 2 of the result: expected shape [2], got [3]" in text


def test_the_call_is_described_by_its_shapes_and_settings():
    five = np.append(X, np.float32(1.1))
    text = message(lambda x, y, a, s: x, lambda x, y, a, s: -x, (five, Y, 0.123456, "ve"))
    assert text.endswith("(called with x of shape [5], y of shape [2, 3], a = 0.1235, s = 've')")


def test_the_call_is_described_by_its_numbers_where_they_are_few():
    case = (X, np.array([[1, -2]]), np.array(0.123456), np.zeros((0, 3)))
    text = message(lambda a, n, t, e: a, lambda a, n, t, e: -a, case)
    words = "a = [0.83, -2.47, 5.12, 1.96], n = [[1, -2]], t = 0.1235, e of shape [0, 3]"
    assert text.endswith(f"(called with {words})")


def test_whole_numbers_for_floats_and_floats_for_whole_numbers_are_refused():
    whole = np.array([3.0, -7.0], np.float32)
    text = message(lambda x: x, lambda x: x.astype(int), (whole,))
    assert "expected floating-point numbers, got dtype int32" in text
    text = message(lambda x: x.astype(int), lambda x: x, (whole,))
    assert "expected whole numbers, got dtype float32" in text


def test_complex_numbers_are_refused():
    assert "got dtype complex64" in message(affine, lambda x: affine(x) + 0j)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", ">f8", ">f4"])
def test_any_floats_are_right_for_floats(dtype):
    values = np.array([1.5, -0.25, 8.0])  # that float16 holds exactly
    assert verdict(lambda x: values, lambda x: values.astype(dtype)).status == "right"


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"])
def test_any_whole_numbers_are_right_for_whole_numbers(dtype):
    values = np.array([3, 0, 117])
    assert verdict(lambda x: values, lambda x: values.astype(dtype)).status == "right"


def test_numbers_and_lists_of_one_number_are_arrays():
    assert verdict(lambda x: np.float64(2.7), lambda x: 2.7).status == "right"
    assert verdict(lambda x: np.int64(27), lambda x: 27).status == "right"
    assert verdict(lambda x: np.bool_(True), lambda x: True).status == "right"


def test_empty_arrays_are_right_for_empty_arrays_of_their_shape():
    assert verdict(lambda x: np.zeros((0, 3)), lambda x: jnp.zeros((0, 3))).status == "right"
    text = message(lambda x: np.zeros((0, 3)), lambda x: jnp.zeros((3, 0)))
    assert "expected shape [0, 3], got [3, 0]" in text


@pytest.mark.parametrize(("right", "got"), [(10_000, 10_001), ([9_999, 70_000], [9_998, 70_000])])
def test_large_whole_numbers_must_be_exact(right, got):
    text = message(lambda x: np.array(right), lambda x: np.array(got))
    assert "too " in text and str(np.ravel(right)[0]) not in text


# --------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named_with_their_index(bad):
    text = message(affine, lambda x: affine(x).at[1, 2].set(bad), (Y,))
    assert f"expected finite numbers, got {bad} at index [1, 2]" in text


def test_the_only_value_has_no_index():
    text = message(lambda x: x.sum(), lambda x: jnp.nan)
    assert "expected finite numbers, got nan at the only value" in text


def test_infinities_may_be_right():
    values = np.array([1.3, np.inf, -np.inf])
    assert verdict(lambda x: values, lambda x: values.copy()).status == "right"
    text = message(lambda x: values, lambda x: np.abs(values))
    assert "1 of 3 values differ; the first, at index [2], is inf: too high" in text
    text = message(lambda x: values, lambda x: np.array([1.3, np.nan, -np.inf]))
    assert "expected a number or an infinity, got nan at index [1]" in text


def test_a_wrong_sign_everywhere_is_recognised():
    assert "the sign is wrong everywhere" in message(affine, lambda x: -affine(x))


def test_the_first_difference_is_told_with_its_index_and_direction():
    text = message(affine, lambda x: affine(x).at[1, 0].add(0.5).at[1, 1].add(-3), (Y,))
    ours = 1.7 * Y[1, 0] + 0.9 + 0.5
    assert f"2 of 6 values differ; the first, at index [1, 0], is {ours:.4g}: too high" in text
    assert "(the largest error is 25 % of the largest right value)" in text  # 3 of 11.83
    text = message(affine, lambda x: x - 9, (Y,))
    assert "every value differs; the first, at index [0, 0], is -5.29: too low" in text
    text = message(affine, lambda x: x - 9000, (Y,))
    assert "(the largest error is more than ten times the largest right value)" in text


@many
@given(
    right=hnp.arrays(hnp.scalar_dtypes().filter(lambda d: d.kind in "biuf"), (3, 2)),
    got=hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)),
)
def test_whatever_is_returned_there_is_a_verdict(right, got):
    wanted = exercise(lambda x: right, mistakes={"that is twice as much": lambda x: right + right})
    with np.errstate(all="ignore"):
        try:
            outcome = as_result(got)
        except TypeError as error:
            outcome = Failure("error", str(error))
        found = judge(wanted, wanted.cases([1]), [[outcome]])
    assert (found.points == 3) == (found.message == "") == (found.status == "right")


@many
@given(values=hnp.arrays(np.int64, 3, elements=st.integers(-(10**6), 10**6)), at=st.integers(0, 2))
def test_whole_numbers_that_differ_by_one_are_wrong(values, at):
    off = values.copy()
    off[at] += 1
    assert message(lambda x: values, lambda x: off)


# ------------------------------------------------------------------------- classic mistakes


MISTAKES = {
    "the offset is missing": lambda x: 1.7 * x,
    "the factor is missing": lambda x: x + 0.9,
}


def test_a_classic_mistake_is_named_instead_of_the_numbers():
    text = message(affine, lambda x: x + 0.9, mistakes=MISTAKES)
    assert text == "the factor is missing (called with x = [0.83, -2.47, 5.12, 1.96])"


def test_a_classic_mistake_goes_before_the_generic_pattern():
    mistakes = {"it is a variance": lambda x: -affine(x)}
    assert "it is a variance" in message(affine, lambda x: -affine(x), mistakes=mistakes)


def test_a_classic_mistake_must_explain_every_case():
    def f(x):
        return x + 0.9 if x.ndim == 1 else affine(x) - 2

    text = message(affine, f, (X,), (Y,), mistakes=MISTAKES)
    assert "is missing" not in text and "every value differs" in text


def test_a_classic_mistake_must_explain_the_other_parts_too():
    parts = tuple(Part(str(v.ndim), 1, lambda rng, v=v: [(v,)]) for v in (X, Y))
    found = verdict(affine, lambda x: x + 0.9, parts=parts, mistakes=MISTAKES)
    assert [p.message.partition(CALLED)[0] for p in found.parts] == ["the factor is missing"] * 2
    found = verdict(
        affine, lambda x: x + 0.9 if x.ndim == 1 else -x, parts=parts, mistakes=MISTAKES
    )
    assert not any("is missing" in part.message for part in found.parts)
    # Where the other part is right and the mistake would show there, it is another one.
    found = verdict(
        affine, lambda x: x + 0.9 if x.ndim == 1 else affine(x), parts=parts, mistakes=MISTAKES
    )
    assert found.points == 1 and "is missing" not in found.message


def test_a_mistake_that_cannot_be_seen_on_these_inputs_is_not_named():
    mistakes = {"the square is missing": lambda x: x}
    ones = np.ones(3, np.float32)
    text = message(lambda x: x**2, lambda x: x.astype(int), (ones,), mistakes=mistakes)
    assert "got dtype int32" in text and "square" not in text


def test_a_mistake_that_changes_the_shape_or_gives_nan_is_recognised():
    mistakes = {"the first is missing": lambda x: x[1:], "a root of x": np.sqrt}
    assert "the first is missing" in message(lambda x: x, lambda x: x[1:], mistakes=mistakes)
    assert "a root of x" in message(lambda x: x, jnp.sqrt, mistakes=mistakes)


def test_a_failure_is_no_classic_mistake():
    def f(x):
        if x.ndim == 2:
            raise ValueError("no matrices")
        return x + 0.9

    text = message(affine, f, (X,), (Y,), mistakes=MISTAKES)
    assert "every value differs" in text and "factor is missing" not in text


# ---------------------------------------------------------------- the answer is never printed

WRONG = {
    "sign": lambda x: -affine(x),
    "factor": lambda x: 3.7 * affine(x),
    "reversed": lambda x: affine(x)[::-1],
    "offset": lambda x: affine(x) + 11,
    "one value": lambda x: affine(x).at[0].set(77.7),
    "zeros": lambda x: 0 * x,
    "nan": lambda x: affine(x) * jnp.nan,
    "shape": lambda x: affine(x)[None],
    "integers": lambda x: (1000 * x).astype(int),
    "two results": lambda x: (x, x),
    "no result": lambda x: None,
    "no function": X,
    "classic": lambda x: x + 0.9,
    "complex": lambda x: 1j * affine(x),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("case", [X, Y], ids=["vector", "matrix"])
def test_the_right_values_are_never_printed(answer, case):
    found = verdict(affine, answer, (case,), mistakes=MISTAKES)
    assert found.points == 0
    text = "\n".join([found.message, *(part.message for part in found.parts), repr(found)])
    numbers = {abs(float(n)) for n in re.findall(r"\d+\.\d+", text)}
    for right in np.abs(affine(case.astype(float))).ravel():
        # To three digits: "2.17" would give 2.1742 away.
        assert all(abs(n - right) > 5e-3 * right for n in numbers), text


# -------------------------------------------------------------------------------- check(…)


@pytest.fixture
def chapter(monkeypatch):
    """A course of one chapter: two exercises and a question."""
    group = (
        exercise(affine, title="An affine map", mistakes=MISTAKES),
        exercise(lambda x: x**2, id="07.2", title="Squares", function="square"),
        Written("07.3", "Why?", 2),
    )
    monkeypatch.setattr(answers, "chapters", lambda: {"07": group})
    monkeypatch.setattr(checking, "_earned", {})
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)


def test_check_prints_points_and_the_chapter_so_far(chapter, capsys):
    assert check("07.1", affine) is None
    assert capsys.readouterr().out == (
        "✓ 07.1 An affine map: 3 of 3 points\n"
        "Chapter 07 so far: 3 of 6 points; 07.3 is graded by hand.\n"
    )
    check("07.2", lambda x: x * x)
    assert "Chapter 07 so far: 6 of 6 points" in capsys.readouterr().out
    check("07.1", lambda x: -x)  # changed for the worse
    assert "Chapter 07 so far: 3 of 6 points" in capsys.readouterr().out


def test_check_says_what_is_wrong_with_each_part(chapter, capsys):
    check("07.1", lambda x: 1.7 * x)
    assert capsys.readouterr().out == (
        "✗ 07.1 An affine map: 0 of 3 points\n"
        "  ✗ all of it\n"
        "      the offset is missing (called with x = [0.83, -2.47, 5.12, 1.96])\n"
        "Chapter 07 so far: 0 of 6 points; 07.3 is graded by hand.\n"
    )


def test_a_wrong_answer_is_told_what_to_read_again(chapter, capsys, monkeypatch):
    wanted = replace(answers.find("07.1"), section="4 · Maps")
    monkeypatch.setattr(answers, "find", lambda name: wanted)
    check("07.1", lambda x: 1.7 * x)
    assert "\n  Read again: chapter 07, section 4 · Maps.\nChapter" in capsys.readouterr().out
    check("07.1", affine)
    assert "Read again" not in capsys.readouterr().out


def test_the_report_marks_the_parts_that_are_right(chapter):
    parts = (Part("vectors", 1, lambda rng: [(X,)]), Part("matrices", 2, lambda rng: [(Y,)]))
    found = verdict(affine, lambda x: affine(x) if x.ndim == 1 else x, parts=parts)
    lines = checking.report(found).splitlines()
    assert lines[0] == "✗ 07.1 A test: 1 of 3 points"
    assert lines[1:3] == ["  ✓ vectors", "  ✗ matrices"]


def test_check_returns_the_points_where_nbgrader_runs(chapter, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    points = check("07.1", affine)
    assert points == 3.0 and type(points) is float
    assert check("07.1", lambda x: x) == 0.0


def test_check_draws_the_same_inputs_every_time(chapter, capsys):
    texts = set()
    for _ in range(2):
        check("07.1", lambda x: x + 7)
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1


@pytest.mark.parametrize("name", ["07.4", "7.1", "", "07", "../07.1"])
def test_an_unknown_exercise_is_refused_with_those_there_are(chapter, name):
    with pytest.raises(ValueError, match=r"one of 07\.1, 07\.2, 07\.3, got ") as error:
        check(name, affine)
    assert repr(name) in str(error.value)


def test_a_written_exercise_is_refused(chapter):
    with pytest.raises(ValueError, match=r"07\.3 is answered in words and graded by hand"):
        check("07.3", affine)


@pytest.mark.parametrize("value", [X, 3.5, None, "f"])
def test_the_result_instead_of_the_function_is_told_what_to_pass(chapter, capsys, value):
    check("07.2", value)
    text = f"pass the function itself, check('07.2', square), got {type(value).__name__}"
    assert text in capsys.readouterr().out
