"""Exact answers on small alphabets, by enumeration: what networks and samplers are tested against.

With K letters and strings of length L there are K^L strings and at most (K + 1)^L states; all of
them are visited, so that both should stay below some thousands.
"""

from itertools import pairwise
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.discrete import (
    Chain,
    LetterDenoiser,
    check_mask,
    likelihoods,
    marginal,
    reverse,
    tokens,
)
from diffusion_course.discrete_bound import rate_bound, step_bound
from diffusion_course.discrete_samplers import Kernel

_TINY = float(np.finfo(np.float32).tiny)


def strings(states: int, length: int) -> np.ndarray:
    """All strings of this length over tokens 0 … states − 1, the last token first to change.

    >>> strings(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    states, length = checks.integer("states", states, 1), checks.integer("length", length, 1)
    return np.indices((states,) * length, dtype=np.int32).reshape(length, -1).T


def exact_model(chain: Chain, p):
    """The best possible network for strings of this distribution: its logits are log p(x_0 | x_t).

    Args:
      chain: the chain.
      p: the probability of every string, [K, …, K] with one axis per token.

    Returns: ``model(tokens, t, cond) -> logits [B, L, K]``; cond is ignored. Zero probabilities
      become 1e-38, so that logits are finite. Times are moved by up to 1e-6 into (0, 1), where
      every string can become every state of its letters.
    Raises: ValueError unless p is a distribution over strings of the chain's letters.

    >>> from diffusion_course import discrete
    >>> chain = discrete.absorbing(2)
    >>> model = exact_model(chain, [[0.4, 0.1], [0.2, 0.3]])
    >>> print(jnp.exp(model(jnp.array([[2, 1]]), 0.5, None))[0, 0].round(2))
    [0.25 0.75]
    """
    p = np.asarray(p, np.float64)
    if p.ndim == 0 or set(p.shape) != {chain.letters}:
        raise ValueError(
            f"p must have shape [K, …, K] with K = {chain.letters}, got shape {list(p.shape)}"
        )
    checks.within("p", p, 0, 1)
    if abs(p.sum() - 1) > 1e-5:
        raise ValueError(f"p must sum to 1, got {p.sum()}")
    return listed_model(chain, strings(chain.letters, p.ndim), p.ravel())


def listed_model(chain: Chain, table, p):
    """The best possible network for the strings of a list: its logits are log p(x_0 | x_t).

    Args:
      chain: the chain.
      table: the strings, letters [N, L].
      p: the probability of each, [N].

    Returns: a model like that of `exact_model`. A state that no string of the list can have become
      is read as one of those that agree with it in most places.
    Raises: ValueError for other letters, or unless p is a distribution over the list.

    >>> from diffusion_course import discrete
    >>> model = listed_model(discrete.absorbing(2), [[0, 0], [1, 1]], [0.25, 0.75])
    >>> jnp.exp(model(jnp.array([[2, 2], [2, 0]]), 0.5, None))[:, 0].round(2).tolist()
    [[0.25, 0.75], [1.0, 0.0]]
    """
    tokens("table", table, chain.letters)
    # In NumPy: so a jitted function may make its model itself.
    table, p = np.asarray(table), np.asarray(p, np.float64)
    if p.shape != table.shape[:1]:
        raise ValueError(f"p must have shape [N] = [{len(table)}], got shape {list(p.shape)}")
    checks.within("p", p, 0, 1)
    if abs(p.sum() - 1) > 1e-5:
        raise ValueError(f"p must sum to 1, got {p.sum()}")
    log_p = jnp.asarray(np.log(np.maximum(p, _TINY)), jnp.float32)
    letters = np.eye(chain.letters, dtype=np.float32)[table]  # [N, L, K]
    exactly = {"precision": jax.lax.Precision.HIGHEST}  # accelerators would round the factors

    def model(x, t, cond):
        t = jnp.clip(jnp.asarray(t, jnp.float32), 1e-12, 1 - 1e-6)
        # An impossible letter costs 1e4, not infinitely much: 0·inf would be NaN.
        log_reach = jnp.maximum(jnp.log(likelihoods(chain, x, t)), -1e4)
        log_reach = jnp.einsum("blk,nlk->bn", log_reach, letters, **exactly)
        given_x = jax.nn.softmax(log_p + log_reach)  # of every string
        p0 = jnp.einsum("bn,nlk->blk", given_x, letters, **exactly)
        return jnp.log(jnp.maximum(p0, _TINY))

    return model


def any_order_bound(chain: Chain, D: LetterDenoiser, x0: Array) -> np.ndarray:
    """Masked diffusion's continuous-time bound, integrated exactly over all masks: nats [B].

    The time integral leaves each set of m masked tokens of L the weight (m − 1)!·(L − m)!/L!,
    whatever the schedule: it is the mean over all orders of the autoregressive −log p. The denoiser
    is called at t = m/L, and must not depend on t for this to be the bound.

    Args:
      chain: an absorbing chain.
      D: the denoiser.
      x0: letters [B, L].

    Returns: float64 [B]. Raises: ValueError if the chain has no mask, or for other letters.
    Source: Hoogeboom et al. 2022 (arXiv:2110.02037); Shi et al. 2024 (arXiv:2406.04329).
    """
    check_mask(chain)
    x0 = tokens("x0", x0, chain.letters)
    batch, length = x0.shape
    masks = strings(2, length)[1:] == 1  # every set of masked tokens but the empty one: [M, L]
    count = masks.sum(-1)
    states = jnp.where(masks[:, None], chain.mask, x0).reshape(-1, length)
    log_p0 = D(states, jnp.repeat(jnp.asarray(count / length, jnp.float32), batch))
    letters = jnp.tile(x0, (len(masks), 1))[..., None]
    nll = -np.asarray(jnp.take_along_axis(log_p0, letters, axis=-1), np.float64)
    nll = (nll.reshape(len(masks), batch, length) * masks[:, None]).sum(-1)
    weight = [factorial(m - 1) * factorial(length - m) / factorial(length) for m in count]
    return np.asarray(weight) @ nll


def exact_bound(chain: Chain, D: LetterDenoiser, x0: Array, times) -> np.ndarray:
    """The bound of a chain with these times, its expectation taken over all states: nats [B].

    It is a bound on −log of what the chain of these steps itself generates (`distribution`).

    Args:
      chain: the chain.
      D: the denoiser.
      x0: letters [B, L].
      times: [n + 1], strictly falling from 1 to 0.

    Returns: float64 [B].
    Raises: ValueError for other letters, or if times do not fall strictly from 1 to 0.
    Source: Austin et al. 2021, eq. 1 (arXiv:2107.03006).
    """
    x0, times = tokens("x0", x0, chain.letters), _whole(times)

    def term(x0, x, log_p0, t, s):
        return step_bound(chain, x0, x, log_p0, t, s)

    return _expected(chain, D, x0, term, list(pairwise(times))).sum(0)


def continuous_bound(chain: Chain, D: LetterDenoiser, x0: Array, nodes: int = 32) -> np.ndarray:
    """The continuous-time bound by quadrature over t, and over all states: nats [B].

    Gauss–Legendre in the cube root of t: in the uniform chain the integrand goes with log(t) at 0.

    Args:
      chain: the chain.
      D: the denoiser.
      x0: letters [B, L].
      nodes: number of times at which the integrand is evaluated, at least 1.

    Returns: float64 [B]. Raises: ValueError for other letters, or fewer nodes.
    """
    x0 = tokens("x0", x0, chain.letters)
    place, weight = np.polynomial.legendre.leggauss(checks.integer("nodes", nodes, 1))

    def term(x0, x, log_p0, t, s):
        return rate_bound(chain, x0, x, log_p0, t)

    root = (place + 1) / 2
    weight = weight / 2 * 3 * root**2
    return weight @ _expected(chain, D, x0, term, [(t, t) for t in root**3])


def _expected(chain: Chain, D: LetterDenoiser, x0: Array, term, pairs) -> np.ndarray:
    """Σ_x q(x_t = x | x_0)·term(x_0, x, log p_0, t, s) for each pair of times: float64 [n, B]."""
    batch, length = x0.shape
    every = strings(chain.states, length)
    # Every string beside every state: [B·N, L].
    strings_, states = jnp.repeat(x0, len(every), axis=0), jnp.tile(every, (batch, 1))

    def one(pair):
        t, s = pair
        log_p0 = jnp.tile(D(every, t), (batch, 1, 1))
        each = jnp.take_along_axis(marginal(chain, strings_, t), states[..., None], axis=-1)
        weight = each[..., 0].prod(-1)
        cost = term(strings_, states, log_p0, t, s).sum(-1)
        # A letter that x_0 cannot have become costs nothing, however it is rated.
        return jnp.where(weight > 0, weight * cost, 0.0).reshape(batch, -1).sum(-1)

    pairs = tuple(jnp.asarray(pairs, jnp.float32).T)
    return np.asarray(jax.lax.map(one, pairs), np.float64)


def distribution(chain: Chain, D: LetterDenoiser, length: int, times, kernel: Kernel | None = None):
    """What a sampler that draws its tokens in parallel generates from noise: its distribution.

    Args:
      chain: the chain.
      D: the denoiser.
      length: L of the strings.
      times: [n + 1], strictly falling from 1 to 0.
      kernel: the sampler's, such as `remasked(chain, eta)`; by default that of `ancestral`.

    Returns: the probability of every string, float32 [S, …, S] with one axis per token.
    Raises: ValueError if times do not fall strictly from 1 to 0.
    """
    every, times = strings(chain.states, length), _whole(times)
    if kernel is None:
        kernel = lambda x, p0, t, s: reverse(chain, x, p0, t, s)  # noqa: E731

    def step(p, pair):
        t, s = pair
        probs = kernel(every, jnp.exp(D(every, t)), t, s)  # [N, L, S]
        move = probs[:, np.arange(length), every].prod(-1)  # from every state to every other
        return jnp.matmul(p, move, precision="highest"), None

    start = jnp.asarray(chain.stationary)[every].prod(-1)
    p, _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return p.reshape((chain.states,) * length)


def _whole(times):
    times = checks.falling_times("times", times)
    if checks.concrete(times) and (times[0] != 1 or times[-1] != 0):
        raise ValueError(f"times must fall from 1 to 0, got {times[0]} … {times[-1]}")
    return times
