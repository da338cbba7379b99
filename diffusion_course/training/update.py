"""One update of the parameters, compiled: the state of a run, its optimiser and its average.

The step takes and returns the whole state, whose buffers are donated; the model is split into
its structure and its parameters once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.flatten_util import ravel_pytree

from diffusion_course import checks
from diffusion_course.training import tensor_parallel
from diffusion_course.training.mesh import Layout, device_mesh

# loss(model, x, labels, key) -> scalar; x [B, …], labels [B]. See `make_step` for what else a loss
# may be given, by name.
Loss = Callable[..., Array]


class TrainState(NamedTuple):
    """Everything that a run needs to go on, as one tree of arrays.

    The parameters lie in one vector: as a hundred arrays, each would have to be updated, averaged
    and checked by loops of its own, which are most of what a small model's step has to compile.

    Attributes:
      params: the model's parameters, [P].
      ema: their exponential moving average, [P].
      opt_state: the optimiser's state.
      step: number of steps taken, int32.
      failed: whether a loss or a gradient was not finite; the state then no longer changes.
    """

    params: Array
    ema: Array
    opt_state: Any
    step: Array
    failed: Array


def ema_decay(step: Array, decay: float) -> Array:
    """Decay of the moving average with warm-up: ``min(decay, (1 + step)/(10 + step))``.

    Without it an average with decay .9999 still holds 98 % of its initial, random weights after
    200 steps, and 82 % after 2,000.

    >>> float(ema_decay(0, 0.999)), float(ema_decay(90, 0.999))
    (0.1..., 0.91...)

    Args:
      step: number of the step, from 0.
      decay: of the run, in [0, 1).

    Source: the `num_updates` rule of TensorFlow's ExponentialMovingAverage.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(ema, params, decay: Array):
    """``decay·ema + (1 − decay)·params`` for every array of the two trees.

    Args:
      ema: the average so far.
      params: what is added to it.
      decay: share of the average that stays, in [0, 1].

    Returns: the new average.
    """
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def adam(
    learning_rate: float, steps: int, warmup: int | None = None, clip: float = 1.0
) -> optax.GradientTransformation:
    """Adam behind clipping by global norm, with linear warm-up and cosine decay to 0.

    Args:
      learning_rate: at its peak.
      steps: length of the whole run.
      warmup: steps until the peak; by default a tenth of the run, at most 200.
      clip: largest global norm of the gradient.

    Raises: ValueError for a value that is not positive, or a warm-up as long as the run.
    """
    checks.above("learning_rate", learning_rate, 0)
    checks.above("clip", clip, 0)
    steps = checks.integer("steps", steps, minimum=1)
    warmup = min(200, steps // 10) if warmup is None else warmup
    warmup = checks.integer("warmup", warmup, minimum=0, maximum=steps - 1)
    # From the first of `warmup` equal stairs, not from 0: a first step at rate 0 would be wasted.
    first = learning_rate / max(warmup, 1)
    schedule = optax.warmup_cosine_decay_schedule(first, learning_rate, warmup, steps)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule)))


def only(optimizer: optax.GradientTransformation, mask) -> optax.GradientTransformation:
    """The optimiser with most parameters frozen: those where the mask is False stay bit for bit.

    Args:
      optimizer: an optax transformation. It sees a gradient of 0 for a frozen parameter.
      mask: a tree like the parameters, of booleans or arrays of them; see `lora.trainable`.

    >>> sgd = only(optax.sgd(1.0), {"new": True, "old": False})
    >>> gradient = {"new": jnp.ones(2), "old": jnp.ones(2)}
    >>> updates, _ = sgd.update(gradient, sgd.init(gradient))
    >>> updates["new"].tolist(), updates["old"].tolist()
    ([-1.0, -1.0], [0.0, 0.0])
    """

    def masked(updates, _):
        return jax.tree.map(lambda u, chosen: jnp.where(chosen, u, 0.0), updates, mask)

    # Twice: before, so that clipping by the norm counts what is trained alone; after, since weight
    # decay moves parameters without a gradient.
    return optax.chain(optax.stateless(masked), optimizer, optax.stateless(masked))


def of_one_vector(
    optimizer: optax.GradientTransformation, model: nnx.Module
) -> optax.GradientTransformation:
    """The optimiser for all parameters in one vector, which can be cut among devices.

    Args:
      optimizer: an optax transformation.
      model: whose parameters they are.

    Raises: ValueError if the optimiser needs them by name, as those of `only` do.
    """
    flat = optax.flatten(optimizer)
    vector = jax.eval_shape(_flatten, split(model)[1])
    try:
        jax.eval_shape(lambda v: flat.update(v, flat.init(v), v), vector)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            "optimizer must treat all parameters alike with fsdp, which hands it one vector, got "
            "one that needs their names, as a mask does"
        ) from error
    return flat


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; its arrays are copies, so the model stays as it is.

    Args:
      model: holds parameters only.
      optimizer: an optax transformation.

    Raises: ValueError if the model holds any other state.
    """
    params = split(model)[1]
    vector = _flatten(params)
    return TrainState(
        params=vector,
        ema=jnp.copy(vector),
        opt_state=jax.tree.map(jnp.copy, optimizer.init(params)),
        step=jnp.zeros((), jnp.int32),
        failed=jnp.zeros((), bool),
    )


def make_step(
    model: nnx.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    decay: float,
    *,
    teacher: nnx.GraphDef | None = None,
    averaged: bool = False,
    layout: Layout | None = None,
) -> Callable[..., tuple[TrainState, Array]]:
    """Compiles ``step(state, (x, labels), key) -> state, loss``; the old state is used up.

    Step n draws with ``fold_in(key, n)``, so a run that was interrupted draws the same numbers.
    With a teacher its parameters are one more argument, ``step(state, (x, labels), key, params)``:
    as part of the program they would make every stage of a distillation compile anew.

    Args:
      model: whose structure is used; its parameters come from the state.
      loss: ``loss(model, x, labels, key) -> scalar``.
      optimizer: an optax transformation.
      decay: of the moving average, in [0, 1).
      teacher: structure of a second model, which the loss gets as its argument ``teacher``. It is
        not trained.
      averaged: whether the loss gets the averaged weights, as of before the step, in a model that
        is its argument ``averaged``. No gradient flows into them.
      layout: where the state lies that the step takes and returns, as ``layout.place(state)`` puts
        it there; by default wherever it is. With FSDP the optimiser must be one of vectors,
        ``optax.flatten(…)``, as `adam` is.

    Raises: ValueError unless decay is in [0, 1).
    """
    checks.within("ema", decay, 0, 1, ends="[)")
    layout = Layout(device_mesh()) if layout is None else layout
    graph, like = split(tensor_parallel.divide(model, layout.mesh))
    vector, unflatten = ravel_pytree(like)
    size = vector.size

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: tuple, key: Array, teacher_params=None):
        x, labels = batch
        key = jax.random.fold_in(key, state.step)
        fixed = (
            {"averaged": nnx.merge(graph, unflatten(layout.gather(state.ema, size)))}
            if averaged
            else {}
        )
        if teacher is not None:
            fixed["teacher"] = nnx.merge(teacher, teacher_params)

        def objective(params):
            return loss(nnx.merge(graph, params), x, labels, key, **fixed)

        params = unflatten(layout.gather(state.params, size))
        value, gradient = jax.value_and_grad(objective)(params)
        if layout.fsdp:  # the optimiser sees this device's part of the vectors
            params, gradient = state.params, layout.cut(_flatten(gradient))
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = state.params + _flatten(updates)
        ema = ema_update(state.ema, params, ema_decay(state.step, decay))
        new = TrainState(params, ema, opt_state, state.step + 1, state.failed)
        # The average holds every updated parameter, and these every gradient: one check for all.
        good = _all_finite(value, ema) & ~state.failed
        kept = jax.tree.map(partial(jnp.where, good), new, state)
        return kept._replace(failed=~good), value

    return step


def _all_finite(*trees) -> Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]))


def merge(model: nnx.Module, vector: Array) -> nnx.Module:
    """A model of its own with the structure of `model` and a copy of these parameters.

    Args:
      model: whose structure is used.
      vector: the parameters [P], in the order of `TrainState.params`.

    Raises: ValueError if the model has another number of parameters.
    """
    graph, like = split(model)
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    check_parameters("vector", vector, model)
    # Cut on the host: on the device every cut would be compiled. And copied, since the next step
    # uses up the memory that the parts still lie in.
    parts = np.split(np.asarray(vector), ends[:-1])
    arrays = [
        jnp.array(part.reshape(leaf.shape), leaf.dtype, copy=True)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, arrays))


def check_parameters(argument: str, vector: Array, model: nnx.Module) -> None:
    """ValueError unless a vector has as many entries as the model has parameters.

    Args:
      argument: name for the message.
      vector: [P].
      model: whose parameters are counted.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(split(model)[1]))
    if np.shape(vector) != (count,):
        raise ValueError(
            f"{argument} must hold the model's {count} parameters in one vector, "
            f"got shape {list(np.shape(vector))}: it belongs to another model"
        )


@jax.jit
def _flatten(params) -> Array:
    return ravel_pytree(params)[0]


def split(model: nnx.Module, argument: str = "model"):
    """Structure and parameters.

    Args:
      model: an NNX module.
      argument: its name for the message.

    Returns: its graph definition and its state.
    Raises: ValueError if the model holds any other state than parameters.
    """
    _, _, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(
            f"{argument} must hold parameters only (no Dropout streams, no BatchNorm statistics), "
            f"got {type(model).__name__} with other state"
        )
    return nnx.split(model)
