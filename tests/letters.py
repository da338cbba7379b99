"""A distribution over 27 strings whose letters depend on each other, their chains and networks."""

import jax.numpy as jnp
import numpy as np

from diffusion_course import discrete, discrete_exact
from diffusion_course.discrete import COSINE

rng = np.random.default_rng(20)
K, L = 3, 3
# A distribution over strings of three letters in which the letters depend on each other.
P = 0.9 * rng.dirichlet(np.full(K**L, 0.5)).reshape(K, K, K) + 0.1 / K**L
STRINGS = discrete_exact.strings(K, L)
NLL = -np.log(P[tuple(STRINGS.T)])
CHAINS = {
    "absorbing": discrete.absorbing(K),
    "absorbing_cosine": discrete.absorbing(K, COSINE),
    "uniform": discrete.uniform(K),
    "uniform_cosine": discrete.uniform(K, COSINE),
}


def alpha64(name, t):
    return 1 - np.sin(np.pi / 2 * t) if name.endswith("cosine") else 1 - t


def matrix64(name, t, s=0.0):
    """q(x_t | x_s) by the definition, rows x_s, in float64."""
    kept = alpha64(name, t) / alpha64(name, s)
    if name.startswith("uniform"):
        return kept * np.eye(K) + (1 - kept) / K
    return kept * np.eye(K + 1) + (1 - kept) * np.eye(K + 1)[K]


def exact(name):
    chain = CHAINS[name]
    return discrete.denoiser(discrete_exact.exact_model(chain, P), chain)


TABLE = jnp.asarray(rng.normal(0, 1.2, (L, K + 1, L, K)), jnp.float32)


def wrong_model(x, t, cond):
    """An asymmetric network that is far from the truth: every token votes on every other."""
    return sum(TABLE[i][x[:, i]] for i in range(L))


def wrong(name):
    return discrete.denoiser(wrong_model, CHAINS[name])


# A network that doubts every letter even at t = 0 has an infinite bound in the uniform chain. This
# one does not; it has learnt other strings.
WRONG_UNIFORM = discrete_exact.exact_model(CHAINS["uniform"], P.transpose(1, 2, 0)[::-1])
