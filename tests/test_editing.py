"""SDEdit, inversion, interpolation, inpainting, resampling: on exact denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES

from diffusion_course import denoiser, editing, guidance, process, samplers, sampling

rng = np.random.default_rng(61)
p = process.vp_cosine()
mixture = denoiser.gaussian_mixture(p, [[1.4, -0.5], [-1.2, 0.6]], [0.3, 0.5], [0.4, 0.6])


def draws(n, seed=0):
    return mixture.sample(jax.random.key(seed), n)


# ------------------------------------------------------------------------------------- SDEdit


def test_no_strength_changes_nothing():
    x0 = draws(7)
    got = editing.sdedit(samplers.ddpm(p), mixture.denoise, p, x0, 0, 10, jax.random.key(1))
    np.testing.assert_array_equal(got, x0)


def test_strengths_share_one_program_and_0_is_still_the_identity():
    x0, key, traces = draws(7), jax.random.key(1), []

    @jax.jit
    def edit(strength):
        traces.append(strength)
        return editing.sdedit(samplers.ddpm(p), mixture.denoise, p, x0, strength, 10, key)

    np.testing.assert_array_equal(edit(0.0), x0)
    for strength in (0.2, 0.7, 1.0):
        got = edit(strength)
        want = editing.sdedit(samplers.ddpm(p), mixture.denoise, p, x0, strength, 10, key)
        # Ten float32 steps in two programs; the last divides by sigma at a tenth of the strength.
        np.testing.assert_allclose(got, want, atol=1e-3)
        assert np.abs(got - x0).min() > 1e-4
    assert len(traces) == 1


def test_more_strength_keeps_less_and_the_data_stay_the_data():
    x0 = draws(4000)
    kept = []
    for strength in (0.1, 0.5, 0.9):
        got = editing.sdedit(
            samplers.ddpm(p), mixture.denoise, p, x0, strength, 60, jax.random.key(1)
        )
        kept.append(np.corrcoef(x0[:, 0], got[:, 0])[0, 1])
        # 4000 draws: standard errors of 2 % of the spread; the sampler's own error is as large.
        np.testing.assert_allclose(got.mean(0), x0.mean(0), atol=0.1)
        np.testing.assert_allclose(got.std(0), x0.std(0), rtol=0.1)
    assert kept[0] > 0.97 and kept[0] > kept[1] > kept[2] and kept[2] < 0.5


def test_the_edited_noise_matters():
    x0 = draws(5)
    run = lambda x, key: editing.sdedit(  # noqa: E731
        samplers.ddim(p), mixture.denoise, p, x, 0.4, 20, key
    )
    first, other_start = run(x0, jax.random.key(1)), run(x0 + 0.3, jax.random.key(1))
    assert np.abs(first - other_start).min() > 1e-4
    assert np.abs(first - run(x0, jax.random.key(2))).min() > 1e-5


@pytest.mark.parametrize(("strength", "steps"), [(-0.1, 5), (1.1, 5), (0.5, 0)])
def test_bad_strengths_and_steps_are_named(strength, steps):
    with pytest.raises(ValueError, match="must be"):
        editing.sdedit(
            samplers.ddim(p), mixture.denoise, p, draws(2), strength, steps, jax.random.key(0)
        )


# ----------------------------------------------------------------------------------- inversion


def round_trip(steps, refinements):
    """Root mean square error after inverting pictures and drawing them again."""
    x0, times = draws(64), sampling.uniform(steps)
    noise, path = editing.invert(p, mixture.denoise, x0, times, refinements)
    assert path.shape == (steps, 64, 2)
    np.testing.assert_array_equal(path[-1], noise)
    again, _ = sampling.sample(samplers.ddim(p), mixture.denoise, noise, times, jax.random.key(0))
    return float(jnp.sqrt(jnp.mean((again - x0) ** 2)))


def test_the_round_trip_error_falls_with_the_steps():
    counts = [10, 40, 160]
    errors = [round_trip(steps, 0) for steps in counts]
    assert 0.9 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < 1.2, errors  # order one


def test_refinement_makes_the_inverse_exact():
    errors = [round_trip(20, refinements) for refinements in (0, 2, 12)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < 2e-6  # 20 steps up and 20 down in float32


def test_the_number_of_refinements_may_be_traced():
    x0, times = draws(8), sampling.uniform(10)
    climb = jax.jit(lambda n: editing.invert(p, mixture.denoise, x0, times, n)[0])
    for n in (0, 3):
        want = editing.invert(p, mixture.denoise, x0, times, n)[0]
        np.testing.assert_allclose(climb(n), want, rtol=1e-4, atol=1e-4)
    assert np.abs(climb(0) - climb(3)).max() > 1e-3


def test_inverted_data_is_noise():
    noise, _ = editing.invert(p, mixture.denoise, draws(4000), sampling.uniform(200), 2)
    # 4000 draws: standard errors .016 and .011, four times, and the flow's own error.
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.09)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.07)


def test_bad_grids_and_refinements_are_named():
    with pytest.raises(ValueError, match="times must fall strictly"):
        editing.invert(p, mixture.denoise, draws(2), [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="refinements must be at least 0, got -1"):
        editing.invert(p, mixture.denoise, draws(2), [1.0, 0.0], -1)


# ------------------------------------------------------------------------------- interpolation


def test_slerp_goes_from_one_end_to_the_other_along_the_arc():
    a, b = (jnp.asarray(rng.normal(size=(3, 8, 8, 1)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(editing.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(editing.slerp(a, b, 1.0), b, atol=1e-6)
    unit = lambda x: x / jnp.sqrt(jnp.sum(x**2, (1, 2, 3), keepdims=True))  # noqa: E731
    a, b = unit(a), unit(b)
    for share in (0.2, 0.5, 0.7):
        point = editing.slerp(a, b, share)
        np.testing.assert_allclose(jnp.sum(point**2, (1, 2, 3)), 1, rtol=1e-5)
        angle = lambda x, y: jnp.arccos(jnp.sum(x * y, (1, 2, 3)))  # noqa: E731
        np.testing.assert_allclose(angle(a, point), share * angle(a, b), rtol=1e-4)


def test_slerp_of_parallel_noises_is_linear():
    a = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    np.testing.assert_allclose(editing.slerp(a, 3 * a, 0.25), 1.5 * a, rtol=1e-4)
    slope = jax.grad(lambda share: editing.slerp(a, a, share).sum())(0.3)
    assert np.isfinite(slope)


# ---------------------------------------------------------------------------------- inpainting

MASK = jnp.array([True, False])
RUNS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "repaint": lambda p: samplers.repaint(samplers.ddpm(p), p, 4),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("of", ["vp_cosine", "linear chain", "rectified_flow", "edm"])
def test_known_pixels_are_exact_in_the_end_and_have_the_right_noise_on_the_way(name, of):
    q = PROCESSES[of].process
    gm = denoiser.gaussian_mixture(q, [[1.4, -0.5], [-1.2, 0.6]], [0.3, 0.5], [0.4, 0.6])
    known = jnp.tile(jnp.array([[1.3, 99.0]]), (3000, 1))
    D = guidance.inpaint(gm.denoise, known, MASK)
    x = sampling.start_noise(q, jax.random.key(1), known.shape)
    times = sampling.uniform(12)
    x0, path = sampling.sample(RUNS[name](q), D, x, times, jax.random.key(2))
    np.testing.assert_allclose(x0[:, 0], 1.3, rtol=1e-5)
    assert np.isfinite(x0).all() and np.abs(x0[:, 1]).max() < 5
    for state, s in zip(path[:-1], times[1:-1], strict=True):
        alpha, sigma = float(q.alpha(s)), float(q.sigma(s))
        # 3000 draws: a standard deviation is known to 1.3 %, a mean to sigma/55. Where alpha(1)
        # is not quite 0, the start lacked alpha(1)·1.3, which fades with the noise.
        assert abs(np.std(state[:, 0]) / sigma - 1) < 0.06
        assert abs(np.mean(state[:, 0]) - alpha * 1.3) < 0.08 * sigma + 0.02 * alpha


def test_resampling_makes_the_unknown_agree_with_the_known():
    # Given the first coordinate at 1.3 the data lie in the first cloud, whose second mean is −.5.
    known = jnp.tile(jnp.array([[1.3, 0.0]]), (2000, 1))
    D = guidance.inpaint(mixture.denoise, known, MASK)
    x = sampling.start_noise(p, jax.random.key(1), known.shape)

    def wrong(sampler):
        x0, _ = sampling.sample(sampler, D, x, sampling.uniform(30), jax.random.key(2))
        return float(jnp.abs(x0[:, 1].mean() + 0.5))

    assert wrong(samplers.repaint(samplers.ddpm(p), p, 8)) < wrong(samplers.ddpm(p)) / 2


def test_resampling_once_is_the_sampler_itself_and_less_is_refused():
    step = (mixture.denoise, draws(5), jnp.float32(0.6), jnp.float32(0.4))
    key = jax.random.key(3)
    inner, _ = jax.random.split(jax.random.fold_in(key, 0))
    got, _ = samplers.repaint(samplers.ddpm(p), p, 1).step(*step, key, ())
    np.testing.assert_allclose(got, samplers.ddpm(p).step(*step, inner, ())[0], atol=1e-6)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        samplers.repaint(samplers.ddpm(p), p, 0)


# ------------------------------------------------------------------------------------ resolutions

# Thirty pictures of 2 × 3 blocks, each block with some structure of its own.
blocks = np.kron(rng.normal(0.2, 0.8, (30, 2, 3, 2)), np.ones((1, 2, 2, 1)))
pixels = jnp.asarray((blocks + rng.normal(0, 0.2, blocks.shape)).reshape(30, -1), jnp.float32)
pictures = denoiser.gaussian_mixture(p, pixels, np.full(30, 0.1), np.full(30, 1 / 30))


def draw_pictures(x, t):
    return pictures.denoise(x.reshape(len(x), -1), t).reshape(x.shape)


@pytest.mark.parametrize("sampler", [samplers.ddim(p), samplers.ddpm(p), samplers.dpm_solver(p, 2)])
@pytest.mark.parametrize("coarse", [(3, 2, 3, 2), (1, 4, 2, 2), (3, 4, 6, 2)])
def test_a_matched_sample_shrinks_to_the_coarse_picture_exactly(sampler, coarse):
    wanted = jnp.asarray(rng.normal(0.1, 0.5, coarse), jnp.float32)
    D = guidance.match_coarse(draw_pictures, wanted)
    x = jax.random.normal(jax.random.key(3), (3, 4, 6, 2))
    got = sampling.sample(sampler, D, x, sampling.uniform(12), jax.random.key(4))[0]
    _, h, w, _ = coarse
    means = np.asarray(got).reshape(3, h, 4 // h, w, 6 // w, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(means, np.broadcast_to(wanted, means.shape), atol=1e-5)


def test_matching_leaves_the_details_to_the_denoiser():
    x = jnp.asarray(rng.normal(size=(3, 4, 6, 2)), jnp.float32)
    coarse = jnp.asarray(rng.normal(size=(3, 2, 3, 2)), jnp.float32)
    plain, matched = (
        D(x, 0.4) for D in (draw_pictures, guidance.match_coarse(draw_pictures, coarse))
    )
    blocks = np.asarray(matched - plain).reshape(3, 2, 2, 3, 2, 2)
    # The same change for every pixel of a block, up to rounding.
    np.testing.assert_allclose(
        blocks, blocks.mean(axis=(2, 4), keepdims=True) * np.ones_like(blocks), atol=1e-6
    )


@pytest.mark.parametrize("coarse", [(3, 3, 3, 2), (2, 2, 3, 2), (3, 2, 3, 1), (3, 2, 3)])
def test_coarse_pictures_that_do_not_fit_are_named(coarse):
    D = guidance.match_coarse(draw_pictures, jnp.zeros(coarse))
    with pytest.raises(ValueError, match="coarse must have shape"):
        D(jnp.zeros((3, 4, 6, 2)), 0.5)


def test_refining_draws_what_the_enlarged_picture_lacks():
    fine = pixels[:5].reshape(5, 4, 6, 2)
    coarse = fine.reshape(5, 2, 2, 3, 2, 2).mean(axis=(2, 4))
    got = editing.refine(
        samplers.ddim(p), draw_pictures, p, coarse, (4, 6), 0.4, 40, jax.random.key(5)
    )
    enlarged = jax.image.resize(coarse, fine.shape, "cubic")
    # The data are thirty pictures with a little noise, and these are found again.
    before, after = (np.abs(x - fine).mean() for x in (enlarged, got))
    assert got.shape == fine.shape and after < 0.7 * before
    unchanged = editing.refine(
        samplers.ddim(p), draw_pictures, p, coarse, (4, 6), 0, 40, jax.random.key(5)
    )
    np.testing.assert_array_equal(unchanged, enlarged)


@pytest.mark.parametrize(("coarse", "size"), [((2, 4, 4, 1), (3, 8)), ((4, 4, 1), (8, 8))])
def test_refining_needs_a_larger_size(coarse, size):
    with pytest.raises(ValueError, match="coarse must have shape"):
        editing.refine(
            samplers.ddim(p), draw_pictures, p, jnp.zeros(coarse), size, 0.5, 5, jax.random.key(0)
        )
