"""Training: one compiled step, and a plain Python loop around it.

The step takes and returns the whole state, whose buffers are donated; the model is split into
its structure and its parameters once. The loop is Python on purpose: on a CPU a ``lax.scan``
over convolution gradients is many times slower.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from diffusion_course import distributed

# loss(model, x, labels, key) -> scalar; x [B, …], labels [B].
Loss = Callable[[Any, Array, Array, Array], Array]


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


class TrainingDiverged(FloatingPointError):
    """A loss, gradient or parameter became NaN or infinite; `result` holds the last good state."""

    def __init__(self, step: int, loss: float, result: "Result"):
        super().__init__(
            f"training stopped at step {step}: its loss is {loss}, and the loss, its gradient or "
            "the updated parameters are not finite. The state before that step is kept in this "
            "error's `result`, and training can go on from it. "
            "Try a lower learning rate, a longer warm-up, or look at the batch of that step"
        )
        self.step, self.loss, self.result = step, loss, result


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
        """Draws the loss of each step, and its running average."""
        import matplotlib.pyplot as plt  # here: a fifth of the time that a run needs to start

        ax = plt.subplots(figsize=(5, 3))[1] if ax is None else ax
        steps = self.first_step + np.arange(len(self.loss))
        average, mean = [], 0.0
        for n, value in enumerate(self.loss):
            decay = min(
                smooth, n / (n + 1)
            )  # a plain mean at first, so that it starts on the curve
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
    returns, as `diffusion_course.checkpoints.Checkpoints.save` is.
    """

    every: int
    function: Callable[[TrainState], Any]


def ema_decay(step: Array, decay: float) -> Array:
    """Decay of the moving average with warm-up: ``min(decay, (1 + step)/(10 + step))``.

    Without it an average with decay .9999 still holds 98 % of its initial, random weights after
    200 steps, and 82 % after 2,000.

    Source: the `num_updates` rule of TensorFlow's ExponentialMovingAverage.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(ema, params, decay: Array):
    """``decay·ema + (1 − decay)·params`` for every array of the two trees."""
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
    warmup = min(200, steps // 10) if warmup is None else warmup
    for name, value in {"learning_rate": learning_rate, "steps": steps, "clip": clip}.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be in 0 … steps − 1 = {steps - 1}, got {warmup}")
    # From the first of `warmup` equal stairs, not from 0: a first step at rate 0 would be wasted.
    first = learning_rate / max(warmup, 1)
    schedule = optax.warmup_cosine_decay_schedule(first, learning_rate, warmup, steps)
    return optax.flatten(optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule)))


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; its arrays are copies, so the model stays as it is."""
    params = _split(model)[1]
    vector = _flatten(params)
    return TrainState(
        params=vector,
        ema=jnp.copy(vector),
        opt_state=jax.tree.map(jnp.copy, optimizer.init(params)),
        step=jnp.zeros((), jnp.int32),
        failed=jnp.zeros((), bool),
    )


def make_step(
    model: nnx.Module, loss: Loss, optimizer: optax.GradientTransformation, decay: float
) -> Callable[[TrainState, tuple, Array], tuple[TrainState, Array]]:
    """Compiles ``step(state, (x, labels), key) -> state, loss``; the old state is used up.

    Step n draws with ``fold_in(key, n)``, so a run that was interrupted draws the same numbers.

    Raises: ValueError unless decay is in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"ema must be in [0, 1), got {decay}")
    graph, like = _split(model)
    _, unflatten = ravel_pytree(like)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: tuple, key: Array):
        x, labels = batch
        key = jax.random.fold_in(key, state.step)

        def objective(params):
            return loss(nnx.merge(graph, params), x, labels, key)

        params = unflatten(state.params)
        value, gradient = jax.value_and_grad(objective)(params)
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
    """A model of its own with the structure of `model` and a copy of these parameters, [P].

    They are in the order of `TrainState.params`.
    """
    graph, like = _split(model)
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    # Cut on the host: on the device every cut would be compiled. And copied, since the next step
    # uses up the memory that the parts still lie in.
    parts = np.split(np.asarray(vector), ends[:-1])
    arrays = [
        jnp.array(part.reshape(leaf.shape), leaf.dtype, copy=True)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, arrays))


@jax.jit
def _flatten(params) -> Array:
    return ravel_pytree(params)[0]


def _split(model: nnx.Module):
    """Structure and parameters. Raises: ValueError if the model holds any other state."""
    _, _, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(
            "model must hold parameters only (no Dropout streams, no BatchNorm statistics), "
            f"got {type(model).__name__} with other state"
        )
    return nnx.split(model)


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
      batches: yields (x [B, …], labels [B]), one per step, from the state's step on.
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
        early, the state belongs to another model, or a batch does not divide among the devices.
      TrainingDiverged: a loss, a gradient or an updated parameter was not finite.
    """
    stop = steps if stop is None else stop
    _check_lengths(steps, stop, check_every, [*callbacks, *([save] if save else [])])
    optimizer = adam(3e-3, steps) if optimizer is None else optimizer
    mesh = distributed.data_mesh() if mesh is None else mesh
    start = create_state(model, optimizer) if state is None else _copy(state, model)
    done = int(start.step)
    if done >= stop:
        raise ValueError(f"steps (or stop) must exceed the state's {done} steps, got {stop}")
    key = distributed.replicate(mesh, key)
    run = _Run(model, distributed.replicate(mesh, start), done, mesh.devices.flat[0])
    step = make_step(model, loss, optimizer, ema)
    source = iter(batches)
    with tqdm(total=steps, initial=done, disable=not progress, unit="step") as bar:
        for n in range(done + 1, stop + 1):
            batch = _next(source, needed=stop - done, got=n - 1 - done)
            run.advance(step, distributed.shard_batch(mesh, batch), key)
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
    expected = sum(leaf.size for leaf in jax.tree.leaves(_split(model)[1]))
    if state.params.shape != (expected,):
        raise ValueError(
            f"state must hold the model's {expected} parameters in one vector, "
            f"got shape {state.params.shape}: it belongs to another model"
        )
    return jax.tree.map(jnp.copy, state)


def _check_lengths(steps: int, stop: int, check_every: int, events: Sequence) -> None:
    for name, value in {"steps": steps, "stop": stop, "check_every": check_every}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if stop > steps:
        raise ValueError(f"stop must be at most steps = {steps}, got {stop}")
    for event in events:
        if event.every < 1:
            raise ValueError(f"every must be at least 1, got {event.every}")


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
        self.pending: list[Array] = []
        self.begin = time.perf_counter()
        self.compiled: float | None = None
        self.images = 0

    def advance(self, step, batch, key) -> None:
        self.state, loss = step(self.state, batch, key)
        self.pending.append(loss)
        if self.compiled is None:
            jax.block_until_ready(loss)
            self.compiled = time.perf_counter()
        else:
            self.images += batch[0].shape[0]

    def check(self) -> None:
        """Moves losses to the host, and raises if one of the steps since the last check failed."""
        losses = [float(loss) for loss in jax.device_get(self.pending)]
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
            raise TrainingDiverged(int(self.state.step) + 1, losses[good], self.result())

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
