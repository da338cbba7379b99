"""The bound on −log p of a string: its terms, and the losses that estimate it.

A chain of T steps has the bound of `step_bound` summed over its steps. As T grows it becomes the
integral of `rate_bound` over time, which for masked diffusion is a weighted cross-entropy. If the
denoiser is exact, the integral *is* −log p(x_0); with T steps, in which tokens are drawn
independently of each other, the chain has a distribution of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.discrete import (
    Chain,
    add_noise,
    check_letters,
    check_mask,
    denoiser,
    posterior,
    ratios,
    reverse,
    tokens,
)
from diffusion_course.losses import TimeSampler, stratified_times
from diffusion_course.process import expand

_TINY = float(np.finfo(np.float32).tiny)


def step_bound(chain: Chain, x0: Array, x: Array, log_p0: Array, t, s) -> Array:
    """KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) of each token: a term of the bound, nats [B, L].

    For s = 0 it is −log p(x_0 | x_t), so the last step needs no case of its own. The term at t = 1
    is 0, since nothing is left of the data. A model's probability below 1e-38 counts as 1e-38.

    Args:
      chain: the chain.
      x0: letters [B, L].
      x: the state x_t, tokens [B, L].
      log_p0: log p(x_0 | x_t) from a denoiser, [B, L, K].
      t, s: scalars or [B], 0 <= s < t <= 1.

    Raises: ValueError for another token, shape or time.
    Source: Austin et al. 2021, eq. 1 (arXiv:2107.03006).
    """
    true = posterior(chain, x, x0, t, s)
    guess = reverse(chain, x, jnp.exp(log_p0), t, s)
    log = lambda p: jnp.log(jnp.maximum(p, _TINY))  # noqa: E731 (0·log 0 is 0)
    return (true * (log(true) - log(guess))).sum(-1)


def rate_bound(chain: Chain, x0: Array, x: Array, log_p0: Array, t) -> Array:
    """The continuous-time bound's integrand in t of each token, nats per unit of t, [B, L].

    It is the limit of `step_bound` over t − s for small steps. With ratios
    r_j = q(x_t = j | x_0)/q(x_t = x | x_0) and the model's R_j = Σ_k p(k)·(the same for k) it is

        noise'/alpha·pi(x)·Σ_j (R_j − r_j + r_j·log(r_j/R_j)),

    to which j = x adds nothing, since r_x = R_x = 1. In the absorbing chain it is
    noise'/noise·(−log p(x_0 | x_t)) at a mask, and 0 at a letter.

    Args:
      chain: the chain.
      x0: letters [B, L].
      x: the state x_t, tokens [B, L].
      log_p0: log p(x_0 | x_t) from a denoiser, [B, L, K].
      t: a scalar or [B], in (0, 1).

    Raises: ValueError for another token, shape or time.
    Source: Campbell et al. 2022 (arXiv:2205.14987); Lou et al. 2024 (arXiv:2310.16834).
    """
    x0 = tokens("x0", x0, chain.letters)
    x = tokens("x", x, chain.states)
    checks.same_shape("x", x, "x0", x0)
    check_letters("log_p0", log_p0, chain, x)
    checks.within("t", t, 0, 1, ends="()")
    true = ratios(chain, x, jax.nn.one_hot(x0, chain.letters), t, t)
    guess = ratios(chain, x, jnp.exp(log_p0), t, t)
    some = jnp.where(true > 0, true, 1.0)
    terms = jnp.where(true > 0, true * _surplus(guess / some, (guess - true) / some), guess)
    speed = noise_rate(chain, t) / chain.schedule.alpha(jnp.asarray(t, jnp.float32))
    return expand(speed, x) * jnp.asarray(chain.stationary)[x] * terms.sum(-1)


def _surplus(ratio: Array, excess: Array) -> Array:
    """``ratio − 1 − log(ratio)``, with excess = ratio − 1: near ratio = 1 it is of second order."""
    near = jnp.abs(excess) < 0.5
    close = jnp.where(near, excess, 0.0)
    return jnp.where(near, close - jnp.log1p(close), excess - jnp.log(jnp.maximum(ratio, _TINY)))


def noise_rate(chain: Chain, t) -> Array:
    """The time derivative of noise(t), which is −alpha'(t); of t's shape."""
    checks.time("t", t)
    t = jnp.asarray(t, jnp.float32)
    return jax.jvp(chain.schedule.noise, (t,), (jnp.ones_like(t),))[1]


def masked_loss(
    model, chain: Chain, x0: Array, cond, key: Array, times: TimeSampler = stratified_times
) -> Array:
    """Masked diffusion's bound, estimated at one time per example: nats [B].

    ``−alpha'/(1 − alpha)·Σ −log p(x_0 | x_t)`` over the masked tokens: a cross-entropy whose weight
    makes it an unbiased estimate of the continuous-time bound on −log p(x_0). Train with its mean.

    Args:
      model: ``model(tokens, t, cond) -> logits [B, L, K]``.
      chain: an absorbing chain.
      x0: letters [B, L].
      cond: labels [B], arrays with one row per example, or None.
      key: a random key.
      times: draws the times, ``(key, n) -> [n]``; they are shuffled, so that each example's time is
        uniform.

    Raises: ValueError if the chain has no mask, or for other letters or another shape.
    Source: Sahoo et al. 2024 (arXiv:2406.07524); Shi et al. 2024 (arXiv:2406.04329).

    >>> from diffusion_course.discrete import absorbing
    >>> def guess(x, t, cond):
    ...     return jnp.zeros((*x.shape, 2))
    >>> x0 = jnp.zeros((4096, 3), jnp.int32)
    >>> loss = masked_loss(guess, absorbing(2), x0, None, jax.random.key(0)).mean()
    >>> print(f"{loss / np.log(2):.1f}")  # three tokens of one bit
    3.0
    """
    check_mask(chain)
    _, t, log_p0 = _noisy(model, chain, x0, cond, key, times)
    # A letter that is not masked is carried over, at no cost.
    nll = -jnp.take_along_axis(log_p0, jnp.asarray(x0)[..., None], axis=-1)[..., 0]
    return noise_rate(chain, t) / chain.schedule.noise(t) * nll.sum(-1)


def any_order_loss(model, chain: Chain, x0: Array, cond, key: Array) -> Array:
    """The same bound as `masked_loss`, estimated at one number of masks per example: nats [B].

    Of L tokens, m are masked, with m = 1 … L equally probable and every choice of m as well; the
    cross-entropy at the masks has the weight L/m. Nothing is left to chance but the choice: no
    state is without a mask, and a weight is never above L. So its variance is smaller. The network
    is called at t = m/L. It estimates `discrete_exact.any_order_bound`.

    Args:
      model: ``model(tokens, t, cond) -> logits [B, L, K]``.
      chain: an absorbing chain; its schedule is not used.
      x0: letters [B, L].
      cond: labels [B], arrays with one row per example, or None.
      key: a random key.

    Raises: ValueError if the chain has no mask, or for other letters or another shape.
    Source: Hoogeboom et al. 2022 (arXiv:2110.02037).

    >>> from diffusion_course.discrete import absorbing
    >>> def guess(x, t, cond):
    ...     return jnp.zeros((*x.shape, 2))
    >>> x0 = jnp.zeros((2, 3), jnp.int32)
    >>> loss = any_order_loss(guess, absorbing(2), x0, None, jax.random.key(0))
    >>> (loss / np.log(2)).round(4).tolist()  # three tokens of one bit, in every draw
    [3.0, 3.0]
    """
    check_mask(chain)
    x0 = tokens("x0", x0, chain.letters)
    checks.random_key("key", key)
    key_count, key_order, key_places = jax.random.split(key, 3)
    batch, length = x0.shape
    share = jax.random.permutation(key_order, stratified_times(key_count, batch))
    masks = jnp.clip(jnp.ceil(share * length), 1, length)[:, None]
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key_places, x0.shape), axis=-1), axis=-1)
    hidden = rank < masks
    log_p0 = denoiser(model, chain, cond)(jnp.where(hidden, chain.mask, x0), masks[:, 0] / length)
    # A letter that is not masked is carried over, at no cost.
    nll = -jnp.take_along_axis(log_p0, x0[..., None], axis=-1)[..., 0]
    return length / masks[:, 0] * nll.sum(-1)


def rate_loss(
    model, chain: Chain, x0: Array, cond, key: Array, times: TimeSampler = stratified_times
) -> Array:
    """Any chain's continuous-time bound, estimated at one time per example: nats [B].

    In the uniform chain it is finite only for a model whose doubt of a letter falls with noise(t):
    near t = 0, each chance p(k) of another letter counts with about p(k)/noise(t) per unit of time.

    Args: as `masked_loss`, with any chain. Raises: ValueError for other letters or another shape.
    Source: as `rate_bound`; for the uniform chain Schiff et al. 2024 (arXiv:2412.10193).
    """
    x, t, log_p0 = _noisy(model, chain, x0, cond, key, times)
    return rate_bound(chain, x0, x, log_p0, t).sum(-1)


def step_loss(model, chain: Chain, x0: Array, cond, key: Array, steps: int) -> Array:
    """The bound of a chain of this many steps, estimated at one step per example: nats [B].

    Args:
      model, chain, x0, cond, key: as `rate_loss`.
      steps: T, at least 1; the times are n/T.

    Raises: ValueError if steps is below 1, or for other letters or another shape.
    Source: Austin et al. 2021, eq. 1 (arXiv:2107.03006).
    """
    steps = checks.integer("steps", steps, 1)

    def times(key, n):
        return jax.random.randint(key, (n,), 1, steps + 1).astype(jnp.float32) / steps

    x, t, log_p0 = _noisy(model, chain, x0, cond, key, times)
    s = jnp.maximum(t - 1 / steps, 0.0)  # rounding could leave less than 0
    return steps * step_bound(chain, x0, x, log_p0, t, s).sum(-1)


def _noisy(model, chain, x0, cond, key, times) -> tuple[Array, Array, Array]:
    """States at one time per example, these times [B], and what the model makes of them."""
    x0 = tokens("x0", x0, chain.letters)
    checks.random_key("key", key)
    key_time, key_order, key_noise = jax.random.split(key, 3)
    t = jax.random.permutation(key_order, times(key_time, len(x0)))
    checks.same_shape("times", t, "x0's batch", x0[:, 0])
    x = add_noise(chain, x0, t, key_noise)
    return x, t, denoiser(model, chain, cond)(x, t)
