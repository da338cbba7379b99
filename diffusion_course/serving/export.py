"""A model as files that need neither the course nor Flax: a program in StableHLO, and its weights.

The weights are an argument of the program and no constants in it, so that one program serves every
model of its shape and its size does not grow with them.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax import export

from diffusion_course import checks, files
from diffusion_course.weights.card import as_safetensors, read_json, read_verified, sha256

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Frozen(NamedTuple):
    """A program with its weights; call it like the model that it was made from.

    Attributes:
      program: `jax.export.Exported`, called as ``program.call(weights, *inputs)``.
      weights: path in the model -> array, as in a .safetensors file.
    """

    program: export.Exported
    weights: dict[str, np.ndarray]

    def __call__(self, *inputs):
        """What the model returns for these inputs, of any batch size."""
        return self.program.call(self.weights, *inputs)


def freeze(model: nnx.Module, *examples, platforms: tuple[str, ...] = ("cpu",)) -> Frozen:
    """Exports a model's forward pass for any batch size.

    >>> from diffusion_course.models.mlp import MLP
    >>> model = MLP(2, 8, 1, rngs=nnx.Rngs(0))
    >>> frozen = freeze(model, jnp.ones((3, 2)), jnp.ones(3))
    >>> frozen(jnp.ones((5, 2)), jnp.ones(5)).shape  # the example had a batch of 3
    (5, 2)

    Args:
      model: whose state is parameters alone.
      examples: arrays as the model is called with, or their `jax.ShapeDtypeStruct`s. Their first
        axis, the batch, stays open.
      platforms: what the program must run on, among "cpu", "cuda", "rocm", "tpu". With several of
        them the file holds one program for each way of computing.

    Raises: ValueError for no examples, an example without a batch, an unknown platform, or a model
      with any other state, such as random streams.
    """
    if not examples or any(len(np.shape(each)) == 0 for each in examples):
        raise ValueError("examples must be one or more arrays [B, …], got none or a plain number")
    if not platforms:
        raise ValueError("platforms must name at least one, got none")
    for platform in platforms:
        checks.one_of("platforms", platform, PLATFORMS)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError("model must hold parameters alone, got other state as well")
    names, tree = _names(params)

    def run(weights, *inputs):
        filled = jax.tree.unflatten(tree, [weights[name] for name in names])
        return nnx.merge(graph, filled, rest)(*inputs)

    arrays = dict(zip(names, map(np.asarray, jax.tree.leaves(params)), strict=True))
    (batch,) = export.symbolic_shape("B")
    shapes = [
        jax.ShapeDtypeStruct((batch, *np.shape(each)[1:]), jnp.result_type(each))
        for each in examples
    ]
    described = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    program = export.export(jax.jit(run), platforms=list(platforms))(described, *shapes)
    return Frozen(program, arrays)


def _names(params) -> tuple[list[str], jax.tree_util.PyTreeDef]:
    """The path of each leaf as `weights.card.flat_params` writes it, and the tree."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    # What is no key of a dict is Flax's own box around the array.
    return [".".join(str(k.key) for k in path if hasattr(k, "key")) for path, _ in leaves], tree


def save(folder: str | Path, name: str, frozen: Frozen) -> Path:
    """Writes NAME.stablehlo, NAME.safetensors and NAME.json with their hashes: all, or none.

    Args:
      folder: where to; it is made if it does not exist.
      name: of the files, without a dot.
      frozen: from `freeze`.

    Returns: the path of the .stablehlo file.
    Raises: ValueError for a name that is no file name.
    """
    if not name or Path(name).name != name or "." in name:
        raise ValueError(f"name must be a file name without a dot, got {name!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.stablehlo"
    program, weights = bytes(frozen.program.serialize()), as_safetensors(frozen.weights)
    note = {
        "name": name,
        "platforms": list(frozen.program.platforms),
        "stablehlo": sha256(program),
        "safetensors": sha256(weights),
    }
    files.write_together(
        {
            path: program,
            path.with_suffix(".safetensors"): weights,
            path.with_suffix(".json"): files.as_json(note),
        }
    )
    return path


def load(folder: str | Path, name: str) -> Frozen:
    """What `save` wrote, ready to be called. Nothing of the model's source is needed.

    Args:
      folder: where the files lie.
      name: of the files.

    Raises: FileNotFoundError; ValueError for a file that is not the one which the note names.
    """
    path = Path(folder) / f"{name}.stablehlo"
    note = read_json(path.with_suffix(".json"))
    missing = {"stablehlo", "safetensors"} - note.keys()
    if missing:
        raise ValueError(
            f"{name}.json must say {', '.join(sorted(missing))}, got {json.dumps(note)}"
        )
    program = read_verified(path, note["stablehlo"])
    weights = read_verified(path.with_suffix(".safetensors"), note["safetensors"])
    return Frozen(export.deserialize(bytearray(program)), safetensors.numpy.load(weights))
