"""A cascade: averages, noise on the condition, stage after stage, and what is exact of it."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, normals, parameters

from diffusion_course import cascade, data, operators, process, samplers, sampling, weights
from diffusion_course.data import shapes
from diffusion_course.models.layers import space_to_depth
from diffusion_course.models.upsampler import Upsampler
from diffusion_course.training import cascaded, recipes

pytestmark = pytest.mark.usefixtures("quickly_compiled")

rng = np.random.default_rng(23)
array = normals(rng)
P, FLOW = process.vp_cosine(), process.rectified_flow()
KEY = jax.random.key(4)


def test_down_averages_squares_and_up_is_its_right_inverse():
    x = array(3, 6, 12, 2)
    small = np.asarray(cascade.down(x, 3))
    assert small.shape == (3, 2, 4, 2)
    # float32 sums of nine numbers
    np.testing.assert_allclose(small[1, 1, 2], x[1, 3:6, 6:9].mean((0, 1)), atol=1e-6)
    big = cascade.up(small, 3)
    np.testing.assert_allclose(cascade.down(big, 3), small, atol=1e-6)
    np.testing.assert_array_equal(big[2, 3:6, 9:12, 1], np.full((3, 3), small[2, 1, 3, 1]))
    np.testing.assert_array_equal(cascade.down(x, 1), x)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cascade.down(array(2, 6, 5, 1), 2), "multiples of 2, got 6 and 5"),
        (lambda: cascade.down(array(2, 6, 5), 2), r"x must have shape \[B, H, W, C\], got \[2, 6"),
        (lambda: cascade.up(array(2, 2, 2, 1), 0), "factor must be"),
        (lambda: cascade.linear_stage(P, [0, 0], np.eye(2), [[1.0]]), r"A must have shape \[d, 2"),
        (lambda: cascade.linear_stage(P, [0, 0], np.eye(2), np.eye(2)).gain(1.5), "s must be in"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_images_that_are_averages_are_those_of_larger_ones():
    small, large = shapes.load(n=20, size=8, averaged=2), shapes.load(n=20, size=16)
    # Rounding of four numbers below 1.
    np.testing.assert_allclose(small.x, cascade.down(large.x, 2), atol=2e-7)
    assert (small.labels == large.labels).all()
    assert np.abs(small.x - shapes.load(n=20, size=8).x).max() > 0.1  # drawn with 8: not the same
    with pytest.raises(ValueError, match="averaged must be"):
        shapes.load(n=1, size=8, averaged=65)


def test_augmentation_keeps_the_variance_and_has_a_level_per_example():
    low, eps = array(5000, 2, 2, 1, std=1.0), array(5000, 2, 2, 1, std=1.0)
    s = np.float32(np.linspace(0, 1, 5000))
    noisy = np.asarray(cascade.augment(P, low, eps, s))
    # 20,000 numbers of variance 1: their variance is known within .01, four of which are allowed.
    assert noisy.var() == pytest.approx(1, abs=0.04)
    np.testing.assert_array_equal(noisy[0], low[0])
    np.testing.assert_allclose(noisy[-1], eps[-1], atol=1e-6)


# The exact stage, on images of 4 × 2 pixels with random covariance.

A = operators.as_matrix(operators.average((4, 2, 1), 2))
ROOT, MEAN = rng.normal(size=(8, 8)), rng.normal(size=8)
C = ROOT @ ROOT.T / 4
STAGE = cascade.linear_stage(P, MEAN, C, A)


def test_the_exact_stage_is_the_gaussian_conditional_of_the_joint():
    s = 0.3
    alpha, sigma = float(P.alpha(s)), float(P.sigma(s))
    T = np.vstack([np.eye(8), alpha * A])  # x and z are T x and noise
    joint = T @ C @ T.T
    joint[8:, 8:] += sigma**2 * np.eye(2)
    # The inverse of the joint's inverse's block is the conditional covariance.
    precision = np.linalg.inv(joint + 1e-9 * np.eye(10))
    np.testing.assert_allclose(STAGE.left(s), np.linalg.inv(precision[:8, :8]), atol=1e-5)
    np.testing.assert_allclose(
        STAGE.gain(s), -np.linalg.inv(precision[:8, :8]) @ precision[:8, 8:], atol=1e-5
    )


@pytest.mark.parametrize("s", [0.0, 0.25, 1.0])
def test_true_small_images_give_true_large_ones_at_every_level(s):
    mean, covariance = STAGE.outcome(A @ MEAN, A @ C @ A.T, s)
    np.testing.assert_allclose(mean, MEAN, atol=1e-9)
    np.testing.assert_allclose(covariance, C, atol=1e-9)


def test_at_level_0_the_average_of_the_large_image_is_the_small_one_whatever_it_is():
    wrong = np.array([[3.0, 0.5], [0.5, 0.2]])
    mean, covariance = STAGE.outcome(np.array([2.0, -1.0]), wrong, 0.0)
    np.testing.assert_allclose(A @ mean, [2.0, -1.0], atol=1e-9)
    np.testing.assert_allclose(A @ covariance @ A.T, wrong, atol=1e-9)


@pytest.mark.parametrize(("s", "told"), [(0.3, None), (0.4, 0.1), (0.0, 0.3)])
def test_the_outcome_is_that_of_drawn_images(s, told):
    n, low_mean, low_root = 20_000, np.array([0.5, -2.0]), np.array([[0.7, 0.0], [0.4, 1.1]])
    key_low, key_eps, key_x, key = jax.random.split(KEY, 4)
    low = low_mean.astype(np.float32) + jax.random.normal(key_low, (n, 2)) @ low_root.T
    z = cascade.augment(P, low, jax.random.normal(key_eps, (n, 2)), s)
    D = STAGE.given(z, s if told is None else told)
    start = jax.random.normal(key_x, (n, 8))
    x = np.asarray(sampling.sample(samplers.ddim(P), D, start, sampling.uniform(200), key)[0])
    mean, covariance = STAGE.outcome(low_mean, low_root @ low_root.T, s, told)
    # Standard errors of 20,000 draws of variance up to 6: .017 of means, .06 of variances; four of
    # them, and 200 steps of DDIM leave a per cent of the standard deviations.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.08)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.3)


def test_a_cascade_gives_each_stage_the_image_before_it():
    def given(low, s):
        def D(x, t):
            assert s.shape == (3,)
            return cascade.up(low, x.shape[1] // low.shape[1]) + s[:, None, None, None]

        return D

    stages = [cascade.Stage(given, (4, 4, 1), 0.0), cascade.Stage(given, (16, 16, 1), 0.0)]
    low = array(3, 2, 2, 1)
    out = cascade.cascade(FLOW, stages, low, samplers.ddim(FLOW), sampling.uniform(3), KEY)
    assert [x.shape for x in out] == [(3, 2, 2, 1), (3, 4, 4, 1), (3, 16, 16, 1)]
    np.testing.assert_allclose(cascade.down(out[2], 8), low, atol=1e-6)
    # At the highest level nothing of the small image is left, and what is told says so.
    blind = cascade.Stage(given, (4, 4, 1), 1.0)
    a, b = (
        cascade.enlarge(FLOW, blind, x, samplers.ddim(FLOW), sampling.uniform(3), KEY)
        for x in (low, low + 5)
    )
    np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match="s must be in"):
        bad = cascade.Stage(given, (4, 4, 1), 2.0)
        cascade.enlarge(FLOW, bad, low, samplers.ddim(FLOW), sampling.uniform(3), KEY)


# The network.


@cache
def model():
    return drawn(lambda: Upsampler(2, 3, (32,), stem=2, num_classes=4, rngs=nnx.Rngs(0)), seed=3)


X, T, LOW = array(3, 8, 12, 3), np.float32([0.2, 0.5, 0.9]), array(3, 4, 6, 3)
S, LABELS = np.float32([0.0, 0.3, 0.6]), np.array([0, 3, 4])


def test_the_small_image_counts_as_further_channels_of_the_first_convolution():
    net = model()
    joined = np.concatenate([net.net.conv_in.kernel[...], net.low_in.kernel[...]], axis=2)
    both = jnp.concatenate([space_to_depth(X, 2), space_to_depth(cascade.up(LOW, 2), 2)], -1)
    first = jax.lax.conv_general_dilated(
        both, joined, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ours = net.net.conv_in(space_to_depth(X, 2)) + net.low_in(space_to_depth(cascade.up(LOW, 2), 2))
    bias = net.net.conv_in.bias[...] + net.low_in.bias[...]
    # Sums of 216 products in another order.
    np.testing.assert_allclose(first + bias, ours, atol=1e-4)


def test_each_example_has_its_own_small_image_and_level():
    @jax.jit
    def run(net, low, s):
        return net.given(low, s)(X, T, LABELS)

    plain = np.asarray(run(model(), LOW, S))
    for i in range(3):
        other_low, other_s = LOW.copy(), S.copy()
        other_low[i], other_s[i] = -LOW[i], 0.9
        for changed in (run(model(), other_low, S), run(model(), LOW, other_s)):
            moved = np.abs(np.asarray(changed) - plain).max((1, 2, 3))
            assert moved[i] > 1e-3
            assert np.delete(moved, i).max() < 1e-5


@pytest.mark.parametrize(
    ("low", "s", "says"),
    [
        (LOW[:, :3], S, r"low must have shape \[3, 4, 6, 3\], a 2-th"),
        (LOW, S[:, None], r"s must have shape \[B\] = \[3\]"),
        (LOW, S + 1, r"s must be"),
    ],
)
def test_a_small_image_or_level_that_does_not_fit_is_refused(low, s, says):
    with pytest.raises(ValueError, match=says):
        model().given(low, s)(X, T, LABELS)


# The recipe.

TINY = replace(
    recipes.RECIPES["shapes_8to16"],
    model={"class": "Upsampler", "factor": 2, "image_channels": 3, "channels": [32], "stem": 4,
           "num_classes": 6},
    options={"n": 40, "size": 16}, steps=3, batch_size=8, samples=10, sampling_steps=2,
    levels=(0.0, 0.4),
)  # fmt: skip


def test_the_recipe_trains_every_parameter_and_measures_both_kinds_of_small_images():
    train = data.load("shapes", **TINY.options)
    result = recipes.run(TINY, train, progress=False)
    start, end = weights.build(TINY.model), result.model
    # Behind a zero output only that layer learns at first; after three steps all do.
    for name, before in parameters(start).items():
        assert np.abs(parameters(end)[name] - before).max() > 0, name
    found = recipes.measure(TINY, end, train, data.load("shapes", "test", n=60, size=16))
    assert set(found) == {"samples", "floor", "true, s=0", "true, s=0.4", "drawn, s=0",
                          "drawn, s=0.4"}  # fmt: skip
    assert found["floor"]["kept"] == 0 and found["floor"]["shape"] >= 0.7
    assert found["true, s=0"]["frechet"] > found["floor"]["frechet"]


def test_the_stage_is_told_its_own_noisy_average():
    seen = {}

    class Spy:
        def given(self, low, s):
            seen["low"], seen["s"] = low, s
            return lambda x, t, cond: jnp.zeros_like(x)

    x = jnp.asarray(data.load("shapes", n=64, size=16).x)
    recipes.cascade_objective(TINY)(Spy(), x, jnp.zeros(64, int), KEY)
    s, low = seen["s"], seen["low"]
    assert 0 <= float(s.min()) < 0.05 and 0.55 < float(s.max()) < 0.6
    apart = np.asarray(low - P.alpha(s)[:, None, None, None] * cascade.down(x, 2))
    # What is left is noise of the level: 192 numbers each.
    np.testing.assert_allclose(apart.std((1, 2, 3)), P.sigma(s), rtol=0.25, atol=1e-6)


def test_drawn_small_images_come_from_the_base_class_after_class():
    low, labels = cascaded.base_images(TINY, 12, KEY)
    assert low.shape == (12, 8, 8, 3) and labels.tolist() == [*range(6), *range(6)]


# Stages after a stage.

SECOND = replace(
    recipes.RECIPES["shapes_16to32"], model=TINY.model | {"stem": 8}, samples=6, sampling_steps=2
)


class Enlarged(nnx.Module):
    """Its denoiser's guess is the small image, enlarged: v = −σ x0 + α ε with α x0 + σ ε = x."""

    def given(self, low, s):
        def v(x, t, cond):
            alpha, sigma = (level(t)[:, None, None, None] for level in (P.alpha, P.sigma))
            return (alpha * x - cascade.up(low, 2)) / sigma

        return v


def test_a_base_that_is_a_stage_enlarges_what_its_own_base_draws():
    images, labels = cascaded.stages_before(SECOND, 6, KEY)
    assert [x.shape for x in images] == [(6, 8, 8, 3), (6, 16, 16, 3)]
    assert labels.tolist() == [*range(6)]
    # With steps as few as two the released stage still keeps what it is told.
    told, kept = np.ravel(images[0]), np.ravel(cascade.down(images[1], 2))
    assert np.corrcoef(told, kept)[0, 1] > 0.6


def test_the_whole_cascade_is_measured_beside_a_plain_enlargement(monkeypatch):
    test = data.load("shapes", "test", n=70, size=32)
    before = [np.asarray(cascade.down(test.x[6:12], factor)) for factor in (4, 2)]
    monkeypatch.setattr(cascaded, "stages_before", lambda *a: (before, test.labels[6:12]))
    assert cascaded.base_images(SECOND, 6, KEY)[0] is before[1]
    found = cascaded.measure_stack(SECOND, Enlarged(), test, KEY)
    assert set(found) == {"floor", "true", "true, enlargement", "drawn", "drawn, enlargement",
                          "true agree", "drawn agree"}  # fmt: skip
    # This stage repeats every pixel, so its averages are the small image; a linear one blurs.
    for kind in ("true", "drawn"):
        assert found[kind]["kept"] < 1e-3 < found[f"{kind}, enlargement"]["kept"]
    assert found["floor"]["kept"] == 0
    # The large image is the one of 16 pixels, enlarged as it is for the judge: the same answers.
    assert set(found["drawn agree"]["16 and 32"].values()) == {1.0}
    assert found["true agree"]["16 and 32"]["colour"] > 0.5
    assert found["true agree"]["8 and 32"]["all"] < 1
