"""Rewards: what a model fine-tuned for one should become, and losses that lead there.

With a reward r and the price beta of leaving the model p, the best distribution is
``p(x)·exp(r(x)/beta)``, normalised: it maximises ``E[r] − beta·KL(q ‖ p)``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser
from diffusion_course.linear_gaussian import FullMixture, check_mixture, full_mixture
from diffusion_course.losses import TimeSampler, squared_error, uniform_times
from diffusion_course.process import Process, expand, posterior
from diffusion_course.samplers import ddpm


def tilted(p: Process, means, covariances, weights, slope, curvature) -> tuple[FullMixture, float]:
    """The exact optimum for a mixture of Gaussians and a quadratic reward, and its constant.

    The reward over beta is ``r(x) = slope·x + ½·xᵀ curvature x``. Component k gets the precision
    ``C_k⁻¹ − curvature``, which must stay positive: a reward that grows faster than the density
    falls has no optimum.

    Args:
      p: the process, for ``denoise(x, t)`` of the optimum.
      means: [K, D].
      covariances: [K, D, D], without an eigenvalue of 0.
      weights: [K], positive.
      slope: [D].
      curvature: [D, D], symmetric.

    Returns: the tilted mixture, and ``log E[exp(r(x))]`` in nats.
    Raises: ValueError for other shapes or values, or if a tilted precision is not positive.

    >>> from diffusion_course import process
    >>> p = process.rectified_flow()
    >>> best, log_z = tilted(p, [[0.0]], [[[1.0]]], [1.0], [2.0], [[0.0]])
    >>> best.mean().tolist(), log_z  # N(0, 1) tilted by exp(2x) is N(2, 1)
    ([2.0], 2.0)
    """
    means, covariances, weights = check_mixture(means, covariances, weights)
    d = means.shape[1]
    slope, curvature = np.asarray(slope, np.float64), np.asarray(curvature, np.float64)
    if slope.shape != (d,) or curvature.shape != (d, d) or not (curvature == curvature.T).all():
        raise ValueError(
            f"slope must have shape [{d}] and curvature [{d}, {d}], symmetric, "
            f"got shapes {list(slope.shape)} and {list(curvature.shape)}"
        )
    if np.linalg.eigvalsh(covariances).min() <= 0:
        raise ValueError("covariances must have no eigenvalue of 0: such a direction has no slope")
    precisions = np.linalg.inv(covariances)
    least = np.linalg.eigvalsh(precisions - curvature).min()
    if least <= 0:
        raise ValueError(
            "curvature must be below the precision of every component, so that the tilted "
            f"density can be normalised; got a tilted precision with the eigenvalue {least:.3g}"
        )
    narrowed = np.linalg.inv(precisions - curvature)
    pulled = np.einsum("kde,ke->kd", precisions, means)  # the precision times the mean
    moved = np.einsum("kde,ke->kd", narrowed, pulled + slope)
    # The exponents at the old mean and at the new one, and the volumes.
    exponents = ((pulled + slope) * moved - pulled * means).sum(axis=1) / 2
    volumes = (np.linalg.slogdet(narrowed)[1] - np.linalg.slogdet(covariances)[1]) / 2
    log_share = np.log(weights / weights.sum()) + exponents + volumes
    log_z = np.logaddexp.reduce(log_share)
    share = np.maximum(np.exp(log_share - log_z), 1e-37)
    return full_mixture(p, moved, narrowed, share), float(log_z)


def best_of_n_kl(n: int) -> float:
    """KL divergence of the best of n draws from a single draw, in nats: ``log n − (n − 1)/n``.

    It is exact for a reward whose values are continuous, whatever reward and model are. Where
    rewards can be equal it is an upper bound.

    Args:
      n: how many draws, at least 1.

    Raises: ValueError if n is no whole number of at least 1.
    Source: Beirami et al. 2024 (arXiv:2401.01879).

    >>> print(f"{best_of_n_kl(1):.2f} {best_of_n_kl(4):.2f} {best_of_n_kl(64):.2f}")
    0.00 0.64 3.17
    """
    n = checks.integer("n", n, 1)
    return float(np.log(n) - (n - 1) / n)


def preference_loss(
    model,
    reference,
    p: Process,
    kind: str,
    preferred: Array,
    rejected: Array,
    key: Array,
    beta: float,
    cond=None,
    times: TimeSampler = uniform_times,
) -> Array:
    """Diffusion-DPO: learns from pairs of which the first is preferred, without a reward.

    ``−log sigmoid(−beta·((e_w − e_w_ref) − (e_l − e_l_ref)))``, where e is an example's mean
    squared error of the target: the model should beat the reference on the preferred picture by
    more than on the rejected one. It is log 2 where the model is the reference. Both pictures of a
    pair share time and noise.

    Args:
      model: ``model(x, t, cond)``, which learns.
      reference: the same before fine-tuning; no gradient flows into it.
      p: the process.
      kind: what both predict.
      preferred: [B, …].
      rejected: [B, …], of the same shape.
      key: a random key.
      beta: the price of leaving the reference, positive; the paper's beta·T·omega.
      cond: labels [B], tokens [B, L] or None, of the pairs.
      times: draws the times.

    Returns: the mean over pairs.
    Raises: ValueError if the shapes differ or beta is not positive.
    Source: Wallace et al. 2023, eq. 14 (arXiv:2311.12908).
    """
    preferred, rejected = checks.state("preferred", preferred), checks.state("rejected", rejected)
    checks.same_shape("rejected", rejected, "preferred", preferred)
    checks.random_key("key", key)
    checks.above("beta", beta, 0)
    key_times, key_noise = jax.random.split(key)
    t = times(key_times, preferred.shape[0])
    eps = jax.random.normal(key_noise, preferred.shape, jnp.float32)

    def gain(x0):  # how much less the model errs than the reference
        ours = squared_error(model, p, kind, x0, eps, t, cond)
        theirs = squared_error(reference, p, kind, x0, eps, t, cond)
        return jax.lax.stop_gradient(theirs) - ours

    # The logarithm of each pair, then the mean: of a mean it would be another loss.
    return -jax.nn.log_sigmoid(beta * (gain(preferred) - gain(rejected))).mean()


def transition_log_prob(p: Process, D: Denoiser, x: Array, x_s: Array, t, s) -> Array:
    """log-density of the step of `samplers.ddpm` from x at t to x_s at s, in nats: [B].

    Args:
      p: the process.
      D: the denoiser.
      x: state at t, [B, …].
      x_s: state at s, [B, …].
      t: a scalar time.
      s: a scalar time, 0 < s < t: the step to 0 adds no noise and has no density.

    Raises: ValueError if the shapes differ or s is not in (0, t).
    Source: Black et al. 2023, section 4.3 (arXiv:2305.13301).
    """
    checks.same_shape("x_s", x_s, "x", x)
    _check_step(t, s)
    mean = _step_mean(p, D, x, t, s)
    variance = expand(posterior(p, x, x, t, s)[1], x)
    log_p = -0.5 * ((x_s - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
    return log_p.reshape(x.shape[0], -1).sum(axis=1)


def transition_kl(p: Process, D: Denoiser, D_ref: Denoiser, x: Array, t, s) -> Array:
    """KL divergence of `samplers.ddpm`'s step with D from that with D_ref, in nats: [B].

    Both are Gaussians of one variance, so it is ``‖mean − mean_ref‖²/(2·variance)``. Summed over
    the steps of a path that D draws, its mean is the KL divergence of the paths, which bounds that
    of their ends.

    Args:
      p: the process.
      D: the denoiser that draws.
      D_ref: the one it is compared with.
      x: state at t, [B, …].
      t: a scalar time.
      s: a scalar time, 0 < s < t.

    Raises: ValueError if s is not in (0, t).
    Source: Fan et al. 2023, DPOK, section 4 (arXiv:2305.16381).
    """
    _check_step(t, s)
    mean, mean_ref = (_step_mean(p, guess, x, t, s) for guess in (D, D_ref))
    variance = expand(posterior(p, x, x, t, s)[1], x)
    return ((mean - mean_ref) ** 2 / (2 * variance)).reshape(x.shape[0], -1).sum(axis=1)


def _check_step(t, s) -> None:
    if checks.concrete(t, s) and not 0 < s < t:
        raise ValueError(f"s must be in (0, t), got s = {s} and t = {t}")


def _step_mean(p: Process, D: Denoiser, x: Array, t, s) -> Array:
    """Where the step leads without its noise; its variance depends on the times alone."""
    return ddpm(p, temperature=0.0).step(D, x, t, s, jax.random.key(0), ())[0]


def group_advantages(rewards: Array) -> Array:
    """Rewards less the mean of their group, over its deviation: [B]; 0 where all are equal.

    Args:
      rewards: [B], of samples for one and the same prompt.

    Raises: ValueError unless they are [B] with B >= 1.
    Source: Liu et al. 2025, Flow-GRPO (arXiv:2505.05470).

    >>> group_advantages(jnp.array([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """
    if np.ndim(rewards) != 1 or np.size(rewards) == 0:
        raise ValueError(
            f"rewards must have shape [B] with B >= 1, got shape {list(np.shape(rewards))}"
        )
    rewards = checks.state("rewards", rewards)
    apart = rewards - rewards.mean()
    deviation = jnp.sqrt(jnp.mean(apart**2))
    # Rounding may leave a mean of equal rewards beside them.
    some = deviation > 1e-6 * jnp.abs(rewards).max()
    return jnp.where(some, apart / jnp.where(some, deviation, 1.0), 0.0)


def policy_loss(log_prob: Array, log_prob_old: Array, advantages: Array, clip: float) -> Array:
    """The clipped policy gradient on steps that an older model took.

    ``−min(rho·a, clip(rho, 1 − c, 1 + c)·a)`` with ``rho = exp(log_prob − log_prob_old)``. Where
    both models are one, its gradient is that of ``−a·log_prob``; where the model already went
    further than c in the wanted direction, it is 0.

    Args:
      log_prob: of each step under the model, [..., B], by `transition_log_prob`.
      log_prob_old: of the same under the model that drew them, [..., B].
      advantages: of each sample, [B].
      clip: c, positive.

    Returns: the mean over all steps.
    Raises: ValueError if the shapes do not fit or clip is not positive.
    Source: Black et al. 2023, section 4.3 (arXiv:2305.13301); Schulman et al. 2017, eq. 7
    (arXiv:1707.06347).
    """
    checks.same_shape("log_prob_old", log_prob_old, "log_prob", log_prob)
    checks.broadcasts("advantages", advantages, "log_prob", log_prob)
    checks.above("clip", clip, 0)
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(log_prob_old))
    limited = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantages, limited * advantages).mean()
