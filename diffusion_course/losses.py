"""Training objectives: which times are drawn, how they are weighted, and the simple loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import check_cond, network_output
from diffusion_course.parameterization import row, target
from diffusion_course.process import Process, add_noise, expand

# Training times stay inside (0, 1): at t = 0 there is nothing to predict, and at t = 1 some
# weights are 0/0 in processes that keep no signal.
_MARGIN = 1e-5

TimeSampler = Callable[[Array, int], Array]
Weight = Callable[[str, Process, Array], Array]


def uniform_times(key: Array, n: int) -> Array:
    """n independent times, uniform on (0, 1): [n]. Raises: ValueError for n < 1."""
    n = checks.integer("n", n, minimum=1)
    return jax.random.uniform(key, (n,), jnp.float32, minval=_MARGIN, maxval=1 - _MARGIN)


def stratified_times(key: Array, n: int) -> Array:
    """One uniform time in each of n equal intervals of (0, 1), in increasing order: [n].

    Each example's time is still uniform over the whole range once the batch is shuffled; the
    batch's mean loss has far less variance, because every noise level is always present.

    Raises: ValueError for n < 1.
    Source: Kingma et al. 2021, appendix I.1 (arXiv:2107.00630), there with one shared offset.
    """
    n = checks.integer("n", n, minimum=1)
    t = (jnp.arange(n, dtype=jnp.float32) + jax.random.uniform(key, (n,), jnp.float32)) / n
    return jnp.clip(t, _MARGIN, 1 - _MARGIN)


def discrete_times(T: int) -> TimeSampler:
    """Times n/T with n uniform on {1, …, T}: those of a discrete chain.

    They include t = 1. A chain without signal there cannot be trained with "eps" or "score",
    which say nothing about x0 at that step.

    Returns: a time sampler ``(key, n) -> [n]``. Raises: ValueError for T < 1.
    Source: Ho, Jain & Abbeel 2020, algorithm 1 (arXiv:2006.11239).
    """
    T = checks.integer("T", T, minimum=1)

    def times(key, n):
        n = checks.integer("n", n, minimum=1)
        return jax.random.randint(key, (n,), 1, T + 1).astype(jnp.float32) / T

    return times


def importance_times(mean_square: Array) -> tuple[TimeSampler, Weight]:
    """Times drawn more often where the loss is large, and the weight that makes up for it.

    The interval (0, 1) is cut into as many equal parts as there are estimates; the density of each
    is proportional to the root of the mean square loss there. A loss that is weighted with
    1/density keeps its expectation, and of all such densities this one gives independent times
    the least variance. (Stratified times, as drawn here, have less with any density; the least
    then has one that follows the spread of the loss within each part.)
    Nichol & Dhariwal keep the last ten losses of each time step while they train; here the
    estimates are given, for instance by `metrics.loss_by_time` between two parts of a run.

    Args:
      mean_square: estimates of E[loss²] in each part, [K], positive.

    Returns: a time sampler, stratified as `stratified_times` is, and a weight
      ``(kind, p, t) -> [B]``; multiply it with the weight that the loss has anyway.
    Raises: ValueError for another shape, or an estimate that is not positive and finite.
    Source: Nichol & Dhariwal 2021, eq. 18 (arXiv:2102.09672).
    """
    if np.ndim(mean_square) != 1 or not np.size(mean_square):
        raise ValueError(
            f"mean_square must have shape [K] with K >= 1, got shape {list(np.shape(mean_square))}"
        )
    checks.above("mean_square", mean_square, 0)
    mean_square = np.asarray(mean_square, np.float64)
    density = np.sqrt(mean_square) / np.sqrt(mean_square).mean()
    edges = np.linspace(0, 1, len(density) + 1)
    cumulative = np.concatenate([[0], np.cumsum(density)]) / density.sum()

    def times(key, n):
        t = stratified_times(key, n)
        return jnp.interp(t, *(jnp.asarray(a, jnp.float32) for a in (cumulative, edges)))

    def weight(kind, p, t):
        part = jnp.clip((t * len(density)).astype(jnp.int32), 0, len(density) - 1)
        return 1 / jnp.asarray(density, jnp.float32)[part]

    return times, weight


def simple(kind: str, p: Process, t: Array) -> Array:
    """Weight 1 on the squared error of the target itself: [B].

    Source: L_simple of Ho, Jain & Abbeel 2020, eq. 14 (arXiv:2006.11239).
    """
    return jnp.ones_like(t)


def min_snr(gamma: float = 5.0) -> Weight:
    """Min-SNR-γ: weight ``min(SNR, gamma)`` on the squared error *of x0*, for every kind.

    An error d in the target y is an error ``(sigma/det)·d`` in x0, so the weight on the target is
    ``(sigma/det)²·min(SNR, gamma)``: min(SNR, γ)/SNR for "eps", min(SNR, γ)/(SNR + 1) for "v".
    Using the eps weight on another kind is a published bug.

    Returns: a weight ``(kind, p, t) -> [B]``. Raises: ValueError unless gamma > 0.
    Source: Hang et al. 2023, section 3.4 (arXiv:2303.09556).
    """
    checks.above("gamma", gamma, 0)

    def weight(kind: str, p: Process, t: Array) -> Array:
        (a, b), alpha, sigma = row(kind, p, t), p.alpha(t), p.sigma(t)
        limit = float(gamma) ** 0.5
        # SNR·sigma² = alpha² keeps the product finite at low noise, and squaring last keeps it
        # from 0/0 where float32 holds sigma but not sigma².
        mixed = jnp.minimum(alpha, limit * sigma) / (a * sigma - b * alpha)
        # With a single coefficient, alpha or sigma cancels and may be 0.
        of_eps = jnp.minimum(1, limit * sigma / alpha) / b
        of_x0 = jnp.minimum(alpha / sigma, limit) / a
        return jnp.where(a == 0, of_eps, jnp.where(b == 0, of_x0, mixed)) ** 2

    return weight


def squared_error(model, p: Process, kind: str, x0: Array, eps: Array, t: Array, cond) -> Array:
    """Each example's mean squared error of the target: [B].

    Args:
      model: ``model(x, t, cond)``.
      p: the process.
      kind: what the model predicts.
      x0: data [B, …].
      eps: the noise to add, of the same shape.
      t: times [B].
      cond: labels [B], tokens [B, L] or None.

    Raises: ValueError if x0 and eps are not floating-point arrays of one shape, a time lies outside
      [0, 1], cond is for another number of examples, or the model's output has another shape.
    """
    x0 = checks.state("x0", x0)
    x_t = add_noise(p, x0, eps, t)
    y = network_output(model, p, kind, x_t, t, cond)
    checks.same_shape("the model's output", y, "x0", x0)
    error = (y - target(kind, p, x0, eps, t)).reshape(x0.shape[0], -1)
    return jnp.mean(error**2, axis=-1)


def diffusion_loss(
    model,
    p: Process,
    kind: str,
    x0: Array,
    cond: Array | None,
    key: Array,
    *,
    times: TimeSampler = stratified_times,
    weight: Weight = simple,
) -> Array:
    """The denoising loss of one batch, a scalar: ``mean w(t)·‖y(x_t, t) − target‖²/dim``.

    Args:
      model: ``model(x, t, cond)``.
      p: the process.
      kind: what the model predicts.
      x0: data [B, …].
      cond: labels [B], tokens [B, L] or None.
      key: a random key; times and noise get keys of their own.
      times: draws the times, ``(key, n) -> [n]``.
      weight: ``(kind, p, t) -> [B]``.

    Raises: ValueError if x0 is not a floating-point array [B, …] with B >= 1, cond is for another
      number of examples, or the times or weights have another shape than [B].
    Source: Ho, Jain & Abbeel 2020, eq. 14 (arXiv:2006.11239).

    >>> from diffusion_course import process
    >>> def silent(x, t, cond):
    ...     return jnp.zeros_like(x)
    >>> x0, key = jnp.zeros((4096, 1)), jax.random.key(1)
    >>> loss = diffusion_loss(silent, process.vp_cosine(), "eps", x0, None, key)
    >>> print(loss.round(1))  # of a guess of 0: the variance of eps
    1.0
    """
    x0 = checks.state("x0", x0)
    key_time, key_noise = jax.random.split(key)
    eps = jax.random.normal(key_noise, x0.shape, jnp.float32)
    return pair_loss(model, p, kind, x0, eps, cond, key_time, times=times, weight=weight)


def pair_loss(
    model,
    p: Process,
    kind: str,
    x0: Array,
    x1: Array,
    cond: Array | None,
    key: Array,
    *,
    times: TimeSampler = stratified_times,
    weight: Weight = simple,
) -> Array:
    """`diffusion_loss` of given pairs: each example has its own end at t = 1 in the place of noise.

    The pairs may be those of a coupling, of a reflow, or of two data sets.

    Args:
      model, p, kind, cond, times, weight: as in `diffusion_loss`.
      x0: states at t = 0, [B, …].
      x1: their partners at t = 1, of the same shape.
      key: a random key, for the times alone.

    Raises: ValueError as `diffusion_loss`, or for an x1 of another shape.
    Source: Liu, Gong & Liu 2023, eq. 1 (arXiv:2209.03003).
    """
    x0 = checks.state("x0", x0)
    if x0.ndim == 0 or not x0.shape[0]:
        raise ValueError(f"x0 must have shape [B, …] with B >= 1, got shape {list(x0.shape)}")
    x1 = checks.state("x1", x1)
    checks.same_shape("x1", x1, "x0", x0)
    check_cond(cond, x0)
    t = times(key, x0.shape[0])
    weights = weight(kind, p, t)
    # A column of times or weights would broadcast to all pairs of examples.
    for name, values in {"times": t, "weight": weights}.items():
        if np.shape(values) != x0.shape[:1]:
            raise ValueError(
                f"{name} must give shape {list(x0.shape[:1])}, got shape {list(np.shape(values))}"
            )
    return jnp.mean(weights * squared_error(model, p, kind, x0, x1, t, cond))


def drop_labels(key: Array, labels: Array, null: int, rate: float) -> Array:
    """Labels [B] or captions [B, L] of which a share `rate` is replaced by the null one.

    What makes classifier-free guidance possible: one network learns both the conditional and the
    unconditional denoiser.

    Args:
      key: a random key.
      labels: whole numbers [B] in 0 … null, or rows of L >= 2 of them; a row is dropped as a whole.
      null: the null class, which follows the last class of the data.
      rate: share of the labels or rows that are dropped, in [0, 1].

    Raises: ValueError for other labels, or a rate outside [0, 1].
    Source: Ho & Salimans 2022, algorithm 1 (arXiv:2207.12598).

    >>> drop_labels(jax.random.key(0), jnp.array([3, 0, 9]), 10, rate=1.0).tolist()
    [10, 10, 10]
    """
    null = checks.integer("null", null, minimum=0)
    checks.labels("labels", labels, checks.rows_shape(labels) or (0,), null)
    checks.within("rate", rate, 0, 1)
    labels = jnp.asarray(labels, jnp.int32)  # which holds the null class, whatever they came in
    dropped = jax.random.bernoulli(key, rate, labels.shape[:1])
    return jnp.where(expand(dropped, labels), null, labels)


# --------------------------------------------------------------------------------------------
# Score matching without noise: a score is fitted to data whose density is unknown. Both losses
# are E‖s(x) − grad log q(x)‖²/2 up to a constant of the data.
# --------------------------------------------------------------------------------------------

Score = Callable[[Array], Array]


def hyvarinen(score: Score, x: Array) -> Array:
    """Hyvärinen's score matching of a batch, a scalar: ``mean [tr(ds/dx) + ‖s(x)‖²/2]``.

    The trace takes one derivative for each dimension of the data: for few dimensions only.

    Args:
      score: s, from states [B, …] to scores of the same shape; each example on its own.
      x: data [B, …].

    Raises: ValueError if x is not a floating-point array [B, …] with B >= 1, or the score has
      another shape.
    Source: Hyvärinen 2005, theorem 1 (Journal of Machine Learning Research 6).

    >>> print(hyvarinen(lambda x: -x, jnp.array([[1.0, 2.0], [0.0, 1.0]])))  # −2 + 6/4
    -0.5
    """
    x = _data(x)
    one_hot = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *x.shape[1:])

    def along(direction):  # the diagonal entry of ds/dx that belongs to it, of every example
        slope = jax.jvp(score, (x,), (jnp.broadcast_to(direction, x.shape),))[1]
        return _inner(slope, direction)

    s = _score_of(score, x)
    return jnp.mean(jax.vmap(along)(one_hot).sum(0) + _inner(s, s) / 2)


def sliced(score: Score, x: Array, key: Array, probes: int = 1) -> Array:
    """Sliced score matching of a batch, a scalar: ``mean [vᵀ(ds/dx)v + ‖s(x)‖²/2]``.

    Random directions v of independent signs stand for the trace: E[vᵀAv] = tr A. One derivative
    for each probe, however many dimensions the data has.

    Args:
      score: as in `hyvarinen`.
      x: data [B, …].
      key: a random key.
      probes: directions for each example, whose mean is taken; at least 1.

    Raises: ValueError for an x or a score as in `hyvarinen`, or another number of probes.
    Source: Song et al. 2019, eq. 8, the variant with reduced variance (arXiv:1905.07088).
    """
    x = _data(x)
    probes = checks.integer("probes", probes, minimum=1)
    signs = jax.random.rademacher(key, (probes, *x.shape), x.dtype)
    along = lambda v: _inner(jax.jvp(score, (x,), (v,))[1], v)  # noqa: E731
    s = _score_of(score, x)
    return jnp.mean(jax.vmap(along)(signs).mean(0) + _inner(s, s) / 2)


def _data(x) -> Array:
    x = checks.state("x", x)
    if x.ndim == 0 or not x.size:
        raise ValueError(f"x must have shape [B, …] with B >= 1, got shape {list(x.shape)}")
    return x


def _score_of(score: Score, x: Array) -> Array:
    s = score(x)
    checks.same_shape("the score", s, "x", x)
    return s


def _inner(a: Array, b: Array) -> Array:
    """The inner product of each example: [B]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)
