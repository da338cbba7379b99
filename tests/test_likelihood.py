"""Log-densities by the probability flow, against closed forms and an independent solver."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture1D, as_column, within_standard_errors
from runs import ALL, one_of_all
from scipy.integrate import solve_ivp

from diffusion_course import denoiser, likelihood, process, sampling

rng = np.random.default_rng(100)
KEY = jax.random.key(10)
COSINE = process.vp_cosine()
STEPS = 96
# Three clouds in the plane; nothing about them is symmetric.
PLANE = (
    np.float32([[-0.9, 0.4], [0.7, 0.1], [0.2, -1.1]]),
    np.float32([0.35, 0.2, 0.5]),
    np.float32([0.3, 0.5, 0.2]),
)


def rms(values):
    return np.sqrt(np.mean(np.square(np.asarray(values, np.float64))))


def mixture_of(p, data):
    means, stds, weights = (jnp.asarray(part, jnp.float32) for part in data)
    return denoiser.GaussianMixture(p, means, stds, weights)


def by_angle(p, n, power=1.0):
    """n + 1 times from 1 to 0 whose angles are (k/n)^power parts of the largest."""
    most = np.arctan2(float(p.sigma(1.0)), float(p.alpha(1.0)))
    angles = most * np.linspace(1, 0, n + 1)[1:-1] ** power
    inside = process.time_at(p, -2 * np.log(np.tan(angles)))
    return np.concatenate([[1.0], inside, [0.0]]).astype(np.float32)


@jax.jit
def both(index, data, x, times):
    """The encoded state and the log-density, of the process with this number in ALL."""
    p = one_of_all(index)
    D = mixture_of(p, data).denoise
    return likelihood.encode(p, D, x, times), likelihood.log_prob(p, D, x, times)


def of_line(name, data, x, times):
    means, stds, weights = data
    fill = 3 - len(means)  # one shape for all data: a component of next to no weight is none
    data = np.pad(means, (0, fill))[:, None], np.pad(stds, (0, fill), mode="edge")
    data = *data, np.pad(weights, (0, fill), constant_values=1e-30)
    index = np.int32(list(ALL).index(name))
    # One length for all grids: a step from a time to itself does nothing.
    times = np.pad(times, (0, STEPS + 1 - len(times)), mode="edge")
    z, log_p = both(index, data, as_column(x), times)
    return np.float64(z)[:, 0], np.float64(log_p)


# -------------------------------------------------------------------------- the exact density


def exact_on_line(name, data, x, first=1.0, last=0.0):
    """z and the density of what the exact flow makes of N(0, sigma(first)²): in float64."""
    exact = Mixture1D(PROCESSES[name], *data)
    z, sigma = exact.flow(x, last, first), PROCESSES[name].sigma(first)
    prior = -((z / sigma) ** 2) / 2 - np.log(2 * np.pi) / 2 - np.log(sigma)
    # The volume that the flow gains is the quotient of the exact densities at both ends.
    return z, prior + exact.log_prob(x, last) - exact.log_prob(z, first)


@pytest.mark.parametrize("name", PROCESSES)
def test_state_and_density_of_a_mixture_are_exact_in_every_process(name):
    x = np.float64(np.float32(rng.uniform(-1.4, 1.5, 40)))
    times = by_angle(ALL[name], STEPS, power=1.5)
    z, log_p = of_line(name, MIXTURE, x, times)
    wanted, density = exact_on_line(name, MIXTURE, x)
    # Float32 over 96 steps, in units of the noise at t = 1; where modes part, errors grow.
    np.testing.assert_allclose(z, wanted, atol=2e-3 * PROCESSES[name].sigma(1.0))
    np.testing.assert_allclose(log_p, density, atol=4e-3)
    assert rms(log_p - density) < 1e-3


@pytest.mark.parametrize("name", ["rectified_flow", "sub_vp", "edm"])
def test_a_grid_may_begin_and_end_anywhere(name):
    # None of these preserves variance there: the volume of dividing by h counts at both ends.
    x = np.float64(np.float32(rng.uniform(-1.2, 1.3, 40)))
    times = np.linspace(0.8, 0.3, 97, dtype=np.float32)
    first, last = float(times[0]), float(times[-1])
    z, log_p = of_line(name, MIXTURE, x, times)
    wanted, density = exact_on_line(name, MIXTURE, x, first, last)
    np.testing.assert_allclose(z, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(log_p, density, atol=2e-3)


WIDE = (MIXTURE[0], 2.5 * MIXTURE[1], MIXTURE[2])


@pytest.mark.parametrize("data", [GAUSSIAN, WIDE], ids=["gaussian", "mixture"])
def test_both_converge_with_order_four(data):
    x = np.float64(np.float32(np.linspace(-0.9, 1.4, 31)))
    counts = (6, 8, 10, 13) if len(data[0]) == 1 else (14, 18, 24, 32)
    wanted, density = exact_on_line("vp_cosine", data, x)
    found = [of_line("vp_cosine", data, x, sampling.uniform(n)) for n in counts]
    for errors in ([rms(z - wanted) for z, _ in found], [rms(p - density) for _, p in found]):
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert 3.6 < slope < 4.6, (slope, errors)
        assert errors[-1] > 1e-6  # above float32's floor, or the slope would be the floor's


def test_in_the_plane_solve_ivp_agrees():
    means, stds, weights = (np.float64(part) for part in PLANE)
    x = np.float64(np.float32(rng.normal(0.1, 0.7, (6, 2))))

    def rates(t, y):
        # dx/dt = α'/α·x − (σσ' − α'/α·σ²)·score, and minus its divergence, at α = 1 − t, σ = t.
        a, v = 1 - t, (1 - t) ** 2 * stds**2 + t**2
        gap = y[:2] - a * means
        joint = np.log(weights) - (gap**2).sum(1) / (2 * v) - np.log(v)
        r = np.exp(joint - joint.max())
        r /= r.sum()
        pulls = -gap / v[:, None]
        score = r @ pulls
        laplacian = r @ ((pulls**2).sum(1) - 2 / v) - score @ score
        f, half_g2 = -1 / a, t + t**2 / a
        return np.append(f * y[:2] - half_g2 * score, 2 * f - half_g2 * laplacian)

    p, end = process.rectified_flow(), 0.875  # before the end, where f is infinite
    times = np.float32(np.linspace(end, 0, 65))
    D = mixture_of(p, PLANE).denoise
    z = jax.jit(lambda x: likelihood.encode(p, D, x, times))(jnp.float32(x))
    log_p = jax.jit(lambda x: likelihood.log_prob(p, D, x, times))(jnp.float32(x))
    for start, ours, density in zip(x, z, log_p, strict=True):
        run = solve_ivp(rates, (0, end), np.append(start, 0), "DOP853", rtol=1e-10, atol=1e-12)
        there, gained = run.y[:2, -1], run.y[2, -1]
        np.testing.assert_allclose(ours, there, atol=2e-5)  # 64 steps of float32
        prior = -(there @ there) / (2 * end**2) - np.log(2 * np.pi * end**2)
        np.testing.assert_allclose(density, prior + gained, atol=5e-5)


def test_images_with_a_full_covariance_have_their_gaussian_density():
    shape, d = (2, 1, 3), 6
    root = rng.normal(0, 0.5, (d, d))
    C, mean = root @ root.T + 0.05 * np.eye(d), rng.normal(0, 0.6, d)

    def D(x, t):
        a, s = COSINE.alpha(t), COSINE.sigma(t)
        gain = a * jnp.linalg.solve(a**2 * C + s**2 * jnp.eye(d), jnp.float32(C)).T
        return jnp.float32(mean + (x.reshape(-1, d) - a * mean) @ gain.T).reshape(x.shape)

    x = np.float32(rng.normal(0, 0.8, (5, d)))
    found = jax.jit(lambda x: likelihood.log_prob(COSINE, D, x, sampling.uniform(48)))(
        x.reshape(5, *shape)
    )
    gap = x - mean
    quadratic = np.sum(gap * np.linalg.solve(C, gap.T).T, axis=1)
    exact = -0.5 * (quadratic + d * np.log(2 * np.pi) + np.linalg.slogdet(C)[1])
    assert found.shape == (5,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-3)  # sums of float32 up to 50


# ---------------------------------------------------------------------------- there and back


@jax.jit
def there_and_back(index, x, times):
    p = one_of_all(index)
    D = mixture_of(p, PLANE).denoise
    return likelihood.decode(p, D, likelihood.encode(p, D, x, times), times)


@pytest.mark.parametrize(
    "name", ["vp_cosine", "variance_exploding", "sub_vp", "vp_linear up to 400"]
)
def test_decode_undoes_encode(name):
    x = np.float32(rng.normal(0, 0.8, (30, 2)))
    back = there_and_back(np.int32(list(ALL).index(name)), x, by_angle(ALL[name], STEPS, power=1.5))
    # Float32: what is lost where modes meet comes back enlarged.
    np.testing.assert_allclose(back, x, atol=5e-3)


def test_decoded_noise_has_the_moments_of_the_data():
    means, stds, weights = (np.float64(part) for part in PLANE)
    z = jax.random.normal(KEY, (4000, 2))
    D = mixture_of(COSINE, PLANE).denoise
    x = jax.jit(lambda z: likelihood.decode(COSINE, D, z, sampling.uniform(40)))(z)
    mean = weights @ means
    var = weights @ (stds[:, None] ** 2 + (means - mean) ** 2)
    for j in range(2):
        within_standard_errors(x[:, j], mean[j], np.sqrt(var[j]))


# ------------------------------------------------------------------------------- Hutchinson


M = np.float64(np.float32(rng.normal(0, 0.4, (3, 3))))  # not symmetric
GRID = np.float32([0.9, 0.55, 0.25])


def linear(x, t):
    return x @ jnp.float32(M.T)


def closed_form(noise, probes):
    """Mean and variance of the integral of the divergence for the denoiser x -> M·x, in float64."""

    def of_one(angle):
        """Of zᵀAz, with A the symmetric part of the velocity's Jacobian times sin(angle)."""
        A = np.cos(angle) * np.eye(3) - (M + M.T) / 2
        diagonal = (np.diag(A) ** 2).sum() if noise == "rademacher" else 0.0
        return 2 * (A**2).sum() - 2 * diagonal

    # The cosine process preserves variance: an angle is arctan(sigma/alpha), and h = 1.
    alpha, sigma = PROCESS64.alpha, PROCESS64.sigma
    ends = [np.arctan2(sigma(t), alpha(t)) for t in np.float64(GRID[::-1])]
    mean = variance = 0.0
    for a, b in pairwise(ends):
        nodes, weights = [a, (a + b) / 2, (a + b) / 2, b], (b - a) * np.array([1, 2, 2, 1]) / 6
        mean += weights @ [(3 * np.cos(u) - np.trace(M)) / np.sin(u) for u in nodes]
        variance += (weights**2) @ [of_one(u) / probes / np.sin(u) ** 2 for u in nodes]
    return mean, variance


PROCESS64 = PROCESSES["vp_cosine"]


@pytest.mark.parametrize(
    ("noise", "probes"), [("rademacher", 1), ("rademacher", 3), ("gaussian", 1), ("gaussian", 3)]
)
def test_hutchinson_has_the_mean_and_variance_of_the_closed_form(noise, probes):
    p, n = PROCESS64.process, 20_000

    @jax.jit
    def volume(key):
        """The integral alone: the state does not feel the probes, so one x serves them all."""
        x = jnp.tile(jnp.float32([[0.3, -0.2, 0.5]]), (n, 1))
        found = likelihood.log_prob(p, linear, x, GRID, key, probes, noise)
        return found - likelihood.log_prob(p, linear, x[:1], GRID)

    drawn = np.float64(volume(KEY))
    mean, variance = closed_form(noise, probes)
    # Eight evaluations with 1 or 3 probes: the kurtosis of their sum is below 9, that of one
    # square of a normal number being 15.
    within_standard_errors(drawn, 0.0, np.sqrt(variance), kurtosis=9.0)
    # And the exact trace is the mean: z is moved by a linear map, whose volume is known.
    x = jnp.float32([[0.3, -0.2, 0.5]])
    z = np.float64(likelihood.encode(p, linear, x, GRID))[0]
    sigma = PROCESS64.sigma(np.float64(GRID[0]))
    prior = -(z @ z) / (2 * sigma**2) - 1.5 * np.log(2 * np.pi) - 3 * np.log(sigma)
    exact = likelihood.log_prob(p, linear, x, GRID)[0]
    np.testing.assert_allclose(exact, prior + mean, rtol=1e-4)


def test_one_rademacher_probe_is_exact_where_coordinates_do_not_mix():
    def D(x, t):
        return x * jnp.float32([0.3, -0.2, 0.7]) + jnp.sin(x) * t

    x = jnp.float32(rng.normal(0, 1, (7, 3)))
    exact = likelihood.log_prob(COSINE, D, x, GRID)
    one = likelihood.log_prob(COSINE, D, x, GRID, KEY, probes=1)
    np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-5)
    other = likelihood.log_prob(COSINE, D, x, GRID, KEY, probes=1, noise="gaussian")
    assert np.abs(other - exact).min() > 1e-3


def test_the_key_decides_and_evaluations_draw_for_themselves():
    x = jnp.float32([[0.3, -0.2, 0.5]] * 2)
    draw = jax.jit(lambda key: likelihood.log_prob(COSINE, linear, x, GRID, key, 1))
    one, again, other = draw(KEY), draw(KEY), draw(jax.random.key(3))
    assert (one == again).all() and (one != other).all() and one[0] != one[1]


# -------------------------------------------------------------------- gradients and both ends


@jax.jit
def gradients(index, x, times, shift):
    """Log-densities and their gradients with respect to the data and to the denoiser."""
    p = one_of_all(index)

    def total(x, shift):
        means, stds, weights = PLANE
        D = mixture_of(p, (means + shift, stds, weights)).denoise
        found = likelihood.log_prob(p, D, x, times)
        return found.sum(), found

    return jax.value_and_grad(total, (0, 1), has_aux=True)(x, shift)


@pytest.mark.parametrize(
    "name", ["vp_cosine", "rectified_flow", "zero-SNR chain", "vp_linear up to 400"]
)
def test_gradients_are_the_exact_ones_through_the_whole_flow(name):
    x = jnp.float32([[0.3, 0.1], [-0.8, 0.6], [0.4, -1.4]])
    shift = jnp.float32([0.05, -0.1])
    times = by_angle(ALL[name], 64, power=1.5)
    (_, found), (by_x, by_shift) = gradients(list(ALL).index(name), x, times, shift)
    gm = mixture_of(COSINE, (PLANE[0] + shift, *PLANE[1:]))
    # No signal is left at t = 1, so that the density is that of the data.
    np.testing.assert_allclose(found, gm.log_prob(x, 0.0), atol=2e-3)
    np.testing.assert_allclose(by_x, gm.score(x, 0.0), atol=5e-2, rtol=5e-3)
    np.testing.assert_allclose(by_shift, -gm.score(x, 0.0).sum(0), atol=5e-2, rtol=5e-3)


@pytest.mark.parametrize("name", ALL)
def test_everything_is_finite_from_one_end_of_time_to_the_other(name):
    x = jnp.float32([[0.3, 0.1], [3.0, -4.0], [0.0, 0.0]])
    (total, found), both_gradients = gradients(
        list(ALL).index(name), x, sampling.uniform(64), jnp.zeros(2, jnp.float32)
    )
    for values in (total, found, *both_gradients):
        assert np.isfinite(values).all()


def test_a_traced_grid_and_a_batch_under_vmap_give_the_same():
    D = mixture_of(COSINE, PLANE).denoise
    x, times = jnp.float32(rng.normal(0, 0.7, (4, 2))), sampling.uniform(12)
    known = likelihood.log_prob(COSINE, D, x, times)

    def of_one(x, times):
        return likelihood.log_prob(COSINE, D, x[None], times)[0]

    singly = jax.jit(jax.vmap(of_one, (0, None)))(x, times)
    np.testing.assert_allclose(singly, known, atol=1e-5)


# ------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_probabilities_of_all_levels_add_up_to_one(levels):
    # A density that is constant over each bin: the bits are those of the bin's probability.
    share = rng.dirichlet(np.ones(levels))
    log_density = np.log(share / (2 / (levels - 1)))
    bits = np.float64(likelihood.bits_per_dim(jnp.float32(log_density), 1, levels))
    np.testing.assert_allclose(bits, -np.log2(share), rtol=1e-5, atol=1e-5)
    # Three such pixels, independent: the mean of their bits.
    three = likelihood.bits_per_dim(jnp.float32(log_density[:2].sum() + log_density[0]), 3, levels)
    np.testing.assert_allclose(three, (2 * bits[0] + bits[1]) / 3, rtol=1e-5)


def test_without_levels_bits_are_the_density_in_another_unit():
    log_p = jnp.float32([[-3.0, 2.0]])
    bits = likelihood.bits_per_dim(log_p, 4)
    np.testing.assert_allclose(bits, -np.float64(log_p) / 4 / np.log(2), rtol=1e-6)


def test_dequantized_pixels_fill_their_bins_evenly():
    levels = np.float32([-1, -0.5, 0, 0.5, 1])
    x = np.repeat(levels, 4000)[:, None]
    spread = np.asarray(likelihood.dequantize(x, 5, KEY))
    offset = (spread - x)[:, 0]
    assert spread.dtype == np.float32 and np.abs(offset).max() <= 0.25
    for part in offset.reshape(5, 4000):
        within_standard_errors(part, 0.0, 0.5 / np.sqrt(12), kurtosis=1.8)


def test_dequantized_bits_are_an_upper_bound_with_the_gap_of_jensen():
    # A model N(m, s²), one pixel at 0.25 of 17 levels: the density varies over the bin.
    m, s, half = 0.1, 0.07, 1 / 16
    x = np.full((20_000, 1), 0.25, np.float32)
    u = np.float64(likelihood.dequantize(x, 17, KEY))[:, 0]
    log_p = -0.5 * ((u - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    bits = np.float64(likelihood.bits_per_dim(jnp.float32(log_p), 1, 17))
    # E (u − m)² is exact; the probability of the bin is an integral.
    mean = -np.log2(np.e) * (-0.5 * ((0.15**2 + half**2 / 3) / s**2) - np.log(s))
    mean += 0.5 * np.log2(2 * np.pi) + 3
    within_standard_errors(bits, mean, bits.std())
    line = 0.25 + half * (2 * (np.arange(2000) + 0.5) / 2000 - 1)
    density = np.exp(-0.5 * ((line - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
    exact = -np.log2(density.mean() * 2 * half)
    assert mean > exact + 0.05


# ------------------------------------------------------------------------------------- doors


def test_wrong_arguments_are_named():
    D, x = mixture_of(COSINE, PLANE).denoise, jnp.zeros((3, 2))
    times = sampling.uniform(4)
    calls = {
        r"times must fall strictly within \[1, 0\], got 0.0 and then": lambda: likelihood.encode(
            COSINE, D, x, times[::-1]
        ),
        r"x must have shape \[B, …\] without a 0 in it, got shape \[0, 2\]": lambda: (
            likelihood.log_prob(COSINE, D, x[:0], times)
        ),
        r"z must be floating-point numbers, got dtype int32": lambda: likelihood.decode(
            COSINE, D, np.zeros((3, 2), np.int32), times
        ),
        r"probes must be a whole number at least 1, got 0": lambda: likelihood.log_prob(
            COSINE, D, x, times, KEY, probes=0
        ),
        r"key must be one random key such as .*, got None": lambda: likelihood.log_prob(
            COSINE, D, x, times, probes=2
        ),
        r"noise must be one of rademacher, gaussian, got 'normal'": lambda: likelihood.log_prob(
            COSINE, D, x, times, KEY, 1, "normal"
        ),
        r"D\(x, t\) must have the shape of x, \[3, 2\], got shape \[2\]": lambda: (
            likelihood.log_prob(COSINE, lambda x, t: x[0], x, times)
        ),
        r"levels must be a whole number at least 2, got 1": lambda: likelihood.bits_per_dim(
            jnp.zeros(2), 3, 1
        ),
        r"size must be a whole number at least 1, got 0": lambda: likelihood.bits_per_dim(
            jnp.zeros(2), 0
        ),
        r"x must hold the 17 values from -1 to 1 in steps .*, got 0.0625": lambda: (
            likelihood.dequantize(np.float32([[0.125, 0.0625]]), 17, KEY)
        ),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_name_of_noise_is_looked_at_without_probes_too():
    p = process.vp_cosine()
    with pytest.raises(ValueError, match="noise must be"):
        likelihood.log_prob(p, lambda x, t: x, jnp.ones((1, 2)), [1.0, 0.0], noise="foo")
