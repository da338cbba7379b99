"""Multistep solvers against formulas in float64, and what their orders are after an exact start."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture1D
from runs import quantile
from scipy.integrate import quad

from diffusion_course import denoiser, exponential, process, samplers, sampling, solvers

VP = PROCESSES["vp_linear"]
P = VP.process
TIMES = np.float32([0.9, 0.75, 0.66, 0.42, 0.3, 0.13])  # steps of very different lengths
KEY = jax.random.key(4)
X = np.random.default_rng(2).normal(0.3, 1.2, (4, 3)).astype(np.float32)

# ------------------------------------------------------------------------- formulas in float64


def D64(x, t, numpy=np):
    return numpy.tanh(x) + numpy.sin(3 * t)


def lam(t):
    return np.log(VP.alpha(t) / VP.sigma(t))


def lagrange(at, nodes, k):
    return np.prod([(at - n) / (nodes[k] - n) for i, n in enumerate(nodes) if i != k])


def weights_in_lambda(when, s, eta):
    """The factors of the evaluations at these times, by quad; the first begins the step."""
    t, c = when[0], 1 + eta**2
    nodes, h = [lam(time) - lam(t) for time in when], lam(s) - lam(t)
    each = [
        quad(lambda u, k=k: c * np.exp(-c * (h - u)) * lagrange(u, nodes, k), 0, h)[0]
        for k in range(len(when))
    ]
    return VP.alpha(s) * np.array(each)


def move64(x, said, when, s, eta, z):
    t, h = when[0], lam(s) - lam(when[0])
    kept = VP.sigma(s) / VP.sigma(t) * np.exp(-(eta**2) * h)
    mean = kept * x + np.tensordot(weights_in_lambda(when, s, eta), np.stack(said), 1)
    return mean + VP.sigma(s) * np.sqrt(-np.expm1(-2 * eta**2 * h)) * z


def multistep64(order, corrector, eta, kept=3):
    """Predictor and corrector along TIMES: every state after a step."""
    x, path, said, when = X.astype(np.float64), [], [], []
    times = TIMES.astype(np.float64)
    start = z = None
    for i, (t, s) in enumerate(pairwise(times)):
        x0 = D64(x, t)
        if corrector and said:
            past = slice(1, corrector)
            nodes = [when[0], t, *when[past]]
            x = move64(start, [said[0], x0, *said[past]], nodes, t, eta, z)
        start, z = x, np.float64(jax.random.normal(jax.random.fold_in(KEY, i), X.shape))
        said, when = [x0, *said][:kept], [t, *when][:kept]
        x = move64(x, said[:order], when[:order], s, eta, z)
        path.append(x)
    return np.stack(path)


def path(sampler):
    D = partial(D64, numpy=jnp)
    return jax.jit(lambda x: sampling.sample(sampler, D, x, TIMES, KEY)[1])(X)


@pytest.mark.parametrize(
    ("sampler", "order", "corrector", "eta"),
    [
        (exponential.multistep(P, 3), 3, 0, 0.0),
        (solvers.unipc(P, 3, "exact"), 3, 3, 0.0),
        (solvers.sa_solver(P, 0.7, 2, 1), 2, 1, 0.7),
        (solvers.sa_solver(P, lambda t: 1.3 + 0 * t, 3, 2), 3, 2, 1.3),
    ],
)
def test_a_solver_integrates_lagrange_s_polynomial_exactly(sampler, order, corrector, eta):
    want = multistep64(order, corrector, eta)
    # float32 with five steps; a cubic is drawn out to twice its length.
    np.testing.assert_allclose(path(sampler), want, rtol=2e-5, atol=2e-5)


def three_m64(half):
    """The published code in its own names; its D2 is half a second derivative."""
    x, m, states = X.astype(np.float64), [], []
    times = TIMES.astype(np.float64)
    for i, (t, s) in enumerate(pairwise(times)):
        m = [D64(x, t), *m][:3]
        h = lam(s) - lam(t)
        phi_1 = np.expm1(-h)
        new = VP.sigma(s) / VP.sigma(t) * x - VP.alpha(s) * phi_1 * m[0]
        if i > 0:
            r0 = (lam(t) - lam(times[i - 1])) / h
            D1_0 = (m[0] - m[1]) / r0
        if i == 1:
            new -= 0.5 * VP.alpha(s) * phi_1 * D1_0
        if i > 1:
            r1 = (lam(times[i - 1]) - lam(times[i - 2])) / h
            D1_1 = (m[1] - m[2]) / r1
            D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
            D2 = (1 if half else 2) * (D1_0 - D1_1) / (r0 + r1)
            phi_2 = phi_1 / h + 1
            new += VP.alpha(s) * (phi_2 * D1 - (phi_2 / h - 0.5) * D2)
        x = new
        states.append(x)
    return np.stack(states)


def test_3m_is_the_published_code_with_the_whole_second_derivative():
    got = path(solvers.dpm_solver_pp_3m(P))
    np.testing.assert_allclose(got, three_m64(half=False), rtol=1e-5, atol=1e-5)
    assert np.abs(got - three_m64(half=True)).max() > 1e-2


def unipc64(order, B):
    """UniPC by its linear systems, eq. 7 and 10: R·a = b, with 1/2 where it has one unknown."""
    x, path = X.astype(np.float64), []
    times, said, start = TIMES.astype(np.float64), [], None

    def move(x, i, count, newest=None):
        t, s, m0 = times[i], times[i + 1], said[i]
        h = lam(s) - lam(t)
        size = h if B == "bh1" else -np.expm1(-h)
        r = [(lam(times[i - k]) - lam(t)) / h for k in range(1, count)]
        d = [(said[i - k] - m0) / r[k - 1] for k in range(1, count)]
        if newest is not None:
            r, d = [*r, 1.0], [*d, newest - m0]
        moved = VP.sigma(s) / VP.sigma(t) * x - VP.alpha(s) * np.expm1(-h) * m0
        if not r:
            return moved
        rows = np.array([[each**k for each in r] for k in range(len(r))])
        # ∫ h·e^{−h(1 − u)}·u^{k + 1} du, of a step that is 1 long.
        powers = range(1, len(r) + 1)
        right = [h * quad(lambda u, k=k: np.exp(h * (u - 1)) * u**k, 0, 1)[0] for k in powers]
        a = [0.5] if len(r) == 1 else np.linalg.solve(rows, np.array(right) / size)
        return moved + VP.alpha(s) * size * sum(w * each for w, each in zip(a, d, strict=True))

    for i in range(len(times) - 1):
        x0 = D64(x, times[i])
        if i > 0:
            x = move(start, i - 1, min(order, i), newest=x0)
        said.append(x0)
        start = x
        x = move(x, i, min(order, i + 1))
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize(("order", "B"), [(1, "bh1"), (2, "bh2"), (3, "bh1")])
def test_unipc_is_its_paper_s_linear_system(order, B):
    got = path(solvers.unipc(P, order, B))
    np.testing.assert_allclose(got, unipc64(order, B), rtol=2e-5, atol=2e-5)


def deis64(order):
    """tAB-DEIS: Lagrange's polynomial in t, integrated against d(sigma/alpha) by quad."""
    x, path, eps = X.astype(np.float64), [], []
    times = TIMES.astype(np.float64)
    ratio = lambda t: VP.sigma(t) / VP.alpha(t)  # noqa: E731
    rate = lambda t, e=1e-6: (ratio(t + e) - ratio(t - e)) / (2 * e)  # noqa: E731
    for i, (t, s) in enumerate(pairwise(times)):
        eps = [(x - VP.alpha(t) * D64(x, t)) / VP.sigma(t), *eps][:order]
        nodes = times[i : i - len(eps) : -1] if i - len(eps) >= 0 else times[i::-1]
        factors = [
            quad(lambda u, k=k, n=nodes: lagrange(u, n, k) * rate(u), t, s)[0]
            for k in range(len(eps))
        ]
        moved = x / VP.alpha(t) + sum(f * e for f, e in zip(factors, eps, strict=True))
        x = VP.alpha(s) * moved
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize("order", [2, 4])
def test_deis_integrates_its_polynomial_in_time(order):
    got = path(solvers.deis(P, order))
    # eps is drawn out over steps of up to 2.7 times the length of those before.
    np.testing.assert_allclose(got, deis64(order), rtol=5e-5, atol=5e-5)


def test_without_noise_sde_2m_is_2m_and_of_order_one_they_are_ddim_and_ddpm():
    zero = path(solvers.sde_dpm_solver_pp_2m(P, 0.0))
    np.testing.assert_allclose(zero, path(samplers.dpm_solver_pp_2m(P)), rtol=1e-5, atol=1e-5)
    first = path(exponential.multistep(P, 1))
    np.testing.assert_allclose(first, path(samplers.ddim(P)), rtol=1e-5, atol=1e-5)
    reverse = path(exponential.multistep(P, 1, eta=1.0))
    np.testing.assert_allclose(reverse, path(samplers.ddpm(P)), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- orders

COUNTS = (8, 12, 18, 27)
N = 200


def slope_after_exact_steps(sampler, warm):
    """The fitted order on the mixture, from .9 to .4, where the first states are exact."""
    exact = Mixture1D(VP, *MIXTURE)
    start = quantile(exact, np.linspace(0.03, 0.97, N), 0.9)
    want = exact.flow(start, 0.9, 0.4)
    gm = denoiser.gaussian_mixture(P, MIXTURE[0][:, None], *MIXTURE[1:])

    @jax.jit
    def go(right, times, n):
        def body(i, carry):
            x, state = carry
            x = jnp.where(i <= warm, right[jnp.minimum(i, warm)], x)
            return sampler.step(gm.denoise, x, times[i], times[i + 1], KEY, state)

        return jax.lax.fori_loop(0, n, body, (right[0], sampler.init(right[0])))[0]

    errors = []
    for n in COUNTS:
        times = np.linspace(0.9, 0.4, n + 1)
        right = [start, *(exact.flow(start, 0.9, t) for t in times[1 : warm + 1])]
        right = jnp.asarray(np.stack(right)[..., None], jnp.float32)
        padded = np.resize(times, max(COUNTS) + 1).astype(np.float32)
        got = np.float64(go(right, padded, n))[:, 0]
        errors.append(np.sqrt(np.mean((got - want) ** 2)))
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("sampler", "warm", "low", "high"),
    [
        (solvers.dpm_solver_pp_3m(P), 2, 2.8, 3.3),
        (solvers.dpm_solver_pp_3m(P), 0, 2.3, 2.8),  # what the usual warm-up leaves
        (solvers.deis(P), 2, 2.6, 3.3),
        (solvers.unipc(P, 2), 0, 2.7, 3.3),  # order 2, and one more by the corrector
        (solvers.unipc(P), 0, 3.1, 4.5),
    ],
)
def test_orders_after_an_exact_start_and_after_the_usual_one(sampler, warm, low, high):
    assert low < slope_after_exact_steps(sampler, warm) < high


# ------------------------------------------------------------------------------------ marginals


def test_stochastic_solvers_keep_the_marginals_up_to_their_order():
    draws, end = 50_000, 0.2
    rng = np.random.default_rng(0)
    mean, std, _ = (part[0] for part in GAUSSIAN)
    gm = denoiser.gaussian_mixture(P, [[mean]], [std], [1.0])
    start = VP.alpha(0.95) * (mean + std * rng.normal(size=draws))
    start = jnp.asarray((start + VP.sigma(0.95) * rng.normal(size=draws))[:, None], jnp.float32)
    wide = np.hypot(VP.alpha(end) * std, VP.sigma(end))

    def biases(sampler):
        @jax.jit
        def go(n):
            def body(i, carry):
                t, s = (0.95 + (end - 0.95) * j / n for j in (i, i + 1))
                x, state = carry
                return sampler.step(gm.denoise, x, t, s, jax.random.fold_in(KEY, i), state)

            return jax.lax.fori_loop(0, n, body, (start, sampler.init(start)))[0]

        for n in (6, 24):
            x = np.float64(go(n))
            # Four standard errors, and what six steps of a skewed start leave of the mean.
            assert abs(x.mean() - VP.alpha(end) * mean) < wide * (4 / draws**0.5 + 0.12 / n)
            yield abs(x.std() / wide - 1)

    error = 1 / np.sqrt(2 * draws)
    first, second, third = (
        list(biases(make(P)))
        for make in (samplers.ddpm, solvers.sde_dpm_solver_pp_2m, solvers.sa_solver)
    )
    # Measured with 200,000 draws: 10 and 2.8 %, 5.0 and .38 %, .5 and .17 %.
    assert abs(first[0] - 0.101) < 4 * error + 0.005 and abs(first[1] - 0.028) < 4 * error + 0.003
    assert abs(second[0] - 0.050) < 4 * error + 0.005 and second[1] < second[0] / 16 + 4 * error
    assert max(third) < 0.01 + 4 * error


# --------------------------------------------------------------------------------- bad arguments


def test_other_orders_and_variants_are_refused():
    p = process.vp_cosine()
    for make in (solvers.unipc, lambda p, order: solvers.sa_solver(p, order=order)):
        for order in (0, 4, "2"):
            with pytest.raises(ValueError, match=r"order must be a whole number in \[1, 3\], got"):
                make(p, order=order)
    with pytest.raises(ValueError, match=r"order must be a whole number in \[1, 4\], got 5"):
        solvers.deis(p, 5)
    with pytest.raises(ValueError, match=r"corrector must be a whole number in \[0, 3\], got -1"):
        solvers.sa_solver(p, corrector=-1)
    with pytest.raises(ValueError, match="B must be one of exact, bh1, bh2, got 'bh3'"):
        solvers.unipc(p, B="bh3")
    for make in (solvers.sa_solver, solvers.sde_dpm_solver_pp_2m):
        for eta in (-0.1, float("nan")):
            with pytest.raises(ValueError, match=r"eta must be in \[0, inf\), got"):
                make(p, eta)
