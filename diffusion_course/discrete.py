"""Diffusion of tokens: chains on a finite alphabet, there and back.

Each token of a string forgets its letter on its own. At time t it is kept with probability
alpha(t), and otherwise drawn from the chain's stationary distribution pi:

    q(x_t | x_0) = alpha(t)·[x_t = x_0] + noise(t)·pi(x_t),        noise = 1 − alpha.

With all of pi on a state of its own, the mask, the chain is absorbing; with pi uniform over the
letters it is the uniform chain. Every formula below holds for both. Time runs from t = 0 (data) to
t = 1 (noise). A string is whole numbers [B, L]: letters 0 … K − 1, and K for the mask. A network is
``model(tokens [B, L], t [B], cond) -> logits [B, L, K]``: it has no logit for the mask, since no
datum has a mask. Nats everywhere.

Source: Austin et al. 2021 (arXiv:2107.03006).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import check_cond
from diffusion_course.process import expand

# D(x, t) -> log p(x_0 | x_t), [B, L, K]: for one-hot letters exp(D) is the expected clean string.
LetterDenoiser = Callable[[Array, Array], Array]


class Schedule(NamedTuple):
    """How long a token is kept.

    Attributes:
      alpha: probability of being kept until t; falls from 1 at t = 0 to 0 at t = 1.
      noise: 1 − alpha, written so that it keeps its digits near t = 0.
    """

    alpha: Callable[[Array], Array]
    noise: Callable[[Array], Array]


LINEAR = Schedule(lambda t: 1 - t, lambda t: t)
# alpha = 1 − cos(π/2·(1 − t)): few masks are lifted at first, many at the end.
COSINE = Schedule(lambda t: 2 * jnp.sin(np.pi / 4 * (1 - t)) ** 2, lambda t: jnp.sin(np.pi / 2 * t))


class Chain(NamedTuple):
    """A chain on a finite alphabet; made by `absorbing` or `uniform`.

    Attributes:
      schedule: alpha(t) and noise(t).
      stationary: pi, what a forgotten token is drawn from, float32 [S].
      letters: K, the number of letters; S = K + 1 with a mask, and K without.
    """

    schedule: Schedule
    stationary: np.ndarray
    letters: int

    @property
    def states(self) -> int:
        """S, the number of tokens that a state can have: the letters and the mask."""
        return len(self.stationary)

    @property
    def mask(self) -> int | None:
        """The token that stands for no letter; None in a chain that has none."""
        return self.letters if self.states > self.letters else None


def absorbing(letters: int, schedule: Schedule = LINEAR) -> Chain:
    """Masked diffusion: a forgotten token becomes the mask, and stays it.

    Args:
      letters: K, at least 1; the mask is token K.
      schedule: how long a letter is kept.

    Raises: ValueError if letters is below 1, or alpha does not go from 1 to 0.
    Source: Austin et al. 2021, section 3.1 (arXiv:2107.03006).

    >>> chain = absorbing(2)
    >>> marginal(chain, jnp.array([[0, 1]]), 0.25).tolist()
    [[[0.75, 0.0, 0.25], [0.0, 0.75, 0.25]]]
    """
    letters = checks.integer("letters", letters, 1)
    return _chain(schedule, np.eye(letters + 1, dtype=np.float32)[letters], letters)


def uniform(letters: int, schedule: Schedule = LINEAR) -> Chain:
    """A forgotten token becomes any letter, its own included, with equal probability.

    Args:
      letters: K, at least 2.
      schedule: how long a letter is kept.

    Raises: ValueError if letters is below 2, or alpha does not go from 1 to 0.
    Source: Hoogeboom et al. 2021 (arXiv:2102.05379); Austin et al. 2021 (arXiv:2107.03006).

    >>> marginal(uniform(2), jnp.array([[0, 1]]), 0.5).tolist()
    [[[0.75, 0.25], [0.25, 0.75]]]
    """
    letters = checks.integer("letters", letters, 2)
    return _chain(schedule, np.full(letters, 1 / letters, np.float32), letters)


def _chain(schedule: Schedule, stationary: np.ndarray, letters: int) -> Chain:
    ends = np.float32([[f(t) for t in np.float32([0, 1])] for f in schedule])
    if not np.allclose(ends, [[1, 0], [0, 1]], atol=1e-6):
        raise ValueError(
            "schedule must have alpha = 1 and noise = 0 at t = 0, and alpha = 0 and noise = 1 at "
            f"t = 1; got alpha {ends[0].tolist()} and noise {ends[1].tolist()}"
        )
    return Chain(schedule, stationary, letters)


# --------------------------------------------------------------------------------------------
# Forwards
# --------------------------------------------------------------------------------------------


def marginal(chain: Chain, x0: Array, t) -> Array:
    """q(x_t | x_0) of each token, [B, L, S].

    Args:
      chain: the chain.
      x0: letters [B, L].
      t: a scalar or [B], in [0, 1].

    Raises: ValueError for another token, shape or time.
    """
    x0 = tokens("x0", x0, chain.letters)
    alpha, noise = _levels(chain, t, x0)
    return alpha * jax.nn.one_hot(x0, chain.states) + noise * chain.stationary


def transition(chain: Chain, t, s) -> Array:
    """The matrix q(x_t | x_s) from the earlier time s to t, [S, S]; row i belongs to x_s = i.

    Raises: ValueError unless 0 <= s < t <= 1, one number each.

    >>> transition(absorbing(2), t=0.75, s=0.5).tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]
    """
    t, s = checks.number("t", t), checks.number("s", s)
    kept, lost = _between(chain, t, s, jnp.zeros(()))
    size = chain.states
    return kept * jnp.eye(size) + lost * jnp.broadcast_to(chain.stationary, (size, size))


def add_noise(chain: Chain, x0: Array, t, key: Array) -> Array:
    """Draws x_t from q(x_t | x_0): int32 [B, L].

    Args:
      chain: the chain.
      x0: letters [B, L].
      t: a scalar or [B], in [0, 1].
      key: a random key.

    Raises: ValueError for another token, shape or time.
    """
    x0 = tokens("x0", x0, chain.letters)
    forget, draw = jax.random.split(key)
    checks.time("t", t)
    noise = expand(chain.schedule.noise(jnp.asarray(t, jnp.float32)), x0)
    forgotten = jax.random.uniform(forget, x0.shape) < noise
    return jnp.where(forgotten, start_tokens(chain, draw, x0.shape), x0)


def start_tokens(chain: Chain, key: Array, shape: tuple[int, int]) -> Array:
    """The state at t = 1, where nothing is left of the data: int32 of this shape, (B, L)."""
    checks.random_key("key", key)
    drawn = jax.random.choice(key, chain.states, shape, p=jnp.asarray(chain.stationary))
    return drawn.astype(jnp.int32)


# --------------------------------------------------------------------------------------------
# Backwards
# --------------------------------------------------------------------------------------------


def posterior(chain: Chain, x: Array, x0: Array, t, s) -> Array:
    """q(x_s | x_t, x_0) of each token, [B, L, S], for s < t.

    Args:
      chain: the chain.
      x: the state x_t, tokens [B, L].
      x0: letters [B, L].
      t, s: scalars or [B], 0 <= s < t <= 1.

    Returns: probabilities; all 0 where x_0 cannot become x_t.
    Raises: ValueError for another token, shape or time.
    Source: Austin et al. 2021, eq. 3 (arXiv:2107.03006).

    >>> chain = absorbing(2)  # by s = 0.4, half of the masks of t = 0.8 are gone
    >>> posterior(chain, jnp.array([[2, 1]]), jnp.array([[0, 1]]), 0.8, 0.4).round(3).tolist()
    [[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]]
    """
    x0 = tokens("x0", x0, chain.letters)
    checks.same_shape("x", x, "x0", x0)
    return reverse(chain, x, jax.nn.one_hot(x0, chain.letters), t, s)


def reverse(chain: Chain, x: Array, p0: Array, t, s) -> Array:
    """p(x_s | x_t) = Σ_k q(x_s | x_t, x_0 = k)·p0(k) of each token, [B, L, S], for s < t.

    With p0 = p(x_0 | x_t) this is the true reverse step of each token. The equation 4 of Austin et
    al. weights each term with q(x_t | x_0 = k) in addition, and is another distribution in the
    uniform chain. In the absorbing chain the two agree.

    Args:
      chain: the chain.
      x: the state x_t, tokens [B, L].
      p0: probabilities of x_0, [B, L, K]. In an absorbing chain a letter must stay itself, as
        `denoiser` sees to.
      t, s: scalars or [B], 0 <= s < t <= 1.

    Returns: probabilities; all 0 for a letter at t = 1 in an absorbing chain, where none is left.
    Raises: ValueError for another token, shape or time.
    Source: Austin et al. 2021, section 3 (arXiv:2107.03006).
    """
    x = tokens("x", x, chain.states)
    check_letters("p0", p0, chain, x)
    kept, lost = _between(chain, t, s, x)
    here = jax.nn.one_hot(x, chain.states)
    pi = jnp.asarray(chain.stationary)
    # q(x_t | x_s = j), times what data say of x_s = j.
    return (kept * here + lost * pi[x][..., None]) * ratios(chain, x, p0, t, s)


def likelihoods(chain: Chain, x: Array, t) -> Array:
    """q(x_t | x_0 = k) for every letter k, [B, L, K]."""
    x = tokens("x", x, chain.states)
    alpha, noise = _levels(chain, t, x)
    pi = jnp.asarray(chain.stationary)
    return alpha * jax.nn.one_hot(x, chain.letters) + noise * pi[x][..., None]


def ratios(chain: Chain, x: Array, p0: Array, t, s) -> Array:
    """Σ_k p0(k)·q(x_s = j | x_0 = k)/q(x_t | x_0 = k) for every state j, [B, L, S]."""
    reach = likelihoods(chain, x, t)
    share = jnp.where(reach > 0, p0 / jnp.where(reach > 0, reach, 1.0), 0.0)
    alpha_s, noise_s = _levels(chain, s, x)
    kept = jnp.pad(share, ((0, 0), (0, 0), (0, chain.states - chain.letters)))
    return alpha_s * kept + noise_s * chain.stationary * share.sum(-1, keepdims=True)


def denoiser(model, chain: Chain, cond=None) -> LetterDenoiser:
    """The denoiser of a network: D(x, t) -> log p(x_0 | x_t), [B, L, K].

    In an absorbing chain a letter that is not masked is known: it is carried over, whatever the
    network says of it. The mask has probability 0, as the network has no logit for it.

    Args:
      model: ``model(tokens, t, cond) -> logits [B, L, K]``, t [B].
      chain: the chain that the model was trained with.
      cond: labels [B], arrays with one row per example, or None.

    Returns: D(x, t), t a scalar or [B]. Raises: ValueError, from D, for another token, time, number
      of conditions or shape of logits.
    Source: the parameterization SUBS of Sahoo et al. 2024 (arXiv:2406.07524).

    >>> D = denoiser(lambda x, t, cond: jnp.zeros((*x.shape, 2)), absorbing(2))
    >>> jnp.exp(D(jnp.array([[2, 0]]), 0.5)).tolist()
    [[[0.5, 0.5], [1.0, 0.0]]]
    """

    def D(x, t):
        x = tokens("x", x, chain.states)
        checks.time("t", t)
        check_cond(cond, x)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        logits = jnp.asarray(model(x, t, cond), jnp.float32)
        check_letters("logits", logits, chain, x)
        log_p0 = jax.nn.log_softmax(logits)
        if chain.mask is None:
            return log_p0
        known = jnp.where(jax.nn.one_hot(x, chain.letters, dtype=bool), 0.0, -jnp.inf)
        return jnp.where((x == chain.mask)[..., None], log_p0, known)

    return D


def classifier_free(model, null: int, w):
    """Guidance of logits, ``l_u + w·(l_c − l_u)``: a model made from a model.

    The softmax of it is ``p_u·(p_c/p_u)^w``, normalised token by token. w = 0 is unconditional,
    w = 1 conditional, w > 1 extrapolates.

    Args:
      model: ``model(tokens, t, cond) -> logits``, finite ones.
      null: the label that stands for no condition.
      w: guidance scale, a number (it may be traced) or one per example [B].

    Returns: ``model(tokens, t, cond)``; each call evaluates the given model twice.
    Raises: ValueError if w is not finite.
    Source: Schiff et al. 2024 (arXiv:2412.10193); Ho & Salimans 2022 (arXiv:2207.12598).

    >>> guided = classifier_free(lambda x, t, cond: cond[:, None, None] * jnp.ones(2), 0, 3.0)
    >>> guided(jnp.array([[1]]), 0.5, jnp.array([2])).tolist()
    [[[6.0, 6.0]]]
    """
    checks.within("w", w, -np.inf, np.inf, ends="()")

    def guided(x, t, cond):
        with_cond, without = model(x, t, cond), model(x, t, jnp.full_like(cond, null))
        return without + expand(jnp.asarray(w, jnp.float32), without) * (with_cond - without)

    return guided


# --------------------------------------------------------------------------------------------
# Checks and levels
# --------------------------------------------------------------------------------------------


def tokens(argument: str, given, states: int) -> Array:
    """`given` as int32 [B, L] of tokens 0 … states − 1; ValueError if it is none."""
    shape = np.shape(given)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{argument} must have shape [B, L] without a 0 in it, got shape {list(shape)}"
        )
    checks.labels(argument, given, shape, states - 1)
    return jnp.asarray(given, jnp.int32)


def check_mask(chain: Chain) -> None:
    """ValueError unless the chain is an absorbing one."""
    if chain.mask is None:
        raise ValueError("chain must be an absorbing one, got one without a mask")


def check_letters(argument: str, given, chain: Chain, x: Array) -> None:
    """ValueError unless an array has the shape [B, L, K]: letters, and no mask among them."""
    expected = (*x.shape, chain.letters)
    if np.shape(given) != expected:
        raise ValueError(
            f"{argument} must have shape [B, L, K] = {list(expected)}, K letters without the mask, "
            f"got shape {list(np.shape(given))}"
        )


def _levels(chain: Chain, t, x: Array) -> tuple[Array, Array]:
    """alpha(t) and noise(t) of a scalar or [B], shaped for [B, L, S]."""
    checks.time("t", t)
    t = expand(jnp.asarray(t, jnp.float32), x[..., None])
    return chain.schedule.alpha(t), chain.schedule.noise(t)


def _between(chain: Chain, t, s, x: Array) -> tuple[Array, Array]:
    """The share of the tokens of time s that is kept until t, and the share that is lost."""
    if checks.concrete(t, s) and not np.all(np.asarray(s) < np.asarray(t)):
        raise ValueError(f"s must be less than t, got s = {s} and t = {t}")
    (alpha_t, noise_t), (alpha_s, noise_s) = _levels(chain, t, x), _levels(chain, s, x)
    return alpha_t / alpha_s, (noise_t - noise_s) / alpha_s
