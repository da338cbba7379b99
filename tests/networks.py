"""Small networks for the tests, built and compiled in one go."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@contextmanager
def quick_compiler():
    """Most of these tests' time is compilation: half of it goes without XLA's optimisations.

    What is computed stays the same, but for rounding.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def normals(rng, mean=0.1, std=0.8):
    """``array(*shape, std=…)``: normal numbers in float32, neither centred nor of unit scale."""

    def array(*shape, std=std):
        return rng.normal(mean, std, shape).astype(np.float32)

    return array


def shape_of(make):
    """The model without numbers: for sizes, shapes and errors nothing has to be compiled."""
    return jax.eval_shape(make)


def output_of(model, *inputs):
    """Shape and dtype of what a model returns, without computing it."""
    return jax.eval_shape(lambda model, *inputs: model(*inputs), model, *inputs)


def initial(make):
    """A model as it is made; one program draws all its parameters."""
    graph = nnx.split(shape_of(make))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.split(make())[1])())


def drawn(make, seed: int):
    """A model with random numbers for parameters, drawn without compiling anything."""
    rng = np.random.default_rng(seed)
    graph, params = nnx.split(shape_of(make))
    leaves, tree = jax.tree.flatten_with_path(params)
    values = []
    for path, leaf in leaves:
        name, noise = jax.tree_util.keystr(path), rng.normal(0, 0.1, leaf.shape)
        # Kernels of unit gain, and scales near 1, keep activations as large as they are.
        gain = noise * 10 / np.sqrt(np.prod(leaf.shape[:-1]))
        values.append(gain if "kernel" in name else noise + ("scale" in name))
    values = [np.asarray(v, leaf.dtype) for v, (_, leaf) in zip(values, leaves, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, values))


def shaken(model, seed: int, std: float = 0.1):
    """The model with every parameter moved a little, as training would."""
    rng = np.random.default_rng(seed)
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + jnp.asarray(rng.normal(0, std, leaf.shape), leaf.dtype) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


def parameters(model) -> dict[str, np.ndarray]:
    """The parameters, or their shapes and dtypes, by their path."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.state(model, nnx.Param))[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
