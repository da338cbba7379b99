"""Weights of fewer bits: float16, and whole numbers with one scale for each channel.

(`models.quantize` is about another thing: latents that are the numbers of a code book.)
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from diffusion_course import checks


class Packed(NamedTuple):
    """A tensor as whole numbers: ``values · scale``.

    Attributes:
      values: int8, of the tensor's shape.
      scale: float32, one for each entry of the last axis [O], or a single one [1].
      bits: that a value needs, 2 to 8.
    """

    values: np.ndarray
    scale: np.ndarray
    bits: int


def pack(array, bits: int = 8, per_channel: bool = True) -> Packed:
    """Rounds a tensor to 2^bits − 1 equally spaced values, symmetric about 0.

    The error of a weight is at most half a scale: max |w| / (2^bits − 2), over its channel. A
    channel of zeros stays exactly zero.

    Args:
      array: float32 [..., O]; the last axis holds the output channels.
      bits: 2 to 8.
      per_channel: one scale for each output channel, or one for the whole tensor.

    Raises: ValueError for bits outside the range, a plain number, or values that are not finite.
    Source: Krishnamoorthi 2018, sections 2.2 and 3.1 (arXiv:1806.08342).

    >>> packed = pack(np.array([[1.0, 100.0], [-0.5, 20.0]]))
    >>> packed.values.tolist()
    [[127, 127], [-64, 25]]
    """
    bits = checks.integer("bits", bits, 2, 8)
    array = np.asarray(array, np.float32)
    if array.ndim == 0 or not np.isfinite(array).all():
        raise ValueError(f"array must hold finite numbers [..., O], got shape {list(array.shape)}")
    axes = tuple(range(array.ndim - 1)) if per_channel else None
    most = np.abs(array).max(axis=axes, initial=0.0)
    scale = np.float32(np.atleast_1d(most)) / np.float32(2 ** (bits - 1) - 1)
    safe = np.where(scale > 0, scale, np.float32(1))
    return Packed(np.rint(array / safe).astype(np.int8), safe, bits)


def unpack(packed: Packed) -> np.ndarray:
    """The tensor that `Packed` stands for, float32."""
    return packed.values.astype(np.float32) * packed.scale


def compress(
    arrays: Mapping[str, np.ndarray], kind: str, bits: int = 8, per_channel: bool = True
) -> dict[str, np.ndarray | Packed]:
    """All weights of a model, smaller.

    Biases, norms' scales and other vectors are few. With "integers" they stay float32.

    Args:
      arrays: name -> float32 array, as `weights.card.flat_params` gives them.
      kind: "float32", "float16" or "integers".
      bits: of the integers.
      per_channel: as in `pack`.

    Raises: ValueError for an unknown kind, and as `pack`; for float16, for a weight beyond ±65504.
    """
    checks.one_of("kind", kind, ("float32", "float16", "integers"))
    if kind == "integers":
        return {
            name: pack(a, bits, per_channel) if np.ndim(a) >= 2 else np.float32(a)
            for name, a in arrays.items()
        }
    for name, a in arrays.items():
        if kind == "float16" and np.abs(a).max(initial=0.0) > np.finfo(np.float16).max:
            raise ValueError(f"arrays must lie within ±65504 for float16, got {name} beyond it")
    return {name: np.asarray(a, kind) for name, a in arrays.items()}


def expand(compressed: Mapping[str, np.ndarray | Packed]) -> dict[str, np.ndarray]:
    """The float32 weights that `compress` kept."""
    return {
        name: unpack(a) if isinstance(a, Packed) else a.astype(np.float32)
        for name, a in compressed.items()
    }


def byte_count(compressed: Mapping[str, np.ndarray | Packed]) -> int:
    """Bytes of the numbers alone, with integers of fewer than 8 bits packed without gaps.

    >>> byte_count(compress({"kernel": np.ones((4, 6)), "bias": np.ones(6)}, "integers", bits=4))
    60
    """
    total = 0
    for a in compressed.values():
        if isinstance(a, Packed):
            total += -(-a.values.size * a.bits // 8) + a.scale.nbytes
        else:
            total += a.nbytes
    return total
