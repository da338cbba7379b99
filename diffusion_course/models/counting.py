"""What a network costs: its parameters, and the operations of its matrix products."""

import math

import jax
from flax import nnx
from jax.extend import core

from diffusion_course.checks import integer, one_of
from diffusion_course.models import doors
from diffusion_course.models.attention import count_heads
from diffusion_course.models.dit import CONDITIONING


def parameter_count(model: nnx.Module) -> int:
    """How many numbers a model learns.

    >>> from diffusion_course.models.mlp import MLP
    >>> parameter_count(jax.eval_shape(lambda: MLP(2, 8, 1, rngs=nnx.Rngs(0))))
    258
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def matmul_flops(function, *arguments) -> int:
    """Operations of the matrix products in a function, as the compiler is given them.

    A product of [n, k] and [k, m] has 2·n·k·m operations: n·k·m multiplications, and as many
    additions. Many papers count a multiplication with its addition as *one*, and then call it a
    FLOP all the same. Nothing but products is counted: no norm, softmax or activation.

    Args:
      function: it is traced, not run.
      arguments: arrays, models or their shapes (`jax.ShapeDtypeStruct`).

    Raises: ValueError for a convolution, a loop of unknown length, or branches that differ.

    >>> matmul_flops(lambda a, b: a @ b, jax.numpy.ones((3, 5)), jax.numpy.ones((5, 7)))
    210
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        counts = [_flops(inner) for inner in _inner(equation)]
        inside = sum(counts)
        if name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
        elif name == "cond" and len(set(counts)) == 1:  # one of them runs
            total += counts[0]
        elif name == "conv_general_dilated" or (inside and name in ("while", "cond")):
            raise ValueError(
                f"function must hold matrix products whose number is known, got a {name}"
            )
        else:
            total += inside * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(equation) -> list[core.Jaxpr]:
    """The programs inside an equation: of a loop, a call, a branch."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def dit_parameters(
    image_size: int | tuple[int, int],
    image_channels: int = 1,
    *,
    patch: int = 2,
    width: int = 128,
    depth: int = 4,
    head_size: int = 32,
    num_classes: int | None = None,
    extras: int = 0,
    conditioning: str = "adaln-zero",
    long_skips: bool = False,
    qk_norm: bool = False,
    learned_variance: bool = False,
) -> dict[str, int]:
    """Parameters of `DiT` with these arguments, by what they are for.

    Returns: "patches" (into tokens and back), "embedding" (of time, label and other numbers),
      "modulation" (scales, shifts and gates), "attention" (also to the context), "dense", "skips".
    Raises: ValueError for sizes that do not fit, or an unknown choice.

    >>> counts = dit_parameters(8, width=64, depth=2, num_classes=10)
    >>> counts["modulation"], sum(counts.values())
    (58240, 167300)
    """
    s = _sizes(image_size, image_channels, patch, width, depth, head_size, num_classes, extras,
               conditioning, long_skips, learned_variance)  # fmt: skip
    w, told = width, conditioning
    adaptive, crossing = told.startswith("adaln"), told == "cross-attention"
    modulation = {
        "adaln-zero": depth * _dense(w, 6 * w),
        "adaln-single": _dense(w, 6 * w) + depth * 6 * w,
    }.get(told, 0)
    attentions = depth * (2 if crossing else 1)
    labels = 0 if num_classes is None else (num_classes + 1) * w
    return {
        "patches": _dense(s["pixels"], w) + _dense(w, s["pixels_out"]),
        "embedding": (1 + extras) * 2 * _dense(w, w) + labels,
        "modulation": modulation + (_dense(w, 2 * w) if adaptive else 0),
        "attention": attentions * (4 * _dense(w, w) + (2 * head_size if qk_norm else 0)),
        "dense": depth * (_dense(w, 4 * w) + _dense(4 * w, w)),
        "skips": s["skips"] * _dense(2 * w, w),
    }


def dit_flops(
    image_size: int | tuple[int, int],
    image_channels: int = 1,
    *,
    patch: int = 2,
    width: int = 128,
    depth: int = 4,
    head_size: int = 32,
    num_classes: int | None = None,
    extras: int = 0,
    conditioning: str = "adaln-zero",
    long_skips: bool = False,
    learned_variance: bool = False,
) -> dict[str, int]:
    """Operations of the matrix products of `DiT` for one image, by what they are for.

    As in `matmul_flops`, a multiplication and its addition are two. Of N tokens of width w, a block
    needs 24·N·w² operations for its layers and 4·N²·w for the products of the attention.

    Returns: "patches", "embedding", "modulation", "projections" (queries, keys, values and what
      follows the attention), "scores" (products of queries and keys, and of weights and values),
      "dense", "skips".
    Raises: ValueError for sizes that do not fit, or an unknown choice.

    >>> flops = dit_flops(8, patch=2, width=64, depth=2)
    >>> flops["dense"], flops["scores"]
    (2097152, 131072)
    """
    s = _sizes(image_size, image_channels, patch, width, depth, head_size, num_classes, extras,
               conditioning, long_skips, learned_variance)  # fmt: skip
    w, told, patches, context = width, conditioning, s["tokens"], s["context"]
    tokens = patches + (context if told == "in-context" else 0)
    crossing = context if told == "cross-attention" else 0  # keys of the second attention
    vectors = {"adaln-zero": 6 * depth + 2, "adaln-single": 6 + 2}.get(told, 0)
    projected = tokens * 4 + (patches * 2 + crossing * 2 if crossing else 0)
    pairs = tokens**2 + patches * crossing
    products = {
        "patches": patches * w * (s["pixels"] + s["pixels_out"]),
        "embedding": (1 + extras) * 2 * w**2,
        "modulation": vectors * w**2,
        "projections": depth * projected * w**2,
        "scores": depth * 2 * pairs * w,
        "dense": depth * tokens * 8 * w**2,
        "skips": s["skips"] * tokens * 2 * w**2,
    }
    return {part: 2 * count for part, count in products.items()}


def _dense(c_in: int, c_out: int) -> int:
    """Parameters of a dense layer with its bias."""
    return c_in * c_out + c_out


def _sizes(image_size, image_channels, patch, width, depth, head_size, num_classes, extras,
           conditioning, long_skips, learned_variance) -> dict[str, int]:  # fmt: skip
    """Checks the description of a `DiT`, and gives the numbers that follow from it."""
    size = doors.sides(image_size)
    for name, given in {"image_channels": image_channels, "patch": patch, "depth": depth}.items():
        integer(name, given, 1)
    if any(side % patch for side in size):
        raise ValueError(f"patch must divide image_size = {image_size}, got {patch}")
    doors.divisible("width", width, 4)
    count_heads(width, head_size)
    if num_classes is not None:
        integer("num_classes", num_classes, 1)
    integer("extras", extras, 0)
    one_of("conditioning", conditioning, CONDITIONING)
    if long_skips and depth < 2:
        raise ValueError(f"depth must be at least 2 for long_skips, got {depth}")
    pixels = patch**2 * image_channels
    return {
        "tokens": math.prod(size) // patch**2,
        "context": 1 + extras + (num_classes is not None),
        "pixels": pixels,
        "pixels_out": pixels * (2 if learned_variance else 1),
        "skips": depth // 2 if long_skips else 0,
    }
