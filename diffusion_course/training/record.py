"""What a training run leaves behind: losses, speed, models, and what it says when it fails."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.training.mesh import Layout, shard_batch
from diffusion_course.training.update import TrainState, merge

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


class Run:
    """The bookkeeping of a run: its state, the losses not yet looked at, and the clock."""

    def __init__(self, model: nnx.Module, state: TrainState, done: int, layout: Layout):
        self.model, self.layout = model, layout
        self.shapes = jax.eval_shape(lambda: state)
        self.state = layout.place(state)
        self.history = History(first_step=done + 1)
        # Losses that the host has not looked at yet, and this process's batches they belong to.
        self.pending: list[tuple[Array, tuple]] = []
        self.begin = time.perf_counter()
        self.compiled: float | None = None
        self.images = 0

    def advance(self, step, batch, key, *guide) -> None:
        placed = shard_batch(self.layout.mesh, batch)
        self.state, loss = step(self.state, placed, key, *guide)
        self.pending.append((loss, batch))
        if self.compiled is None:
            jax.block_until_ready(loss)
            self.compiled = time.perf_counter()
        else:
            self.images += placed[0].shape[0]

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
        with jax.default_device(self.layout.mesh.local_devices[0]):
            return merge(self.model, params)

    def whole(self) -> TrainState:
        """The state in the model's own shapes, however it lies on the devices."""
        return self.layout.whole(self.state, self.shapes)

    def result(self) -> Result:
        state = self.whole()
        model, ema = self.model_with(state.params), self.model_with(state.ema)
        return Result(model, ema, self.history, state)
