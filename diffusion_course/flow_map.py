"""The flow map: from the state at t to the state at s in one evaluation, and how it is learnt.

``X(x, t, s)`` is where the probability flow that passes x at time t is at time s < t. Any such map
is DDIM's step with an estimate of x0 of its own, ``G(x, t, s)``:

    X(x, t, s) = sigma_s/sigma_t·x + (alpha_s − alpha_t·sigma_s/sigma_t)·G(x, t, s)

So X(x, t, t) = x holds by itself, whatever G is. G(x, t, t) is the denoiser, G(x, t, 0) a
consistency model, and on a rectified flow (x − G)/t is the mean velocity from t to s. Three
equations tell the right map from others, and each is a way to learn it:

    semigroup      X(X(x, t, m), m, s) = X(x, t, s)             two steps are one
    derivative     d/dt X(x_t, t, s) = 0 along the flow's path
    distribution   X(noise, 1, 0) is distributed as the data
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser, check_cond, network_output
from diffusion_course.parameterization import determinant, to_x0
from diffusion_course.process import Process, add_noise, expand, levels
from diffusion_course.samplers import Sampler, no_memory
from diffusion_course.steps import denoise, hold, state_at

# G(x, t, s) -> the estimate of x0 with which DDIM's step from t to s is the jump; t and s are
# scalars or [B].
Jump = Callable[[Array, Array, Array], Array]
# From errors [B, …] to a distance for each example, [B].
Distance = Callable[[Array], Array]


def network_jump(model, p: Process, kind: str, cond: Array | None = None) -> Jump:
    """The jump of a network that is told t and, as its one extra number, t − s.

    Args:
      model: ``model(x, t, cond, extras)``, built with ``extras=1``.
      p: the process.
      kind: what the network predicts: the target of the estimate G.
      cond: labels [B], tokens [B, L] or None.

    Returns: G(x, t, s).
    Source: the average velocity of MeanFlow (Geng et al. 2025, arXiv:2505.13447) for any process
    and any kind of prediction.
    """

    def jump(x, t, s):
        t, s = (jnp.broadcast_to(jnp.asarray(a, jnp.float32), x.shape[:1]) for a in (t, s))
        told = lambda x, t, cond: model(x, t, cond, (t - s)[:, None])  # noqa: E731
        return to_x0(kind, p, network_output(told, p, kind, x, t, cond), x, t)

    return jump


def of_denoiser(D: Denoiser) -> Jump:
    """A denoiser as a jump that does not know where it ends: its steps are DDIM's."""
    return lambda x, t, s: denoise(D, x, t)


def to_data(G: Jump) -> Denoiser:
    """The estimate of the jump to s = 0: a consistency model, for samplers, guidance, editing."""
    return lambda x, t: G(x, t, jnp.zeros_like(t))


def land(p: Process, G: Jump, x: Array, t, s) -> Array:
    """X(x, t, s): the state at s, [B, …]; x itself where no noise is left at t.

    Args:
      p: the process.
      G: the jump's estimate.
      x: states [B, …] at t.
      t: a scalar or [B].
      s: at most t, a scalar or [B].

    Raises: ValueError if G returns another shape, which would broadcast.
    """
    noisy = levels(p, t, x)[1] > 0
    return jnp.where(noisy, hold(p, x, _estimate(G, x, t, s), t, s), x)


def _estimate(G: Jump, x: Array, t, s) -> Array:
    """G(x, t, s). Raises: ValueError if it is not of x's shape."""
    x0 = G(x, t, s)
    checks.same_shape("G(x, t, s)", x0, "x", x)
    return x0


def estimate_of(p: Process, x_t: Array, x_s: Array, t, s) -> Array:
    """The estimate G with which DDIM's step from x_t lands at x_s: the inverse of `land`.

    Args:
      p: the process.
      x_t: states [B, …] at t.
      x_s: states at s.
      t: a scalar or [B], with noise.
      s: below t.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(p, t, x_t), levels(p, s, x_t)
    shrink = sigma_s / sigma_t
    return (x_s - shrink * x_t) / (alpha_s - alpha_t * shrink)


# --------------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------------


def jumps(p: Process) -> Sampler:
    """Runs along a grid by the flow map: the sampler's D is a jump ``G(x, t, s)``.

    Deterministic, one evaluation per step.
    """

    def step(D, x, t, s, key, state):
        return land(p, D, x, t, s), state

    return Sampler(no_memory, step)


def consistency(p: Process) -> Sampler:
    """Multistep consistency sampling: jump to the data, and noise the result anew to s.

    D is an ordinary denoiser, such as `to_data` of a jump, so that guidance and editing compose.
    One evaluation per step; the step to s = 0 returns D(x, t).

    Source: Song et al. 2023, algorithm 1 (arXiv:2303.01469).
    """

    def step(D, x, t, s, key, state):
        fresh = jax.random.normal(key, x.shape, x.dtype)
        return state_at(p, denoise(D, x, t), fresh, s), state

    return Sampler(no_memory, step)


# --------------------------------------------------------------------------------------------
# Distances
# --------------------------------------------------------------------------------------------


def squared(error: Array) -> Array:
    """The mean square of each example's error: [B, …] -> [B]."""
    return jnp.mean(error.reshape(error.shape[0], -1) ** 2, axis=-1)


def pseudo_huber(c: float) -> Distance:
    """``√(‖error‖² + c²) − c``: a square for errors below c, their length above.

    Raises: ValueError unless c is positive.
    Source: Song & Dhariwal 2024, section 3.3 (arXiv:2310.14189), with c = .00054·√(dimensions).
    """
    checks.above("c", c, 0)

    def distance(error):
        length2 = jnp.sum(error.reshape(error.shape[0], -1) ** 2, axis=-1)
        # √(a + c²) − c loses its digits for small a; this is the same.
        return length2 / (jnp.sqrt(length2 + c**2) + c)

    return distance


# --------------------------------------------------------------------------------------------
# Semigroup: two steps are one
# --------------------------------------------------------------------------------------------


def landing_loss(
    p: Process, kind: str, G: Jump, x: Array, t, s, landed: Array, distance: Distance = squared
) -> Array:
    """How far a jump is from landing where it should, a scalar.

    The error is that of a prediction of the given kind: an error d of x0 counts ``d·det/sigma``.
    The state to land at is a target: no gradient flows into it.

    Args:
      p: the process.
      kind: in whose units the error is.
      G: the jump that is learnt.
      x: states [B, …] at t.
      t: times [B], with noise.
      s: times [B] below t.
      landed: the states at s to land at, [B, …].
      distance: of an error, [B, …] -> [B].

    Raises: ValueError for a `landed`, or a G, of another shape than x.
    """
    checks.same_shape("landed", landed, "x", x)
    wanted = jax.lax.stop_gradient(estimate_of(p, x, landed, t, s))
    scale = determinant(kind, p, t) / p.sigma(t)
    return jnp.mean(distance(expand(scale, x) * (_estimate(G, x, t, s) - wanted)))


def progressive_loss(
    G: Jump, p: Process, kind: str, x0: Array, key: Array, teacher: Denoiser, steps: int
) -> Array:
    """Progressive distillation: one DDIM step of the student is two half steps of its teacher.

    Args:
      G: the student, `of_denoiser` of a network without extras.
      p: the process.
      kind: what the student predicts.
      x0: data [B, …].
      key: a random key.
      teacher: the denoiser that takes twice as many steps; it may be guided.
      steps: that the student will take from t = 1 to 0.

    Raises: ValueError for fewer than one step.
    Source: Salimans & Ho 2022, algorithm 2 (arXiv:2202.00512), without their weight.
    """
    key_time, key_noise = jax.random.split(key)
    t = _grid_times(key_time, x0, steps)
    x = add_noise(p, x0, jax.random.normal(key_noise, x0.shape), t)
    middle, s = t - 0.5 / steps, t - 1 / steps
    by_teacher = of_denoiser(teacher)
    half = land(p, by_teacher, x, t, middle)
    return landing_loss(p, kind, G, x, t, s, land(p, by_teacher, half, middle, s))


def shortcut_loss(
    G: Jump, target: Jump, p: Process, kind: str, x0: Array, key: Array, lengths: int
) -> Array:
    """A shortcut model's self-consistency: a jump is two of its own, half as long.

    The jumps' lengths are 1, 1/2, … 2^(1 − lengths), their places multiples of the length. The two
    halves of the shortest are DDIM's steps with G(x, t, t), which is an ordinary denoiser and is
    learnt as such on another part of the batch, by `losses.diffusion_loss`.

    Args:
      G: the jump that is learnt.
      target: the same with averaged weights.
      p: the process.
      kind: what the model predicts.
      x0: data [B, …].
      key: a random key.
      lengths: how many of them there are, at least 1.

    Raises: ValueError for fewer than one length.
    Source: Frans et al. 2024, section 3 (arXiv:2410.12557).
    """
    lengths = checks.integer("lengths", lengths, 1)
    key_length, key_place, key_noise = jax.random.split(key, 3)
    halvings = jax.random.randint(key_length, x0.shape[:1], 0, lengths)
    count = 2**halvings
    place = jax.random.randint(key_place, x0.shape[:1], 0, count)  # below each example's count
    t, middle, s = ((place + part) / count for part in (1, 0.5, 0))
    x = add_noise(p, x0, jax.random.normal(key_noise, x0.shape), t)

    def short(x, t, s):
        return target(x, t, jnp.where(halvings == lengths - 1, t, s))

    half = land(p, short, x, t, middle)
    return landing_loss(p, kind, G, x, t, s, land(p, short, half, middle, s))


def consistency_loss(
    G: Jump,
    target: Jump,
    p: Process,
    kind: str,
    x0: Array,
    key: Array,
    *,
    steps: int,
    skip: int = 1,
    teacher: Denoiser | None = None,
    distance: Distance = squared,
) -> Array:
    """Consistency distillation or training: jumps to the data from neighbouring times agree.

    With a teacher the neighbour is one DDIM step of it away; without one it is the same example
    with the same noise, which is right on average for short steps.

    Args:
      G: the jump that is learnt; only its ends at s = 0 are.
      target: the same with averaged weights for distillation, G itself for training. It carries
        no gradient.
      p: the process.
      kind: what the model predicts.
      x0: data [B, …].
      key: a random key.
      steps: of the grid 1/steps, 2/steps, … 1 of times.
      skip: how many steps of this grid the neighbour is away, at most; it is never behind t = 0.
      teacher: the denoiser of the first step, which may be guided; None for training.
      distance: of an error.

    Raises: ValueError for fewer than one step, or a skip that is no part of the grid.
    Source: Song et al. 2023, algorithms 2 and 3 (arXiv:2303.01469); no average for training:
    Song & Dhariwal 2024, section 3.2 (arXiv:2310.14189); skip: Luo et al. 2023, section 4.3
    (arXiv:2310.04378), there k.
    """
    skip = checks.integer("skip", skip, 1, checks.integer("steps", steps, 1))
    key_time, key_noise = jax.random.split(key)
    t = _grid_times(key_time, x0, steps)
    eps = jax.random.normal(key_noise, x0.shape)
    x, before, end = add_noise(p, x0, eps, t), jnp.maximum(t - skip / steps, 0), jnp.zeros_like(t)
    if teacher is None:
        neighbour = add_noise(p, x0, eps, before)
    else:
        neighbour = land(p, of_denoiser(teacher), x, t, before)
    landed = land(p, target, neighbour, before, end)
    return landing_loss(p, kind, G, x, t, end, landed, distance)


def _grid_times(key: Array, x0: Array, steps: int) -> Array:
    """For each example one of the times 1/steps, 2/steps, … 1."""
    steps = checks.integer("steps", steps, 1)
    return jax.random.randint(key, x0.shape[:1], 1, steps + 1) / steps


# --------------------------------------------------------------------------------------------
# Derivative: along the flow's path nothing changes
# --------------------------------------------------------------------------------------------


def along_path(G: Jump, x: Array, t, s, slope: Array) -> tuple[Array, Array]:
    """G(x, t, s), and its derivative by t along a path with this slope, s held.

    By forward-mode differentiation: finite differences lose their digits in float32.

    Args:
      G: the jump.
      x: states [B, …] at t.
      t: times [B].
      s: times [B].
      slope: dx/dt of the path, [B, …].

    Returns: both [B, …]; the derivative per unit of t.
    """
    t = jnp.asarray(t, jnp.float32)
    return jax.jvp(lambda x, t: G(x, t, s), (x, t), (slope, jnp.ones_like(t)))


def mean_velocity_loss(
    model,
    x0: Array,
    cond: Array | None,
    key: Array,
    *,
    times: Callable[[Array, int], tuple[Array, Array]],
    guidance: float = 1.0,
    power: float = 1.0,
) -> Array:
    """MeanFlow: the mean velocity u(x, t, s) of a rectified flow, learnt from its derivative.

    ``u = v − (t − s)·du/dt`` holds for the mean velocity from t to s alone. The derivative is
    taken along the path, with the tangents (v, 1) of (x, t) and s held, and carries no gradient.

    Args:
      model: ``model(x, t, cond, extras)`` of kind "flow", built with ``extras=1``; a small
        ``time_scale`` keeps its derivative by t small.
      x0: data [B, …].
      cond: labels [B] or None.
      key: a random key.
      times: ``(key, n) -> (t, s)``, times [n] with s <= t; see `mean_flow_times`.
      guidance: w of the guided velocity that is learnt, ``w·v + (1 − w)·u(x, t, t)`` with the
        model's own u without label.
      power: the loss of each example is divided by its own size to this power, which is no part
        of the gradient; 0 for none.

    Returns: a scalar; with power 1 it stays near 1 while all is well.
    Raises: ValueError for data that is not floating-point, or conditions or a network's answer of
      another shape.
    Source: Geng et al. 2025, algorithm 1 and sections 4.2 and 4.3 (arXiv:2505.13447).
    """
    x0 = checks.state("x0", x0)
    check_cond(cond, x0)
    key_time, key_noise = jax.random.split(key)
    t, s = times(key_time, x0.shape[0])
    x1 = jax.random.normal(key_noise, x0.shape, x0.dtype)
    x, v = expand(1 - t, x0) * x0 + expand(t, x0) * x1, x1 - x0
    u = lambda x, t, s, cond: model(x, t, cond, (t - s)[:, None])  # noqa: E731
    if guidance != 1:
        v = guidance * v + (1 - guidance) * jax.lax.stop_gradient(u(x, t, t, None))
    told, slope = along_path(lambda x, t, s: u(x, t, s, cond), x, t, s, v)
    checks.same_shape("model(x, t, cond, extras)", told, "x", x)
    wanted = jax.lax.stop_gradient(v - expand(t - s, x0) * slope)
    size = jnp.sum(((told - wanted) ** 2).reshape(x0.shape[0], -1), axis=-1)
    return jnp.mean(size / jax.lax.stop_gradient(size + 1e-3) ** power)


def mean_flow_times(
    mean: float = -0.4, std: float = 1.0, equal: float = 0.75
) -> Callable[[Array, int], tuple[Array, Array]]:
    """Pairs of logit-normal times, the later one first; a share of them is the same time twice.

    Args:
      mean: of log(t/(1 − t)).
      std: of it, positive.
      equal: share of examples with s = t, where the loss is flow matching's; in [0, 1].

    Returns: ``(key, n) -> (t, s)``, both [n], s <= t.
    Raises: ValueError for another std or share.
    Source: Geng et al. 2025, section 4.3 (arXiv:2505.13447).
    """
    checks.within("mean", mean, -jnp.inf, jnp.inf, ends="()")
    checks.above("std", std, 0)
    checks.within("equal", equal, 0, 1)

    def times(key, n):
        key_times, key_equal = jax.random.split(key)
        logits = mean + std * jax.random.normal(key_times, (2, n), jnp.float32)
        s, t = jnp.sort(jax.nn.sigmoid(logits), axis=0)
        return t, jnp.where(jax.random.bernoulli(key_equal, equal, (n,)), t, s)

    return times


def tangent_loss(
    G: Jump, target: Jump, p: Process, kind: str, x: Array, slope: Array, t: Array, c: float = 0.1
) -> Array:
    """Continuous-time consistency: the step of `consistency_loss` made infinitely short.

    The estimate is moved against its derivative along the path, ``G − g·alpha·sigma·dG/dt``, with
    each example's derivative divided by its length plus c.

    Args:
      G: the jump that is learnt, at s = 0.
      target: the same function with weights that carry no gradient.
      p: the process.
      kind: what the model predicts.
      x: states [B, …] at t.
      slope: dx/dt. For distillation `flow.velocity` of a teacher, for training that of the
        example's own path: `parameterization.target` of kind "flow".
      t: times [B].
      c: keeps small derivatives small, in units of the prediction; positive.

    Raises: ValueError for another c.
    Source: Lu & Song 2025, section 4 (arXiv:2410.11081), where t is the angle `angle(p, t)`.
    """
    checks.above("c", c, 0)
    now, change = along_path(target, x, t, jnp.zeros_like(t), slope)
    scale = expand(determinant(kind, p, t) / p.sigma(t), x)
    # In the kind's units, per unit of the angle; 0 at both ends, where the jump is known.
    per_angle = jax.jvp(lambda t: angle(p, t), (t,), (jnp.ones_like(t),))[1]
    move = scale * change * expand(p.alpha(t) * p.sigma(t) / per_angle, x)
    length = jnp.sqrt(jnp.sum((move**2).reshape(x.shape[0], -1), axis=-1))
    move = move / (expand(length, x) + c)
    wanted = jax.lax.stop_gradient(scale * now - move)
    return jnp.mean(squared(scale * G(x, t, jnp.zeros_like(t)) - wanted))


def angle(p: Process, t) -> Array:
    """TrigFlow's time, in [0, π/2]: the angle whose tangent is sigma/alpha; arccos(alpha) in VP.

    Source: Lu & Song 2025, section 3 (arXiv:2410.11081).
    """
    return jnp.arctan2(p.sigma(t), p.alpha(t))


# --------------------------------------------------------------------------------------------
# Distribution: the jump from noise makes what looks like data
# --------------------------------------------------------------------------------------------


def distribution_loss(
    p: Process, x: Array, eps: Array, t: Array, real: Denoiser, fake: Denoiser
) -> Array:
    """Distribution matching: its gradient by generated states is the difference of two scores.

    The noised states are scored by the data's denoiser and by one that is trained on what the
    generator makes. The gradient by each x is ``(fake − real)/size``, with size the mean absolute
    difference of x and real's estimate.

    Args:
      p: the process.
      x: what the generator made, [B, …]; the gradient flows here alone.
      eps: noise to add, [B, …].
      t: times [B].
      real: denoiser of the data; it may be guided.
      fake: denoiser of the generator's distribution.

    Returns: a scalar whose value means nothing, and whose gradient by x is that above, over B.
    Raises: ValueError if a denoiser returns another shape.
    Source: Yin et al. 2024, section 3.2 (arXiv:2311.18828).
    """
    still = jax.lax.stop_gradient(x)
    x_t = add_noise(p, still, eps, t)
    of_data, of_fakes = denoise(real, x_t, t), denoise(fake, x_t, t)
    size = jnp.mean(jnp.abs(still - of_data).reshape(len(x), -1), axis=-1)
    # What the data's denoiser leaves exactly as it is has no size, and gets no pull.
    some = expand(size > 0, x)
    pull = (of_fakes - of_data) / jnp.where(some, expand(size, x), 1.0)
    pull = jax.lax.stop_gradient(jnp.where(some, pull, 0.0))
    return jnp.sum(pull * x) / len(x)
