"""How wrong numbers differ from the right ones, in words that don't give the right ones away.

A pattern is only told if it is true of every wrong array of every wrong case: one that fits one
case by chance would send the student the wrong way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from diffusion_course.grading.arrays import close
from diffusion_course.grading.exercise import Exercise, Failure, Result

Pairs = list[tuple[np.ndarray, np.ndarray]]  # right and got, of one shape, floats


def is_right(exercise: Exercise, truth: Result, got: Result) -> bool:
    """Whether a result has the right number of arrays, shapes, types and values."""
    return len(got) == len(truth) and not any(
        _misfit(right, array) or not close(exercise, right, array).all()
        for right, array in zip(truth, got, strict=True)
    )


def difference(exercise: Exercise, cases: Sequence[tuple[Result, Result | Failure]]) -> str:
    """How the first of these results differs from the right one.

    Args:
      exercise: which one.
      cases: what is right and what was returned, for each case that is wrong.
    """
    truth, got = cases[0]
    if len(got) != len(truth):
        return f"expected {_count(len(truth))}, got {_count(len(got))}"
    wrong = [
        n for n, pair in enumerate(zip(truth, got, strict=True))
        if not is_right(exercise, pair[:1], pair[1:])
    ]  # fmt: skip
    where = "" if len(truth) == 1 else f"value {wrong[0] + 1} of the result: "
    right, array = truth[wrong[0]], got[wrong[0]]
    problem = _misfit(right, array)
    if problem:
        return f"{where}{problem}{_turned(exercise, right, array)}"
    problem = _not_finite(right, array)
    if problem:
        return f"{where}{problem}"
    pairs = _comparable(exercise, cases)
    pattern = _pattern(exercise, pairs, right.dtype.kind in "iub") if pairs else ""
    if not pattern:
        return f"{where}{_first(exercise, right, array)}"
    return f"{where if wrong == wrong[:1] else ''}{pattern}"


def _count(n: int) -> str:
    return "one array" if n == 1 else f"a tuple of {n} arrays"


def _misfit(right: np.ndarray, got: np.ndarray) -> str:
    """What is wrong with an array's shape or type; empty if both fit."""
    if got.shape != right.shape:
        return f"expected shape {list(right.shape)}, got {list(got.shape)}"
    wanted = "whole numbers" if right.dtype.kind in "iub" else "floating-point numbers"
    if (right.dtype.kind in "iub") != (got.dtype.kind in "iub") or got.dtype.kind == "c":
        return f"expected {wanted}, got dtype {got.dtype}"
    return ""


def _turned(exercise: Exercise, right: np.ndarray, got: np.ndarray) -> str:
    """Whether an array of another shape holds the right numbers all the same."""
    if got.dtype.kind == "c" or got.size != right.size or got.shape == right.shape:
        return ""
    if got.ndim == right.ndim:
        for axes in itertools.permutations(range(got.ndim)) if got.ndim <= 4 else ():
            turned = got.transpose(axes)
            if turned.shape == right.shape and close(exercise, right, turned).all():
                return ", with the right numbers: its axes are in another order"
    if close(exercise, right, got.reshape(right.shape)).all():
        return ", with the right numbers in it"
    return ""


def _not_finite(right: np.ndarray, got: np.ndarray) -> str:
    right, got = right.astype(float), got.astype(float)
    # Infinities where the truth is infinite too are no problem.
    broken = ~np.isfinite(got) & (np.isfinite(right) | np.isnan(got))
    if not broken.any():
        return ""
    expected = "finite numbers" if np.isfinite(right[broken][0]) else "a number or an infinity"
    return f"expected {expected}, got {got[broken][0]} at {_index(broken)}"


def _index(mask: np.ndarray) -> str:
    index = [int(i) for i in np.argwhere(mask)[0]]
    return f"index {index}" if index else "the only value"


def _comparable(exercise: Exercise, cases: Sequence[tuple[Result, Result | Failure]]) -> Pairs:
    """The wrong arrays of all cases beside the right ones; empty if some say nothing."""
    pairs = []
    for truth, got in cases:
        if isinstance(got, Failure) or len(got) != len(truth):
            return []
        for right, array in zip(truth, got, strict=True):
            if is_right(exercise, (right,), (array,)):
                continue
            right, misfit = right.astype(float), _misfit(right, array)
            if misfit or not (np.isfinite(right).all() and np.isfinite(array).all()):
                return []
            pairs.append((right, array.astype(float)))
    return pairs


# -------------------------------------------------------------------------------- the patterns


def _pattern(exercise: Exercise, pairs: Pairs, whole: bool) -> str:
    """The first pattern that explains every pair; empty if none does."""

    def near(right: np.ndarray, got: np.ndarray) -> bool:
        if whole:  # they are exact
            return bool(np.isclose(got, right, rtol=1e-9, atol=1e-9).all())
        return bool(close(exercise, right, got).all())

    if all(near(right, -got) for right, got in pairs):
        return "the sign is wrong everywhere"
    patterns = (_one_factor, _one_shift, _order, _function, _factors, _shifts, _signs, _places)
    return next(filter(None, (pattern(near, pairs) for pattern in patterns)), "")


Near = Callable[[np.ndarray, np.ndarray], bool]


def _one_factor(near: Near, pairs: Pairs) -> str:
    ratios = [_ratio(right, got) for right, got in pairs]
    if not _says_much(pairs) or None in ratios or not _all_near(near, pairs, ratios, np.divide):
        return ""
    right, got = max(pairs, key=lambda pair: np.abs(pair[0]).max())
    common = _ratio(right, got)
    if _all_near(near, pairs, [common] * len(pairs), np.divide):
        digits = 2 if abs(abs(common) - 1) > 0.05 else 4
        factor = f"{common:.{digits}g}"
        return f"every value is the right one times one and the same factor, about {factor}"
    if any(right.size < 2 for right, _ in pairs):
        return ""  # a single value is always some factor off
    return "every value is off by one and the same factor, which is another one in each call"


def _one_shift(near: Near, pairs: Pairs) -> str:
    shifts = [float(np.median(got - right)) for right, got in pairs]
    if not _says_much(pairs) or not _all_near(near, pairs, shifts, np.subtract):
        return ""
    side = "high" if shifts[0] > 0 else "low"
    if _all_near(near, pairs, [shifts[0]] * len(pairs), np.subtract):
        return f"every value is too {side} by one and the same amount, about {abs(shifts[0]):.2g}"
    if any(right.size < 2 for right, _ in pairs):
        return ""
    return "every value is off by one and the same amount, which is another one in each call"


def _ratio(right: np.ndarray, got: np.ndarray) -> float | None:
    largest = np.unravel_index(np.argmax(np.abs(right)), right.shape)
    return float(got[largest] / right[largest]) if right[largest] and got[largest] else None


def _all_near(near: Near, pairs: Pairs, amounts: list, undo: Callable) -> bool:
    matched = zip(pairs, amounts, strict=True)
    return all(near(right, undo(got, amount)) for (right, got), amount in matched)


def _says_much(pairs: Pairs) -> bool:
    """Whether there are different numbers: for a single one every pattern fits."""
    values = np.concatenate([right.ravel() for right, _ in pairs])
    return bool(np.ptp(values) > 1e-3 * np.abs(values).max())


def _order(near: Near, pairs: Pairs) -> str:
    """The right numbers, but not where they belong."""
    if not all(right.size > 2 for right, _ in pairs):
        return ""
    dimensions = min(right.ndim for right, _ in pairs)
    for axis in range(dimensions):
        name = _AXES[axis] if axis < len(_AXES) else f"axis {axis}"
        if all(near(right, np.flip(got, axis)) for right, got in pairs):
            return f"the order along {name} is reversed"
        for places in (1, -1):
            if all(near(right, np.roll(got, places, axis)) for right, got in pairs):
                return f"the values are right, but off by one place along {name}"
    for a, b in itertools.combinations(range(dimensions), 2):
        if all(_swaps(near, right, got, a, b) for right, got in pairs):
            return f"the values are right, but axes {a} and {b} are exchanged"
    if all(near(np.sort(right, None), np.sort(got, None)) for right, got in pairs):
        return "the values are right, but in another order"
    return ""


_AXES = ("the first axis", "the second axis", "the third axis")


def _swaps(near: Near, right: np.ndarray, got: np.ndarray, a: int, b: int) -> bool:
    return right.shape[a] == right.shape[b] and near(right, np.swapaxes(got, a, b))


def _function(near: Near, pairs: Pairs) -> str:
    """The right numbers, with something done to them or left undone."""
    if sum(right.size for right, _ in pairs) < 2 or not _says_much(pairs):
        return ""
    with np.errstate(all="ignore"):
        for words, undo in _FUNCTIONS.items():
            if all(near(right, undo(got)) for right, got in pairs):
                return f"every value is {words} the right one"
    return ""


_FUNCTIONS = {
    "the square of": lambda got: np.sqrt(got),
    "the square root of": lambda got: np.where(got >= 0, got**2, np.nan),
    "the reciprocal of": lambda got: 1 / got,
    "1 minus": lambda got: 1 - got,
    "the exponential of": lambda got: np.log(got),
    "the logarithm of": lambda got: np.exp(got),
}


def _factors(near: Near, pairs: Pairs) -> str:
    return _along_an_axis(near, pairs, "off by a factor", _row_factors, np.divide)


def _shifts(near: Near, pairs: Pairs) -> str:
    return _along_an_axis(near, pairs, "too high or too low by an amount", _row_shifts, np.subtract)


def _along_an_axis(near: Near, pairs: Pairs, words: str, measure: Callable, undo: Callable) -> str:
    """Something that is another one for each row, or each column, and the same within it."""
    if any(right.ndim < 2 for right, _ in pairs):
        return ""
    for axis, name in ((0, "first"), (-1, "last")):
        if all(_is_constant_in_rows(near, *pair, axis, measure, undo) for pair in pairs):
            return f"the values are {words} of their own for each index of the {name} axis"
    return ""


def _is_constant_in_rows(near: Near, right, got, axis: int, measure: Callable, undo: Callable):
    right, got = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (right, got))
    # Rows that hold one number only say nothing.
    if right.shape[1] < 2 or (np.ptp(right, 1) <= 1e-3 * np.abs(right).max(1)).any():
        return False
    with np.errstate(all="ignore"):
        return near(right, undo(got, measure(right, got)[:, None]))


def _row_factors(right: np.ndarray, got: np.ndarray) -> np.ndarray:
    rows, largest = np.arange(len(right)), np.abs(right).argmax(1)
    return got[rows, largest] / right[rows, largest]


def _row_shifts(right: np.ndarray, got: np.ndarray) -> np.ndarray:
    return np.median(got - right, axis=1)


def _signs(near: Near, pairs: Pairs) -> str:
    if not all(right.size > 1 and near(np.abs(right), np.abs(got)) for right, got in pairs):
        return ""
    return "the sizes are right, but some signs are wrong"


def _places(near: Near, pairs: Pairs) -> str:
    """All right but the first or the last entries."""
    if any(right.ndim == 0 or len(right) < 3 for right, _ in pairs):
        return ""
    for words, rest in _ENDS.items():
        if all(near(right[rest], got[rest]) for right, got in pairs):
            return f"all is right but the {words} along the first axis"
    return ""


_ENDS = {
    "last entry": slice(None, -1),
    "first entry": slice(1, None),
    "first and the last entry": slice(1, -1),
}


# ------------------------------------------------------------------------------ where none fits


def _first(exercise: Exercise, right: np.ndarray, got: np.ndarray) -> str:
    """Where an array is wrong first, in which direction, and by how much at most."""
    wrong = ~close(exercise, right, got)
    right, got = right.astype(float), got.astype(float)
    side = "high" if got[wrong][0] > right[wrong][0] else "low"
    side = f"{got[wrong][0]:.4g}: too {side}"
    if right.ndim == 0:
        return f"the value is {side}"
    share = "every value differs" if wrong.all() else f"{wrong.sum()} of {wrong.size} values differ"
    return f"{share}; the first, at {_index(wrong)}, is {side}{_largest(right, got, wrong)}"


def _largest(right: np.ndarray, got: np.ndarray, wrong: np.ndarray) -> str:
    """The largest error, measured by the largest right value; none where an error is infinite."""
    finite = np.isfinite(right) & np.isfinite(got)
    if not finite[wrong].all() or not np.abs(right[finite]).max():
        return ""
    error = np.abs(got[finite] - right[finite]).max() / np.abs(right[finite]).max()
    size = f"{100 * error:.2g} % of" if error < 0.995 else f"{error:.2g} times"
    size = size if error < 10 else "more than ten times"
    return f" (the largest error is {size} the largest right value)"
