"""Chains of tokens there and back: against Bayes, by matrices and by sums over all strings."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import CHAINS, STRINGS, K, L, P, alpha64, exact, matrix64, wrong, wrong_model

from diffusion_course import discrete, discrete_bound, discrete_exact
from diffusion_course.discrete import COSINE, LINEAR, Schedule

rng = np.random.default_rng(22)
KEY = jax.random.key(20)
each_chain = pytest.mark.parametrize("name", CHAINS)
each_kind = pytest.mark.parametrize("name", ["absorbing", "uniform"])


# ------------------------------------------------------------------------------------- forwards


@each_chain
def test_marginals_and_transitions_are_powers_of_one_matrix(name):
    chain, x0 = CHAINS[name], np.arange(K)[None]
    t, s = 0.8, 0.35
    found = discrete.marginal(chain, x0, np.float32([t]))[0]
    np.testing.assert_allclose(found, matrix64(name, t)[:K], atol=1e-6)
    step = discrete.transition(chain, t, s)
    np.testing.assert_allclose(step, matrix64(name, t, s), atol=1e-6)
    np.testing.assert_allclose(discrete.marginal(chain, x0, s)[0] @ step, found, atol=1e-6)


@each_chain
def test_noise_stays_noise_and_is_what_the_end_is(name):
    chain = CHAINS[name]
    pi = np.full(K, 1 / K) if name.startswith("uniform") else np.eye(K + 1)[K]
    np.testing.assert_allclose(pi @ discrete.transition(chain, 0.6, 0.2), pi, atol=1e-6)
    end = discrete.marginal(chain, STRINGS[:5], 1.0)
    np.testing.assert_allclose(end, np.broadcast_to(pi, end.shape), atol=1e-7)


@pytest.mark.parametrize("schedule, alpha", [(LINEAR, "linear"), (COSINE, "cosine")])
def test_schedules_keep_their_digits_at_both_ends(schedule, alpha):
    t = np.float32([1e-6, 0.01, 0.4, 0.9, 0.999])
    t64, h = np.float64(t), 1e-7
    np.testing.assert_allclose(schedule.alpha(t), alpha64(alpha, t64), rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(schedule.noise(t), 1 - alpha64(alpha, t64), rtol=1e-6)
    slope = (alpha64(alpha, t64 - h) - alpha64(alpha, t64 + h)) / (2 * h)
    found = discrete_bound.noise_rate(discrete.absorbing(K, schedule), t)
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-6)  # of the difference, in float64


@each_kind
def test_noise_is_drawn_with_the_probabilities_of_its_own_time(name):
    chain, n = CHAINS[name], 20_000
    t = np.repeat(np.float32([0.2, 0.7]), n)
    x = discrete.add_noise(chain, np.tile([[2, 0]], (2 * n, 1)), t, KEY)
    for i, time in enumerate((0.2, 0.7)):
        for j, letter in enumerate((2, 0)):
            share = np.bincount(x[i * n : (i + 1) * n, j], minlength=chain.states) / n
            expected = matrix64(name, time)[letter]
            error = np.sqrt(expected * (1 - expected) / n)
            np.testing.assert_array_less(abs(share - expected), 4.5 * error + 1e-12)


def test_start_tokens_are_masks_or_uniform_letters():
    assert (discrete.start_tokens(CHAINS["absorbing"], KEY, (50, 2)) == K).all()
    share = np.bincount(discrete.start_tokens(CHAINS["uniform"], KEY, (9000, 2)).ravel()) / 18_000
    np.testing.assert_allclose(share, np.full(K, 1 / K), atol=4.5 * np.sqrt(2 / 9 / 18_000))


# ------------------------------------------------------------------------------------ backwards


@each_chain
def test_the_posterior_is_bayes(name):
    chain = CHAINS[name]
    pairs = np.array(list(product(range(chain.states), range(K))))
    t, s = 0.75, 0.4
    to_s, to_t, step = matrix64(name, s), matrix64(name, t), matrix64(name, t, s)
    found = discrete.posterior(chain, pairs[:, :1], pairs[:, 1:], t, s)[:, 0]
    for (x, x0), row in zip(pairs, found, strict=True):
        if to_t[x0, x] == 0:  # another letter, in the absorbing chain
            assert (row == 0).all()
        else:
            np.testing.assert_allclose(row, to_s[x0] * step[:, x] / to_t[x0, x], atol=1e-6)


@each_kind
def test_every_example_may_have_its_own_times(name):
    chain, p0 = CHAINS[name], np.float32(rng.dirichlet(np.ones(K), (2, 4)))
    x0 = np.array([[0, 1, 2, 2], [1, 1, 0, 2]])
    x = np.full_like(x0, chain.states - 1)
    t, s = np.float32([0.9, 0.4]), np.float32([0.3, 0.2])
    log_p0 = np.log(p0)
    for call in (
        lambda x, x0, p0, log_p0, t, s: discrete.marginal(chain, x0, t),
        lambda x, x0, p0, log_p0, t, s: discrete.posterior(chain, x, x0, t, s),
        lambda x, x0, p0, log_p0, t, s: discrete.reverse(chain, x, p0, t, s),
        lambda x, x0, p0, log_p0, t, s: discrete_bound.step_bound(chain, x0, x, log_p0, t, s),
        lambda x, x0, p0, log_p0, t, s: discrete_bound.rate_bound(chain, x0, x, log_p0, t),
    ):
        both = call(x, x0, p0, log_p0, t, s)
        for i in range(2):
            one = call(*(a[i : i + 1] for a in (x, x0, p0, log_p0)), float(t[i]), float(s[i]))
            np.testing.assert_allclose(both[i : i + 1], one, rtol=1e-5, atol=1e-7)


def by_bayes(name, t, s):
    """p(x_0^i | x_t) and p(x_s^i | x_t) of every token i, from sums over all strings: float64."""
    states = CHAINS[name].states
    to_t, to_s, step = matrix64(name, t), matrix64(name, s), matrix64(name, t, s)
    given = lambda q: np.einsum("abc,ax,by,cz->xyzabc", P, q, q, q)  # noqa: E731
    joint = given(to_t[:K])  # of x_t and x_0
    p0 = [joint.sum(tuple(3 + j for j in range(L) if j != i)) for i in range(L)]
    before = np.einsum("abc,ax,by,cz->xyz", P, *[to_s[:K]] * 3)
    pair = np.einsum("uvw,ux,vy,wz->xyzuvw", before, step, step, step)
    ps = [pair.sum(tuple(3 + j for j in range(L) if j != i)) for i in range(L)]
    both = [np.stack(p, 3).reshape(states**L, L, -1) for p in (p0, ps)]
    return [p / p.sum(-1, keepdims=True) for p in both]


@each_chain
def test_exact_model_and_reverse_step_are_bayes_over_all_strings(name):
    chain, t, s = CHAINS[name], 0.7, 0.45
    x = discrete_exact.strings(chain.states, L)
    p0, ps = by_bayes(name, t, s)
    found = jnp.exp(exact(name)(x, t))
    np.testing.assert_allclose(found, p0, atol=2e-6)
    np.testing.assert_allclose(discrete.reverse(chain, x, found, t, s), ps, atol=2e-6)


def test_a_list_of_strings_is_a_distribution_over_them():
    """Four of the 27 strings, one of them twice; all states that they can become."""
    chosen, share = np.array([3, 25, 11, 3, 16]), np.array([0.1, 0.3, 0.05, 0.2, 0.35])
    p = np.bincount(chosen, share, minlength=K**L).reshape(K, K, K)
    for chain in (CHAINS["absorbing"], CHAINS["uniform"]):
        x = discrete_exact.strings(chain.states, L)
        reach = np.asarray(discrete.likelihoods(chain, x, 0.6), np.float64)
        given = share * reach[:, np.arange(L), STRINGS[chosen]].prod(-1)
        able = given.sum(-1) > 0
        letters = np.eye(K)[STRINGS[chosen]]
        want = np.einsum("xn,nlk->xlk", given[able], letters) / given[able].sum(-1)[:, None, None]
        model = discrete_exact.listed_model(chain, STRINGS[chosen], share)
        found = np.exp(np.asarray(model(x[able], np.full(able.sum(), 0.6), None)))
        np.testing.assert_allclose(found, want, atol=2e-6)
        same = np.exp(np.asarray(discrete_exact.exact_model(chain, p)(x[able], 0.6, None)))
        np.testing.assert_allclose(found, same, atol=2e-6)
    # No string fits: the nearest in number of letters.
    model = discrete_exact.listed_model(CHAINS["absorbing"], [[0, 0, 0], [1, 1, 2]], [0.9, 0.1])
    found = np.exp(np.asarray(model(np.array([[1, 0, 2]]), 0.5, None)))[0]
    np.testing.assert_allclose(found, np.eye(K)[[1, 1, 2]], atol=1e-6)


def test_equation_4_of_d3pm_is_another_step_in_the_uniform_chain():
    t, s = 0.7, 0.45
    p0, ps = by_bayes("uniform", t, s)
    x = discrete_exact.strings(K, L)
    plug_in = matrix64("uniform", t, s).T[x] * (p0 @ matrix64("uniform", s))
    plug_in /= plug_in.sum(-1, keepdims=True)
    assert abs(plug_in - ps).max() > 0.05


def test_letters_are_carried_over_and_the_mask_has_no_probability():
    x = np.array([[3, 1, 3], [0, 3, 2]])
    p0 = np.exp(wrong("absorbing")(x, np.float32([0.3, 0.6])))
    assert p0.shape == (2, L, K)  # the mask is not among them
    np.testing.assert_allclose(p0.sum(-1), 1, atol=1e-6)
    for i, j in ((0, 1), (1, 0), (1, 2)):
        assert p0[i, j].tolist() == np.eye(K)[x[i, j]].tolist()
    raw = wrong_model(x, None, None)
    np.testing.assert_allclose(p0[0, 0], np.exp(raw[0, 0]) / np.exp(raw[0, 0]).sum(), rtol=1e-5)
    # In the uniform chain a letter may be any other.
    assert (np.exp(wrong("uniform")(x % 3, 0.5)) > 0).all()


def test_guidance_is_a_product_of_powers():
    logits = jnp.asarray(rng.normal(size=(2, 4, K)), jnp.float32)  # of two conditions

    def model(x, t, cond):
        return logits[cond]

    w = np.float32([0.0, 1.0, 2.5])
    x, cond = np.zeros((3, 4), np.int32), np.array([1, 1, 1])
    found = jax.nn.softmax(discrete.classifier_free(model, 0, w)(x, 0.5, cond))
    p_u, p_c = (np.float64(jax.nn.softmax(row)) for row in logits)
    for row, power in zip(found, w, strict=True):
        expected = p_u ** (1 - power) * p_c**power
        np.testing.assert_allclose(row, expected / expected.sum(-1, keepdims=True), rtol=1e-5)


# ------------------------------------------------------------------------------------ bad inputs

A, U, X0 = CHAINS["absorbing"], CHAINS["uniform"], np.zeros((2, 3), np.int32)
ONES = np.ones((2, 3, K), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: discrete.absorbing(0), "letters must be a whole number at least 1, got 0"),
        (lambda: discrete.uniform(1), "letters must be a whole number at least 2, got 1"),
        (
            lambda: discrete.absorbing(2, Schedule(lambda t: 1 - t / 2, lambda t: t / 2)),
            "schedule must have alpha = 1 and noise = 0 at t = 0",
        ),
        (lambda: discrete.marginal(A, X0 + 3, 0.5), "x0 must be in 0 … 2, got 3 … 3"),
        (lambda: discrete.marginal(A, X0[0], 0.5), r"x0 must have shape \[B, L\]"),
        (lambda: discrete.marginal(A, X0 + 0.5, 0.5), "x0 must be whole numbers"),
        (lambda: discrete.marginal(A, X0, 1.5), r"t must be in \[0, 1\], got 1.5"),
        (lambda: discrete.marginal(A, X0, np.float32([0.1] * 3)), r"shape \[B\] = \[2\]"),
        (lambda: discrete.add_noise(A, X0, -0.1, KEY), r"t must be in \[0, 1\]"),
        (lambda: discrete.transition(A, 0.2, 0.2), "s must be less than t"),
        (lambda: discrete.posterior(A, X0, X0, 0.2, 0.3), "s must be less than t"),
        (lambda: discrete.posterior(A, X0[:1], X0, 0.3, 0.2), "x must have the shape of x0"),
        (lambda: discrete.reverse(U, X0 + 3, ONES, 0.3, 0.2), "x must be in 0 … 2"),
        (lambda: discrete.reverse(A, X0, ONES[:1], 0.3, 0.2), r"p0 must have shape \[B, L, K\]"),
        (
            lambda: discrete.denoiser(lambda x, t, c: np.ones((2, 3, K + 1)), A)(X0, 0.5),
            r"logits must have shape \[B, L, K\] = \[2, 3, 3\], K letters without the mask",
        ),
        (lambda: discrete.denoiser(wrong_model, A, np.ones(3))(X0, 0.5), "cond must be labels"),
        (lambda: discrete.denoiser(wrong_model, A)(X0 + 4, 0.5), "x must be in 0 … 3, got 4"),
        (lambda: discrete.classifier_free(wrong_model, 0, np.nan), "w must be in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
