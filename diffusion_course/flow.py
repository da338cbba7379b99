"""Flow matching beyond noise: which points are paired, how straight the paths are, and bridges.

The velocity that flow matching learns is the probability flow's (`velocity`), and a rectified flow
is a process like any other. What is new is the freedom to choose the pairs (x0, x1) that the paths
connect: x1 need not be independent noise, nor noise at all.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from diffusion_course import checks
from diffusion_course.data.batches import batches as shuffled
from diffusion_course.denoiser import Denoiser
from diffusion_course.losses import TimeSampler, stratified_times
from diffusion_course.parameterization import target
from diffusion_course.process import Process, expand, time_at
from diffusion_course.samplers import Sampler, no_memory
from diffusion_course.steps import denoise, estimates, root

# couple(x0, x1, labels) -> the order in which the rows of x1 become partners of those of x0.
Coupling = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


def velocity(p: Process, D: Denoiser, x: Array, t) -> Array:
    """The marginal velocity at x: the mean of ``d_alpha·x0 + d_sigma·x1`` over all paths through x.

    It is the drift of the probability flow, per unit of t: flow matching and diffusion learn the
    same field. Where no noise is left the mean of x1 is unknown, and 0 takes its place if sigma
    has a finite slope there; if not, the result is NaN.

    Args:
      p: the process.
      D: the denoiser, E[x0 | x_t].
      x: states [B, …].
      t: a scalar or [B], in (0, 1].

    Returns: float32 [B, …].
    Source: Lipman et al. 2023, theorem 1 (arXiv:2210.02747).

    >>> from diffusion_course import process
    >>> point = lambda x, t: jnp.full_like(x, 3.0)  # all data are the number 3
    >>> print(velocity(process.rectified_flow(), point, jnp.array([[2.0]]), 0.5))  # (2 − 3)/0.5
    [[-2.]]
    """
    return target("flow", p, *estimates(p, D, x, t), t)


def shift(p: Process, t, factor: float) -> Array:
    """Times at which the noise level sigma/alpha is `factor` times that of the times t.

    An image of twice the side shows twice the level of noise as clearly, since neighbouring pixels
    repeat each other. On a rectified flow the result is ``factor·t/(1 + (factor − 1)·t)``.

    Args:
      p: the process.
      t: times in [0, 1] of any shape: a grid, or times for training.
      factor: positive; above 1 for larger images.

    Returns: float32 of t's shape; 0 stays 0. In a process that ends with some signal, what would
      lie beyond t = 1 becomes 1.
    Raises: ValueError for another factor, or a time outside [0, 1].
    Source: Esser et al. 2024, section 5.3 (arXiv:2403.03206); in log-SNR Hoogeboom, Heek & Salimans
    2023, section 3.1 (arXiv:2301.11093).

    >>> from diffusion_course import process
    >>> print(*[f"{t:.2f}" for t in shift(process.rectified_flow(), [0.0, 0.25, 0.5, 1.0], 3.0)])
    0.00 0.50 0.75 1.00
    """
    checks.above("factor", factor, 0)
    checks.time("t", t)
    t = jnp.asarray(t, jnp.float32)
    moved = time_at(p, p.log_snr(t) - 2 * jnp.log(jnp.asarray(factor, jnp.float32)))
    return jnp.where((t == 0) | (p.alpha(t) == 0), t, moved)


def shifted_times(p: Process, factor: float, times: TimeSampler = stratified_times) -> TimeSampler:
    """Training times that are shifted as `shift` shifts a grid: each log-SNR by −2·log(factor).

    Args:
      p: the process.
      factor: as in `shift`.
      times: draws the times that are shifted.

    Returns: ``(key, n) -> [n]``, for `losses.diffusion_loss`.
    Raises: ValueError for a factor that is not positive.
    Source: as `shift`.

    >>> from diffusion_course import process
    >>> draw = shifted_times(process.rectified_flow(), 3.0)
    >>> print((draw(jax.random.key(0), 1000) > 0.75).mean())  # where t > 0.5 was
    0.5
    """
    checks.above("factor", factor, 0)
    return lambda key, n: shift(p, times(key, n), factor)


def straightness(path: Array, times) -> Array:
    """How far paths are from straight lines run through evenly; 0 for those.

    The mean over paths of ``∫ ‖(x_end − x_start)/(t_end − t_start) − dx/dt‖² dt``, with the steps'
    own slopes for dx/dt: bends within a step are not seen.

    Args:
      path: the states at all times, its start among them: [n + 1, B, …].
      times: [n + 1], strictly falling within [1, 0].

    Returns: a scalar; in units of x² per unit of t.
    Raises: ValueError for times that do not fall, or a path of another length.
    Source: Liu, Gong & Liu 2023, section 2 (arXiv:2209.03003).

    >>> bent = jnp.array([[[0.0]], [[1.0]], [[1.0]]])  # slopes −2 and 0, on the whole −1
    >>> print(straightness(bent, [1.0, 0.5, 0.0]))
    1.0
    """
    path, times = checks.state("path", path), checks.falling_times("times", times)
    if path.ndim < 2 or path.shape[0] != len(times):
        raise ValueError(
            f"path must have shape [{len(times)}, B, …], one state for each of times, "
            f"got shape {list(path.shape)}"
        )
    lengths = times[:-1] - times[1:]
    per_step = expand(lengths, path[1:])
    slopes = (path[:-1] - path[1:]) / per_step
    whole = (path[0] - path[-1]) / (times[0] - times[-1])
    squares = ((slopes - whole) ** 2).reshape(len(lengths), path.shape[1], -1).sum(-1)
    return (lengths[:, None] * squares).sum(0).mean()


# --------------------------------------------------------------------------------------------
# Couplings: who is paired with whom. On the host, in NumPy: they are made with the batches.
# --------------------------------------------------------------------------------------------


def transport_cost(x0, x1) -> float:
    """The mean of ‖x0 − x1‖² over pairs: [N, …] and [N, …] -> a number.

    Raises: ValueError for arrays of two shapes, or without a pair.
    """
    x0, x1 = _pairs(x0, x1)
    return float(((x0 - x1).reshape(len(x0), -1) ** 2).sum(1).mean())


def _pairs(x0, x1) -> tuple[np.ndarray, np.ndarray]:
    checks.floating("x0", x0)
    checks.floating("x1", x1)
    x0, x1 = np.asarray(x0, np.float64), np.asarray(x1, np.float64)
    if x0.ndim < 1 or not len(x0):
        raise ValueError(f"x0 must have shape [N, …] with N >= 1, got shape {list(x0.shape)}")
    checks.same_shape("x1", x1, "x0", x0)
    return x0, x1


def _costs(x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    """All squared distances [N, N]; by differences, which keep their digits."""
    a, b = x0.reshape(len(x0), -1), x1.reshape(len(x1), -1)
    return np.stack([((row - b) ** 2).sum(1) for row in a])


def optimal(x0, x1, labels=None) -> np.ndarray:
    """The order of x1 with the least transport cost: ``x1[order[i]]`` is the partner of ``x0[i]``.

    With labels the partners are exchanged within each class only. Without that a conditional model
    is trained on skewed noise: the partners of a class are those that lie near it, and no longer
    standard normal.

    Args:
      x0: [N, …].
      x1: drawn independently of x0, of the same shape.
      labels: of x0, whole numbers [N]; None where the model does not see them.

    Returns: whole numbers [N], a permutation.
    Raises: ValueError for arrays of other shapes.
    Source: Tong et al. 2024 (arXiv:2302.00482); Pooladian et al. 2023 (arXiv:2304.14772).

    >>> optimal(np.array([[0.0], [5.0], [1.0]]), np.array([[9.0], [0.5], [-3.0]])).tolist()
    [2, 0, 1]
    """
    x0, x1 = _pairs(x0, x1)
    order = np.arange(len(x0))
    for members in _classes(labels, len(x0)):
        order[members] = members[linear_sum_assignment(_costs(x0[members], x1[members]))[1]]
    return order


def _classes(labels, n: int) -> list[np.ndarray]:
    """The places of each class; one class of all without labels."""
    if labels is None:
        return [np.arange(n)]
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape [{n}], got shape {list(labels.shape)}")
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def entropic(x0, x1, noise: float, *, rounds: int = 500) -> np.ndarray:
    """The coupling of a Schrödinger bridge between two sets of points: a matrix of shares.

    Among all matrices with the rows' and columns' sums 1/N it minimises the mean of ‖x0 − x1‖²/2
    less noise² times the entropy: Sinkhorn's iteration, in logarithms. noise → 0 is `optimal`,
    noise → ∞ the independent coupling.

    Args:
      x0: [N, …].
      x1: of the same shape.
      noise: standard deviation of the bridge's Brownian motion after one unit of t, positive.
      rounds: of the iteration, at least 1; a small noise needs more.

    Returns: float64 [N, N] of sum 1; its columns' sums are exact, its rows' only in the end.
    Raises: ValueError for arrays of other shapes, or another noise or number of rounds.
    Source: Cuturi 2013 (arXiv:1306.0895); De Bortoli et al. 2021, section 3 (arXiv:2106.01357).
    """
    x0, x1 = _pairs(x0, x1)
    checks.above("noise", noise, 0)
    scaled = _costs(x0, x1) / (2 * noise**2)
    rows, columns, share = np.zeros(len(x0)), np.zeros(len(x0)), -np.log(len(x0))
    for _ in range(checks.integer("rounds", rounds, 1)):
        rows = share - logsumexp(columns - scaled, axis=1)
        columns = share - logsumexp(rows[:, None] - scaled, axis=0)
    return np.exp(rows[:, None] + columns - scaled)


def coupled(batches: Iterable[tuple], couple: Coupling, seed: int) -> Iterator[tuple]:
    """Batches in which every example has a partner in standard normal noise.

    Args:
      batches: yields (x0 [B, …], labels [B]), as `data.batches`.
      couple: from (x0, x1, labels) to an order of x1, such as `optimal`.
      seed: of the noise, at least 0; give a run that goes on at step k another one.

    Returns: an iterator over (x0, (labels, x1)), for a loss that takes the pair apart.
    Raises: ValueError for another seed.
    """
    rng = np.random.default_rng(checks.integer("seed", seed, 0))

    def pairs():
        for x0, labels in batches:
            x1 = rng.standard_normal(x0.shape, np.float32)
            yield x0, (labels, x1[couple(x0, x1, labels)])

    return pairs()


def paired(x0, x1, labels, size: int, seed: int, start: int = 0) -> Iterator[tuple]:
    """Shuffled batches of fixed pairs: those of a reflow, or of two data sets.

    A reflow trains on pairs that a trained flow connects: x1 is noise, x0 where the flow leads it.

    Args:
      x0: [N, …].
      x1: partners, of the same shape.
      labels: whole numbers [N].
      size, seed, start: as in `data.batches`.

    Returns: an iterator over (x0 [size, …], (labels [size], x1 [size, …])).
    Raises: ValueError for arrays of other shapes, or as `data.batches`.
    Source: Liu, Gong & Liu 2023, algorithm 1 (arXiv:2209.03003).
    """
    _pairs(x0, x1)
    x0, x1, labels = (np.asarray(a) for a in (x0, x1, labels))
    if labels.shape != x0.shape[:1]:
        raise ValueError(f"labels must have shape [{len(x0)}], got shape {list(labels.shape)}")
    chosen = shuffled((x0, np.arange(len(x0))), size, seed, start)
    return ((x, (labels[i], x1[i])) for x, i in chosen)


# --------------------------------------------------------------------------------------------
# Bridges: paths with noise of their own between two given ends.
# --------------------------------------------------------------------------------------------


def bridge_state(x0: Array, x1: Array, noise: Array, t, scale: float) -> Array:
    """A state of the Brownian bridge from x1 (t = 1) to x0 (t = 0).

    ``(1 − t)·x0 + t·x1 + scale·√(t(1 − t))·noise``: with independent x1 a stochastic interpolant,
    with those of `entropic` the Schrödinger bridge.

    Args:
      x0: [B, …].
      x1: [B, …].
      noise: standard normal [B, …].
      t: a scalar or [B], in [0, 1].
      scale: standard deviation of the Brownian motion after one unit of t, at least 0.

    Returns: float32 [B, …].
    Raises: ValueError for arrays of several shapes, a time outside [0, 1], or a scale below 0.
    Source: Albergo, Boffi & Vanden-Eijnden 2023 (arXiv:2303.08797); Liu et al. 2023, I²SB
    (arXiv:2302.05872).
    """
    x0, x1, noise = (
        checks.state(name, a) for name, a in {"x0": x0, "x1": x1, "noise": noise}.items()
    )
    checks.same_shape("x1", x1, "x0", x0)
    checks.same_shape("noise", noise, "x0", x0)
    checks.time("t", t)
    scale = checks.non_negative("scale", scale)
    t = expand(jnp.asarray(t, jnp.float32), x0)
    return (1 - t) * x0 + t * x1 + scale * jnp.sqrt(t * (1 - t)) * noise


def bridge(scale: float) -> Sampler:
    """The sampler of a bridge: draws x_s of the Brownian bridge from x_t to x0 = D(x_t, t).

    D is E[x0 | x_t] of `bridge_state`'s states: a network trained on them to predict x0. The start
    is a point of the other end. With scale = 0 it is Euler's method for the flow's velocity, and
    DDIM's on a rectified flow. One evaluation per step; the step to s = 0 returns D(x, t).

    Args:
      scale: as in `bridge_state`.

    Raises: ValueError if scale is negative.
    Source: Liu et al. 2023, I²SB, algorithm 2 (arXiv:2302.05872).
    """
    scale = checks.non_negative("scale", scale)

    def step(D, x, t, s, key, state):
        kept = s / t
        noise = jax.random.normal(key, x.shape, x.dtype)
        mean = kept * x + (1 - kept) * denoise(D, x, t)
        return mean + scale * root(s * (1 - kept)) * noise, state

    return Sampler(no_memory, step)
