"""Checks at the door of public functions: a bad argument gets an error that names it.

Each check looks at concrete values only. Under ``jit``, ``vmap`` or ``grad`` a value is unknown and
passes unseen; its shape and dtype are known, and are checked all the same.
"""

import operator
from collections.abc import Iterable

import jax
import numpy as np


def concrete(*values) -> bool:
    """Whether values can be looked at: under jit, vmap or grad they are unknown."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def one_of(argument: str, given, allowed: Iterable[str]) -> str:
    """`given`, if it is one of the allowed names; ValueError with the list of them if not."""
    allowed = tuple(allowed)
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}, got {given!r}")
    return given


def integer(argument: str, given, minimum: int, maximum: int | None = None) -> int:
    """`given` as an int, if it is a whole number in [minimum, maximum]; ValueError if not."""
    rule = f"at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
    try:
        number = operator.index(given)
    except TypeError:
        number = None
    # True is an int to Python; as a size or a seed it is a slip.
    too_large = number is not None and maximum is not None and number > maximum
    if isinstance(given, bool) or number is None or number < minimum or too_large:
        raise ValueError(f"{argument} must be a whole number {rule}, got {given!r}")
    return number


def within(argument: str, given, low: float, high: float, *, ends: str = "[]") -> None:
    """ValueError if a number, or one of an array's, lies outside the range or is NaN.

    Args:
      argument: name for the message.
      given: a number or an array.
      low: lower end.
      high: upper end.
      ends: "[]", "[)", "(]" or "()": which ends belong to the range.
    """
    if not concrete(given):
        return
    values = np.asarray(given)
    above = values >= low if ends[0] == "[" else values > low
    below = values <= high if ends[1] == "]" else values < high
    allowed = above & below  # False for NaN
    if not allowed.all():
        rule = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{argument} must be {rule}, got {_first(values, allowed)}")


def above(argument: str, given, low: float) -> None:
    """ValueError unless a number, or every one of an array's, is finite and above `low`."""
    if not concrete(given):
        return
    values = np.asarray(given)
    allowed = np.isfinite(values) & (values > low)
    if not allowed.all():
        rule = "positive" if low == 0 else f"above {low:g}"
        raise ValueError(f"{argument} must be {rule} and finite, got {_first(values, allowed)}")


def _first(values: np.ndarray, allowed: np.ndarray) -> str:
    """The first value that is not allowed, and where it stands."""
    if values.ndim == 0:
        return f"{values.item()}"
    index = tuple(int(i) for i in np.argwhere(~allowed)[0])
    return f"{values[index]} at index {list(index)} of shape {list(values.shape)}"


def same_shape(argument: str, given, other: str, like) -> None:
    """ValueError unless `given` has the shape of `like`, the argument named `other`."""
    if np.shape(given) != np.shape(like):
        raise ValueError(
            f"{argument} must have the shape of {other}, {list(np.shape(like))}, "
            f"got shape {list(np.shape(given))}"
        )


def broadcasts(argument: str, given, other: str, like) -> None:
    """ValueError unless `given` broadcasts to the shape of `like` without making it larger."""
    try:
        fits = np.broadcast_shapes(np.shape(given), np.shape(like)) == np.shape(like)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{argument} must broadcast to the shape of {other}, {list(np.shape(like))}, "
            f"got shape {list(np.shape(given))}"
        )


def floating(argument: str, given) -> None:
    """ValueError unless the array is of a floating-point type.

    Pixels 0 … 255 of a picture file are whole numbers: scaled to [−1, 1], they are not.
    """
    dtype = jax.numpy.result_type(given)
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        raise ValueError(
            f"{argument} must be floating-point numbers, got dtype {dtype}; "
            "pixels 0 … 255 become x = pixels / 127.5 - 1"
        )


def labels(argument: str, given, shape: tuple[int, ...], most: int) -> None:
    """ValueError unless these are whole numbers of this shape in 0 … most."""
    dtype = jax.numpy.result_type(given)
    if np.shape(given) != shape or not jax.numpy.issubdtype(dtype, jax.numpy.integer):
        raise ValueError(
            f"{argument} must be whole numbers of shape {list(shape)}, "
            f"got {dtype} of shape {list(np.shape(given))}"
        )
    if not concrete(given):
        return
    values = np.asarray(given)
    if values.size and not (values.min() >= 0 and values.max() <= most):
        raise ValueError(f"{argument} must be in 0 … {most}, got {values.min()} … {values.max()}")
