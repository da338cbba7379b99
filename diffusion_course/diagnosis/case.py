"""What is diagnosed: a model, its process, its data, and how it is sampled and trained."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from diffusion_course import checks, samplers, sampling
from diffusion_course.data import Dataset
from diffusion_course.diagnosis.report import Finding
from diffusion_course.guidance import classifier_free
from diffusion_course.parameterization import KINDS, determinant, to_x0
from diffusion_course.process import Process, add_noise, levels, time_at

ROWS = 64  # examples in every call of the network: one compiled program serves all checks
_LOSSES = 100  # of a history that is judged
_MOST = 4000  # rows of the data that statistics are made from
_STEPS = 25  # of the default sampler
# Noise-to-signal ratios sigma/(alpha·s), s the data's deviation: from nearly clean to nearly noise.
_RATIOS = (0.2, 0.5, 1.0, 2.0, 5.0)
_TRIED = 12  # times that a network is told beside its own


class Outcome(NamedTuple):
    """What a check says.

    Attributes:
      measured: what it measured, in words and numbers.
      findings: what is wrong.
      notes: what is not wrong, though it may look so.
    """

    measured: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()


class Unchecked(Exception):
    """A check cannot be made; the message says why."""


class Level(NamedTuple):
    """The same examples at one noise level.

    Attributes:
      ratio: sigma/(alpha·s), with the data's standard deviation s.
      t: the process's time of that level.
      x_t: noisy examples [ROWS, …].
      y: the network's output for them.
      linear: mean squared error of the best denoiser that looks at one number at a time.
    """

    ratio: float
    t: float
    x_t: Array
    y: Array
    linear: float


class Told(NamedTuple):
    """What the network would gain at a level if it were told another time.

    Attributes:
      own: mean squared error at the level's own time.
      best: the smallest at one of the others.
      t: that other time.
    """

    own: float
    best: float
    t: float


@dataclass
class Case:
    """The arguments of `diagnose`, checked, and what several checks need, computed once."""

    model: Any
    process: Process
    kind: str
    data: Any
    null: Any = None
    sampler: Any = None
    times: Any = None
    w: float = 1.0
    samples: Any = None
    generate: Callable | None = None
    loss: Callable | None = None
    step: Callable | None = None
    history: Any = None
    batch_size: int | None = None
    memory: float | None = None
    control: tuple | None = None
    average: Any = None
    few_steps: bool = False
    seed: int = 0

    def __post_init__(self):
        _callable("model", self.model)
        # A forgotten argument moves those behind it up by one place.
        order = "; the order is diagnose(model, process, kind, data)"
        if not isinstance(self.process, Process):
            moved = isinstance(self.process, str) and self.process in KINDS
            raise ValueError(
                f"process must be a Process such as process.vp_cosine(), got {self.process!r}"
                + (order if moved else "")
            )
        if not isinstance(self.kind, str):
            kinds = ", ".join(KINDS)
            raise ValueError(f"kind must be one of {kinds}, got {_named(self.kind)}{order}")
        checks.one_of("kind", self.kind, KINDS)
        if self.data is None:
            raise ValueError("data must be what it was trained on, (x, labels) or x, got None")
        self.seed = checks.integer("seed", self.seed, 0)
        self.x, self.labels = _pair(self.data)
        self.null = getattr(self.model, "null_label", None) if self.null is None else self.null
        if self.null is not None and self.labels is not None:
            _null(self.null, self.labels)
        self.own_sampler = self.sampler is not None
        if not self.own_sampler:
            self.sampler = samplers.ddim(self.process)
        elif not all(callable(getattr(self.sampler, f, None)) for f in ("init", "step")):
            raise ValueError(
                f"sampler must be a Sampler such as samplers.ddim(p), got {self.sampler!r}"
            )
        times = sampling.uniform(_STEPS) if self.times is None else self.times
        self.times = checks.falling_times("times", times)
        checks.within("w", self.w, -np.inf, np.inf, ends="()")
        if self.w != 1 and (self.labels is None or self.null is None):
            raise ValueError(
                f"w must be 1 without labels in data and a null label, got {self.w}; "
                "pass data=(x, labels) and null=…"
            )
        if self.batch_size is not None:
            self.batch_size = checks.integer("batch_size", self.batch_size, 1)
        if self.memory is not None:
            checks.within("memory", self.memory, 0, np.inf, ends="()")
            self.memory = float(self.memory)
        for name, arguments in _FUNCTIONS.items():
            if getattr(self, name) is not None:
                _function(name, getattr(self, name), arguments)
        if self.average is not None:
            _callable("average", self.average)
        if self.samples is not None:
            self.samples = self._checked_samples()
        if self.history is not None:
            self.history = _losses(self.history)
        if self.control is not None:
            self.control = _control(self.control)

    def _checked_samples(self) -> np.ndarray:
        samples = np.asarray(checks.state("samples", self.samples))
        if samples.shape[1:] != self.x.shape[1:] or len(samples) < 2:
            raise ValueError(
                f"samples must have shape [n, …] of the data's examples, {list(self.x.shape[1:])}, "
                f"with n >= 2, got shape {list(samples.shape)}"
            )
        return samples

    # ------------------------------------------------------------------------ the data

    @cached_property
    def rows(self) -> np.ndarray:
        """Which examples the checks look at: ROWS of them, from all over the data."""
        return np.linspace(0, len(self.x) - 1, ROWS).round().astype(int)

    @cached_property
    def x0(self) -> Array:
        """These examples, [ROWS, …]."""
        return jnp.asarray(self.x[self.rows])

    @cached_property
    def cond(self):
        """Their labels; None without any."""
        return None if self.labels is None else jnp.asarray(self.labels[self.rows])

    @cached_property
    def std(self) -> float:
        """Standard deviation of the data's numbers around each number's own mean."""
        return float(np.sqrt(max(self.x.var(axis=0).mean(), 1e-12)))

    def key(self, name: str) -> Array:
        """A random key of its own for each purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), sum(name.encode()))

    # --------------------------------------------------------------------- the network

    @cached_property
    def module(self) -> bool:
        """Whether the model is an NNX module, whose parameters can be looked at."""
        return isinstance(self.model, nnx.Module)

    def state(self):
        """The parameters and other variables of the model; Unchecked if it has none to show."""
        if not self.module:
            raise Unchecked("the model is a function, and its parameters are out of sight")
        return nnx.state(self.model)

    def predict(self, x, t, cond=None, model=None) -> Array:
        """The network's raw output for ROWS examples, [ROWS, …], scaled as its kind wants it."""
        name, model = ("model", self.model) if model is None else ("average", model)
        t = jnp.full(len(x), t, jnp.float32) if np.ndim(t) == 0 else jnp.asarray(t, jnp.float32)
        try:
            if not isinstance(model, nnx.Module):
                return self._of_function(model, x, t, cond)
            graph, state = nnx.split(model)
            return _of_module(graph, state, x, t, cond)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            labels = "no cond" if cond is None else f"cond {list(cond.shape)}"
            raise ValueError(
                f"{name} must take what data holds, x {list(x.shape)}, t {list(t.shape)} and "
                f"{labels}, inside jax.jit, got {_first_line(error)}"
            ) from error

    def _of_function(self, model, *inputs) -> Array:
        # The model stays in the table, so that no other one gets its identity.
        place = (id(model), *(None if a is None else jnp.shape(a) for a in inputs))
        if place not in self._programs:
            self._programs[place] = (model, compiled(partial(call, model), *inputs))
        return self._programs[place][1](*inputs)

    @cached_property
    def _programs(self) -> dict:
        """What `_of_function` has compiled."""
        return {}

    def scaled(self, x: Array, t) -> Array:
        """The network's input: only the kind "edm" scales it."""
        if self.kind != "edm":
            return x
        alpha, sigma = levels(self.process, t, x)
        return x / jnp.hypot(alpha * self.process.sigma_data, sigma)

    def denoiser(self, cond=None, model=None) -> Callable:
        """D(x, t), in calls of ROWS examples each, so that nothing new is compiled."""

        def D(x, t):
            y = self.predict(self.scaled(x, t), t, cond, model)
            return to_x0(self.kind, self.process, y, x, t)

        return D

    def nulls(self, cond):
        """The condition "nothing", for as many examples; Unchecked without one."""
        if self.null is None or cond is None:
            raise Unchecked("the model has no null label: pass null=…")
        return jnp.broadcast_to(jnp.asarray(self.null, cond.dtype), cond.shape)

    # ---------------------------------------------------------------------- noise levels

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The examples at up to five noise levels; Unchecked if the process has none of them."""
        p, found = self.process, []
        eps = jax.random.normal(self.key("levels"), self.x0.shape)
        times = time_at(p, -2 * np.log(np.array(_RATIOS) * self.std))
        rows = (np.asarray(a).tolist() for a in (times, p.alpha(times), p.sigma(times)))
        for ratio, t, alpha, sigma in zip(_RATIOS, *rows, strict=True):
            # A chain's times lie where they are; a level that the process does not have is none.
            if not (0 < t < 1 and 0.5 < sigma / max(alpha * self.std, 1e-30) / ratio < 2):
                continue
            x_t = add_noise(p, self.x0, eps, t)
            y = self.predict(self.scaled(x_t, t), t, self.cond)
            found.append(Level(ratio, t, x_t, y, self._linear(x_t, alpha, sigma)))
        if not found:
            raise Unchecked("the process has none of the noise levels that the checks look at")
        return tuple(found)

    def _linear(self, x_t: Array, alpha: float, sigma: float) -> float:
        mean, variance = self.x.mean(axis=0), self.x.var(axis=0)
        gain = alpha * variance / np.maximum(alpha**2 * variance + sigma**2, 1e-30)
        return self.error(mean + gain * (x_t - alpha * mean))

    def error(self, x0) -> float:
        """Mean squared error of estimates of the examples."""
        return float(jnp.mean((x0 - self.x0) ** 2))

    def errors_of(self, outputs, kind: str | None = None) -> np.ndarray:
        """The same for a network's outputs, one [ROWS, …] for each level: [levels]."""
        # All levels at once: what is not compiled costs as much for one as for five.
        x_t = jnp.concatenate([level.x_t for level in self.levels])
        t = np.repeat(np.float32([level.t for level in self.levels]), ROWS)
        kind = self.kind if kind is None else kind
        x0 = np.asarray(to_x0(kind, self.process, jnp.concatenate(list(outputs)), x_t, t))
        differences = x0.reshape(-1, *self.x0.shape) - np.asarray(self.x0)
        return np.mean(differences.reshape(len(self.levels), -1) ** 2, axis=1, dtype=np.float64)

    @cached_property
    def linear(self) -> np.ndarray:
        """The linear denoiser's mean squared error at each level, [levels]."""
        return np.array([level.linear for level in self.levels])

    @cached_property
    def own_errors(self) -> np.ndarray:
        """The model's mean squared error at each level, [levels]."""
        return self.errors_of([level.y for level in self.levels])

    @property
    def errors(self) -> np.ndarray:
        """The same over that of the linear denoiser."""
        return self.own_errors / self.linear

    @cached_property
    def told(self) -> tuple[Told, ...]:
        """For each level its error at other times, _TRIED of them."""
        times = (np.arange(_TRIED) + 0.5) / _TRIED
        inputs = [self.scaled(level.x_t, level.t) for level in self.levels]
        errors = [self.errors_of([self.predict(x, t, self.cond) for x in inputs]) for t in times]
        # NaN at one of the times is no reason to prefer it.
        errors = np.nan_to_num(errors, nan=np.inf)
        return tuple(
            Told(float(own), float(column.min()), float(times[column.argmin()]))
            for own, column in zip(self.own_errors, errors.T, strict=True)
        )

    # --------------------------------------------------------------------------- samples

    @cached_property
    def drawn(self) -> np.ndarray:
        """The samples that are looked at: the reader's own, or ROWS drawn here."""
        if self.samples is not None:
            return self.samples
        if self.generate is not None:
            return self.generated(self.key("samples"))
        return self.draw()

    def generated(self, key, model=None) -> np.ndarray:
        """Samples by the reader's own function, with the examples' labels."""
        model = self.model if model is None else model
        x, shape = np.asarray(self.generate(model, key, ROWS, self.cond)), self.x0.shape
        if x.shape != shape:
            raise ValueError(f"generate must return shape {list(shape)}, got {list(x.shape)}")
        return x

    def draw(self, w: float | None = None, times=None) -> np.ndarray:
        """ROWS samples by the reader's sampler, from the same noise at every call."""
        w, times = self.w if w is None else w, self.times if times is None else times
        D = self.denoiser(self.cond)
        if w != 1:
            D = classifier_free(D, self.denoiser(self.nulls(self.cond)), w)
        x = sampling.start_noise(self.process, self.key("start"), self.x0.shape, float(times[0]))
        if float(determinant(self.kind, self.process, times[0])) == 0:
            raise Unchecked(f'kind "{self.kind}" has no estimate of x0 where the sampler starts')
        state, key = self.sampler.init(x), self.key("steps")
        for i, (t, s) in enumerate(pairwise(times)):
            x, state = self.sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)
        return np.asarray(x)


def _pair(data) -> tuple[np.ndarray, np.ndarray | None]:
    """Examples [N, …] and labels [N, …] or None; ValueError for anything else."""
    if isinstance(data, Dataset):
        data = (data.x, data.labels)
    if isinstance(data, list) and len(data) == 2 and np.ndim(data[0]) > 1:
        raise ValueError("data must be a tuple (x, labels) or x alone, got a list of two")
    x, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    x = np.asarray(checks.state("data", x))
    if x.ndim < 2 or len(x) < 8:
        raise ValueError(f"data must hold examples [N, …] with N >= 8, got shape {list(x.shape)}")
    if not np.isfinite(x).all():
        raise ValueError("data must be finite, got NaN or infinity")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape[:1] != (len(x),):
            raise ValueError(
                f"data must hold {len(x)} labels, one per example, got shape {list(labels.shape)}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"data must hold labels that are whole numbers, got {labels.dtype}")
    few = np.linspace(0, len(x) - 1, min(len(x), _MOST)).round().astype(int)
    return x[few], None if labels is None else labels[few].astype(np.int32)


def _callable(name: str, model) -> None:
    if not callable(model) or inspect.isclass(model):
        given = model if inspect.isclass(model) else _named(model)
        raise ValueError(f"{name} must be callable as model(x, t, cond), got {given}")


def _named(given) -> str:
    """What was given, in a few words: a data set or an array would fill the screen."""
    return repr(given) if given is None or isinstance(given, int | float) else type(given).__name__


# What each function of the reader's own is called with.
_FUNCTIONS = {
    "loss": "model, x, labels, key",
    "step": "model, x, labels, key",
    "generate": "model, key, n, labels",
}


def _function(name: str, f, arguments: str) -> None:
    rule = f"{name} must be a function f({arguments})"
    if not callable(f):
        raise ValueError(f"{rule}, got {f!r}")
    try:
        signature = inspect.signature(f)
    except ValueError:  # of a built-in
        return
    try:
        signature.bind(*arguments.split(", "))
    except TypeError as error:
        raise ValueError(f"{rule}, got f{signature}") from error


def _null(null, labels: np.ndarray) -> None:
    rule = "null must be one label" if labels.ndim == 1 else "null must be one caption"
    rule += f", of shape {list(labels.shape[1:])} and whole numbers"
    null = np.asarray(null)
    if null.shape not in ((), labels.shape[1:]) or not np.issubdtype(null.dtype, np.integer):
        raise ValueError(f"{rule}, got shape {list(null.shape)} of {null.dtype}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _losses(history) -> np.ndarray:
    """A row of losses, long enough for its parts to be compared; ValueError for anything else."""
    try:
        losses = np.asarray(history, np.float64)
    except (TypeError, ValueError):
        losses = np.zeros(0)
    if losses.ndim != 1 or len(losses) < _LOSSES:
        raise ValueError(
            f"history must hold at least {_LOSSES} losses in one row, "
            f"got shape {list(losses.shape)}"
        )
    return losses


def _control(control) -> tuple[Callable, Array]:
    """A function and ROWS images for it; ValueError for anything else."""
    steer, images = control if isinstance(control, tuple) and len(control) == 2 else (None, None)
    if not callable(steer) or np.ndim(images) < 2 or len(images) < ROWS:
        raise ValueError(
            f"control must be a pair (steer, images) with at least {ROWS} images, "
            f"got {type(control).__name__}"
        )
    return steer, jnp.asarray(images, jnp.float32)[:ROWS]


def call(model, x, t, cond):
    """The model's output, in float32; a model of two arguments is not told the condition."""
    y = model(x, t, cond) if takes_condition(model) else model(x, t)
    return jnp.asarray(y, jnp.float32)


def compiled(f: Callable, *inputs) -> Callable:
    """The function, compiled for such inputs; arrays that it closes over become arguments.

    As constants, a network's weights would be folded into the program, which takes long.
    """
    closed = jax.make_jaxpr(f)(*inputs)
    constants = [jnp.asarray(constant) for constant in closed.consts]
    run = jax.jit(partial(jax.core.eval_jaxpr, closed.jaxpr))
    return lambda *inputs: run(constants, *jax.tree.leaves(inputs))[0]


def takes_condition(model) -> bool:
    """Whether model(x, t, cond) can be called."""
    try:
        inspect.signature(model).bind(0, 0, 0)
    except TypeError:
        return False
    return True


@partial(jax.jit, static_argnums=0)
def _of_module(graph, state, x, t, cond):
    # A merged copy: what a module changes in itself while it is called stays inside.
    return call(nnx.merge(graph, state), x, t, cond)


def relative(a: Array, b: Array) -> float:
    """Root mean square of a − b over that of b; 0 where both are 0."""
    size = float(jnp.sqrt(jnp.mean(b**2)))
    return float(jnp.sqrt(jnp.mean((a - b) ** 2))) / max(size, 1e-30)
