"""The bound on −log p of a string and the losses that estimate it, by enumeration."""

from functools import cache, partial
from itertools import pairwise, permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import CHAINS, NLL, STRINGS, WRONG_UNIFORM, K, L, P, exact, wrong, wrong_model

from diffusion_course import discrete, discrete_bound, discrete_exact, sampling

rng = np.random.default_rng(23)
KEY = jax.random.key(20)
each_chain = pytest.mark.parametrize("name", CHAINS)
each_kind = pytest.mark.parametrize("name", ["absorbing", "uniform"])


# ------------------------------------------------------------------------------------ the bound


@pytest.mark.parametrize("name", ["absorbing", "absorbing_cosine", "uniform"])
def test_the_continuous_bound_of_the_exact_model_is_the_likelihood(name):
    # Pointwise, not on average. Float32: 1e-6.
    found = discrete_exact.continuous_bound(CHAINS[name], exact(name), STRINGS, nodes=16)
    np.testing.assert_allclose(found, NLL, atol=1e-6)


@pytest.mark.parametrize("letters, length", [(2, 4), (4, 2)])
def test_so_it_is_for_strings_of_any_shape(letters, length):
    p = rng.dirichlet(np.full(letters**length, 2.0)).reshape((letters,) * length)
    x0 = discrete_exact.strings(letters, length)[3:8]
    nll = -np.log(p[tuple(x0.T)])
    for chain in (discrete.uniform(letters), discrete.absorbing(letters)):
        D = discrete.denoiser(discrete_exact.exact_model(chain, p), chain)
        found = discrete_exact.continuous_bound(chain, D, x0, nodes=16)
        np.testing.assert_allclose(found, nll, atol=2e-6)
    np.testing.assert_allclose(discrete_exact.any_order_bound(chain, D, x0), nll, atol=2e-6)


def test_in_any_order_one_token_at_a_time_the_likelihood_is_exact():
    found = discrete_exact.any_order_bound(CHAINS["absorbing"], exact("absorbing"), STRINGS)
    np.testing.assert_allclose(found, NLL, atol=1e-6)
    # And each order by itself.
    D = jax.jit(exact("absorbing"))
    for order in permutations(range(L)):
        x, total = np.full_like(STRINGS, K), 0.0
        for i in order:
            total -= np.float64(D(x, 0.5))[np.arange(27), i, STRINGS[:, i]]
            x[:, i] = STRINGS[:, i]
        np.testing.assert_allclose(total, NLL, atol=1e-6)


def test_the_bound_of_a_wrong_model_is_the_mean_over_all_orders():
    mean = 0.0
    for order in permutations(range(L)):
        x = np.full_like(STRINGS, K)
        for i in order:
            logits = np.float64(wrong_model(x, None, None))[:, i]
            p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            mean -= np.log(p[np.arange(27), STRINGS[:, i]]) / 6
            x[:, i] = STRINGS[:, i]
    for name in ("absorbing", "absorbing_cosine"):  # whatever the schedule
        chain, D = CHAINS[name], wrong(name)
        found = discrete_exact.any_order_bound(chain, D, STRINGS)
        np.testing.assert_allclose(found, mean, atol=2e-6)
        found = discrete_exact.continuous_bound(chain, D, STRINGS, nodes=16)
        np.testing.assert_allclose(found, mean, atol=4e-6)
    assert (P.ravel() * (mean - NLL)).sum() > 0.5


@cache
def gap(name, steps):
    """How far the bound of a chain of T steps is from −log p of every string."""
    times = sampling.uniform(steps)
    return discrete_exact.exact_bound(CHAINS[name], exact(name), STRINGS, times) - NLL


@each_kind
def test_parallel_steps_cost_something_on_average_and_less_the_more_there_are(name):
    mean = [(P.ravel() * gap(name, steps)).sum() for steps in (1, 2, 4, 16)]
    assert all(a > 1.3 * b > 0.01 for a, b in pairwise(mean)), mean
    # In one step the tokens are independent, and the gap is their total correlation.
    alone = [P.sum(tuple(j for j in range(L) if j != i)) for i in range(L)]
    independent = np.einsum("a,b,c->abc", *alone)
    assert mean[0] == pytest.approx((P * np.log(P / independent)).sum(), abs=1e-5)


@each_kind
def test_with_parallel_steps_it_bounds_the_chains_own_likelihood_and_not_the_datas(name):
    found = gap(name, 4)
    assert found.min() < -0.1 and found.max() > 0.1
    p = discrete_exact.distribution(CHAINS[name], exact(name), L, sampling.uniform(4))
    p = np.float64(p)[tuple(STRINGS.T)]
    assert p.sum() == pytest.approx(1, abs=1e-5)  # no mask is left
    above = found + NLL + np.log(p)
    assert above.min() > 0 and above.max() < 1


@each_kind
def test_short_steps_have_the_rate_as_their_limit(name):
    chain, t, h = CHAINS[name], 0.55, 0.01
    x0 = STRINGS[[5, 21]]
    x = np.where(x0 == 1, chain.states - 1, x0)  # another letter, or a mask
    log_p0 = wrong(name)(x, t)
    rate = np.asarray(discrete_bound.rate_bound(chain, x0, x, log_p0, t))
    # The middle of a step of 0.02 is of second order.
    step = discrete_bound.step_bound(chain, x0, x, log_p0, t + h / 2, t - h / 2) / h
    np.testing.assert_allclose(step, rate, rtol=0.03, atol=2e-4)
    assert (rate > 0).any()


# ------------------------------------------------------------------------------------ the losses


@cache
def estimates(kind, name):
    """10 000 losses of each of two strings, with a model that is wrong."""
    loss = {
        "masked": discrete_bound.masked_loss,
        "order": discrete_bound.any_order_loss,
        "rate": discrete_bound.rate_loss,
        "step": partial(discrete_bound.step_loss, steps=5),
    }[kind]
    x0 = np.tile(STRINGS[[5, 21]], (10_000, 1))
    model = WRONG_UNIFORM if (kind, name) == ("rate", "uniform") else wrong_model
    run = jax.jit(lambda x0, key: loss(model, CHAINS[name], x0, None, key))
    found = run(x0, KEY)
    assert found.shape == (20_000,)
    return np.float64(found).reshape(-1, 2)


@pytest.mark.parametrize(
    "kind, name",
    [("masked", "absorbing"), ("masked", "absorbing_cosine"), ("rate", "uniform"),
     ("order", "absorbing_cosine"),
     ("step", "uniform"), ("step", "absorbing")],
)  # fmt: skip
def test_each_loss_is_an_unbiased_estimate_of_its_bound(kind, name):
    chain, D, x0 = CHAINS[name], wrong(name), STRINGS[[5, 21]]
    if kind == "step":
        expected = discrete_exact.exact_bound(chain, D, x0, sampling.uniform(5))
    elif kind in ("masked", "order"):
        expected = discrete_exact.any_order_bound(chain, D, x0)
    else:
        D = discrete.denoiser(WRONG_UNIFORM, chain)
        expected = discrete_exact.continuous_bound(chain, D, x0)
    found = estimates(kind, name)
    error = found.std(0) / np.sqrt(len(found))
    np.testing.assert_array_less(abs(found.mean(0) - expected), 4 * error)
    assert (error < 0.04 * expected).all()  # else it would say little


def test_the_masked_loss_is_the_general_one_of_the_absorbing_chain():
    # Rounding: 1e-5 of the weight, which is large at few masks.
    masked, general = estimates("masked", "absorbing"), estimates("rate", "absorbing")
    np.testing.assert_allclose(general, masked, rtol=1e-4, atol=1e-4)


def test_counting_masks_has_a_smaller_variance_than_drawing_times():
    counted, timed = estimates("order", "absorbing_cosine"), estimates("masked", "absorbing_cosine")
    assert (counted.std(0) < 0.7 * timed.std(0)).all()
    assert (counted > 0).all()  # never without a mask


def test_each_examples_own_loss_is_unbiased_wherever_it_stands_in_the_batch():
    # Stratified times that were not shuffled would give the first example small times alone.
    flat = lambda x, t, cond: jnp.zeros((*x.shape, K))  # noqa: E731
    x0 = jnp.asarray(STRINGS[:2])
    one = lambda key: discrete_bound.masked_loss(flat, CHAINS["absorbing_cosine"], x0, None, key)  # noqa: E731
    found = np.float64(jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000)))
    error = found.std(0) / np.sqrt(len(found))
    np.testing.assert_array_less(abs(found.mean(0) - L * np.log(K)), 4 * error)


def test_gradients_are_finite_and_point_to_the_truth():
    def loss(bias, key):
        model = lambda x, t, cond: jnp.broadcast_to(bias, (*x.shape, K))  # noqa: E731
        x0 = jnp.tile(jnp.array([[1, 1, 0]]), (256, 1))
        losses = (discrete_bound.masked_loss, discrete_bound.rate_loss)
        return sum(
            f(model, chain, x0, None, key).mean()
            for f, chain in zip(losses, (CHAINS["absorbing"], CHAINS["uniform"]), strict=True)
        )

    slope = np.asarray(jax.jit(jax.grad(loss))(jnp.array([0.0, 0.0, -95.0]), KEY))
    assert np.isfinite(slope).all() and slope[1] < -0.1 < slope[0]


# ------------------------------------------------------------------------------------ bad inputs

A, U, X0 = CHAINS["absorbing"], CHAINS["uniform"], np.zeros((2, 3), np.int32)
ONES = np.ones((2, 3, K), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: discrete_bound.rate_bound(A, X0, X0, ONES, 0.0), r"t must be in \(0, 1\)"),
        (lambda: discrete_bound.masked_loss(wrong_model, U, X0, None, KEY), "without a mask"),
        (lambda: discrete_bound.any_order_loss(wrong_model, U, X0, None, KEY), "without a mask"),
        (lambda: discrete_exact.listed_model(A, X0, [1.0]), r"p must have shape \[N\] = \[2\]"),
        (lambda: discrete_exact.listed_model(A, X0, [0.5, 0.6]), "p must sum to 1"),
        (lambda: discrete_exact.listed_model(A, X0 + 3, [0.5, 0.5]), "table must be in"),
        (lambda: discrete_bound.step_loss(wrong_model, U, X0, None, KEY, 0), "steps must be"),
        (lambda: discrete_bound.rate_loss(wrong_model, A, X0 + 3, None, KEY), "x0 must be in"),
        (lambda: discrete_exact.exact_model(A, P[:2]), r"p must have shape \[K, …, K\]"),
        (lambda: discrete_exact.exact_model(A, P / 2), "p must sum to 1"),
        (lambda: discrete_exact.any_order_bound(U, exact("uniform"), X0), "without a mask"),
        (lambda: discrete_exact.exact_bound(A, exact("absorbing"), X0, [1, 0.5]), "from 1 to 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
