"""How wrong numbers differ from the right ones, in words that don't give the right ones away."""

from __future__ import annotations

import numpy as np

from diffusion_course.grading.arrays import close
from diffusion_course.grading.exercise import Exercise, Result


def difference(exercise: Exercise, truth: Result, got: Result) -> str:
    """How a result differs from the right one; empty if it doesn't."""
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
    wrong = ~close(exercise, right, got)
    if not wrong.any():
        return ""
    right, got = right.astype(float), got.astype(float)
    # Infinities where the truth is infinite too are no problem.
    broken = ~np.isfinite(got) & (np.isfinite(right) | np.isnan(got))
    if broken.any():
        return f"expected finite numbers, got {got[broken][0]} at {_index(broken)}"
    return _pattern(exercise, right, got, wrong)


def _index(mask: np.ndarray) -> str:
    index = [int(i) for i in np.argwhere(mask)[0]]
    return f"index {index}" if index else "the only value"


def _pattern(exercise: Exercise, right: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str:
    """How wrong numbers differ, without saying what the right ones are."""
    if close(exercise, right, -got).all():
        return "the sign is wrong everywhere"
    if (right.ndim > 1 or right.size > 2) and close(exercise, right, got[::-1]).all():
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
    return ratio if close(exercise, right, got / ratio).all() else None
