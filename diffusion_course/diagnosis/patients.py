"""Sick models and samplers, each really run, on which `diagnose` is tested and the clinic teaches.

They are made of the released weights of the digits and of the points in the plane, with one thing
wrong; where the fault is one of training, a small network is trained with it.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from diffusion_course import checks, data, losses, process, samplers, sampling, weights
from diffusion_course.denoiser import denoiser, gaussian_mixture, ideal
from diffusion_course.models.control import ControlNet, edges
from diffusion_course.models.mlp import MLP


class Patient(NamedTuple):
    """A fault, and how to get it.

    Attributes:
      symptom: what one sees.
      finding: the name of the finding, or of the note, that `diagnose` gives.
      make: ``() -> dict``, the arguments of `diagnose`.
    """

    symptom: str
    finding: str
    make: Callable[[], dict[str, Any]]


@cache
def _released(name: str) -> dict:
    """The arguments that describe released weights and their data; all healthy."""
    released = weights.load(name)
    options = {"kind": "mixture", "n": 2000} if name == "toy2d" else {}
    arguments = {"model": released.model, "process": released.process, "kind": released.card.kind}
    return arguments | {"data": data.load(name, **options)}


def _toy() -> dict:
    return dict(_released("toy2d"))


def _digits() -> dict:
    return dict(_released("digits"))


# ------------------------------------------------------------------- networks with one fault


class DeadTime(nnx.Module):
    """A network that is told the same time whatever the time is."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, t, cond=None):
        return self.model(x, jnp.full_like(t, 0.5), cond)


class Deaf(nnx.Module):
    """A network that is told the null label whatever the label is."""

    def __init__(self, model):
        self.model, self.null_label = model, model.null_label

    def __call__(self, x, t, cond=None):
        return self.model(x, t, jnp.full_like(cond, self.null_label))


class Minus(nnx.Module):
    """A network whose velocity points the other way."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, t, cond=None):
        return -self.model(x, t, cond)


class Dense(nnx.Module):
    """A plain network for points, with something between its layers.

    Args:
      between: what the features pass through: a layer, or None.
      extra: whether a layer is made that is never called.
    """

    def __init__(self, between=None, extra: bool = False, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 64, rngs=rngs)
        self.between = between
        self.last = nnx.Linear(64, 2, rngs=rngs)
        self.extra = nnx.Linear(64, 64, rngs=rngs) if extra else None

    def __call__(self, x, t):
        h = nnx.silu(self.first(jnp.concatenate([x, t[:, None]], axis=1)))
        return self.last(h if self.between is None else self.between(h))


def closure(rngs: nnx.Rngs) -> nnx.Module:
    """A network most of whose layers NNX doesn't see: they live in a function."""
    hidden = [nnx.Linear(64, 64, rngs=rngs) for _ in range(2)]

    class Closure(nnx.Module):
        def __init__(self):
            self.first, self.last = nnx.Linear(3, 64, rngs=rngs), nnx.Linear(64, 2, rngs=rngs)

        def __call__(self, x, t):
            h = self.first(jnp.concatenate([x, t[:, None]], axis=1))
            for layer in hidden:
                h = h + layer(nnx.silu(h))
            return self.last(nnx.silu(h))

    return Closure()


# ------------------------------------------------------------------------------- trainings


def toy_loss(model, x, labels, key):
    """The loss of the points' network."""
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, labels, key)


def frozen_loss(model, x, labels, key):
    """The same, of parameters that are taken for constants."""
    graph, params = nnx.split(model)
    return toy_loss(nnx.merge(graph, jax.lax.stop_gradient(params)), x, labels, key)


_value = jax.jit(toy_loss)


def constant_step(model, x, labels, key, rate: float = 0.1):
    """A training step that differentiates a loss which was computed before."""
    loss = _value(model, x, labels, key)
    grads = nnx.grad(lambda m: loss)(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda a, g: a - rate * g, params, grads))
    return loss


@cache
def trained(rate: float, steps: int, start: str = "random", decay: float = 0.0):
    """Trains the points' network with Adam at a constant rate, without clipping or warm-up.

    Args:
      rate: learning rate.
      steps: of 128 points each.
      start: "random" or "released", the first weights.
      decay: of a moving average that begins with the first weights.

    Returns: the model, its average, and the loss of every step.
    """
    checks.one_of("start", start, ("random", "released"))
    points = _toy()["data"]
    model = MLP(num_classes=3, rngs=nnx.Rngs(0)) if start == "random" else _toy()["model"]
    graph, params = nnx.split(model)
    rows = np.random.default_rng(0).integers(0, len(points), (steps, 128))
    batches = points.x[rows], points.labels[rows], jnp.arange(steps)
    params, average, history = _train(graph, params, batches, rate, decay)
    return nnx.merge(graph, params), nnx.merge(graph, average), np.asarray(history)


@partial(jax.jit, static_argnums=0)
def _train(graph, params, batches, rate, decay):
    """All steps as one program, which serves every rate and decay."""
    optimizer = optax.adam(rate)

    def step(carry, batch):
        (params, state, average), (x, labels, n) = carry, batch
        key = jax.random.fold_in(jax.random.key(0), n)
        value, grads = jax.value_and_grad(
            lambda params: toy_loss(nnx.merge(graph, params), x, labels, key)
        )(params)
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, state, average), value

    start = params, optimizer.init(params), params
    (params, _, average), history = jax.lax.scan(step, start, batches)
    return params, average, history


# ---------------------------------------------------------------------- sampling functions


def compiles_inside(model, key, n, labels):
    """Sampling that makes its compiled function anew at every call."""
    p = process.vp_cosine()

    @jax.jit
    def run(key):
        x = jax.random.normal(key, (n, 2))
        D = denoiser(model, p, "v", labels)
        return sampling.sample(samplers.ddim(p), D, x, sampling.uniform(10), key)[0]

    return run(key)


@cache
def _generate():
    p = process.vp_cosine()
    return sampling.generator(p, "v", samplers.ddim(p), sampling.uniform(10), (2,))


def generate(model, key, n, labels):
    """Healthy sampling of points: compiled once, with the model as an argument."""
    return _generate()(model, key, n, labels)


def own_key(model, key, n, labels):
    """Sampling that doesn't use its key."""
    return generate(model, jax.random.key(0), n, labels)


def pushed(model, key, n, labels):
    """Sampling with guidance inside, five times as strong as is good for it."""
    return _generate()(model, key, n, labels, 15.0)


@jax.jit
def _with_corrector(model, x, key):
    """A Langevin step after the last step of the sampler, at t = 0."""
    p, t = process.vp_cosine(), 0.0
    score = (p.alpha(t) * x - x) / p.sigma(t) ** 2  # 0/0
    return x + 0.5 * p.sigma(t) ** 2 * score + p.sigma(t) * jax.random.normal(key, x.shape)


def corrected(model, key, n, labels):
    """Sampling that ends with a step that divides by sigma(0)."""
    return _with_corrector(model, generate(model, key, n, labels), key)


@cache
def _pictures(cast: float = 0.0) -> dict:
    """Colour pictures of two patterns and their exact denoiser, with its own sampling function.

    Args:
      cast: what is added to the red of every sample.
    """
    p, rng, shape = process.vp_cosine(), np.random.default_rng(0), (6, 6, 3)
    pattern = 0.5 * np.sign(rng.permuted(np.linspace(-1, 1, 36)[:, None].repeat(3, 1), axis=0))
    means = np.array([0.3, 0.0, -0.3]) + np.stack([pattern, -pattern])  # [2, 36, 3]
    gm = gaussian_mixture(p, means.reshape(2, -1), [0.25, 0.25], [0.5, 0.5])

    def model(x, t, cond=None):
        return gm.denoise(x.reshape(len(x), -1), t).reshape(x.shape)

    @partial(jax.jit, static_argnames="n")
    def run(key, n):
        start, steps = jax.random.split(key)
        x = sampling.start_noise(p, start, (n, *shape), 1.0)
        return sampling.sample(samplers.ddim(p), model, x, sampling.uniform(25), steps)[0]

    def draw(model, key, n, labels):
        return run(key, n) + jnp.array([cast, 0.0, 0.0])

    x = np.asarray(gm.sample(jax.random.key(0), 400)).reshape(-1, *shape)
    return {"model": model, "process": p, "kind": "x0", "data": x, "generate": draw}


def one_start() -> np.ndarray:
    """Samples of eight starts, each used for eight of the 64 samples."""
    toy = _toy()
    labels = np.arange(64) % 3
    x = np.asarray(generate(toy["model"], jax.random.key(0), 64, jnp.asarray(labels)))
    return np.repeat(x[:8], 8, axis=0)


# -------------------------------------------------------------------------------- patients


def _with(base: Callable[[], dict], **changes) -> Callable[[], dict]:
    """Healthy arguments with changes; a change that is a function of none is called first."""
    return lambda: base() | {name: f() if callable(f) else f for name, f in changes.items()}


def _ideal(betas: np.ndarray, base: Callable[[], dict] = _digits, n: int = 400) -> dict:
    """The exact denoiser of a few digits, for a chain of these betas."""
    p, x = process.from_betas(betas), base()["data"].x[:n]
    D = ideal(p, x)
    return {"model": lambda x, t, cond=None: D(x, t), "process": p, "kind": "x0", "data": x}


def brightness(betas: np.ndarray) -> dict:
    """Pictures of nine brightnesses with some grain, and their exact denoiser for these betas."""
    p = process.from_betas(betas)
    means = np.linspace(-1, 1, 9)[:, None].repeat(64, axis=1)
    gm = gaussian_mixture(p, means, [0.25] * 9, [1 / 9] * 9)

    def model(x, t, cond=None):
        return gm.denoise(x.reshape(len(x), -1), t).reshape(x.shape)

    x = np.asarray(gm.sample(jax.random.key(0), 400)).reshape(-1, 8, 8, 1)
    return {"model": model, "process": p, "kind": "x0", "data": x}


def _as_eps() -> dict:
    """A denoiser of few digits that predicts the noise, on a schedule that keeps no signal."""
    p, x = process.vp_cosine(), _digits()["data"].x[:400]
    D = ideal(p, x)

    def model(x, t, cond=None):
        alpha, sigma = (f(t)[:, None, None, None] for f in (p.alpha, p.sigma))
        return (x - alpha * D(x, t)) / sigma

    return {"model": model, "process": p, "kind": "eps", "data": x}


def _control() -> dict:
    digits = _digits()
    base, images = digits["model"], edges(jnp.asarray(digits["data"].x[:64]))
    control = ControlNet(base, rngs=nnx.Rngs(0))
    return digits | {"control": (lambda images: control.steer(base, images), images)}


def _plain(model, loss=None) -> dict:
    return _toy() | {"model": model, "data": _toy()["data"].x, "loss": loss}


def _broken_average() -> dict:
    model, average, _ = trained(5e-3, 400, decay=0.9999)
    return _toy() | {"model": model, "average": average}


PATIENTS = {
    "blur": Patient(
        "digits are soft smudges",
        "blur",
        _with(_digits, times=lambda: sampling.uniform(1)),
    ),
    "unstable": Patient(
        "the loss explodes in its first steps, and doesn't come back",
        "unstable training",
        lambda: _toy() | dict(zip(("model", "history"), trained(0.3, 300)[::2], strict=True)),
    ),
    "slow": Patient(
        "every call of the sampler takes as long as the first",
        "compiled again and again",
        _with(_toy, generate=lambda: compiles_inside),
    ),
    "repetitive": Patient(
        "the same points at every call",
        "repetitive samples",
        _with(_toy, generate=lambda: own_key),
    ),
    "few starts": Patient(
        "a batch of 64 samples holds eight",
        "repetitive samples",
        _with(_toy, samples=one_start),
    ),
    "out of memory": Patient(
        "the training step ends with RESOURCE_EXHAUSTED",
        "out of memory",
        _with(_toy, loss=lambda: toy_loss, batch_size=2**22, memory=8e9),
    ),
    "colour shift": Patient(
        "no image is as dark or as bright as the darkest and the brightest of the data",
        "signal at the start",
        lambda: brightness(process.linear_betas(200)),
    ),
    "colour cast": Patient(
        "every picture is too red",
        "colour shift",
        lambda: _pictures(cast=0.3),
    ),
    "grey images": Patient(
        "the samples look washed out beside the data",
        "data range",
        lambda: _digits() | {"data": 0.5 + 0.5 * _digits()["data"].x},
    ),
    "control ignored": Patient(
        "the edges that are given change nothing",
        "control ignored",
        _control,
    ),
    "NaN": Patient(
        "the loss is NaN from one step on, and so is everything after it",
        "NaN in the parameters",
        lambda: _toy() | {"model": trained(1e20, 300)[0]},
    ),
    "NaN at the start": Patient(
        "the first step of the sampler gives NaN, though the training was fine",
        "NaN at the start",
        _as_eps,
    ),
    "NaN in the samples": Patient(
        "every sample is NaN, though no state of the sampler was",
        "NaN in the samples",
        _with(_toy, generate=lambda: corrected),
    ),
    "plateau that is none": Patient(
        "the loss doesn't fall any more",
        "plateau that is none",
        lambda: (
            _toy()
            | dict(zip(("model", "history"), trained(1e-5, 300, "released")[::2], strict=True))
        ),
    ),
    "guidance too strong": Patient(
        "harsh contrast, saturated pixels, all sevens alike",
        "guidance too strong",
        _with(_digits, w=15.0),
    ),
    "samples out of range": Patient(
        "points lie outside the data, and w is 1 as far as one can see",
        "samples out of range",
        _with(_toy, generate=lambda: pushed),
    ),
    "condition ignored": Patient(
        "asking for one class gives any class",
        "condition ignored",
        lambda: _toy() | {"model": Deaf(_toy()["model"])},
    ),
    "shuffled labels": Patient(
        "asking for one class gives any class, though the output changes with the label",
        "labels of other images",
        lambda: _toy() | {"data": (_toy()["data"].x, np.roll(np.sort(_toy()["data"].labels), 300))},
    ),
    "gradient of a constant": Patient(
        "the loss is printed happily and stays where it is",
        "gradient of a constant",
        _with(_toy, step=lambda: constant_step),
    ),
    "stopped gradient": Patient(
        "the same, from the loss itself",
        "gradient of a constant",
        _with(_toy, loss=lambda: frozen_loss),
    ),
    "unused layer": Patient(
        "a layer keeps its random weights",
        "parameters that don't train",
        lambda: _plain(
            Dense(extra=True, rngs=nnx.Rngs(0)),
            lambda model, x, labels, key: toy_loss(lambda x, t, _: model(x, t), x, None, key),
        ),
    ),
    "temperature as a cure": Patient(
        "samples were too alike, so the noise was turned up: now they are grainy",
        "too much noise in the sampler",
        lambda: _toy() | {"sampler": samplers.ddpm(process.vp_cosine(), temperature=1.3)},
    ),
    "sampler without noise": Patient(
        "ancestral sampling gives a few smooth shapes",
        "too little noise in the sampler",
        lambda: _toy() | {"sampler": samplers.ddpm(process.vp_cosine(), temperature=0.0)},
    ),
    "dead time embedding": Patient(
        "the loss falls, and samples stay noisy",
        "dead time embedding",
        lambda: _toy() | {"model": DeadTime(_toy()["model"])},
    ),
    "schedule mismatch": Patient(
        "a trained network gives blotches",
        "schedule mismatch",
        lambda: _toy() | {"process": process.from_betas(process.linear_betas(1000))},
    ),
    "another kind": Patient(
        "a network that has trained well gives noise",
        "another kind",
        _with(_toy, kind="x0"),
    ),
    "velocity the other way": Patient(
        "samples fly apart",
        "another kind",
        lambda: _toy() | {"model": Minus(_toy()["model"])},
    ),
    "noise left": Patient(
        "all samples are grainy",
        "noise left",
        _with(_toy, times=lambda: sampling.uniform(25)[:-1]),
    ),
    "hidden layers": Patient(
        "a network of 9,000 numbers trains 400 of them",
        "hidden layers",
        lambda: _plain(closure(nnx.Rngs(0))),
    ),
    "batch norm": Patient(
        "a sample depends on which others are drawn with it",
        "batch in one example",
        lambda: _plain(Dense(nnx.BatchNorm(64, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))),
    ),
    "dropout left on": Patient(
        "samples are rougher than the loss promises",
        "training mode",
        lambda: _plain(Dense(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))),
    ),
    "average of random weights": Patient(
        "the averaged weights are worse than the last ones",
        "average of random weights",
        _broken_average,
    ),
    "nothing learnt": Patient(
        "noise comes out",
        "nothing learnt",
        lambda: _toy() | {"model": MLP(num_classes=3, rngs=nnx.Rngs(0))},
    ),
    "learnt by heart": Patient(
        "every sample is an image of the training data",
        "copies of the data",
        lambda: _ideal(process.cosine_betas(1000)),
    ),
}
