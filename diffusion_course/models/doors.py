"""The door of the networks: what they are built with and called with, checked by name.

A value is looked at where it is known. While a function is traced it is not, but its shape and
its dtype are, and they are checked all the same.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks

_DTYPES = ("float32", "bfloat16")


def state(x: Array, shape: tuple[int | str, ...]) -> Array:
    """The network's input as float32.

    Args:
      x: the argument `x`.
      shape: its axes; a name such as "B" stands for any length.

    Raises: ValueError for whole numbers, half precision, or any other shape.
    """
    x, given = checks.state("x", x), np.shape(x)
    known = [
        got if isinstance(want, str) else want for want, got in zip(shape, given, strict=False)
    ]
    if len(given) != len(shape) or list(given) != known:
        raise ValueError(f"x must have shape [{', '.join(map(str, shape))}], got {list(given)}")
    return x


def times(t: Array, count: int | None = None) -> Array:
    """Times as float32: in bfloat16, .999 would be 1.

    Args:
      t: the argument `t`, [B].
      count: B; None if it is not known here.

    Raises: ValueError for any other shape, whole numbers, half precision, or, with a count, a time
      outside [0, 1].
    """
    t = t if hasattr(t, "dtype") else np.asarray(t)
    given, dtype = t.shape, jnp.result_type(t)
    if len(given) != 1 or count not in (None, given[0]):
        batch = "[B]" if count is None else f"[B] = [{count}]"
        raise ValueError(f"t must have shape {batch}, one time for each x, got {list(given)}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"t must be times in [0, 1], got dtype {dtype}; "
            "step n of a chain of T steps is the time n/T"
        )
    if dtype not in ("float32", "float64"):
        raise ValueError(f"t must be float32, got dtype {dtype}, in which .999 may be 1")
    if count is not None:
        checks.time("t", t)
    return jnp.asarray(t, jnp.float32)


def labels(cond: Array | None, count: int, num_classes: int | None) -> Array | None:
    """Labels [count] in 0 … num_classes; None becomes the last of them, which means "no label".

    Args:
      cond: the argument `cond`, labels [count] or None.
      count: number of examples.
      num_classes: of the model; None for a model without labels, which gets None.

    Raises: ValueError for labels without label classes, of any other shape or dtype, or outside
      the range.
    """
    if num_classes is None:
        if cond is not None:
            raise ValueError("cond must be None: this model has no labels (num_classes=None)")
        return None
    if cond is None:
        return jnp.full(count, num_classes)
    checks.labels("cond", cond, (count,), num_classes)
    return jnp.asarray(cond)


def tokens(cond: Array | None, count: int, null: int) -> Array:
    """Sequences of token numbers [count, L] in 0 … null; labels [count] become sequences of one.

    Args:
      cond: the argument `cond`: token numbers, labels, or None for one `null` each.
      count: number of examples.
      null: the number that stands for no token.

    Raises: ValueError for any other shape or dtype, an empty sequence, or a number out of range.
    """
    if cond is None:
        return jnp.full((count, 1), null)
    shape = np.shape(cond)
    if len(shape) != 2:
        return labels(cond, count, null)[:, None]
    if shape[0] != count or not shape[1]:
        raise ValueError(
            f"cond must be labels [B] or tokens [B, L] with B = {count} and L at least 1, "
            f"got shape {list(shape)}"
        )
    checks.labels("cond", cond, shape, null)
    return jnp.asarray(cond)


def extras(given: Array | None, count: int, how_many: int) -> Array:
    """The further numbers that a network is told, float32 [count, how_many]; zeros for None.

    Args:
      given: the argument `extras`.
      count: number of examples.
      how_many: numbers that the model was built for.

    Raises: ValueError for another shape or dtype.
    """
    if given is None:
        return jnp.zeros((count, how_many), jnp.float32)
    given = checks.state("extras", given)
    if given.shape != (count, how_many):
        raise ValueError(
            f"extras must have shape [B, K] = [{count}, {how_many}], got {list(given.shape)}"
        )
    return given


def computation(dtype) -> None:
    """ValueError unless a network can compute in this dtype: float32 or bfloat16."""
    name = jnp.dtype(dtype).name
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {name}")


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of images, of which one number gives both.

    Raises: ValueError for anything but one or two whole numbers of at least 1.

    >>> sides(8), sides((8, 12))
    ((8, 8), (8, 12))
    """
    pair = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(pair) != 2:
        raise ValueError(f"image_size must be one number or (height, width), got {image_size}")
    height, width = (checks.integer("image_size", side, 1) for side in pair)
    return height, width


def divisible(argument: str, given: int, divisor: int) -> int:
    """`given`, if it is a positive multiple of the divisor. Raises: ValueError if not."""
    if checks.integer(argument, given, 1) % divisor:
        raise ValueError(f"{argument} must be a multiple of {divisor}, got {given}")
    return given


def widths(channels: tuple[int, ...]) -> None:
    """ValueError unless these name at least one level's width, each a multiple of 8."""
    if not isinstance(channels, tuple | list) or not channels:
        raise ValueError(f"channels must name the width of at least one level, got {channels!r}")
    for width in channels:
        if checks.integer("channels", width, 1) % 8:
            raise ValueError(f"channels must be multiples of 8, got {width} in {channels}")
