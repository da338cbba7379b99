"""LoRA: a change of a trained network's parameters, of low rank and in a file of its own."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax import Array

from diffusion_course import checks, files

# The layers of attention, in a U-Net and in transformers alike.
ATTENTION = ("qkv", "q", "kv", "out")


class Adapter(nnx.Module):
    """A matrix of low rank for each chosen kernel of a model: ``kernel + (alpha/rank)·A·B``.

    A kernel [3, 3, n, m] of a convolution counts as a matrix [9·n, m], and one [depth, n, m] of
    stacked blocks as depth matrices. A starts as a layer's weights do and B at zero, so that at
    first the model stays as it is.

    The adapter holds A and B alone. In a training such as ``loop.fit(adapter, loss, …,
    teacher=model)``, where the loss calls ``lora.apply(teacher, adapter)``, the model is frozen.

    Args:
      model: whose kernels are changed; it stays as it is.
      rank: of each change, at least 1.
      alpha: the change is divided by rank/alpha, so that a learning rate suits every rank; by
        default the rank itself.
      layers: names of the layers that are changed, such as "qkv", "film" or "0.conv1", the end of a
        path; a name that begins with a dot, such as ".down.0.conv1", is a whole path. By default
        those of attention that the model has.
      rngs: random number streams of the initialisation.

    Raises: ValueError for a rank below 1 or above what a kernel's sides allow, an alpha that is not
      positive, or a name that no layer with a kernel has.
    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685).

    >>> from diffusion_course.models.mlp import MLP
    >>> model = MLP(2, 8, 1, rngs=nnx.Rngs(0))
    >>> adapter = Adapter(model, 2, layers=("first",), rngs=nnx.Rngs(1))
    >>> {path: (a.shape, b.shape) for path, (a, b) in adapter.factors().items()}
    {'embed.time.first.kernel': ((8, 2), (2, 8)), 'first.kernel': ((2, 2), (2, 8))}
    """

    def __init__(
        self,
        model: nnx.Module,
        rank: int,
        *,
        alpha: float | None = None,
        layers: Sequence[str] | None = None,
        rngs: nnx.Rngs,
    ):
        self.rank = checks.integer("rank", rank, 1)
        self.alpha = float(self.rank if alpha is None else alpha)
        checks.above("alpha", self.alpha, 0)
        kernels = _kernels(model, layers)
        self.paths = tuple(kernels)
        pairs = [_start(path, kernel, self.rank, rngs) for path, kernel in kernels.items()]
        self.a = nnx.data([nnx.Param(a) for a, _ in pairs])
        self.b = nnx.data([nnx.Param(b) for _, b in pairs])

    def factors(self) -> dict[str, tuple[Array, Array]]:
        """Path of each kernel -> A [..., n, rank] and B [..., rank, m]."""
        return {
            path: (a[...], b[...]) for path, a, b in zip(self.paths, self.a, self.b, strict=True)
        }

    def change(self, path: str) -> Array:
        """The change ``(alpha/rank)·A·B`` of one kernel, as matrices [..., n, m]."""
        a, b = self.factors()[path]
        return (self.alpha / self.rank) * jnp.matmul(a, b, precision="highest")


def apply(
    model: nnx.Module, adapters: Adapter | Sequence[Adapter], scales: Array | Sequence | float = 1.0
) -> nnx.Module:
    """A model with the same structure whose kernels are ``kernel + Σ scale·change``.

    It is a function of the parameters, and works under ``jax.jit`` and ``jax.grad``. Applying an
    adapter once and for all is what merging is: the new model costs what the old one does.

    Args:
      model: stays as it is.
      adapters: one, or several, whose changes add up.
      scales: one for all, or one for each adapter; they may be traced.

    Raises: ValueError for another number of scales, or an adapter of another model.
    Source: Hu et al. 2021, section 4.1, eq. 3 (arXiv:2106.09685).
    """
    changes = _sums(adapters, scales)
    graph, params = nnx.split(model)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    kernels = {_name(place): leaf for place, leaf in leaves}
    for path, change in changes.items():
        shape = kernels[path].shape if path in kernels else ()
        if shape[-1:] != change.shape[-1:] or math.prod(shape) != change.size:
            raise ValueError(
                f"adapters must be made for this model: {path} would change by "
                f"{list(change.shape)}, the model has {list(shape) or 'no such parameter'}"
            )
        kernels[path] = kernels[path] + change.reshape(shape).astype(kernels[path].dtype)
    return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, list(kernels.values())))


def _sums(adapters: Adapter | Sequence[Adapter], scales) -> dict[str, Array]:
    """Path of each kernel -> the sum of its scaled changes."""
    adapters = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    scales = [scales] * len(adapters) if np.ndim(scales) == 0 else list(scales)
    if len(scales) != len(adapters):
        raise ValueError(
            f"scales must be one for each of the {len(adapters)} adapters, got {len(scales)}"
        )
    changes: dict[str, Array] = {}
    for adapter, scale in zip(adapters, scales, strict=True):
        for path in adapter.paths:
            changes[path] = changes.get(path, 0.0) + scale * adapter.change(path)
    return changes


def unmerge(
    model: nnx.Module, adapters: Adapter | Sequence[Adapter], scales: Array | Sequence | float = 1.0
) -> nnx.Module:
    """Takes the changes out again, but for rounding: `apply` with the opposite scales.

    Args:
      model: what `apply` returned; it stays as it is.
      adapters: as in `apply`.
      scales: as in `apply`.

    Raises: ValueError as `apply`.
    """
    opposite = -scales if np.ndim(scales) == 0 else [-scale for scale in scales]
    return apply(model, adapters, opposite)


def trainable(model: nnx.Module, chosen: Callable[[str], bool | Array]):
    """Which parameters are to be trained, for `training.update.only`: a tree like the parameters.

    Args:
      model: whose parameters they are.
      chosen: from a parameter's path, such as "attention.qkv.kernel", to True or False, or to an
        array of them that broadcasts to the parameter: one row of an embedding, for instance.

    Raises: ValueError if nothing is chosen, or a choice does not broadcast.
    """
    params = nnx.split(model)[1]
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    masks = []
    for place, leaf in leaves:
        choice = np.asarray(chosen(_name(place)), bool)
        checks.broadcasts(f"chosen({_name(place)!r})", choice, "the parameter", leaf)
        masks.append(np.broadcast_to(choice, leaf.shape))
    if not any(mask.any() for mask in masks):
        raise ValueError("chosen must choose at least one parameter, got none")
    return jax.tree_util.tree_unflatten(tree, masks)


def save(path: str | Path, adapter: Adapter) -> Path:
    """Writes an adapter as a .safetensors file: A and B of every kernel, and alpha.

    Args:
      path: of the file.
      adapter: to be written.

    Returns: the path. Raises: ValueError for another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path.name!r}")
    arrays = {"alpha": np.array([adapter.alpha])}
    for name, (a, b) in adapter.factors().items():
        arrays |= {f"{name}.a": np.array(a, order="C"), f"{name}.b": np.array(b, order="C")}
    return files.write(path, safetensors.numpy.save(arrays))


def load(path: str | Path, model: nnx.Module) -> Adapter:
    """The adapter in a file, for a model.

    Args:
      path: of the file, from `save`.
      model: that it was made for.

    Raises: FileNotFoundError; ValueError if the file is none of an adapter, or one of another
      model's.
    """
    path = Path(path)
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
        alpha = float(arrays.pop("alpha")[0])
        names = [name.removesuffix(".kernel.a") for name in arrays if name.endswith(".kernel.a")]
        rank = arrays[f"{names[0]}.kernel.a"].shape[-1]
    except (safetensors.SafetensorError, LookupError):
        raise ValueError(f"{path.name} is not the file of an adapter") from None
    try:
        adapter = nnx.eval_shape(
            lambda: Adapter(
                model, rank, alpha=alpha, layers=[f".{n}" for n in names], rngs=nnx.Rngs(0)
            )
        )
        return _filled(adapter, arrays)
    except ValueError as error:
        raise ValueError(f"{path.name} must be an adapter of this model: {error}") from None


def _filled(adapter: Adapter, arrays: dict[str, np.ndarray]) -> Adapter:
    """The adapter with the A and B of a file."""
    graph, params = nnx.split(adapter)

    def new(place, old):
        side, index = _name(place).split(".")
        name = f"{adapter.paths[int(index)]}.{side}"
        checks.same_shape(name, arrays[name], "the model's", old)
        return jnp.asarray(arrays[name])

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(new, params))


def _name(place) -> str:
    """A parameter's path, such as "down.0.conv1.kernel"."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in place)
    return ".".join(str(key) for key in keys if key != "value")


def _kernels(model: nnx.Module, layers: Sequence[str] | None) -> dict[str, Array]:
    """Path -> kernel, of the layers with these names; None for those of attention."""
    if isinstance(layers, str) or layers == () or layers == []:
        raise ValueError(f"layers must be names of at least one layer, got {layers!r}")
    leaves = jax.tree_util.tree_flatten_with_path(nnx.split(model)[1])[0]
    kernels = {_name(place): leaf for place, leaf in leaves if _name(place).endswith("kernel")}
    found = {
        layer: [path for path in kernels if _is_layer(path, layer)] for layer in layers or ATTENTION
    }
    missing = [layer for layer, paths in found.items() if not paths]
    if len(missing) == len(found) or (layers is not None and missing):
        raise ValueError(f"layers must name layers of the model with a kernel, got {missing}")
    chosen = {path for paths in found.values() for path in paths}
    return {path: kernel for path, kernel in kernels.items() if path in chosen}


def _is_layer(path: str, layer: str) -> bool:
    whole, name = f".{path}", f"{layer}.kernel"
    return whole == name if layer.startswith(".") else whole.endswith(f".{name}")


def _start(path: str, kernel: Array, rank: int, rngs: nnx.Rngs) -> tuple[Array, Array]:
    """A and B for a kernel [n, m], one [depth, n, m] of stacked blocks, or one [3, 3, n, m]."""
    stacked = kernel.shape[:1] if kernel.ndim == 3 else ()
    n, m = math.prod(kernel.shape[len(stacked) : -1]), kernel.shape[-1]
    if rank > min(n, m):
        raise ValueError(
            f"rank must be at most {min(n, m)}, the smaller side of {path}, got {rank}"
        )
    limit = math.sqrt(3 / n)  # uniform numbers of variance 1/n, as layers start with
    a = jax.random.uniform(rngs.params(), (*stacked, n, rank), minval=-limit, maxval=limit)
    return a, jnp.zeros((*stacked, rank, m))
