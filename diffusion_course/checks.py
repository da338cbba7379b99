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
    values = _numbers(argument, given)
    above = values >= low if ends[0] == "[" else values > low
    below = values <= high if ends[1] == "]" else values < high
    allowed = above & below  # False for NaN
    if not allowed.all():
        rule = f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{argument} must be {rule}, got {_first(given, allowed)}")


def above(argument: str, given, low: float) -> None:
    """ValueError unless a number, or every one of an array's, is finite and above `low`."""
    if not concrete(given):
        return
    values = _numbers(argument, given)
    allowed = np.isfinite(values) & (values > low)
    if not allowed.all():
        rule = "positive" if low == 0 else f"above {low:g}"
        raise ValueError(f"{argument} must be {rule} and finite, got {_first(given, allowed)}")


def _numbers(argument: str, given) -> np.ndarray:
    """The real numbers that `given` holds; ValueError for a string, None or anything else."""
    try:
        values = np.asarray(given)
    except (TypeError, ValueError):
        values = np.array(None)
    # bfloat16 is a floating-point number to JAX and of no known kind to NumPy.
    if values.dtype.kind not in "biuf" and not _is_floating(values.dtype):
        raise ValueError(f"{argument} must be a real number, got {given!r}")
    # Half precision is compared as float32, where a number such as 1e-30 is not 0.
    return values.astype(np.result_type(values, np.float32))


def _is_floating(dtype) -> bool:
    return jax.numpy.issubdtype(dtype, jax.numpy.floating)


def _first(given, allowed: np.ndarray) -> str:
    """The first value that is not allowed, and where it stands."""
    values = np.asarray(given)
    if values.ndim == 0:
        return str(values[()])
    index = tuple(int(i) for i in np.argwhere(~allowed)[0])
    return f"{values[index]!s} at index {list(index)} of shape {list(values.shape)}"


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
    """ValueError unless the array can be a state: float32, or float64 that becomes float32.

    One rule for the whole library: states and data are float32. NumPy's default, float64, is cast
    without loss that anyone could see. Half precision is refused, since x_t − alpha·x0 loses all
    its digits there; networks may compute in it inside. Pixels 0 … 255 of a picture file are whole
    numbers: scaled to [−1, 1], they are not.
    """
    dtype = _dtype(given)
    if dtype in ("float32", "float64"):
        return
    if _is_floating(dtype):
        rule = "float32 or float64 (a network may compute in half precision inside)"
    else:
        rule = "floating-point numbers"
    pixels = "; pixels 0 … 255 become x = pixels / 127.5 - 1"
    remedy = pixels if jax.numpy.issubdtype(dtype, jax.numpy.integer) else ""
    raise ValueError(f"{argument} must be {rule}, got dtype {dtype}{remedy}")


def state(argument: str, given) -> jax.Array:
    """The array as float32, if `floating` allows it; ValueError if not."""
    floating(argument, given)
    return jax.numpy.asarray(given, jax.numpy.float32)


def _dtype(given):
    """The dtype of an array, number or list, without moving it to a device."""
    return given.dtype if hasattr(given, "dtype") else np.asarray(given).dtype


def time(argument: str, given) -> None:
    """ValueError unless times lie in [0, 1] once they are float32, and are not NaN."""
    if not concrete(given) or (isinstance(given, float) and 0 <= given <= 1):
        return
    values = _numbers(argument, given)
    # 1 + 2e-16, where a sum of steps may end, is 1 in float32.
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    allowed = (rounded >= 0) & (rounded <= 1)  # False for NaN
    if not allowed.all():
        raise ValueError(
            f"{argument} must be in [0, 1], got {_first(given, allowed)}; "
            "step n of a chain of T steps is the time n/T"
        )


def labels(argument: str, given, shape: tuple[int, ...], most: int) -> None:
    """ValueError unless these are whole numbers of this shape in 0 … most."""
    dtype = _dtype(given)
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


def rows_shape(given) -> tuple[int, ...]:
    """The shape that conditions should have: [B] for labels, [B, L] with L >= 2 for tokens.

    For the check that an array has it: any other array, such as a column [B, 1], which would
    broadcast, is measured against [B].
    """
    shape = np.shape(given)
    return shape if len(shape) == 2 and shape[1] >= 2 else shape[:1]


def number(argument: str, given):
    """`given` as one float32 number, a Python float if it is concrete; ValueError if not.

    A Python float takes the precision of what it meets. A NumPy number would make float64 of a
    float32 state where JAX is allowed 64 bits.
    """
    traced = not concrete(given)
    try:
        if np.shape(given) == () and not isinstance(given, str | bytes):
            return jax.numpy.asarray(given, np.float32) if traced else float(given)
    except (TypeError, ValueError):
        pass
    shape = f"an array of shape {list(np.shape(given))}" if hasattr(given, "shape") else repr(given)
    raise ValueError(f"{argument} must be one number, got {shape}")


def non_negative(argument: str, given):
    """`given` as `number` gives it; ValueError unless it is finite and at least 0."""
    given = number(argument, given)
    within(argument, given, 0, np.inf, ends="[)")
    return given


def binary(argument: str, given):
    """`given` as an array of booleans; ValueError unless its values are True and False, or 1 and 0.

    Of a traced array that is not boolean only the exact 1 counts as True.
    """
    if not concrete(given):
        return given if given.dtype == bool else given == 1
    values = np.asarray(given)
    if values.dtype == bool:
        return values
    allowed = (values == 0) | (values == 1)
    if not allowed.all():
        got = _first(values, allowed)
        raise ValueError(f"{argument} must be boolean, or hold 0 and 1 alone, got {got}")
    return values == 1


def falling_times(argument: str, given):
    """`given` as float32 times [n + 1], n >= 1; ValueError unless they fall strictly in [1, 0].

    Concrete times become a NumPy array, which is known inside a compiled function too. Times that
    differ in float64 alone are the same time in float32, and are refused.
    """
    known = concrete(given)
    times = np.asarray(given) if known else jax.numpy.asarray(given)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(
            f"{argument} must have shape [n + 1] with n >= 1, got shape {list(times.shape)}"
        )
    if not known:
        floating(argument, times)
        return times.astype(np.float32)
    times = times.astype(np.float32)
    rule = f"{argument} must fall strictly within [1, 0]"
    inside = (times >= 0) & (times <= 1)  # False for NaN
    if not inside.all():
        hint = "step n of a chain of T steps is the time n/T"
        raise ValueError(f"{rule}, got {_first(times, inside)}; {hint}")
    falls = np.diff(times) < 0
    if not falls.all():
        i = int(np.argmin(falls))
        raise ValueError(f"{rule}, got {times[i]} and then {times[i + 1]} at index {i + 1}")
    return times


def random_key(argument: str, given) -> None:
    """ValueError unless this is one random key, as `jax.random.key` and `split` make them."""
    dtype, shape = getattr(given, "dtype", None), np.shape(given)
    if dtype is not None:
        if jax.numpy.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
            return
        if dtype == np.uint32 and len(shape) == 1:  # of jax.random.PRNGKey, the older kind
            return
    got = repr(given) if dtype is None else f"{dtype} of shape {list(shape)}"
    raise ValueError(f"{argument} must be one random key such as jax.random.key(0), got {got}")
