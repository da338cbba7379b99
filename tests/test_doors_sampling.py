"""Guidance, samplers, sampling and editing at their doors: what they refuse, and what they mean.

Where no number matters, `jax.eval_shape` traces a call and compiles nothing.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from runs import SAMPLERS, SOLVERS

from diffusion_course import denoiser, editing, guidance, process, samplers, sampling

rng = np.random.default_rng(90)
p = process.vp_cosine()
KEY = jax.random.key(0)
TIMES = sampling.uniform(4)
PICTURES = rng.normal(size=(2, 6, 6, 1)).astype(np.float32)
HALF = [np.float16, ml_dtypes.bfloat16]


def half_of(x, t):
    return 0.5 * x


# ------------------------------------------------------------------------------------- guidance

# What takes a scale, as a function of it alone: x -> estimates.
SCALED = {
    "classifier_free": lambda w: guidance.classifier_free(lambda x, t: x, half_of, w),
    "interval": lambda w: guidance.interval(lambda x, t: x, half_of, w, 0.1, 0.6),
    "rescale": lambda w: guidance.rescale(lambda x, t: x, half_of, w, 0.0),
    "batched": lambda w: guidance.classifier_free_batched(
        lambda x, t, cond: x * (1 + cond.reshape(-1, *(x.ndim - 1) * [1])), p, "x0",
        np.full(4, 1), np.full(4, 0), w,
    ),
    "classifier": lambda w: guidance.classifier(
        half_of, process.rectified_flow(), lambda x, t: x.reshape(len(x), -1).sum(1), w
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_scale_per_example_is_no_scale_per_channel(name, channels):
    x = rng.normal(size=(4, 2, 2, channels)).astype(np.float32)
    scales = np.array([1.0, 2.0, 3.0, 4.0])
    for t in (0.5, np.float32([0.2, 0.3, 0.4, 0.5])):
        each = SCALED[name](scales)(x, t)
        assert each.shape == x.shape
        want = SCALED[name](scales.reshape(4, 1, 1, 1))(x, t)
        np.testing.assert_array_equal(each, want)
    alone = SCALED[name](3.0)(x, 0.5)
    np.testing.assert_allclose(SCALED[name](scales)(x, 0.5)[2], alone[2], rtol=1e-6)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("shape", [(3,), (2,), (4, 1), (2, 1, 1, 1), (4, 1, 1, 1, 1), (4, 2, 2, 3)])
def test_scales_that_would_enlarge_the_picture_or_fit_another_axis_are_refused(name, shape):
    # [3] and [2] would each fit the last axis of some x: a scale of its own for every channel.
    x = np.zeros((4, 2, 3, 1), np.float32) if shape != (3,) else np.zeros((4, 2, 2, 3), np.float32)
    word = "scale" if name == "classifier" else "w"
    with pytest.raises(
        ValueError, match=rf"^{word} must .*got shape {list(shape)}".replace("[", r"\[")
    ):
        jax.eval_shape(lambda x: SCALED[name](np.ones(shape))(x, 0.5), x)


@pytest.mark.parametrize("name", SCALED)
def test_scales_that_are_no_numbers_are_refused(name):
    word = "scale" if name == "classifier" else "w"
    for bad in (np.nan, np.inf, [1.0, np.nan], "much", None):
        with pytest.raises(ValueError, match=f"^{word} must be"):
            SCALED[name](bad)


@pytest.mark.parametrize(
    ("labels", "null", "message"),
    [
        ([[0], [1]], [3, 3], r"labels must be whole numbers of shape \[2\], got .* \[2, 1\]"),
        ([0, 1], [[3], [3]], r"null must be whole numbers of shape \[2\], got .* \[2, 1\]"),
        ([0, 1], [3], r"null must be whole numbers of shape \[2\], got .* \[1\]"),
        ([0, 4], [3, 3], "labels must be in 0 … 3, got 0 … 4"),
        ([0, -1], [3, 3], "labels must be in 0 … 3, got -1 … 0"),
        ([0, 1], [4, 4], "null must be in 0 … 3, got 4 … 4"),
        ([0.0, 1.0], [3, 3], "labels must be whole numbers .*got float"),
        (1, 3, r"labels must be whole numbers of shape"),
    ],
)
def test_labels_that_are_none_are_refused_before_the_network_sees_them(labels, null, message):
    class Model:
        null_label = 3

        def __call__(self, x, t, cond):
            raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        guidance.classifier_free_batched(
            Model(), p, "v", np.array(labels), np.array(null), 2.0
        )  # fmt: skip


def test_labels_for_another_batch_are_refused():
    D = guidance.classifier_free_batched(
        lambda x, t, cond: x, p, "v", np.array([0, 1]), np.array([3, 3]), 2.0
    )
    with pytest.raises(ValueError, match=r"labels must be one per example, \[3\], got shape \[2\]"):
        D(jnp.ones((3, 1)), 0.5)


def test_an_estimate_of_another_shape_is_refused():
    x = jnp.ones((2, 3))
    for each in ((half_of, lambda x, t: x[:1]), (lambda x, t: x[:1], half_of)):
        with pytest.raises(ValueError, match=r"cond\(x, t\) must have the shape of x"):
            guidance.classifier_free(*each, 2.0)(x, 0.5)


def test_rescaling_leaves_a_flat_estimate_as_it_is():
    # 0.3 has no exact sum in float32: what rounding leaves of the deviation is no contrast.
    flat = np.broadcast_to(np.float32([0.0, 0.3, -7.1]).reshape(3, 1, 1, 1), (3, 9, 9, 1))
    other = rng.normal(size=flat.shape).astype(np.float32)
    keep = lambda x, t: x  # noqa: E731
    for share in (0.0, 0.5, 1.0):
        # The guided estimate is flat: w = 0 is the unconditional one.
        D = guidance.rescale(lambda x, t: other, keep, 0.0, share)
        np.testing.assert_allclose(D(flat, 0.5), flat, rtol=1e-6)
        # The conditional one is: everything is scaled down to its mean square.
        D = guidance.rescale(keep, lambda x, t: other, 2.0, share)
        assert np.isfinite(D(flat, 0.5)).all()
        slope = jax.grad(lambda x: guidance.rescale(keep, keep, 2.0, share)(x, 0.5).sum())  # noqa: B023
        assert np.isfinite(slope(flat)).all()
    # A share of 0 is no rescaling at all.
    D = guidance.rescale(keep, lambda x, t: other, 2.0, 0.0)
    np.testing.assert_allclose(D(flat, 0.5), other + 2 * (flat - other), rtol=1e-5, atol=1e-5)


def test_a_classifier_that_tells_all_classes_is_refused():
    D = guidance.classifier(half_of, p, lambda x, t: x)
    with pytest.raises(ValueError, match=r"log_prob\(x, t\) must have shape \[2\], one number per"):
        D(jnp.ones((2, 3)), 0.5)


# -------------------------------------------------------------------------------------- inpaint


def test_a_mask_that_would_enlarge_the_picture_is_refused():
    for shape in ((6, 6), (3, 6, 6, 1), (2, 6, 6, 3), (6,)):
        rule = rf"mask must broadcast to the shape of known, .*got shape {list(shape)}"
        with pytest.raises(ValueError, match=rule.replace("[", r"\[").replace(", .*", ".*")):
            guidance.inpaint(half_of, PICTURES, np.ones(shape, bool))


@pytest.mark.parametrize("bad", [-1, 2, 0.5, np.nan, 255])
def test_a_mask_of_other_values_than_0_and_1_is_refused(bad):
    mask = np.ones((2, 6, 6, 1), np.float32)
    mask[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match=r"mask must be boolean.*at index \[1, 2, 3, 0\]"):
        guidance.inpaint(half_of, PICTURES, mask)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_masks_of_every_type_mean_the_same(dtype):
    mask = rng.integers(0, 2, (6, 6, 1)).astype(dtype)
    want = np.where(mask == 1, PICTURES, 0.5 * (PICTURES + 1))
    np.testing.assert_array_equal(
        guidance.inpaint(half_of, PICTURES, mask)(PICTURES + 1, 0.5), want
    )
    traced = jax.jit(lambda mask: guidance.inpaint(half_of, PICTURES, mask)(PICTURES + 1, 0.5))
    np.testing.assert_array_equal(traced(mask), want)


def test_a_known_picture_of_another_shape_is_refused():
    D = guidance.inpaint(half_of, PICTURES, np.ones((6, 6, 1), bool))
    with pytest.raises(ValueError, match="known must broadcast to the shape of x"):
        D(PICTURES[:1], 0.5)
    np.testing.assert_array_equal(
        guidance.inpaint(half_of, PICTURES[:1], np.True_)(PICTURES, 0.5), PICTURES[[0, 0]]
    )


# ---------------------------------------------------------------------------- states and pixels

# Everything that takes a state or a picture, by the argument's name.
TAKES = {
    "x_start": lambda x: sampling.sample(samplers.ddim(p), half_of, x, TIMES, KEY)[0],
    "x0": lambda x: editing.sdedit(samplers.ddim(p), half_of, p, x, 0.5, 2, KEY),
    "coarse": lambda x: editing.refine(samplers.ddim(p), half_of, p, x, (8, 8), 0.5, 2, KEY),
    "x": lambda x: editing.invert(p, half_of, x, TIMES)[0],
    "a": lambda x: editing.slerp(x, PICTURES, 0.5),
    "b": lambda x: editing.slerp(PICTURES, x, 0.5),
    "known": lambda x: guidance.inpaint(half_of, x, np.True_)(PICTURES, 0.5),
    " coarse": lambda x: guidance.match_coarse(half_of, x)(PICTURES, 0.5),
}


@pytest.mark.parametrize("argument", TAKES)
def test_half_precision_and_whole_numbers_are_refused_by_name(argument):
    name = argument.strip()
    for dtype in HALF:
        with pytest.raises(ValueError, match=f"^{name} must be float32.*got dtype .*float16"):
            TAKES[argument](PICTURES.astype(dtype))
        with pytest.raises(ValueError, match=f"^{name} must be float32.*got dtype .*float16"):
            jax.eval_shape(TAKES[argument], PICTURES.astype(dtype))
    with pytest.raises(ValueError, match=f"^{name} must be floating-point.*pixels / 127.5 - 1"):
        TAKES[argument](np.full((2, 6, 6, 1), 255, np.uint8))


@pytest.mark.parametrize("argument", TAKES)
def test_float64_becomes_float32(argument):
    assert jax.eval_shape(lambda: TAKES[argument](PICTURES.astype(np.float64))).dtype == np.float32


@pytest.mark.parametrize("name", SAMPLERS | SOLVERS)
def test_where_jax_is_allowed_64_bits_states_stay_float32(name):
    make = (SAMPLERS | SOLVERS)[name]

    def chain():
        wide = denoiser.gaussian_mixture(p, [[0.5]], [0.3], [1.0])
        D = lambda x, t: wide.denoise(x, t).astype(np.float64)  # noqa: E731
        for q in (process.from_betas(process.linear_betas(7)), p, process.edm()):
            x = sampling.start_noise(q, KEY, (3, 1), np.float64(0.9))
            assert x.dtype == np.float32
            x, path = sampling.sample(make(q), D, x.astype(np.float64), np.array(TIMES, float), KEY)
            assert x.dtype == path.dtype == np.float32
        return x

    jax.config.update("jax_enable_x64", True)
    try:
        jax.eval_shape(chain)
        eta = samplers.ddim(p, np.float64(0.5), np.float64(0.9))
        got = jax.eval_shape(lambda: sampling.sample(eta, half_of, PICTURES, TIMES, KEY)[0])
        assert got.dtype == np.float32
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", SAMPLERS | SOLVERS)
def test_a_denoiser_may_compute_in_half_precision_but_not_in_another_shape(name):
    sampler = (SAMPLERS | SOLVERS)[name](p)
    D = lambda x, t: (0.5 * x).astype(jnp.bfloat16)  # noqa: E731
    run = lambda D: sampling.sample(sampler, D, PICTURES, TIMES, KEY)[0]  # noqa: E731
    assert jax.eval_shape(lambda: run(D)).dtype == np.float32
    with pytest.raises(ValueError, match=r"D\(x, t\) must have the shape of x.*got shape \[1, 6"):
        jax.eval_shape(lambda: run(lambda x, t: x[:1]))


# -------------------------------------------------------------------------------- times and keys

TAKES_TIMES = {
    "sample": lambda times: sampling.sample(samplers.ddim(p), half_of, PICTURES, times, KEY),
    "invert": lambda times: editing.invert(p, half_of, PICTURES, times),
    "generator": lambda times: sampling.generator(p, "v", samplers.ddim(p), times, (6, 6, 1)),
}


@pytest.mark.parametrize("name", TAKES_TIMES)
def test_step_numbers_are_no_times(name):
    for steps in (np.arange(10, -1, -1), list(range(1000, -1, -20)), np.array([1.5, 0.5, 0.0])):
        rule = r"times must fall strictly within \[1, 0\], got .* at index \[0\].*the time n/T"
        with pytest.raises(ValueError, match=rule):
            TAKES_TIMES[name](steps)


@pytest.mark.parametrize("name", TAKES_TIMES)
@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5, 1.0, 0.0], "got 0.5 and then 1.0 at index 1"),
        ([1.0, 0.5, 0.5, 0.0], "got 0.5 and then 0.5 at index 2"),
        ([1.0, 1 - 1e-9, 0.0], "got 1.0 and then 1.0 at index 1"),  # one time, in float32
        ([1.0, 0.5, -0.1], r"got -0.1.* at index \[2\]"),
        ([1.0, np.nan, 0.0], r"got nan at index \[1\]"),
        ([1.0], r"must have shape \[n \+ 1\] with n >= 1, got shape \[1\]"),
        (1.0, r"must have shape \[n \+ 1\] with n >= 1, got shape \[\]"),
        ([[1.0, 0.0]], r"must have shape \[n \+ 1\] with n >= 1, got shape \[1, 2\]"),
    ],
)
def test_grids_that_do_not_fall_are_named_with_the_place(name, times, message):
    with pytest.raises(
        ValueError,
        match="^times must .*" + message if "got" in message[:3] else "^times " + message,
    ):
        TAKES_TIMES[name](times)


def test_traced_whole_numbers_are_no_times():
    with pytest.raises(ValueError, match="times must be floating-point numbers, got dtype int"):
        jax.eval_shape(TAKES_TIMES["sample"], np.arange(4, -1, -1))


@pytest.mark.parametrize("key", [0, None, jax.random.split(KEY, 2), np.zeros(2, np.float32)])
def test_what_is_no_random_key_is_refused(key):
    ddim = samplers.ddim(p)
    for call in (
        lambda: sampling.sample(ddim, half_of, PICTURES, TIMES, key),
        lambda: sampling.start_noise(p, key, (2, 3)),
        lambda: editing.sdedit(ddim, half_of, p, PICTURES, 0.5, 2, key),
        lambda: sampling.generator(p, "v", ddim, TIMES, (3,))(None, key, 2),
    ):
        with pytest.raises(ValueError, match=r"key must be one random key such as jax.random.key"):
            call()
    jax.eval_shape(lambda: sampling.start_noise(p, jax.random.PRNGKey(0), (2, 3)))  # the older kind


def test_a_sampler_that_was_not_made_is_refused():
    for given in (samplers.ddim, "ddim", None):
        with pytest.raises(ValueError, match=r"sampler must be a Sampler such as samplers.ddim\(p"):
            sampling.sample(given, half_of, PICTURES, TIMES, KEY)
        with pytest.raises(ValueError, match=r"sampler must be a Sampler such as samplers.ddim\(p"):
            sampling.generator(p, "v", given, TIMES, (2,))


@pytest.mark.parametrize("t", [-0.1, 1.1, 500, np.nan])
def test_noise_of_no_time_is_refused(t):
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got"):
        sampling.start_noise(p, KEY, (2, 3), t)


# ---------------------------------------------------------------------------------------- grids


def test_grids_finer_than_float32_are_refused():
    with pytest.raises(ValueError, match="n must leave times that differ in float32, got 40000000"):
        sampling.uniform(40_000_000)
    with pytest.raises(ValueError, match="n must leave times that differ in float32, got 300000"):
        sampling.log_snr_uniform(process.vp_linear(), 300_000, 0.5, 0.50001)


def test_the_latest_time_with_a_log_snr_is_named():
    hasty = process.Process(lambda t: jnp.maximum(1 - 2 * t, 0.0), lambda t: 1.0 * t)
    with pytest.raises(ValueError, match=r"at most t_max = 0\.499"):
        sampling.log_snr_uniform(hasty, 4)


# -------------------------------------------------------------------------------------- editing


def test_slerp_takes_one_share_per_example_and_two_noises_of_one_shape():
    a, b = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    each = editing.slerp(a, b, np.array([0.2, 0.5, 0.9]))
    for i, share in enumerate((0.2, 0.5, 0.9)):
        np.testing.assert_allclose(each[i], editing.slerp(a, b, share)[i], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"b must have the shape of a, \[3, 4, 3\]"):
        editing.slerp(a, b[:1], 0.5)
    with pytest.raises(ValueError, match="share must be in"):
        editing.slerp(a, b, np.nan)


@pytest.mark.parametrize("size", [(8,), (8, 8, 8), (8.5, 8), (0, 8)])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(ValueError, match="size must be a"):
        editing.refine(samplers.ddim(p), half_of, p, PICTURES, size, 0.5, 2, KEY)


def test_inversion_through_levels_without_signal_is_finite():
    for q in (
        process.from_betas(process.linear_betas(1000, 1e-4, 0.5)),
        process.vp_linear(0.1, 400.0),
    ):
        gm = denoiser.gaussian_mixture(q, [[0.7]], [0.5], [1.0])
        noise, _ = jax.jit(
            lambda x, q=q, gm=gm: editing.invert(q, gm.denoise, x, sampling.uniform(40))
        )(rng.normal(0.7, 0.5, (50, 1)))
        assert np.isfinite(noise).all() and 0.3 < float(noise.std()) < 3
