"""Time grids, and the one loop that every sampler runs in."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course.checks import concrete
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.guidance import classifier_free_batched
from diffusion_course.parameterization import determinant
from diffusion_course.process import Process
from diffusion_course.samplers import Sampler

# --------------------------------------------------------------------------------------------
# Time grids: n + 1 float32 values that fall strictly from 1 to exactly 0, for n steps.
# --------------------------------------------------------------------------------------------


def _check_grid_size(n: int) -> None:
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, got {n!r}")


def uniform(n: int) -> np.ndarray:
    """n + 1 equally spaced times from 1 down to 0.

    With n = T these are exactly the steps of a chain of T betas. A "leading" grid, which starts
    at step 980 of 1000, does not exist here. Raises: ValueError for n < 1.
    """
    _check_grid_size(n)
    return (np.arange(n, -1, -1) / n).astype(np.float32)


def quadratic(n: int) -> np.ndarray:
    """n + 1 times proportional to squares, dense near the data. Raises: ValueError for n < 1.

    Source: Song, Meng & Ermon 2021, appendix D.2 (arXiv:2010.02502).
    """
    _check_grid_size(n)
    return ((np.arange(n, -1, -1) / n) ** 2).astype(np.float32)


def karras(
    p: Process, n: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float | None = None
) -> np.ndarray:
    """n + 1 times whose noise-to-signal ratios sigma/alpha are Karras's, then 0.

    ``(sigma_max^(1/rho) + i/(n − 1)·(sigma_min^(1/rho) − sigma_max^(1/rho)))^rho`` for
    i = 0 … n − 1. The first time is always 1, so sigma_max is the ratio at t = 1 unless it is
    given, which a process that keeps no signal at t = 1 needs.

    Raises: ValueError for n < 1, rho <= 0, or not 0 < sigma_min < sigma_max.
    Source: Karras et al. 2022, eq. 5 (arXiv:2206.00364).
    """
    _check_grid_size(n)
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}")
    end = float(_ratio(p, 1.0))
    sigma_max = end if sigma_max is None else sigma_max
    if not (0 < sigma_min < sigma_max < np.inf and sigma_max <= end * (1 + 1e-5)):
        raise ValueError(
            "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max < infinity, and "
            f"sigma_max <= sigma/alpha at t = 1, {end}; got {sigma_min} and {sigma_max}"
        )
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n) ** rho
    return _grid_from_log_snr(p, -2 * np.log(ramp))


def log_snr_uniform(p: Process, n: int, t_min: float = 1e-3, t_max: float = 1.0) -> np.ndarray:
    """n + 1 times: n with equally spaced log-SNR from t_max to t_min, then 0.

    The first time is always 1. A process that keeps no signal at t = 1 has no finite log-SNR
    there and needs t_max < 1, which says where the spacing is measured from.

    Raises: ValueError for n < 1, not 0 < t_min < t_max <= 1, or an infinite log-SNR at t_max.
    Source: Lu et al. 2022, section 3.3 (arXiv:2206.00927).
    """
    _check_grid_size(n)
    if not 0 < t_min < t_max <= 1:
        raise ValueError(
            f"t_min and t_max must satisfy 0 < t_min < t_max <= 1, got {t_min} and {t_max}"
        )
    first, last = float(p.log_snr(t_max)), float(p.log_snr(t_min))
    if not np.isfinite([first, last]).all():
        raise ValueError(
            f"t_max must have a finite log-SNR, got t_max = {t_max} where it is {first}; "
            "for a process without signal at t = 1 pass t_max = 0.999"
        )
    return _grid_from_log_snr(p, np.linspace(first, last, n))


def _ratio(p: Process, t) -> Array:
    return p.sigma(t) / p.alpha(t)


def _grid_from_log_snr(p: Process, values: np.ndarray) -> np.ndarray:
    """Times of falling noise level with these log-SNRs; the first becomes 1, and 0 is added."""
    low, high = np.zeros_like(values, np.float32), np.ones_like(values, np.float32)
    # Bisection works for every process; log-SNR falls with t, and float32 has 24 bits of t.
    for _ in range(40):
        middle = (low + high) / 2
        too_clean = np.asarray(p.log_snr(middle)) > values
        low, high = np.where(too_clean, middle, low), np.where(too_clean, high, middle)
    times = np.concatenate([[1.0], high[1:], [0.0]]).astype(np.float32)
    _check_times(times)
    return times


def _check_times(times) -> None:
    if not concrete(times):
        return
    times = np.asarray(times)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"times must have shape [n + 1] with n >= 1, got shape {times.shape}")
    if not (np.all(np.diff(times) < 0) and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(f"times must fall strictly within [1, 0], got {times}")


# --------------------------------------------------------------------------------------------
# Sampling
# --------------------------------------------------------------------------------------------


def sample(sampler: Sampler, D: Denoiser, x_start: Array, times, key: Array) -> tuple[Array, Array]:
    """Runs a sampler along a grid of times, as one compiled loop.

    Args:
      sampler: from `diffusion_course.samplers`.
      D: the denoiser.
      x_start: state at times[0], [B, …]; for a start from noise `start_noise`.
      times: [n + 1], strictly falling.
      key: a random key; step i uses ``fold_in(key, i)``.

    Returns: the last state [B, …], and the state after every step [n, B, …].
    Raises: ValueError if times do not fall strictly within [1, 0].
    """
    _check_times(times)
    times = jnp.asarray(times, jnp.float32)
    n = times.shape[0] - 1

    def body(carry, inputs):
        x, state = carry
        i, t, s = inputs
        x, state = sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)
        return (x, state), x

    start = (x_start, sampler.init(x_start))
    (x, _), path = jax.lax.scan(body, start, (jnp.arange(n), times[:-1], times[1:]))
    return x, path


def start_noise(p: Process, key: Array, shape: tuple[int, ...], t: float = 1.0) -> Array:
    """Noise of the process's own level at time t: ``sigma(t)·eps``, float32 of this shape.

    It is q(x_t) only where alpha(t)·x0 is negligible beside sigma(t); chapter 01 measures that.
    """
    return p.sigma(t) * jax.random.normal(key, shape)


def generator(
    p: Process, kind: str, sampler: Sampler, times, shape: tuple[int, ...]
) -> Callable[..., Array]:
    """Compiles whole-batch generation, with the model as an argument.

    Args:
      p: the process that the model was trained with.
      kind: what the model predicts.
      sampler: from `diffusion_course.samplers`.
      times: [n + 1], strictly falling.
      shape: of one example, such as (28, 28, 1).

    Returns: ``generate(model, key, n, labels=None, w=1.0)`` -> x0 [n, *shape]. With labels [n] the
      model must have a null class (``model.null_label``), and w is the guidance scale; w = 1
      evaluates only the conditional model. Models of the same shape, and other values of w, share
      one compiled program per n.
    Raises: ValueError if kind cannot recover x0 at times[0] in this process.
    """
    _check_times(times)
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
        one = isinstance(w, int | float) and w == 1
        if labels is None:
            if not one:
                raise ValueError(f"w must be 1 where no labels are given, got {w}")
            return plain(model, key, n, None)
        labels = _check_labels(labels, n, model.null_label)
        if one:
            return plain(model, key, n, labels)
        # One dtype, so that 2, 2.0 and an array share the program.
        return guided(model, key, n, labels, jnp.asarray(w, jnp.float32))

    return generate


def _check_labels(labels, n: int, null_label: int | None) -> Array:
    if null_label is None:
        raise ValueError("labels must be None: this model has no labels (num_classes=None)")
    labels = labels if not concrete(labels) else np.asarray(labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({n},), got {labels.dtype} of shape {labels.shape}"
        )
    if concrete(labels) and n and not (labels.min() >= 0 and labels.max() <= null_label):
        raise ValueError(
            f"labels must be in 0 … {null_label} (the last is the null class), "
            f"got {labels.min()} … {labels.max()}"
        )
    return jnp.asarray(labels, jnp.int32)
