"""What an exercise is: what the student defines, on which inputs, what is right, what is classic.

An answer is a function that the student writes. It is called on random inputs, and what it
returns is compared with an exact oracle. `judge` knows only arrays: it is the same in a notebook,
where the function is called in place, and in batch grading, where a sandbox calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np

CALLED = " (called with "  # begins what says which inputs a message is about
Arguments = tuple[Any, ...]
Result = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Part:
    """Some of an exercise's points: a property, and inputs that show it.

    Attributes:
      name: of the property, as the student reads it ("one time per image").
      points: that it is worth.
      cases: draws the inputs, ``rng -> [arguments, …]``. A float32 or integer array reaches the
        student as a JAX array, a float64 one (a table) as NumPy's; numbers, strings and the
        functions of `diffusion_course.grading.inputs` stay as they are.
    """

    name: str
    points: int
    cases: Callable[[np.random.Generator], Sequence[Arguments]]


@dataclass(frozen=True)
class Exercise:
    """A function to write, graded by comparison.

    Attributes:
      id: chapter and number, "01.2".
      title: of the exercise.
      function: its name.
      parts: see `Part`; an exercise is worth the sum of their points.
      oracle: the right function of the same arguments, in NumPy float64.
      mistakes: what a classic wrong answer means -> a function that makes it.
      rtol: allowed error, relative to each value.
      atol: allowed error, relative to the largest value of a result.
    """

    id: str
    title: str
    function: str
    parts: tuple[Part, ...]
    oracle: Callable[..., Any]
    mistakes: dict[str, Callable[..., Any]] = field(default_factory=dict)
    rtol: float = 2e-4
    atol: float = 2e-5

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    def cases(self, seed: Sequence[int]) -> list[list[Arguments]]:
        """The inputs of every part; `seed` is any sequence of whole numbers."""
        chapter, number = map(int, self.id.split("."))
        rngs = np.random.default_rng([*seed, chapter, number]).spawn(len(self.parts))
        return [list(part.cases(rng)) for part, rng in zip(self.parts, rngs, strict=True)]


@dataclass(frozen=True)
class Written:
    """A question that is answered in words and graded by hand."""

    id: str
    title: str
    points: int


@dataclass(frozen=True)
class Failure:
    """Why there is no result to compare: `status` of the outcome, and what the student reads."""

    status: str
    message: str


@dataclass(frozen=True)
class PartVerdict:
    """A part's outcome; the message is empty where it is right."""

    name: str
    points: int
    possible: int
    message: str


@dataclass(frozen=True)
class Verdict:
    """An exercise's outcome.

    Attributes:
      exercise: its id.
      title: its title.
      status: "right", "partly right", "wrong", "not attempted", or a failure's own.
      parts: the outcome of every part.
    """

    exercise: str
    title: str
    status: str
    parts: tuple[PartVerdict, ...]

    @property
    def points(self) -> int:
        return sum(part.points for part in self.parts)

    @property
    def possible(self) -> int:
        return sum(part.possible for part in self.parts)

    @property
    def message(self) -> str:
        """What is wrong, each thing once; empty if nothing is."""
        once: dict[str, str] = {}
        for part in self.parts:
            once.setdefault(part.message.partition(CALLED)[0], part.message)
        return "; ".join(message for message in once.values() if message)


def judge(
    exercise: Exercise,
    cases: Sequence[Sequence[Arguments]],
    outcomes: Sequence[Sequence[Result | Failure]],
) -> Verdict:
    """Compares what a student's function returned with the truth.

    Args:
      exercise: which one.
      cases: the inputs, from `Exercise.cases`.
      outcomes: for each case of each part, the returned arrays or why there are none.
    """
    parts = []
    for part, inputs, results in zip(exercise.parts, cases, outcomes, strict=True):
        message = _first_problem(exercise, inputs, results)
        parts.append(PartVerdict(part.name, 0 if message else part.points, part.points, message))
    points = sum(part.points for part in parts)
    failures = [result for results in outcomes for result in results if isinstance(result, Failure)]
    if points == exercise.points:
        status = "right"
    elif points:
        status = "partly right"
    else:
        status = failures[0].status if failures else "wrong"
    return Verdict(exercise.id, exercise.title, status, tuple(parts))


def as_result(value: Any) -> Result:
    """A returned value as a tuple of arrays. Raises: TypeError if it is something else.

    A tuple is several arrays. A list is one, unless its entries have different shapes.
    """
    if value is None:
        raise TypeError("your function returned None: is its return statement missing?")
    if isinstance(value, list) and (array := _one_array(value)) is not None:
        return (array,)
    values = value if isinstance(value, tuple | list) else (value,)
    names = [f"value {n} of the result" for n in range(1, len(values) + 1)]
    return tuple(
        _as_array(part, name if len(values) > 1 else "the result")
        for part, name in zip(values, names, strict=True)
    )


_NUMBERS = "biufc"  # the kinds of NumPy's dtypes


def _one_array(values: list) -> np.ndarray | None:
    try:
        array = np.asarray(values)
    except Exception:  # entries of different shapes, or an object that objects
        return None
    return array if array.dtype.kind in _NUMBERS else None


def _as_array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the student's object raises when it is converted
        got = f"{type(value).__name__} ({type(error).__name__})"
        raise TypeError(f"{name} must be an array, got {got}") from None
    if array.dtype.name == "bfloat16":
        raise TypeError(f"{name} must be float32 (or float64), got dtype bfloat16")
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    return array


def _first_problem(
    exercise: Exercise, cases: Sequence[Arguments], results: Sequence[Result | Failure]
) -> str:
    """What is wrong with the first case that is; empty if all are right."""
    exact = [tuple(map(_exact, arguments)) for arguments in cases]
    truths = [as_result(exercise.oracle(*arguments)) for arguments in exact]
    results = [_unstacked(*pair) for pair in zip(truths, results, strict=True)]
    for arguments, truth, got in zip(cases, truths, results, strict=True):
        if isinstance(got, Failure):
            return got.message
        problem = _difference(exercise, truth, got)
        if not problem:
            continue
        mistake = _classic(exercise, exact, truths, results)
        where = _describe(exercise, arguments)
        return f"{mistake or problem}{where}"
    return ""


def _unstacked(truth: Result, got: Result | Failure) -> Result | Failure:
    """Several arrays of one shape may also come as one, stacked or in a list."""
    if isinstance(got, Failure) or len(got) != 1 or len(truth) == 1:
        return got
    one_shape = all(array.shape == truth[0].shape for array in truth)
    stacked = got[0].shape == (len(truth), *truth[0].shape)
    return tuple(got[0]) if one_shape and stacked else got


def _exact(value: Any) -> Any:
    """Oracles compute in float64, whatever the student was given."""
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype(np.float64) if is_float else value


def _describe(exercise: Exercise, arguments: Arguments) -> str:
    """The inputs by name and shape, which tell the student which call it was."""
    words = []
    for name, value in zip(signature(exercise.oracle).parameters, arguments, strict=False):
        words.append(f"{name} ")
        if isinstance(value, np.ndarray):
            words[-1] += f"of shape {list(value.shape)}"
        elif isinstance(value, str):
            words[-1] += repr(value)
        elif isinstance(value, int | float):
            words[-1] += f"{value:.4g}"
        else:
            words[-1] += repr(value)
    return f"{CALLED}{', '.join(words)})"


def _difference(exercise: Exercise, truth: Result, got: Result) -> str:
    if len(got) != len(truth):
        return f"expected {_count(len(truth))}, got {_count(len(got))}"
    for number, (right, array) in enumerate(zip(truth, got, strict=True), start=1):
        problem = _array_difference(exercise, right, array)
        if problem:
            return problem if len(truth) == 1 else f"value {number} of the result: {problem}"
    return ""


def _count(n: int) -> str:
    return "one array" if n == 1 else f"a tuple of {n} arrays"


def _array_difference(exercise: Exercise, right: np.ndarray, got: np.ndarray) -> str:
    if got.shape != right.shape:
        return f"expected shape {list(right.shape)}, got {list(got.shape)}"
    wanted = "whole numbers" if right.dtype.kind in "iub" else "floating-point numbers"
    if (right.dtype.kind in "iub") != (got.dtype.kind in "iub") or got.dtype.kind == "c":
        return f"expected {wanted}, got dtype {got.dtype}"
    wrong = ~_close(exercise, right, got)
    if not wrong.any():
        return ""
    right, got = right.astype(float), got.astype(float)
    # Infinities where the truth is infinite too are no problem.
    broken = ~np.isfinite(got) & (np.isfinite(right) | np.isnan(got))
    if broken.any():
        return f"expected finite numbers, got {got[broken][0]} at {_index(broken)}"
    return _pattern(exercise, right, got, wrong)


def _close(exercise: Exercise, right: np.ndarray, got: np.ndarray) -> np.ndarray:
    if right.dtype.kind in "iub":
        return right == got
    finite = right[np.isfinite(right)]
    scale = np.abs(finite).max() if finite.size else 1.0
    return np.isclose(got, right, rtol=exercise.rtol, atol=exercise.atol * scale)


def _index(mask: np.ndarray) -> str:
    index = [int(i) for i in np.argwhere(mask)[0]]
    return f"index {index}" if index else "the only value"


def _pattern(exercise: Exercise, right: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str:
    """How wrong numbers differ, without saying what the right ones are."""
    if _close(exercise, right, -got).all():
        return "the sign is wrong everywhere"
    if (right.ndim > 1 or right.size > 2) and _close(exercise, right, got[::-1]).all():
        return "the order along the first axis is reversed"
    ratio = _constant_ratio(exercise, right, got)
    if ratio is not None:
        size = "large" if abs(ratio) > 1 else "small"
        return f"every value is too {size} by one and the same factor"
    if right.ndim == 0:
        return f"the value is {_side(right, got, wrong)}"
    if wrong.all():
        return f"every value differs; the first, at {_index(wrong)}, is {_side(right, got, wrong)}"
    share = f"{wrong.sum()} of {wrong.size} values differ"
    return f"{share}; the first, at {_index(wrong)}, is {_side(right, got, wrong)}"


def _side(right: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str:
    high = got[wrong][0] > right[wrong][0]
    return f"{got[wrong][0]:.4g}: too {'high' if high else 'low'}"


def _constant_ratio(exercise: Exercise, right: np.ndarray, got: np.ndarray) -> float | None:
    """The factor by which all values are wrong, if it is one and the same."""
    largest = np.unravel_index(np.argmax(np.abs(right)), right.shape)
    if right.size < 2 or not right[largest] or not got[largest] or np.isinf(right[largest]):
        return None
    ratio = float(got[largest] / right[largest])
    return ratio if _close(exercise, right, got / ratio).all() else None


def _classic(
    exercise: Exercise,
    cases: Sequence[Arguments],
    truths: Sequence[Result],
    results: Sequence[Result | Failure],
) -> str:
    """The first classic mistake that explains every case; empty if none does."""
    for message, wrong in exercise.mistakes.items():
        with np.errstate(all="ignore"):
            made = [as_result(wrong(*arguments)) for arguments in cases]
        explains = all(
            not isinstance(got, Failure) and _same(exercise, bad, got)
            for bad, got in zip(made, results, strict=True)
        )
        shows = any(
            not _same(exercise, truth, bad) for truth, bad in zip(truths, made, strict=True)
        )
        if explains and shows:
            return message
    return ""


def _same(exercise: Exercise, right: Result, got: Result) -> bool:
    return len(right) == len(got) and all(
        a.shape == b.shape and bool((_close(exercise, a, b) | (np.isnan(a) & np.isnan(b))).all())
        for a, b in zip(right, got, strict=True)
    )
