"""Training: a plain Python loop around one compiled update.

The loop is Python on purpose: on a CPU a ``lax.scan`` over convolution gradients is many times
slower.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from tqdm.auto import tqdm

from diffusion_course import checks
from diffusion_course.data.types import check_batch
from diffusion_course.training.mesh import Layout, device_mesh, replicate
from diffusion_course.training.record import Result, Run
from diffusion_course.training.update import (
    Loss,
    TrainState,
    adam,
    check_parameters,
    create_state,
    make_step,
    of_one_vector,
    split,
)


class Callback(NamedTuple):
    """Calls ``function(step, ema_model)`` after every `every`-th step, and after the last one."""

    every: int
    function: Callable[[int, nnx.Module], Any]


class Save(NamedTuple):
    """Calls ``function(state)`` after every `every`-th step, and after the last one.

    The next step uses the state's buffers up, so the function must be done with them when it
    returns, as `diffusion_course.training.checkpoints.Checkpoints.save` is.
    """

    every: int
    function: Callable[[TrainState], Any]


def fit(
    model: nnx.Module,
    loss: Loss,
    batches: Iterable[tuple],
    *,
    steps: int,
    key: Array,
    optimizer: optax.GradientTransformation | None = None,
    ema: float = 0.999,
    teacher: nnx.Module | None = None,
    averaged: bool = False,
    callbacks: Sequence[Callback] = (),
    save: Save | None = None,
    state: TrainState | None = None,
    stop: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    fsdp: bool = False,
    progress: bool = True,
    check_every: int = 20,
) -> Result:
    """Trains a model and returns it with its averaged weights and the history.

    A run that stops at `stop`, is saved, and goes on from its state equals one that was never
    interrupted, if `steps`, `key` and the optimiser are the same and the batches go on where they
    stopped (``data.batches(…, start=int(state.step))``).

    Args:
      model: an NNX module that holds parameters only; it is not changed.
      loss: ``loss(model, x, labels, key) -> scalar``.
      batches: yields (x [B, …], labels [B]), one per step, from the state's step on; x of
        floating-point numbers. With several processes each yields its own rows of the batch
        (`distributed.own_rows`), and everything else is the same in all of them. For a model with
        labels they are whole numbers from 0 to below its null_label. A tuple or a dictionary of
        arrays in the place of the labels is left to the loss.
      steps: the run's whole length, which the default optimiser's schedule spans.
      key: a random key; step n uses ``fold_in(key, n)``.
      optimizer: by default ``adam(3e-3, steps)``.
      ema: decay of the weights' moving average, in [0, 1), with warm-up.
      teacher: a second model, which is not trained. The loss is called with it as its argument
        ``teacher``.
      averaged: whether the loss is called with the model of the averaged weights, from before the
        step, as its argument ``averaged``: the target of consistency training. No gradient flows
        into it.
      callbacks: see `Callback`.
      save: see `Save`.
      state: where to go on from.
      stop: the step to stop at, by default `steps`.
      mesh: of the devices that share the work, from `device_mesh`; by default all devices, each
        with a part of the batch. With several columns the model must be a DiT, whose blocks are
        divided (`tensor_parallel`). The returned models lie on the first device of this process.
      fsdp: whether the state is cut among the devices, not copied to each (`mesh.Layout`). What
        `save` gets and what is returned has the model's own shapes either way. The optimiser sees
        all parameters as one vector, so it must not treat them by name.
      progress: whether to show a bar with loss and images per second.
      check_every: steps between looks at the loss on the host; a failure is reported with the
        exact step all the same.

    Raises:
      ValueError: a number is out of range, the state is at or past the end, the batches end
        early, the first one is no such pair, the state belongs to another model, a batch does not
        divide among the devices, or with fsdp the optimiser treats parameters by name.
      record.TrainingDiverged: a loss, a gradient or an updated parameter was not finite.
    """
    stop = steps if stop is None else stop
    _check_lengths(steps, stop, check_every, [*callbacks, *([save] if save else [])])
    optimizer = adam(3e-3, steps) if optimizer is None else optimizer
    layout = Layout(device_mesh() if mesh is None else mesh, fsdp)
    mesh = layout.mesh
    if fsdp:
        optimizer = of_one_vector(optimizer, model)
    start = create_state(model, optimizer) if state is None else _copy(state, model)
    done = int(start.step)
    if done >= stop:
        raise ValueError(f"steps (or stop) must exceed the state's {done} steps, got {stop}")
    key = replicate(mesh, key)
    run = Run(model, start, done, layout)
    options, guide = {"averaged": averaged, "layout": layout}, ()
    if teacher is not None:
        options["teacher"], params = split(teacher, "teacher")
        guide = (replicate(mesh, params),)
    step = make_step(model, loss, optimizer, ema, **options)
    source, quiet = iter(batches), not progress or jax.process_index() > 0
    with tqdm(total=steps, initial=done, disable=quiet, unit="step") as bar:
        for n in range(done + 1, stop + 1):
            batch = _next(source, needed=stop - done, got=n - 1 - done)
            if n == done + 1:
                _check_batch(model, batch)
            run.advance(step, batch, key, *guide)
            due = [c for c in callbacks if n % c.every == 0 or n == stop]
            save_now = save is not None and (n % save.every == 0 or n == stop)
            if n == done + 1 or n % check_every == 0 or n == stop or due or save_now:
                run.check()
                bar.set_postfix(run.postfix(), refresh=False)
                bar.update(n - bar.n)
                with run.clock_stopped():
                    for callback in due:
                        callback.function(n, run.model_with(run.whole().ema))
                    if save_now:
                        save.function(run.whole())
    return run.result()


def _copy(state: TrainState, model: nnx.Module) -> TrainState:
    check_parameters("state", state.params, model)
    return jax.tree.map(jnp.copy, state)


def _check_lengths(steps: int, stop: int, check_every: int, events: Sequence) -> None:
    checks.integer("steps", steps, minimum=1)
    checks.integer("stop", stop, minimum=1, maximum=steps)
    checks.integer("check_every", check_every, minimum=1)
    for event in events:
        checks.integer("every", event.every, minimum=1)


def _check_batch(model: nnx.Module, batch) -> None:
    """ValueError for a batch that no training could learn from; later ones are not looked at."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(f"batches must yield pairs (x, labels), got {what}")
    x, labels = batch
    # The null class itself is the loss's to put in: see losses.drop_labels.
    classes = getattr(model, "null_label", None)
    try:
        checks.floating("x", x)
        # A tuple or a dictionary of arrays is the loss's to take apart.
        if not isinstance(labels, tuple | dict) and (labels is not None or classes is not None):
            check_batch(x, labels, classes)
    except ValueError as error:
        raise ValueError(f"the first batch cannot be trained on: {error}") from None


def _next(source: Iterator, needed: int, got: int):
    try:
        return next(source)
    except StopIteration:
        raise ValueError(f"batches must yield {needed}, ended after {got}") from None
