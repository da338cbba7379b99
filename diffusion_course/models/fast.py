"""Faster ways to compute convolutions and dense layers on a CPU.

Accelerators take XLA's plain operations.

Every function here equals a plain operation in value and in all derivatives: they are made of
ordinary operations (and one rule for a tangent), so that forward mode, second derivatives and
`jax.vmap` work too. ``benchmarks/fast_paths.py`` shows what each one buys.

Which way runs is decided where a program is lowered, when its platform is known: a function that
is traced on a computer with a GPU, or exported for a TPU, is traced with both ways and compiled
with one.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course.checks import integer

# Winograd's F(4×4, 3×3): with these matrices, 4 outputs of a correlation of 6 inputs d with 3
# taps g are ``OUTPUT @ ((KERNEL @ g) * (INPUT @ d))``: 6 products instead of 12, and 36 instead
# of 144 in two dimensions. They interpolate at the points 0, ±1, ±2 and infinity.
_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
_TILE, _WINDOW = _OUTPUT.shape  # 4 outputs from 6 inputs


def conv3x3(x: Array, kernel: Array, stride: int = 1) -> Array:
    """3×3 convolution with zeros around the image ("SAME"), by the fastest way for the shape.

    A CPU takes the way that `quick_way` names; every other platform takes `plain_conv`, or a TPU
    for float32 `three_products`.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, O], in x's dtype.
      stride: of both directions.

    Returns: [B, ⌈H/stride⌉, ⌈W/stride⌉, O], in x's dtype.
    Raises: ValueError for a kernel of any other shape or dtype, or a stride below 1.
    """
    integer("stride", stride, 1)
    if x.ndim != 4 or kernel.shape[:-1] != (3, 3, x.shape[-1]):
        raise ValueError(
            "x and kernel must have shapes [B, H, W, C] and [3, 3, C, O], "
            f"got {list(x.shape)} and {list(kernel.shape)}"
        )
    if kernel.dtype != x.dtype:
        raise ValueError(f"kernel must have x's dtype {x.dtype}, got {kernel.dtype}")
    if x.dtype != jnp.float32 and quick_way(x, kernel, stride) is None:
        return plain_conv(x, kernel, stride)
    return _by_platform(x, kernel, stride)


def quick_way(x: Array, kernel: Array, stride: int = 1) -> Callable[[Array, Array], Array] | None:
    """The function that a CPU computes this convolution with: `thin_conv`, `winograd` or None.

    Only shapes and the dtype count. None stands for `plain_conv`.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, O].
      stride: of both directions.
    """
    *_, height, width, c_in = x.shape
    c_out = kernel.shape[-1]
    if stride != 1:
        return None
    if 8 * c_out <= c_in:
        return thin_conv
    # Below 16 channels or one tile the transforms cost more than the products they save, and
    # bfloat16 has too few digits for them.
    large = min(c_in, c_out) >= 16 and min(height, width) >= _TILE
    return winograd if large and x.dtype == jnp.float32 else None


# A function of its own under jit, so that a call outside jit is lowered for the device that holds
# its arrays, and so that each shape is traced once, however many layers have it.
@partial(jax.jit, static_argnames="stride")
def _by_platform(x: Array, kernel: Array, stride: int) -> Array:
    plain = partial(plain_conv, stride=stride)
    ways = {"cpu": quick_way(x, kernel, stride) or plain}
    if x.dtype == jnp.float32:
        ways["tpu"] = partial(three_products, stride=stride)
    return jax.lax.platform_dependent(x, kernel, **ways, default=plain)


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """A dense layer over the last axis: as `plain_dense`, on a CPU by `dense_of_rows`.

    Args:
      x: [..., C]. Of its axes a mesh may cut the first one.
      kernel: [C, O], in x's dtype.
      bias: [O], in x's dtype, or None.

    Returns: [..., O], in x's dtype.
    Raises: ValueError for a kernel of any other shape.
    """
    if kernel.ndim != 2 or x.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            "x and kernel must have shapes [..., C] and [C, O], "
            f"got {list(x.shape)} and {list(kernel.shape)}"
        )
    if x.ndim < 3:
        return plain_dense(x, kernel, bias)
    return _dense_by_platform(x, kernel, bias)


@jax.jit
def _dense_by_platform(x: Array, kernel: Array, bias: Array | None) -> Array:
    return jax.lax.platform_dependent(x, kernel, bias, cpu=dense_of_rows, default=plain_dense)


def plain_dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """`dense` as XLA's own product."""
    y = x @ kernel
    return y if bias is None else y + bias


def dense_of_rows(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """`dense` with all rows of x in one matrix, and a gradient that is computed once.

    The gradient by the kernel contracts all axes but the last. With several of them, XLA's
    compiler for CPUs writes both arrays out transposed first. And three results read the gradient
    by y (those by x, kernel and bias): it would fuse what computes it into each of the three.
    """
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # of an empty batch, too
    return _once(plain_dense(rows, kernel, bias)).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def _once(y: Array) -> Array:
    """y itself; its derivative is not fused into what reads it."""
    return y


@_once.defjvp
def _once_jvp(primals, tangents):
    return primals[0], jax.lax.optimization_barrier(tangents[0])


def plain_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """`conv3x3` as XLA's own convolution."""
    return _conv(x, kernel, stride, None)


def three_products(x: Array, kernel: Array, stride: int = 1) -> Array:
    """`conv3x3` on a TPU, which multiplies bfloat16: float32 numbers as sums of two of these.

    That takes three products, where ``jax_default_matmul_precision`` "highest" means six; its
    compiler then needs a third of the time, and the result is as exact as `winograd`'s. Where the
    setting is another one, it decides.
    """
    exact = jax.config.jax_default_matmul_precision == "highest"
    return _conv(x, kernel, stride, jax.lax.Precision.HIGH if exact else None)


def _conv(x: Array, kernel: Array, stride: int, precision) -> Array:
    sides, axes = (stride, stride), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, sides, "SAME", dimension_numbers=axes, precision=precision
    )


@jax.jit
def thin_conv(x: Array, kernel: Array) -> Array:
    """3×3 convolution to few channels: one matrix product with all nine taps, then shifted sums.

    The nine maps of products are far smaller than the nine shifted copies of the input that a
    convolution reads. x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O].
    """
    batch, height, width, c_in = x.shape
    c_out = kernel.shape[-1]
    taps = kernel.transpose(2, 0, 1, 3).reshape(c_in, 9 * c_out)
    maps = (x.reshape(-1, c_in) @ taps).reshape(batch, height, width, 3, 3, c_out)
    maps = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    return sum(maps[:, i : i + height, j : j + width, i, j] for i in range(3) for j in range(3))


@jax.jit
def winograd(x: Array, kernel: Array) -> Array:
    """3×3 convolution by Winograd's minimal filtering: a quarter of the products.

    Overlapping 6×6 windows are transformed, multiplied channel by channel as 36 matrix products,
    and transformed back to tiles of 4×4 outputs. In float32 the result differs from the direct
    sum by about 1e-5 of its largest value. x [B, H, W, C], kernel [3, 3, C, O] -> [B, H, W, O].

    Source: Lavin & Gray 2016, section 4.1 (arXiv:1509.09308).
    """
    batch, height, width, _ = x.shape
    rows, cols = -(-height // _TILE), -(-width // _TILE)
    windows = _windows(x, rows, cols)  # [36, B·rows·cols, C]
    products = jax.lax.dot_general(windows, _taps(kernel), (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(_WINDOW, _WINDOW, batch, rows, cols, -1)
    y = jnp.stack(_combine(_OUTPUT, products), axis=4)  # [6, B, rows, cols, 4, O]
    y = y.reshape(_WINDOW, batch, rows, cols * _TILE, -1)
    y = jnp.stack(_combine(_OUTPUT, y), axis=2)  # [B, rows, 4, 4·cols, O]
    return y.reshape(batch, rows * _TILE, cols * _TILE, -1)[:, :height, :width]


def _windows(x: Array, rows: int, cols: int) -> Array:
    """All 6×6 windows in Winograd's basis: [B, H, W, C] -> [36, B·rows·cols, C]."""
    batch, height, width, channels = x.shape
    below, right = rows * _TILE - height + 1, cols * _TILE - width + 1
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    x = jnp.stack(_combine(_INPUT, [x[:, i : i + rows * _TILE - 3 : _TILE] for i in range(6)]))
    # [6, B, rows, W + 2, C]
    strips = [x[:, :, :, j : j + cols * _TILE - 3 : _TILE] for j in range(6)]
    x = jnp.stack(_combine(_INPUT, strips))
    return x.reshape(_WINDOW**2, batch * rows * cols, channels)


def _taps(kernel: Array) -> Array:
    """The kernel in Winograd's basis: [3, 3, C, O] -> [36, C, O], columns before rows."""
    rows = jnp.stack(_combine(_KERNEL, kernel))
    both = jnp.stack(_combine(_KERNEL, [rows[:, j] for j in range(3)]))
    return both.reshape(_WINDOW**2, *kernel.shape[2:])


def _combine(matrix: np.ndarray, parts) -> list[Array]:
    """The linear combinations of the parts that the rows name, without products by 0.

    Sums of slices, which XLA fuses; a matrix product would transpose the large arrays first.
    """
    return [sum(float(c) * part for c, part in zip(row, parts, strict=True) if c) for row in matrix]
