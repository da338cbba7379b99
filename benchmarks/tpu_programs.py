"""The programs that `tpu_compile.py` compiles: training steps and samplers, with no data in them.

A program is a jitted function and the shapes of its arguments. Parameters are arguments, so that
what is compiled is what `fit` and `generator` compile.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_course import data, guidance, samplers, sampling, weights
from diffusion_course.data import digits
from diffusion_course.training import recipes, update
from diffusion_course.training.mesh import DATA
from diffusion_course.training.recipe import LatentRecipe

ACCELERATOR_BATCH = 512  # as the course's profile for accelerators has it


class Program(NamedTuple):
    """What is compiled.

    Attributes:
      recipe: name in `RECIPES`.
      what: "training step" or "sampler".
      dtype: that the network computes in.
      batch: examples, on all devices together.
      topology: key of `tpu_compile.TOPOLOGIES`.
    """

    recipe: str
    what: str
    dtype: str
    batch: int
    topology: str


def training(name: str, dtype: str, batch: int) -> tuple[Callable, tuple, tuple]:
    """A recipe's training step, as `recipes.run` compiles it.

    Returns: the jitted step, the shapes of its arguments, and for each argument whether its arrays
      are split along their first axis when several devices share the batch.
    """
    recipe = recipes.RECIPES[name]
    model, objective, settings = recipes.prepared(recipe, dtype)
    optimizer = settings["optimizer"]
    options, guide = {"averaged": settings.get("averaged", False)}, ()
    if "teacher" in settings:
        options["teacher"], guide = update.split(settings["teacher"])
        guide = (guide,)
    step = update.make_step(model, objective, optimizer, settings["ema"], **options)
    state = jax.eval_shape(lambda: update.create_state(model, optimizer))
    shapes = (state, example(recipe, batch), key(), *guide)
    return step, jax.tree.map(shape_of, shapes), (False, True, False, *(False for _ in guide))


def sampler(name: str, dtype: str, batch: int) -> tuple[Callable, tuple, tuple]:
    """All of a generation in one program: the recipe's steps of DDIM with guidance, or its jumps.

    A latent model's samples are latents. Returns: as `training`.
    """
    recipe = recipes.RECIPES[name]
    model = weights.build(recipe.model, recipe.seed, dtype)
    x, labels = example(recipe, batch)
    if hasattr(recipe, "evaluations"):
        draw = recipes.few_steps(recipe, max(recipe.evaluations))
        return draw, jax.tree.map(shape_of, (model, key(), x, labels)), (False, False, True, True)
    p, times = weights.build_process(recipe.process), sampling.uniform(recipe.sampling_steps)

    @jax.jit
    def draw(model, key, x, labels, w):
        null = jnp.full_like(labels, model.null_label)
        D = guidance.classifier_free_batched(model, p, recipe.kind, labels, null, w)
        return sampling.sample(samplers.ddim(p), D, x, times, key)[0]

    w = jax.ShapeDtypeStruct((), jnp.float32)
    shapes = jax.tree.map(shape_of, (model, key(), x, labels, w))
    return draw, shapes, (False, False, True, True, False)


def evaluations(name: str) -> int:
    """How often a recipe's sampler calls its network: the turns of the loop in its program."""
    recipe = recipes.RECIPES[name]
    return getattr(recipe, "sampling_steps", 0) or max(recipe.evaluations)


def in_bfloat16(recipe) -> bool:
    """Whether a recipe's network can compute in bfloat16."""
    model = recipe.model
    # A ControlNet and an adapter compute as their base does, whose description they hold.
    while inner := [value for value in model.values() if isinstance(value, dict)]:
        (model,) = inner
    return model["class"] in ("UNet", "DiT", "Upsampler", "VideoDiT")


def example(recipe, batch: int) -> tuple:
    """The shapes of a batch (x, labels) of a recipe."""
    size = {"mnist": (28, 28, 1), "digits": (8, 8, 1)}.get(recipe.dataset)
    if size:
        few = digits.load("train").subset(np.arange(8))
        few = replace(few, x=np.resize(few.x, (8, *size)))
    else:
        few = data.load(recipe.dataset, "train", **recipe.options | {"n": 64})
    if isinstance(recipe, LatentRecipe):
        z = weights.latent_space(recipe.autoencoder).shape(few.x.shape[1:])
        few = replace(few, x=np.zeros((len(few.x), *z), np.float32))
    else:
        few = recipes.examples(recipe, few)
    pair = (few.x, few.labels) if isinstance(few, data.Dataset) else few
    return tuple(shape_of(np.zeros((batch, *a.shape[1:]), a.dtype)) for a in pair)


def key():
    return jax.eval_shape(lambda: jax.random.key(0))


def shape_of(array):
    """The shape of an array, with the dtype that JAX gives it."""
    dtype = array.dtype
    if not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(array.shape, dtype)


def lower(program: Program, devices) -> jax.stages.Lowered:
    """A program, lowered for devices that need not exist: data parallel if they are several."""
    mesh = Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))
    make = training if program.what == "training step" else sampler
    function, shapes, split = make(program.recipe, program.dtype, program.batch)

    def place(tree, is_split):
        where = NamedSharding(mesh, PartitionSpec(DATA) if is_split else PartitionSpec())
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    return function.lower(*(place(*pair) for pair in zip(shapes, split, strict=True)))
