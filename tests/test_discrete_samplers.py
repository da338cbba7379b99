"""Samplers of strings: their distribution against the exact one, and what each may change."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import CHAINS, K, L, P
from scipy.stats import chi2

from diffusion_course import discrete, discrete_exact, discrete_samplers, sampling

KEY = jax.random.key(21)
N = 8000
A, U, BY_COSINE = CHAINS["absorbing"], CHAINS["uniform"], CHAINS["absorbing_cosine"]


def exact(chain, p=P):
    return discrete.denoiser(discrete_exact.exact_model(chain, p), chain)


def fits(x, p):
    """Pearson's test: whether strings may come from this distribution, at one in 100 000."""
    p = np.float64(p)[:K, :K, :K].ravel()
    count = np.bincount(np.ravel_multi_index(np.asarray(x).T, (K, K, K)), minlength=K**L)
    assert abs(p.sum() - 1) < 1e-4 and p.min() * len(x) > 5
    statistic = ((count - len(x) * p) ** 2 / (len(x) * p)).sum()
    return chi2.sf(statistic, K**L - 1) > 1e-5


def generate(chain, sampler, steps, n=N):
    def run(key):
        start, then = jax.random.split(key)
        x = discrete.start_tokens(chain, start, (n, L))
        times = sampling.uniform(steps)
        return discrete_samplers.sample(sampler, exact(chain), x, times, then)[0]

    return np.asarray(jax.jit(run)(KEY))


# ------------------------------------------------------------------------ the distribution


def test_one_token_at_a_time_the_samples_are_exact():
    sampler = discrete_samplers.random_order(BY_COSINE)  # the schedule does not count
    assert fits(generate(BY_COSINE, sampler, L), P)
    assert not fits(generate(BY_COSINE, sampler, L - 1), P)  # two at once


@cache
def parallel(name, steps):
    chain, kernel = {
        "absorbing": (A, None),
        "uniform": (U, None),
        "remasking": (A, discrete_samplers.remasked(A, 0.6)),
    }[name]
    D, times = exact(chain), sampling.uniform(steps)
    return np.asarray(discrete_exact.distribution(chain, D, L, times, kernel), np.float64)


@pytest.mark.parametrize(
    "name, chain, sampler",
    [
        ("absorbing", A, discrete_samplers.ancestral(A)),
        ("uniform", U, discrete_samplers.ancestral(U)),
        ("remasking", A, discrete_samplers.remasking(A, 0.6)),
    ],
)
def test_parallel_steps_have_the_enumerated_distribution_which_is_not_the_datas(
    name, chain, sampler
):
    x = generate(chain, sampler, 3)
    assert fits(x, parallel(name, 3)) and not fits(x, P)


@pytest.mark.parametrize("name", ["absorbing", "uniform", "remasking"])
def test_more_parallel_steps_come_closer(name):
    far = [abs(parallel(name, steps)[:K, :K, :K] - P).sum() / 2 for steps in (3, 12, 48)]
    assert far[0] > 1.5 * far[1] > 2.25 * far[2] > 0.005, far
    assert parallel(name, 3).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chain", [A, U, BY_COSINE], ids=["absorbing", "uniform", "cosine"])
def test_a_single_token_is_exact_in_any_number_of_steps(chain):
    p, times = np.array([0.2, 0.7, 0.1]), np.float32([1, 0.85, 0.3, 0])
    D = exact(chain, p)
    kernels = [None]
    if chain.mask is not None:
        kernels += [discrete_samplers.remasked(chain, eta) for eta in (0.4, 1.0)]
    for kernel in kernels:
        found = discrete_exact.distribution(chain, D, 1, times, kernel)
        np.testing.assert_allclose(found[:K], p, atol=2e-6)


@pytest.mark.parametrize("chain", [A, BY_COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("t, s", [(1.0, 0.8), (0.9, 0.6), (0.3, 0.2), (0.5, 0.0)])
def test_remasking_keeps_the_marginals(chain, t, s):
    x, p0 = np.array([[0, 1, 2, K]]), np.zeros((1, K + 1, K), np.float32)
    p0[0, [0, 1, 2], [0, 1, 2]], p0[0, K] = 1, [0.0, 1.0, 0.0]  # the datum is a 1
    before = discrete.marginal(chain, np.array([[1]]), t)[0, 0]
    after = discrete.marginal(chain, np.array([[1]]), s)[0, 0]
    for eta in (0.0, 0.3, 1.0):
        move = np.asarray(discrete_samplers.remasked(chain, eta)(x, p0, t, s)[0])
        assert move.min() >= 0
        np.testing.assert_allclose(before @ move, after, atol=1e-6)
        if t < 1:  # a letter is masked with the share eta of the most that is possible
            most = min(1, float(chain.schedule.noise(s) / chain.schedule.alpha(t)))
            assert move[0, K] == pytest.approx(eta * most, abs=1e-6)
    plain = discrete.reverse(chain, x, p0, t, s)[0]
    same = discrete_samplers.remasked(chain, 0.0)(x, p0, t, s)[0]
    some = np.flatnonzero(before)  # at t = 1 only the mask occurs
    np.testing.assert_allclose(same[some], plain[some], atol=1e-6)


# ------------------------------------------------------------------------ what may change

SAMPLERS = {
    "ancestral": discrete_samplers.ancestral(A),
    "random_order": discrete_samplers.random_order(A),
    "by_confidence": discrete_samplers.by_confidence(A),
    "remasking": discrete_samplers.remasking(A, 1.0),
}


@cache
def path(name, steps=6, length=10):
    """All states of 40 strings from prompts of two lengths, the start in front."""
    start = np.full((40, length), K)
    start[:, 1], start[20:, 4:8] = 2, 1
    model = lambda x, t, cond: jnp.broadcast_to(jnp.array([0.5, 0.0, -1.0]), (*x.shape, K))  # noqa: E731
    D, times = discrete.denoiser(model, A), sampling.uniform(steps)
    x, states = discrete_samplers.sample(SAMPLERS[name], D, start, times, KEY)
    assert (x == states[-1]).all() and x.dtype == states.dtype == jnp.int32
    return np.concatenate([start[None], states])


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_mask_is_left_and_only_remasking_changes_a_letter(name):
    states = path(name)
    assert (states[-1] < K).all() and (states >= 0).all()
    was_letter = states[:-1] < K
    changed = (states[1:] != states[:-1]) & was_letter
    assert changed.any() == (name == "remasking")
    assert (states[1:][changed] == K).all()  # back to the mask, not to another letter


@pytest.mark.parametrize("name", ["random_order", "by_confidence"])
def test_the_number_of_masks_follows_the_grid(name):
    left = (path(name) == K).sum(-1)
    share = np.linspace(1, 0, 7)  # of 9 masks, and of 5
    for rows, n in ((left[:, :20], 9), (left[:, 20:], 5)):
        expected = np.floor(n * share + 0.5 + 1e-6)
        assert (rows == expected[:, None]).all()
    sampler = discrete_samplers.by_confidence(BY_COSINE)
    x = np.full((3, 40), K)
    D = discrete.denoiser(lambda x, t, cond: jnp.zeros((*x.shape, K)), BY_COSINE)
    _, states = discrete_samplers.sample(sampler, D, x, sampling.uniform(4), KEY)
    expected = np.floor(40 * np.sin(np.pi / 2 * np.array([0.75, 0.5, 0.25, 0])) + 0.5)
    assert ((states == K).sum(-1) == expected[:, None]).all()


def test_the_most_confident_are_first_and_noise_makes_the_order_random():
    sure = np.float32([2.0, 9.0, 1.0, 6.0, 4.0])  # of letter 0, so sure that it is always drawn

    def model(x, t, cond):
        return jnp.broadcast_to((sure + 20)[:, None] * jnp.array([1.0, 0, 0]), (*x.shape, K))

    D, start, times = discrete.denoiser(model, A), np.full((400, 5), K), sampling.uniform(5)
    greedy = discrete_samplers.by_confidence(A, temperature=0.0)
    # In float32 log p is 0 for all of these; subtracted, the differences can be seen.
    soft = lambda x, t: D(x, t) - jnp.where((x == K)[..., None], 30 - sure[:, None], 0)  # noqa: E731
    _, states = discrete_samplers.sample(greedy, soft, start, times, KEY)
    order = np.argsort((states == K).sum(0), axis=-1)
    assert (order == [1, 3, 4, 0, 2]).all()
    loose = discrete_samplers.by_confidence(A, temperature=1e4)
    _, states = discrete_samplers.sample(loose, soft, start, times, KEY)
    # Noise alone decides: each position is the first in a fifth of the strings.
    share = (states[0] < K).mean(0)
    np.testing.assert_allclose(share, np.full(5, 0.2), atol=4.5 * np.sqrt(0.16 / 400))

    # Noise shrinks with s: a tenth of it decides next to nothing where log p differs by 1.
    step = discrete_samplers.by_confidence(A, temperature=1.0).step
    state, _ = step(soft, start, 0.15, 0.1, KEY, np.full((400, 1), 5))
    assert (state[:, 2] == K).mean() > 0.99


def test_confidence_changes_the_distribution_even_one_token_at_a_time():
    assert not fits(generate(A, discrete_samplers.by_confidence(A, 1.0), L), P)


# ------------------------------------------------------------------------ drawing


def test_tokens_are_drawn_with_their_probabilities():
    probs = np.float32([[0.5, 0.2, 0.0, 0.3], [0.1, 0.2, 0.3, 0.4], [0.0, 0.6, 0.4, 0.0]])
    x, n = np.array([0, 1, 3]), 40_000
    many = jnp.broadcast_to(probs, (n, 3, 4))
    found = np.asarray(discrete_samplers.draw(KEY, 0.7 * many, np.tile(x, (n, 1))))
    for i in range(3):
        share = np.bincount(found[:, i], minlength=4) / n
        error = np.sqrt(probs[i] * (1 - probs[i]) / n)
        np.testing.assert_array_less(abs(share - probs[i]), 4.5 * error + 1e-12)


def test_whether_a_token_changes_does_not_depend_on_how_many_letters_there_are():
    # One draw among a million states would never reach letters of probability 1e-9: see below.
    x = np.zeros((500, 40), np.int32)

    def changed(letters):
        probs = np.full(letters + 1, 1e-2 / letters, np.float32)
        probs[0] = 1 - 1e-2
        probs = jnp.broadcast_to(probs, (*x.shape, letters + 1))
        return np.asarray(discrete_samplers.draw(KEY, probs, x)) > 0

    few = changed(1)
    assert few.mean() == pytest.approx(0.01, abs=4.5 * np.sqrt(0.01 / x.size))
    # Equal but for rounding of the sum.
    assert (few != changed(50)).mean() < 1e-4


def test_float32_gumbel_noise_is_capped_and_letters_are_drawn_with_the_longer_tail(monkeypatch):
    largest = np.float32(1 - 2.0**-23)  # of JAX's uniform numbers
    assert -np.log(-np.log(largest, dtype=np.float64)) == pytest.approx(15.94, abs=0.01)
    modes, plain = [], jax.random.categorical

    def spy(key, logits, **options):
        modes.append(options["mode"])
        return plain(key, logits, **options)

    monkeypatch.setattr(jax.random, "categorical", spy)
    discrete_samplers.draw(KEY, np.ones((1, 2, 3), np.float32), np.zeros((1, 2), np.int32))
    x = np.full((1, 2), K)
    D = lambda x, t: jnp.zeros((*x.shape, K))  # noqa: E731
    discrete_samplers.random_order(A).step(D, x, 1.0, 0.5, KEY, np.array([[2]]))
    assert modes == ["high", "high"]


# ------------------------------------------------------------------------ bad inputs

X = np.full((2, L), K)
FLAT = lambda x, t: jnp.zeros((*x.shape, K))  # noqa: E731


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: discrete_samplers.random_order(U), "chain must be an absorbing one"),
        (lambda: discrete_samplers.by_confidence(U), "chain must be an absorbing one"),
        (lambda: discrete_samplers.by_confidence(A, -1), r"temperature must be in \[0, inf\)"),
        (lambda: discrete_samplers.remasking(U, 0.1), "chain must be an absorbing one"),
        (lambda: discrete_samplers.remasking(A, 1.5), r"eta must be in \[0, 1\], got 1.5"),
        (
            lambda: discrete_samplers.sample(SAMPLERS["ancestral"], FLAT, X, [0, 1], KEY),
            "times must fall strictly",
        ),
        (
            lambda: discrete_samplers.sample(SAMPLERS["ancestral"], FLAT, X * 1.0, [1, 0], KEY),
            "x_start must be whole numbers",
        ),
        (
            lambda: discrete_samplers.sample(SAMPLERS["ancestral"], FLAT, X, [1, 0], 3),
            "key must be one random key",
        ),
        (
            lambda: discrete_samplers.sample(SAMPLERS["ancestral"], FLAT, X + 1, [1, 0], KEY),
            "x_start must be in 0 … 3, got 4 … 4",
        ),
        (
            lambda: discrete_samplers.sample(SAMPLERS["by_confidence"], FLAT, X + 1, [1, 0], KEY),
            "x_start must be in 0 … 3, got 4 … 4",
        ),
        (
            lambda: discrete_samplers.remasked(A, 0.5)(X, np.ones((2, L, K + 1)), 0.5, 0.2),
            r"p0 must have shape \[B, L, K\]",
        ),
        (
            lambda: discrete_exact.distribution(A, FLAT, L, [0.9, 0.0]),
            "times must fall from 1 to 0, got 0.8999",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
