"""Samplers of strings: each a pair of functions, as for continuous data, run as one compiled loop.

Their denoiser is that of `discrete`: D(x, t) -> log p(x_0 | x_t), [B, L, K].

A token is drawn in two steps: first whether it changes, then into what. One draw with Gumbel noise
over all states would hide a trap: in float32 this noise never exceeds 15.94 in JAX, since a uniform
number has 23 bits. A short step keeps nearly every mask, and shares the small rest among all
letters. Of those whose probabilities are below e^−16 hardly any would be drawn, and the samples
would be less diverse than the model.

Source: Zheng et al. 2024 (arXiv:2409.02908).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.discrete import (
    Chain,
    LetterDenoiser,
    check_letters,
    check_mask,
    reverse,
    tokens,
)
from diffusion_course.process import expand
from diffusion_course.samplers import Sampler

# kernel(x_t, p0, t, s) -> p(x_s | x_t), [B, L, S], of tokens that are drawn independently.
Kernel = Callable[[Array, Array, Array, Array], Array]


def sample(
    sampler: Sampler, D: LetterDenoiser, x_start: Array, times, key: Array
) -> tuple[Array, Array]:
    """Runs a sampler along a grid of times, as one compiled loop.

    Args:
      sampler: from this file.
      D: the denoiser, from `discrete.denoiser`.
      x_start: tokens at times[0], whole numbers [B, L]; from noise `discrete.start_tokens`. Of an
        absorbing chain some may be given letters, a prompt.
      times: [n + 1], strictly falling within [1, 0], such as `sampling.uniform(n)`.
      key: a random key; step i uses ``fold_in(key, i)``.

    Returns: the last tokens [B, L], and those after every step [n, B, L].
    Raises: ValueError if times do not fall strictly within [1, 0], or x_start is no such array.

    >>> from diffusion_course import discrete, sampling
    >>> chain = discrete.absorbing(2)
    >>> def ones(x, t, cond):
    ...     return jnp.broadcast_to(jnp.array([-50.0, 50.0]), (*x.shape, 2))
    >>> D, start = discrete.denoiser(ones, chain), jnp.array([[2, 2, 0]])  # the prompt: a last 0
    >>> x, path = sample(ancestral(chain), D, start, sampling.uniform(4), jax.random.key(0))
    >>> x.tolist(), path.shape
    ([[1, 1, 0]], (4, 1, 3))
    """
    x_start = tokens("x_start", x_start, np.iinfo(np.int32).max)
    times = checks.falling_times("times", times)
    checks.random_key("key", key)

    def body(carry, inputs):
        x, state = carry
        i, t, s = inputs
        x, state = sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)
        return (x, state), x

    count = np.arange(len(times) - 1, dtype=np.int32)
    start = (x_start, sampler.init(x_start))
    (x, _), path = jax.lax.scan(body, start, (count, times[:-1], times[1:]))
    return x, path


# --------------------------------------------------------------------------------------------
# All tokens at once
# --------------------------------------------------------------------------------------------


def ancestral(chain: Chain) -> Sampler:
    """Draws every token from p(x_s | x_t), independently of the others.

    Exact for a single token in any number of steps. For several it is exact only in the limit of
    many steps, in which no two tokens change at once.

    Source: Austin et al. 2021 (arXiv:2107.03006).
    """
    return parallel(chain, lambda x, p0, t, s: reverse(chain, x, p0, t, s))


def remasking(chain: Chain, eta: float) -> Sampler:
    """Masked diffusion that may take a letter back: the sampler of `remasked`.

    A prompt is masked as well. Args and Raises: as `remasked`.
    """
    return parallel(chain, remasked(chain, eta))


def parallel(chain: Chain, kernel: Kernel) -> Sampler:
    """The sampler that draws every token from a kernel, independently of the others."""

    def init(x):
        tokens("x_start", x, chain.states)
        return ()

    def step(D, x, t, s, key, state):
        return draw(key, kernel(x, jnp.exp(D(x, t)), t, s), x), state

    return Sampler(init, step)


def remasked(chain: Chain, eta: float) -> Kernel:
    """A reverse step in which a letter is masked again with probability sigma.

    ``sigma = eta·min(1, noise_s/alpha_t)``, the share eta of the most that leaves the marginals
    q(x_s | x_0) as they are: masks are lifted more often to make up for it. eta = 0 is `ancestral`.

    Args:
      chain: an absorbing chain.
      eta: in [0, 1].

    Raises: ValueError if the chain has no mask, or eta is outside [0, 1].
    Source: Wang et al. 2025, with the rescaled schedule (arXiv:2503.00307).

    >>> from diffusion_course import discrete
    >>> kernel = remasked(discrete.absorbing(1), eta=0.5)  # at t = 0.5 letters are masked again
    >>> kernel(jnp.array([[0, 1]]), jnp.ones((1, 2, 1)), 0.5, 0.25).tolist()
    [[[0.75, 0.25], [0.75, 0.25]]]
    """
    check_mask(chain)
    eta = checks.number("eta", eta)
    checks.within("eta", eta, 0, 1)

    def kernel(x, p0, t, s):
        x = tokens("x", x, chain.states)
        check_letters("p0", p0, chain, x)
        t, s = (expand(jnp.asarray(time, jnp.float32), p0) for time in (t, s))
        alpha_t, noise_t = chain.schedule.alpha(t), chain.schedule.noise(t)
        noise_s = chain.schedule.noise(s)
        # At alpha = 0 there is no letter that could be masked again.
        sigma = eta * jnp.minimum(1, noise_s / jnp.maximum(alpha_t, np.finfo(np.float32).tiny))
        stays = jnp.maximum(noise_s - sigma * alpha_t, 0) / noise_t
        to_mask = jnp.where((x == chain.mask)[..., None], stays, sigma)
        return jnp.concatenate([(1 - to_mask) * p0, to_mask], axis=-1)

    return kernel


def draw(key: Array, probs: Array, x: Array) -> Array:
    """Draws the next tokens: whether each of them changes, then what it changes into.

    Args:
      key: a random key.
      probs: of the next state, [B, L, S]; they need not sum to 1. A token whose probabilities are
        all 0 stays: a letter of a prompt at t = 1, where the chain has no letters.
      x: the tokens now, [B, L].

    Returns: int32 [B, L].
    """
    moves, where = jax.random.split(key)
    here = jax.nn.one_hot(x, probs.shape[-1], dtype=bool)
    others = jnp.where(here, 0.0, probs)
    # The sum of the others: 1 − p(x) would lose the digits of a rare change.
    change = others.sum(-1)
    total = change + jnp.where(here, probs, 0.0).sum(-1)
    change = change / jnp.where(total > 0, total, 1.0)
    new = _categorical(where, jnp.log(others))
    return jnp.where(jax.random.uniform(moves, x.shape) < change, new, x)


def _categorical(key: Array, logits: Array) -> Array:
    # Twice the bits for each uniform number: Gumbel noise up to 32.
    return jax.random.categorical(key, logits, mode="high").astype(jnp.int32)


# --------------------------------------------------------------------------------------------
# A number of tokens at a time
# --------------------------------------------------------------------------------------------


def random_order(chain: Chain) -> Sampler:
    """Lifts masks in random order; after the step to time s, n·s of the n masks remain.

    On ``sampling.uniform(n)``, or a longer uniform grid, it is one token at a time: any-order
    autoregression, exact if the denoiser is. A shorter one draws several tokens at once,
    independently of each other. The number is rounded to the nearest whole.

    Args:
      chain: an absorbing chain; its schedule is not used.

    Raises: ValueError if the chain has no mask.
    Source: Hoogeboom et al. 2022 (arXiv:2110.02037); Zheng et al. 2024 (arXiv:2409.02908).
    """
    check_mask(chain)

    def score(key, log_p, s):
        return jax.random.uniform(key, log_p.shape)

    return _in_order(chain, score, lambda s: s)


def by_confidence(chain: Chain, temperature: float = 4.5) -> Sampler:
    """Lifts those masks first whose drawn letters are the most probable; noise(s)·n of n remain.

    Confidence is ``log p(letter) + temperature·s·Gumbel noise``, with a letter drawn from p for
    each mask. It trades diversity for fidelity: even with an exact denoiser, one token at a time,
    its samples have another distribution than the data, since unlikely letters are drawn again.

    Args:
      chain: an absorbing chain; MaskGIT's has the schedule `discrete.COSINE`.
      temperature: of the order, at least 0.

    Raises: ValueError if the chain has no mask, or temperature is negative.
    Source: Chang et al. 2022, section 3.2 (arXiv:2202.04200); the noise and its 4.5 from their
    published code.
    """
    check_mask(chain)
    temperature = checks.non_negative("temperature", temperature)

    def score(key, log_p, s):
        return log_p + temperature * s * jax.random.gumbel(key, log_p.shape)

    return _in_order(chain, score, chain.schedule.noise)


def _in_order(chain: Chain, score, share_left) -> Sampler:
    """Lifts the masks of highest score(key, log p(letter), s); share_left(s) of them remain."""

    def init(x):
        x = tokens("x_start", x, chain.states)
        return (x == chain.mask).sum(-1, keepdims=True)  # how many masks there are to begin with

    def step(D, x, t, s, key, masks):
        key_letter, key_order = jax.random.split(key)
        log_p0 = D(x, t)
        letters = _categorical(key_letter, log_p0)
        log_p = jnp.take_along_axis(log_p0, letters[..., None], axis=-1)[..., 0]
        # The lowest scores stay masked; letters, which have none, rank above all masks.
        scores = jnp.where(x == chain.mask, score(key_order, log_p, s), jnp.inf)
        rank = jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)
        left = jnp.floor(masks * share_left(s) + 0.5)
        return jnp.where((x == chain.mask) & (rank >= left), letters, x), masks

    return Sampler(init, step)
