"""What a function returned, as arrays, and whether they are near enough to the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_course.grading.exercise import Exercise, Result


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
        _as_array(part, name if len(values) > 1 else "the result", alone=len(values) == 1)
        for part, name in zip(values, names, strict=True)
    )


_NUMBERS = "biufc"  # the kinds of NumPy's dtypes


def _one_array(values: list) -> np.ndarray | None:
    try:
        array = np.asarray(values)
    except Exception:  # entries of different shapes, or an object that objects
        return None
    return array if array.dtype.kind in _NUMBERS else None


def _as_array(value: Any, name: str, alone: bool) -> np.ndarray:
    wanted = "an array or a tuple of arrays" if alone else "an array"
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the student's object raises when it is converted
        got = f"{type(value).__name__} ({type(error).__name__})"
        raise TypeError(f"{name} must be {wanted}, got {got}") from None
    if array.dtype.name == "bfloat16":
        raise TypeError(f"{name} must be float32 (or float64), got dtype bfloat16")
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
    return array


def close(exercise: Exercise, right: np.ndarray, got: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Where an array is right, within the exercise's tolerances; whole numbers are exact.

    The absolute tolerance belongs to the largest value of `right`, or to `least` if that is more.
    """
    if right.dtype.kind in "iub":
        return right == got
    scale = max(size(right), least) if np.isfinite(right).any() else 1.0
    return np.isclose(got, right, rtol=exercise.rtol, atol=exercise.atol * scale)


def size(array: np.ndarray) -> float:
    """The largest finite value, without its sign; 0 if there is none."""
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def same(exercise: Exercise, bad: Result, got: Result, truth: Result) -> bool:
    """Whether a result is that of a mistake, in number, shapes and values.

    It must be as near to it as a right one to the truth. What is no number agrees, too.
    """
    least = max(map(size, truth), default=0.0)
    return len(bad) == len(got) and all(
        a.shape == b.shape
        and bool((close(exercise, a, b, least) | (np.isnan(a) & np.isnan(b))).all())
        for a, b in zip(bad, got, strict=True)
    )
