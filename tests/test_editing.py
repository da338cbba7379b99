"""SDEdit, inversion, interpolation, inpainting, resampling: on exact denoisers."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES
from runs import one_of_all

from diffusion_course import denoiser, editing, guidance, process, samplers, sampling

rng = np.random.default_rng(61)
p = process.vp_cosine()
mixture = denoiser.gaussian_mixture(p, [[1.4, -0.5], [-1.2, 0.6]], [0.3, 0.5], [0.4, 0.6])


N = 4000
data = mixture.sample(jax.random.key(0), N)


# ------------------------------------------------------------------------------------- SDEdit

traces = []  # grows whenever `edit` is traced


@jax.jit
def edit(x0, strength, key):
    traces.append(strength)
    return editing.sdedit(samplers.ddpm(p), mixture.denoise, p, x0, strength, 60, key)


def test_no_strength_changes_nothing():
    key = jax.random.key(1)
    np.testing.assert_array_equal(edit(data, 0.0, key), data)
    few = data[:3]
    got = editing.sdedit(samplers.ddpm(p), mixture.denoise, p, few, 0, 2, key)
    np.testing.assert_array_equal(got, few)


def test_strengths_share_one_program():
    key = jax.random.key(1)
    edited = [edit(data, strength, key) for strength in (0.0, 0.2, 0.7, 1.0)]
    assert len(traces) == 1
    assert all(np.abs(got - data).min() > 1e-8 for got in edited[1:])
    want = editing.sdedit(samplers.ddpm(p), mixture.denoise, p, data, 0.7, 60, key)
    # Sixty float32 steps in two programs; the last divides by sigma at a 60th of the strength.
    np.testing.assert_allclose(edited[2], want, atol=2e-3)


def test_more_strength_keeps_less_and_the_data_stay_the_data():
    kept = []
    for strength in (0.1, 0.5, 0.9):
        got = edit(data, strength, jax.random.key(1))
        kept.append(np.corrcoef(data[:, 0], got[:, 0])[0, 1])
        # 4000 draws: standard errors of 2 % of the spread; the sampler's own error is as large.
        np.testing.assert_allclose(got.mean(0), data.mean(0), atol=0.1)
        np.testing.assert_allclose(got.std(0), data.std(0), rtol=0.1)
    assert kept[0] > 0.97 and kept[0] > kept[1] > kept[2] and kept[2] < 0.5


def test_the_edited_noise_matters():
    # DDIM's steps draw nothing: what the key changes is the noise that goes up.
    run = jax.jit(
        lambda x, key: editing.sdedit(samplers.ddim(p), mixture.denoise, p, x, 0.4, 20, key)
    )
    x0 = data[:5]
    first, other_start = run(x0, jax.random.key(1)), run(x0 + 0.3, jax.random.key(1))
    assert np.abs(first - other_start).min() > 1e-4
    assert np.abs(first - run(x0, jax.random.key(2))).min() > 1e-5


@pytest.mark.parametrize(("strength", "steps"), [(-0.1, 5), (1.1, 5), (0.5, 0)])
def test_bad_strengths_and_steps_are_named(strength, steps):
    with pytest.raises(ValueError, match="must be"):
        editing.sdedit(
            samplers.ddim(p), mixture.denoise, p, data[:2], strength, steps, jax.random.key(0)
        )


# ----------------------------------------------------------------------------------- inversion


@jax.jit
def climb(x0, times, refinements):
    return editing.invert(p, mixture.denoise, x0, times, refinements)


@jax.jit
def descend(noise, times):
    return sampling.sample(samplers.ddim(p), mixture.denoise, noise, times, jax.random.key(0))[0]


def round_trip(steps, refinements):
    """Root mean square error after inverting pictures and drawing them again."""
    times = sampling.uniform(steps)
    noise, path = climb(data, times, refinements)
    assert path.shape == (steps, N, 2)
    np.testing.assert_array_equal(path[-1], noise)
    # Of the first 64: in a larger crowd the few between the clouds decide.
    return float(jnp.sqrt(jnp.mean((descend(noise, times) - data)[:64] ** 2)))


def test_the_round_trip_error_falls_with_the_steps():
    counts = [10, 40, 160]
    errors = [round_trip(steps, 0) for steps in counts]
    assert 0.9 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < 1.2, errors  # order one


def test_refinement_makes_the_inverse_exact():
    errors = [round_trip(40, refinements) for refinements in (0, 2, 12)]
    assert errors[1] < errors[0] / 10
    assert errors[2] < 4e-6  # 40 steps up and 40 down in float32


def test_the_number_of_refinements_may_be_traced():
    times = sampling.uniform(10)
    want = editing.invert(p, mixture.denoise, data[:8], times, 3)[0]
    np.testing.assert_allclose(climb(data, times, 3)[0][:8], want, rtol=1e-4, atol=1e-4)
    assert np.abs(climb(data, times, 0)[0][:8] - want).max() > 1e-3


def test_inverted_data_is_noise():
    noise, _ = climb(data, sampling.uniform(160), 2)
    # 4000 draws: standard errors .016 and .011, four times, and the flow's own error.
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.09)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.07)


def test_bad_grids_and_refinements_are_named():
    with pytest.raises(ValueError, match="times must fall strictly"):
        editing.invert(p, mixture.denoise, data[:2], [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="refinements must be a whole number at least 0, got -1"):
        editing.invert(p, mixture.denoise, data[:2], [1.0, 0.0], -1)


# ------------------------------------------------------------------------------- interpolation

slerp = jax.jit(editing.slerp)


def test_slerp_goes_from_one_end_to_the_other_along_the_arc():
    a, b = rng.normal(size=(2, 3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, atol=1e-6)
    dot = lambda x, y: np.sum(np.float64(x) * y, (1, 2, 3))  # noqa: E731
    a, b = (x / np.sqrt(dot(x, x)).astype(np.float32).reshape(3, 1, 1, 1) for x in (a, b))
    for share in (0.2, 0.5, 0.7):
        point = np.asarray(slerp(a, b, share))
        np.testing.assert_allclose(dot(point, point), 1, rtol=1e-5)
        angles = np.arccos([dot(a, point), dot(a, b)])
        np.testing.assert_allclose(angles[0], share * angles[1], rtol=1e-4)


def test_slerp_without_an_arc_is_linear():
    a = rng.normal(size=(2, 5)).astype(np.float32)
    for other, want in ((3 * a, 1.5 * a), (-a, 0.5 * a), (0 * a, 0.75 * a)):
        np.testing.assert_allclose(slerp(a, other, 0.25), want, rtol=1e-4)


@pytest.mark.parametrize("other", [1.0, -1.0, 0.0])
def test_slerp_has_slopes_where_there_is_no_arc(other):
    a = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    total = lambda a, b, share: editing.slerp(a, b, share).sum()  # noqa: E731
    for slope in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(a, other * a, 0.3):
        assert np.isfinite(slope).all()


# ---------------------------------------------------------------------------------- inpainting

MASK = np.array([True, False])
RUNS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "repaint": lambda p: samplers.repaint(samplers.ddpm(p), p, 6),
}


WHERE = ("vp_cosine", "linear chain", "rectified_flow", "edm")


@cache
def inpainted(name):
    """A program that completes pictures [3000, 2]: (number in WHERE, known) -> x0, path."""

    @jax.jit
    def program(index, known):
        q = one_of_all(index, WHERE)
        gm = denoiser.GaussianMixture(q, *mixture[1:])
        D = guidance.inpaint(gm.denoise, known, MASK)
        x = sampling.start_noise(q, jax.random.key(1), known.shape)
        return sampling.sample(RUNS[name](q), D, x, sampling.uniform(12), jax.random.key(2))

    return program


@pytest.mark.parametrize("name", RUNS)
def test_known_pixels_are_exact_in_the_end_and_have_the_right_noise_on_the_way(name):
    known, times = np.tile(np.float32([[1.3, 99.0]]), (3000, 1)), sampling.uniform(12)
    for index, of in enumerate(WHERE):
        o = PROCESSES[of]
        x0, path = inpainted(name)(index, known)
        np.testing.assert_allclose(x0[:, 0], 1.3, rtol=1e-5)
        assert np.isfinite(x0).all() and np.abs(x0[:, 1]).max() < 5
        for state, s in zip(path[:-1], times[1:-1].astype(np.float64), strict=True):
            alpha, sigma = float(o.alpha(s)), float(o.sigma(s))
            # 3000 draws: a standard deviation is known to 1.3 %, a mean to sigma/55. Where
            # alpha(1) is not quite 0, the start lacked alpha(1)·1.3, which fades with the noise.
            assert abs(np.std(state[:, 0]) / sigma - 1) < 0.06
            assert abs(np.mean(state[:, 0]) - alpha * 1.3) < 0.08 * sigma + 0.02 * alpha


def test_resampling_makes_the_unknown_agree_with_the_known():
    # Given the first coordinate at 1.3 the data lie in the first cloud, whose second mean is −.5.
    known = np.tile(np.float32([[1.3, 0.0]]), (3000, 1))
    once, often = (
        abs(float(inpainted(name)(0, known)[0][:, 1].mean()) + 0.5) for name in ("ddpm", "repaint")
    )
    assert often < once / 2


def test_resampling_once_is_the_sampler_itself_and_less_is_refused():
    key = jax.random.key(3)

    @jax.jit
    def both(x):
        step = (mixture.denoise, x, jnp.float32(0.6), jnp.float32(0.4))
        inner, _ = jax.random.split(jax.random.fold_in(key, 0))
        again, _ = samplers.repaint(samplers.ddpm(p), p, 1).step(*step, key, ())
        return again, samplers.ddpm(p).step(*step, inner, ())[0]

    np.testing.assert_allclose(*both(data[:5]), atol=1e-6)
    with pytest.raises(ValueError, match="repeats must be a whole number at least 1, got 0"):
        samplers.repaint(samplers.ddpm(p), p, 0)


def test_a_sampler_with_a_memory_is_not_resampled():
    again = samplers.repaint(samplers.pndm(p), p, 3)
    with pytest.raises(ValueError, match="sampler must have no memory of earlier steps"):
        sampling.sample(again, mixture.denoise, data[:5], sampling.uniform(3), jax.random.key(0))


# ------------------------------------------------------------------------------------ resolutions

# Thirty pictures of 2 × 3 blocks, each block with some structure of its own.
blocks = np.kron(rng.normal(0.2, 0.8, (30, 2, 3, 2)), np.ones((1, 2, 2, 1)))
pixels = jnp.asarray((blocks + rng.normal(0, 0.2, blocks.shape)).reshape(30, -1), jnp.float32)
pictures = denoiser.gaussian_mixture(p, pixels, np.full(30, 0.1), np.full(30, 1 / 30))


def draw_pictures(x, t):
    return pictures.denoise(x.reshape(len(x), -1), t).reshape(x.shape)


@pytest.mark.parametrize(
    ("sampler", "coarse"),
    [
        (samplers.ddim(p), (3, 2, 3, 2)),
        (samplers.ddpm(p), (1, 4, 2, 2)),
        (samplers.dpm_solver(p, 2), (3, 4, 6, 2)),
    ],
)
def test_a_matched_sample_shrinks_to_the_coarse_picture_exactly(sampler, coarse):
    wanted = jnp.asarray(rng.normal(0.1, 0.5, coarse), jnp.float32)
    D = guidance.match_coarse(draw_pictures, wanted)
    x = rng.normal(size=(3, 4, 6, 2))
    got = sampling.sample(sampler, D, x, sampling.uniform(12), jax.random.key(4))[0]
    _, h, w, _ = coarse
    means = np.asarray(got).reshape(3, h, 4 // h, w, 6 // w, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(means, np.broadcast_to(wanted, means.shape), atol=1e-5)


def test_matching_leaves_the_details_to_the_denoiser():
    x = rng.normal(size=(3, 4, 6, 2)).astype(np.float32)
    coarse = rng.normal(size=(3, 2, 3, 2)).astype(np.float32)

    @jax.jit
    def both(x, coarse):
        matched = guidance.match_coarse(draw_pictures, coarse)
        return draw_pictures(x, 0.4), matched(x, 0.4)

    plain, matched = (np.asarray(x0) for x0 in both(x, coarse))
    blocks = np.asarray(matched - plain).reshape(3, 2, 2, 3, 2, 2)
    assert np.abs(blocks).max() > 0.1
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
    fine = np.asarray(pixels[:5]).reshape(5, 4, 6, 2)
    coarse = fine.reshape(5, 2, 2, 3, 2, 2).mean(axis=(2, 4))
    ddim, key = samplers.ddim(p), jax.random.key(5)
    refine = jax.jit(
        lambda strength: editing.refine(ddim, draw_pictures, p, coarse, (4, 6), strength, 40, key)
    )
    got, enlarged = refine(0.4), jax.image.resize(coarse, fine.shape, "cubic")
    # The data are thirty pictures with a little noise, and these are found again.
    before, after = (np.abs(x - fine).mean() for x in (enlarged, got))
    assert got.shape == fine.shape and after < 0.7 * before
    np.testing.assert_allclose(refine(0.0), enlarged, atol=1e-6)


@pytest.mark.parametrize(("coarse", "size"), [((2, 4, 4, 1), (3, 8)), ((4, 4, 1), (8, 8))])
def test_refining_needs_a_larger_size(coarse, size):
    with pytest.raises(ValueError, match="coarse must have shape"):
        editing.refine(
            samplers.ddim(p), draw_pictures, p, jnp.zeros(coarse), size, 0.5, 5, jax.random.key(0)
        )
