"""Training: a plain Python loop around one compiled update.

The loop is Python on purpose: on a CPU a ``lax.scan`` over convolution gradients is many times
slower.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from tqdm.auto import tqdm

from diffusion_course import checks
from diffusion_course.data.types import check_batch
from diffusion_course.training.mesh import data_mesh, replicate, shard_batch
from diffusion_course.training.update import (
    Loss,
    TrainState,
    adam,
    check_parameters,
    create_state,
    make_step,
    merge,
)

_LARGE = 30.0  # pixels 0 … 255 lie far above it, points in the plane and unit noise below


class TrainingDiverged(FloatingPointError):
    """A loss, gradient or parameter became NaN or infinite.

    Attributes:
      step: number of the step, counted from 1.
      loss: of that step.
      result: the `Result` with the state before it.
    """

    def __init__(self, step: int, loss: float, result: "Result", batch: tuple | None = None):
        super().__init__(
            f"training stopped at step {step}: its loss is {loss}, and the loss, its gradient or "
            f"the updated parameters are not finite. {_cause(batch)}. The state before that step "
            "is kept in this error's `result`, and training can go on from it"
        )
        self.step, self.loss, self.result = step, loss, result


def _cause(batch: tuple | None) -> str:
    """What a failed step's batch says about the cause, or what else to try."""
    x = None if batch is None else np.asarray(batch[0], np.float64)
    if x is not None and not np.isfinite(x).all():
        index = [int(i) for i in np.argwhere(~np.isfinite(x))[0]]
        return (
            f"The cause is that step's batch: x is {x[tuple(index)]} at index {index} of shape "
            f"{list(x.shape)}"
        )
    if x is not None and np.abs(x).max() > _LARGE:
        return (
            f"The batch of that step reaches |x| = {np.abs(x).max():g}; images belong in [-1, 1]: "
            "x = pixels / 127.5 - 1"
        )
    return "Try a lower learning rate or a longer warm-up"


@dataclass
class History:
    """The losses of a run, one per step, and its speed.

    Attributes:
      loss: float per step.
      first_step: number of the step that loss[0] belongs to, counted from 1.
      seconds: wall time of the loop, with compilation.
      images_per_second: after the first step, which compiles, and without the callbacks.
    """

    loss: list[float] = field(default_factory=list)
    first_step: int = 1
    seconds: float = 0.0
    images_per_second: float = 0.0

    def plot(self, ax=None, smooth: float = 0.95):
        """Draws the loss of each step, and its running average.

        Args:
          ax: matplotlib axes; new ones by default.
          smooth: weight of the past in the running average, in [0, 1).

        Returns: the axes.
        Raises: ValueError for another value of smooth.
        """
        checks.within("smooth", smooth, 0, 1, ends="[)")
        import matplotlib.pyplot as plt  # here: a fifth of the time that a run needs to start

        ax = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
        steps = self.first_step + np.arange(len(self.loss))
        average, mean = [], 0.0
        for n, value in enumerate(self.loss):
            # A plain mean at first, so that it starts on the curve.
            decay = min(smooth, n / (n + 1))
            mean = decay * mean + (1 - decay) * value
            average.append(mean)
        ax.plot(steps, self.loss, color="0.7", lw=0.8)
        ax.plot(steps, average, color="0.1")
        ax.set(xlabel="training step", ylabel="loss", yscale="log")
        return ax


@dataclass
class Result:
    """What `fit` returns.

    Attributes:
      model: the trained model, with the raw weights.
      ema: a model of its own with the averaged weights; sample from this one.
      history: losses and speed.
      state: the train state, to save or to go on from.
    """

    model: nnx.Module
    ema: nnx.Module
    history: History
    state: TrainState


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
    callbacks: Sequence[Callback] = (),
    save: Save | None = None,
    state: TrainState | None = None,
    stop: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
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
        floating-point numbers. For a model with labels they are whole numbers from 0 to below its
        null_label. A tuple or a dictionary of arrays
        in the place of the labels is left to the loss.
      steps: the run's whole length, which the default optimiser's schedule spans.
      key: a random key; step n uses ``fold_in(key, n)``.
      optimizer: by default ``adam(3e-3, steps)``.
      ema: decay of the weights' moving average, in [0, 1), with warm-up.
      callbacks: see `Callback`.
      save: see `Save`.
      state: where to go on from.
      stop: the step to stop at, by default `steps`.
      mesh: devices to share each batch among; all devices by default. The returned models lie on
        the first of them.
      progress: whether to show a bar with loss and images per second.
      check_every: steps between looks at the loss on the host; a failure is reported with the
        exact step all the same.

    Raises:
      ValueError: a number is out of range, the state is at or past the end, the batches end
        early, the first one is no such pair, the state belongs to another model, or a batch does
        not divide among the devices.
      TrainingDiverged: a loss, a gradient or an updated parameter was not finite.
    """
    stop = steps if stop is None else stop
    _check_lengths(steps, stop, check_every, [*callbacks, *([save] if save else [])])
    optimizer = adam(3e-3, steps) if optimizer is None else optimizer
    mesh = data_mesh() if mesh is None else mesh
    start = create_state(model, optimizer) if state is None else _copy(state, model)
    done = int(start.step)
    if done >= stop:
        raise ValueError(f"steps (or stop) must exceed the state's {done} steps, got {stop}")
    key = replicate(mesh, key)
    run = _Run(model, replicate(mesh, start), done, mesh.devices.flat[0])
    step = make_step(model, loss, optimizer, ema)
    source = iter(batches)
    with tqdm(total=steps, initial=done, disable=not progress, unit="step") as bar:
        for n in range(done + 1, stop + 1):
            batch = _next(source, needed=stop - done, got=n - 1 - done)
            if n == done + 1:
                _check_batch(model, batch)
            run.advance(step, shard_batch(mesh, batch), key)
            due = [c for c in callbacks if n % c.every == 0 or n == stop]
            save_now = save is not None and (n % save.every == 0 or n == stop)
            if n == done + 1 or n % check_every == 0 or n == stop or due or save_now:
                run.check()
                bar.set_postfix(run.postfix(), refresh=False)
                bar.update(n - bar.n)
                with run.clock_stopped():
                    for callback in due:
                        callback.function(n, run.model_with(run.state.ema))
                    if save_now:
                        save.function(run.state)
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


class _Run:
    """The loop's bookkeeping: the state, the losses not yet looked at, and the clock."""

    def __init__(self, model: nnx.Module, state: TrainState, done: int, device: jax.Device):
        self.model, self.state, self.device = model, state, device
        self.history = History(first_step=done + 1)
        # Losses that the host has not looked at yet, and the batches they belong to.
        self.pending: list[tuple[Array, tuple]] = []
        self.begin = time.perf_counter()
        self.compiled: float | None = None
        self.images = 0

    def advance(self, step, batch, key) -> None:
        self.state, loss = step(self.state, batch, key)
        self.pending.append((loss, batch))
        if self.compiled is None:
            jax.block_until_ready(loss)
            self.compiled = time.perf_counter()
        else:
            self.images += batch[0].shape[0]

    def check(self) -> None:
        """Moves losses to the host, and raises if one of the steps since the last check failed."""
        losses = [float(loss) for loss in jax.device_get([loss for loss, _ in self.pending])]
        batches = [batch for _, batch in self.pending]
        self.pending.clear()
        good = int(self.state.step) - (self.history.first_step - 1 + len(self.history.loss))
        self.history.loss += losses[:good]
        now = time.perf_counter()
        self.history.seconds = now - self.begin
        if self.images:
            self.history.images_per_second = self.images / (now - self.compiled)
        if self.state.failed:
            # The kept state is a good one: training can go on from it.
            self.state = self.state._replace(failed=jnp.zeros_like(self.state.failed))
            step, result = int(self.state.step) + 1, self.result()
            raise TrainingDiverged(step, losses[good], result, batches[good])

    @contextmanager
    def clock_stopped(self):
        """Leaves the time of callbacks out of the images per second."""
        paused = time.perf_counter()
        yield
        self.compiled += time.perf_counter() - paused

    def postfix(self) -> dict[str, str]:
        recent = np.mean(self.history.loss[-20:])
        return {"loss": f"{recent:.4f}", "images/s": f"{self.history.images_per_second:.0f}"}

    def model_with(self, params) -> nnx.Module:
        with jax.default_device(self.device):
            return merge(self.model, params)

    def result(self) -> Result:
        model, ema = self.model_with(self.state.params), self.model_with(self.state.ema)
        return Result(model, ema, self.history, self.state)
