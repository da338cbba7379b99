"""The one loop that every sampler runs in, and the grids of times for it."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.guidance import classifier_free_batched
from diffusion_course.parameterization import determinant
from diffusion_course.process import Process, time_at
from diffusion_course.samplers import Sampler


def sample(sampler: Sampler, D: Denoiser, x_start: Array, times, key: Array) -> tuple[Array, Array]:
    """Runs a sampler along a grid of times, as one compiled loop.

    Args:
      sampler: from `diffusion_course.samplers`.
      D: the denoiser.
      x_start: state at times[0], float32 [B, …]; for a start from noise `start_noise`.
      times: [n + 1], strictly falling within [1, 0]; step n of a chain of T steps is time n/T.
      key: a random key; step i uses ``fold_in(key, i)``.

    Returns: the last state [B, …], and the state after every step [n, B, …].
    Raises: ValueError if times do not fall strictly within [1, 0], or x_start is not float32.

    >>> from diffusion_course import denoiser, process, samplers
    >>> p = process.vp_cosine()
    >>> gm = denoiser.gaussian_mixture(p, [[0.5]], [0.1], [1.0])  # the data: N(0.5, 0.1²)
    >>> start, steps = jax.random.split(jax.random.key(0))
    >>> noise = start_noise(p, start, (1000, 1))
    >>> sampler, times = samplers.ddim(p), uniform(20)
    >>> x0, path = sample(sampler, gm.denoise, noise, times, steps)
    >>> x0.shape, path.shape
    ((1000, 1), (20, 1000, 1))
    >>> print(f"{x0.mean():.1f}")
    0.5
    """
    _check_sampler(sampler)
    x_start = checks.state("x_start", x_start)
    times = checks.falling_times("times", times)
    checks.random_key("key", key)
    n = times.shape[0] - 1

    def body(carry, inputs):
        x, state = carry
        i, t, s = inputs
        x, state = sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)
        return (x, state), x

    start = (x_start, sampler.init(x_start))
    steps = (np.arange(n, dtype=np.int32), times[:-1], times[1:])
    (x, _), path = jax.lax.scan(body, start, steps)
    return x, path


def _check_sampler(sampler) -> None:
    if not (callable(getattr(sampler, "init", None)) and callable(getattr(sampler, "step", None))):
        raise ValueError(f"sampler must be a Sampler such as samplers.ddim(p), got {sampler!r}")


def start_noise(p: Process, key: Array, shape: tuple[int, ...], t: float = 1.0) -> Array:
    """Noise of the process's own level at time t: ``sigma(t)·eps``.

    It is q(x_t) only where alpha(t)·x0 is negligible beside sigma(t); chapter 01 measures that.

    Args:
      p: the process.
      key: a random key.
      shape: of the whole batch, (B, …).
      t: a time in [0, 1].

    Returns: float32 of this shape. Raises: ValueError unless t is one time in [0, 1].
    """
    checks.random_key("key", key)
    t = checks.number("t", t)
    checks.within("t", t, 0, 1)
    return p.sigma(t) * jax.random.normal(key, shape, jnp.float32)


def generator(
    p: Process, kind: str, sampler: Sampler, times, shape: tuple[int, ...]
) -> Callable[..., Array]:
    """Compiles whole-batch generation, with the model as an argument.

    Args:
      p: the process that the model was trained with.
      kind: what the model predicts.
      sampler: from `diffusion_course.samplers`.
      times: [n + 1], strictly falling within [1, 0].
      shape: of one example, such as (28, 28, 1).

    Returns: ``generate(model, key, n, labels=None, w=1.0)`` -> x0 [n, *shape]. With labels [n] or
      captions [n, L] the model must have a null class (``model.null_label``), and w is the guidance
      scale, a number or one per example [n]; w = 1 evaluates only the conditional model. Models of
      the same shape, and other values of w, share one compiled program per n.
    Raises: ValueError if kind cannot recover x0 at times[0] in this process.
    """
    _check_sampler(sampler)
    times = checks.falling_times("times", times)
    shape = tuple(checks.integer("each entry of shape", size, 1) for size in shape)
    if float(determinant(kind, p, times[0])) == 0:
        raise ValueError(
            f"kind must recover x0 at t = {times[0]}, where alpha is 0; got {kind!r}. "
            'Use "v", "x0" or "flow", or a process that keeps some signal'
        )

    def run(D, key, n):
        key_start, key_steps = jax.random.split(key)
        x = start_noise(p, key_start, (n, *shape), times[0])
        return sample(sampler, D, x, times, key_steps)[0]

    @partial(jax.jit, static_argnames="n")
    def plain(model, key, n, labels):
        return run(denoiser(model, p, kind, labels), key, n)

    @partial(jax.jit, static_argnames="n")
    def guided(model, key, n, labels, w):
        null = jnp.full_like(labels, model.null_label)
        return run(classifier_free_batched(model, p, kind, labels, null, w), key, n)

    def generate(model, key, n, labels=None, w=1.0):
        n = checks.integer("n", n, 1)
        checks.random_key("key", key)
        one = checks.concrete(w) and np.ndim(w) == 0 and bool(w == 1)
        if labels is None:
            if not one:
                raise ValueError(f"w must be 1 where no labels are given, got {w}")
            return plain(model, key, n, None)
        labels = _check_labels(labels, n, model.null_label)
        if one:
            return plain(model, key, n, labels)
        checks.within("w", w, -np.inf, np.inf, ends="()")
        # One dtype, so that 2, 2.0 and an array share the program.
        return guided(model, key, n, labels, jnp.asarray(w, jnp.float32))

    return generate


def _check_labels(labels, n: int, null_label: int | None) -> Array:
    if null_label is None:
        raise ValueError("labels must be None: this model has no labels (num_classes=None)")
    labels = np.asarray(labels) if checks.concrete(labels) else labels
    checks.labels("labels", labels, (n, *checks.rows_shape(labels)[1:]), null_label)
    return jnp.asarray(labels, jnp.int32)


# --------------------------------------------------------------------------------------------
# Time grids: n + 1 float32 values that fall strictly from 1 to exactly 0, for n steps.
# --------------------------------------------------------------------------------------------


def _grid(n: int, times: np.ndarray) -> np.ndarray:
    """A grid in float32, if float32 tells its times apart."""
    times = np.asarray(times, np.float32)
    if not (np.diff(times) < 0).all():
        raise ValueError(f"n must leave times that differ in float32, got {n}")
    return times


def uniform(n: int) -> np.ndarray:
    """n + 1 equally spaced times, from 1 (noise) to 0 (data).

    With n = T these are exactly the steps of a chain of T betas. A "leading" grid, which starts
    at step 980 of 1000, does not exist here.

    Args:
      n: number of steps, at least 1.

    Returns: float32 [n + 1]. Raises: ValueError if n is below 1.

    >>> uniform(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    n = checks.integer("n", n, 1)
    return _grid(n, np.arange(n, -1, -1) / n)


def quadratic(n: int) -> np.ndarray:
    """n + 1 times proportional to squares, dense near the data.

    Args:
      n: number of steps, at least 1.

    Returns: float32 [n + 1]. Raises: ValueError if n is below 1.
    Source: Song, Meng & Ermon 2021, appendix D.2 (arXiv:2010.02502).

    >>> quadratic(4).tolist()
    [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    n = checks.integer("n", n, 1)
    return _grid(n, (np.arange(n, -1, -1) / n) ** 2)


def karras(
    p: Process, n: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float | None = None
) -> np.ndarray:
    """n + 1 times whose noise-to-signal ratios sigma/alpha are Karras's, then 0.

    ``(sigma_max^(1/rho) + i/(n − 1)·(sigma_min^(1/rho) − sigma_max^(1/rho)))^rho`` for
    i = 0 … n − 1. The first time is always 1, so sigma_max is the ratio at t = 1 unless it is
    given, which a process that keeps no signal at t = 1 needs.

    Args:
      p: the process.
      n: number of steps, at least 1.
      rho: the larger, the denser the grid near the data.
      sigma_min: the last ratio before 0.
      sigma_max: the first ratio, at most that at t = 1.

    Returns: float32 [n + 1].
    Raises: ValueError if n is below 1, rho <= 0, or not 0 < sigma_min < sigma_max.
    Source: Karras et al. 2022, eq. 5 (arXiv:2206.00364).

    >>> from diffusion_course import process
    >>> p = process.edm(sigma_max=80.0)
    >>> print(*(f"{sigma:.2f}" for sigma in p.sigma(karras(p, 4, sigma_min=0.1))))
    80.00 16.05 1.99 0.10 0.00
    """
    n = checks.integer("n", n, 1)
    checks.above("rho", rho, 0)
    # A grid is made of numbers, also while a function is traced that asks for one.
    with jax.ensure_compile_time_eval():
        end = float(p.sigma(1.0) / p.alpha(1.0))
    sigma_max = end if sigma_max is None else sigma_max
    if not (0 < sigma_min < sigma_max < np.inf and sigma_max <= end * (1 + 1e-5)):
        raise ValueError(
            "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max < infinity, and "
            f"sigma_max <= sigma/alpha at t = 1, {end}; got {sigma_min} and {sigma_max}"
        )
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho
    return _grid_from_log_snr(p, n, -2 * np.log(ramp))


def log_snr_uniform(p: Process, n: int, t_min: float = 1e-3, t_max: float = 1.0) -> np.ndarray:
    """n + 1 times: n with equally spaced log-SNR from t_max to t_min, then 0.

    The first time is always 1. A process that keeps no signal at t = 1 has no finite log-SNR
    there and needs t_max < 1, which says where the spacing is measured from.

    Args:
      p: the process.
      n: number of steps, at least 1.
      t_min: the last time before 0.
      t_max: the time that the spacing begins with.

    Returns: float32 [n + 1].
    Raises: ValueError if n is below 1, not 0 < t_min < t_max <= 1, or the log-SNR is infinite at
    t_max or t_min.
    Source: Lu et al. 2022, section 3.3 (arXiv:2206.00927).
    """
    n = checks.integer("n", n, 1)
    if not 0 < t_min < t_max <= 1:
        raise ValueError(
            f"t_min and t_max must satisfy 0 < t_min < t_max <= 1, got {t_min} and {t_max}"
        )
    times = np.arange(1000, dtype=np.float32) / 1000
    with jax.ensure_compile_time_eval():
        first, last = float(p.log_snr(t_max)), float(p.log_snr(t_min))
        finite = times[np.isfinite(p.log_snr(times))]
    if not np.isfinite(first):
        raise ValueError(
            f"t_max must have a finite log-SNR, got t_max = {t_max} where it is {first}; "
            f"for this process pass at most t_max = {finite.max(initial=0):g}"
        )
    if not np.isfinite(last):
        raise ValueError(
            f"t_min must have a finite log-SNR, got t_min = {t_min} where it is {last}"
        )
    return _grid_from_log_snr(p, n, np.linspace(first, last, n))


def _grid_from_log_snr(p: Process, n: int, values: np.ndarray) -> np.ndarray:
    """Times of falling noise level with these log-SNRs; the first becomes 1, and 0 is added."""
    with jax.ensure_compile_time_eval():
        times = np.asarray(time_at(p, values))
    return _grid(n, np.concatenate([[1.0], times[1:], [0.0]]))
