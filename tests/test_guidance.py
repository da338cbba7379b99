import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES

from diffusion_course import denoiser, guidance, parameterization

rng = np.random.default_rng(24)

o = PROCESSES["vp_linear"]
p = o.process
mixture = denoiser.gaussian_mixture(p, [[0.9, -0.4], [-1.1, 0.5]], [0.3, 0.6], [1.0, 2.0])
# Compiled once for a shape, where otherwise every operation would be.
conditional = jax.jit(denoiser.gaussian_mixture(p, [[0.9, -0.4]], [0.3], [1.0]).denoise)
unconditional = jax.jit(mixture.denoise)
x = jnp.asarray(rng.normal(0.2, 1.1, (6, 2)), jnp.float32)
t = jnp.asarray([0.1, 0.3, 0.45, 0.6, 0.8, 0.95])


def test_no_guidance_is_unconditional_and_one_is_conditional():
    zero = guidance.classifier_free(conditional, unconditional, 0.0)
    one = guidance.classifier_free(conditional, unconditional, 1.0)
    np.testing.assert_array_equal(zero(x, t), unconditional(x, t))
    # u + (c − u) rounds twice.
    np.testing.assert_allclose(one(x, t), conditional(x, t), rtol=1e-6, atol=1e-6)
    assert np.abs(conditional(x, t) - unconditional(x, t)).min() > 1e-3


@pytest.mark.parametrize("w", [-0.5, 0.3, 2.0, 7.5])
def test_guidance_extrapolates_from_unconditional_to_conditional(w):
    got = guidance.classifier_free(conditional, unconditional, w)(x, t)
    c, u = (np.asarray(D(x, t), np.float64) for D in (conditional, unconditional))
    np.testing.assert_allclose(got, (1 - w) * u + w * c, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "v", "score", "flow"])
def test_guiding_x0_is_guiding_every_other_prediction(kind):
    # Ho & Salimans, eq. 6, in their scale w' = w − 1, on the prediction of this kind.
    w = 3.5

    def tell(D):
        x0 = D(x, t)
        alpha, sigma = o.alpha(t)[:, None], o.sigma(t)[:, None]
        return parameterization.target(kind, p, x0, (x - alpha * x0) / sigma, t)

    guided = tell(guidance.classifier_free(conditional, unconditional, w))
    want = (1 + (w - 1)) * tell(conditional) - (w - 1) * tell(unconditional)
    # eps at t = 0.1 is divided by sigma = 0.3, the score twice; both are guided 3.5 times.
    np.testing.assert_allclose(guided, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_autoguidance_follows_the_ratio_of_the_good_and_the_bad_density(w):
    good = denoiser.gaussian_mixture(p, [[0.9, -0.4]], [0.3], [1.0])
    bad = denoiser.gaussian_mixture(p, [[0.6, 0.1]], [0.7], [1.0])
    x0 = guidance.autoguidance(good.denoise, bad.denoise, w)(x, t)
    alpha, sigma = o.alpha(t)[:, None], o.sigma(t)[:, None]
    score = (alpha * np.asarray(x0, np.float64) - x) / sigma**2

    def slope(gm):  # of the log-density, by jax.grad
        return jax.vmap(jax.grad(lambda x, t: gm.log_prob(x[None], t)[0]))(x, jnp.asarray(t))

    wanted = slope(good) + (w - 1) * (slope(good) - slope(bad))
    # Three estimates of x0 are divided by sigma² = .03 at the lowest time.
    np.testing.assert_allclose(score, wanted, rtol=1e-3, atol=1e-3)


def test_the_scale_may_be_traced_mapped_and_one_per_example():
    def guided(w):
        return guidance.classifier_free(conditional, unconditional, w)(x, t)

    scales = jnp.asarray([0.0, 1.0, 4.0])
    mapped = jax.jit(jax.vmap(guided))(scales)
    for w, got in zip(scales, mapped, strict=True):
        np.testing.assert_allclose(got, guided(float(w)), rtol=1e-5, atol=1e-5)
    each = guided(jnp.asarray([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[:, None])
    for i in range(6):
        np.testing.assert_allclose(each[i], guided(float(i))[i], rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.jacfwd(guided))(2.0)
    np.testing.assert_allclose(slope, conditional(x, t) - unconditional(x, t), atol=1e-6)


def test_guidance_composes_with_clipping():
    D = denoiser.clip(guidance.classifier_free(conditional, unconditional, 9.0), -0.5, 0.5)
    assert np.abs(D(x, t)).max() == 0.5


# ------------------------------------------------------------------------- two scales, compositions


def score_of(D):
    alpha, sigma = o.alpha(t)[:, None], o.sigma(t)[:, None]
    return (alpha * np.asarray(D(x, t), np.float64) - x) / sigma**2


def slope_of(gm):
    """The gradient of the log-density, by jax.grad."""
    return jax.vmap(jax.grad(lambda x, t: gm.log_prob(x[None], t)[0]))(x, jnp.asarray(t))


# What is known shrinks the mixture: nothing, the image, the image and the text.
KNOWN = [
    mixture,
    denoiser.gaussian_mixture(p, [[0.9, -0.4], [0.5, 0.8]], [0.3, 0.5], [1.0, 1.0]),
    denoiser.gaussian_mixture(p, [[0.5, 0.8]], [0.4], [1.0]),
]


@pytest.mark.parametrize(
    ("w_image", "w_text"), [(0.0, 0.0), (1.0, 1.0), (1.5, 7.5), (0.0, 2.0), (3.0, 0.0), (-0.5, 1.0)]
)
def test_two_scales_follow_the_product_of_three_densities(w_image, w_text):
    nothing, image, full = (gm.denoise for gm in KNOWN)
    got = score_of(guidance.two_scales(full, image, nothing, w_image, w_text))
    # p(x)·p(image | x)^w_image·p(text | image, x)^w_text, by Bayes' rule.
    s = [slope_of(gm) for gm in KNOWN]
    want = s[0] + w_image * (s[1] - s[0]) + w_text * (s[2] - s[1])
    # Estimates of x0, times up to 7.5, are divided by sigma² = .03 at the lowest time.
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=5e-3)


def test_with_one_of_two_scales_at_one_or_both_equal_the_other_is_plain_guidance():
    nothing, image, full = (gm.denoise for gm in KNOWN)
    for pair, plain in (
        ((1.0, 4.0), guidance.classifier_free(full, image, 4.0)),
        ((4.0, 4.0), guidance.classifier_free(full, nothing, 4.0)),
        ((4.0, 0.0), guidance.classifier_free(image, nothing, 4.0)),
    ):
        got = guidance.two_scales(full, image, nothing, *pair)(x, t)
        np.testing.assert_allclose(got, plain(x, t), rtol=1e-5, atol=1e-5)
    assert np.abs(full(x, t) - image(x, t)).max() > 0.1


def test_each_of_two_scales_may_be_one_per_example_or_a_function_of_time():
    nothing, image, full = (gm.denoise for gm in KNOWN)
    D = guidance.two_scales(full, image, nothing, jnp.arange(6.0), guidance.limited(4.0, 0.3, 0.6))
    texts = [1.0, 4.0, 4.0, 4.0, 1.0, 1.0]
    for i, w_text in enumerate(texts):
        one = guidance.two_scales(full, image, nothing, float(i), w_text)
        np.testing.assert_allclose(D(x, t)[i], one(x, t)[i], rtol=1e-5, atol=1e-5)


def test_conditions_on_independent_coordinates_compose_exactly():
    # Four clouds of one width in a grid, of which a row and a column are asked for.
    rows, cols, share_r, share_c = [0.9, -0.7], [-1.0, 0.4], np.array([1, 3]), np.array([2, 1])
    means = np.array([[r, c] for r in rows for c in cols])
    weights = np.outer(share_r, share_c).ravel()

    def cloud(*chosen):
        return denoiser.gaussian_mixture(
            p, means[list(chosen)], [0.3] * len(chosen), weights[list(chosen)]
        ).denoise

    everything, top, left, both = cloud(0, 1, 2, 3), cloud(0, 1), cloud(0, 2), cloud(0)
    got = guidance.compose(everything, [top, left], [1.0, 1.0])(x, t)
    np.testing.assert_allclose(got, both(x, t), rtol=1e-4, atol=1e-5)
    # Where one of the four clouds is missing they are not independent, and it is not exact.
    lacking = guidance.compose(cloud(0, 1, 2), [top, left], [1.0, 1.0])(x, t)
    assert np.abs(lacking - both(x, t)).max() > 1e-2


def test_composed_conditions_follow_the_product_of_their_densities_and_lead_away():
    others = [gm.denoise for gm in KNOWN[1:]]
    got = score_of(guidance.compose(unconditional, others, [2.0, -1.5]))
    s = [slope_of(gm) for gm in KNOWN]
    want = s[0] + 2.0 * (s[1] - s[0]) - 1.5 * (s[2] - s[0])
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=5e-3)
    # The common negative prompt is the composition with scales w and 1 − w.
    common = guidance.classifier_free(others[0], others[1], 3.0)(x, t)
    composed = guidance.compose(unconditional, others, [3.0, -2.0])(x, t)
    np.testing.assert_allclose(common, composed, rtol=1e-4, atol=1e-5)


def test_a_composition_of_the_wrong_number_or_shape_is_refused():
    for conds, scales in (([], []), ([conditional], [1.0, 2.0]), ([conditional] * 2, [1.0])):
        with pytest.raises(ValueError, match="D_conds must hold at least one denoiser"):
            guidance.compose(unconditional, conds, scales)
    narrow = lambda x, t: x[:, :1]  # noqa: E731
    for D, message in (
        (guidance.compose(unconditional, [narrow], [1.0]), r"D_conds\[0\]\(x, t\) must have"),
        (guidance.compose(narrow, [conditional], [1.0]), r"D_uncond\(x, t\) must have"),
        (guidance.compose(unconditional, [conditional], [np.ones(5)]), r"scales\[0\] must be"),
        (guidance.two_scales(narrow, x_to_x, x_to_x, 1.0, 1.0), r"D_full\(x, t\) must have"),
        (guidance.two_scales(x_to_x, x_to_x, x_to_x, np.ones(5), 1.0), "w_image must be"),
        (guidance.two_scales(x_to_x, x_to_x, x_to_x, 1.0, np.ones(5)), "w_text must be"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            D(x, t)
    with pytest.raises(ValueError, match="w_text must be"):
        guidance.two_scales(x_to_x, x_to_x, x_to_x, 1.0, np.nan)
    with pytest.raises(ValueError, match=r"scales\[1\] must be"):
        guidance.compose(x_to_x, [x_to_x] * 2, [1.0, np.inf])


def x_to_x(x, t):
    return x


# ---------------------------------------------------------------- one evaluation instead of two


def labelled(x, t, cond):
    """A network, as far as guidance can see: every example by itself, with its time and label."""
    return jnp.tanh(x * (1 + cond[:, None])) - t[:, None] * jnp.sin(cond)[:, None]


@pytest.mark.parametrize("time", [0.4, t], ids=["one time", "a time for each"])
@pytest.mark.parametrize("w", [0.0, 1.0, 3.5])
def test_one_batched_evaluation_equals_two(w, time):
    labels, null = jnp.arange(6) % 3, jnp.full(6, 3)
    seen = []

    def counted(x, t, cond):
        seen.append(x.shape)
        return labelled(x, t, cond)

    got = guidance.classifier_free_batched(counted, p, "v", labels, null, w)(x, time)
    assert seen == [(12, 2)]
    each = (denoiser.denoiser(labelled, p, "v", cond) for cond in (labels, null))
    np.testing.assert_allclose(got, guidance.classifier_free(*each, w)(x, time), atol=1e-5)


# ------------------------------------------------------------------------------------ interval


def test_guidance_in_an_interval_is_plain_outside_of_it():
    D = guidance.interval(conditional, unconditional, 4.0, 0.3, 0.6)
    guided = guidance.classifier_free(conditional, unconditional, 4.0)(x, t)
    plain = guidance.classifier_free(conditional, unconditional, 1.0)(x, t)
    inside = np.array([False, True, True, True, False, False])  # both ends count
    np.testing.assert_array_equal(D(x, t)[inside], guided[inside])
    np.testing.assert_array_equal(D(x, t)[~inside], plain[~inside])
    np.testing.assert_allclose(D(x, 0.5), guidance.classifier_free(
        conditional, unconditional, 4.0)(x, 0.5), rtol=1e-6)  # fmt: skip


def test_a_scale_may_be_a_function_of_time_wherever_a_scale_is_taken():
    labels, null = jnp.arange(6) % 3, jnp.full(6, 3)
    each = [denoiser.denoiser(labelled, p, "v", cond) for cond in (labels, null)]
    w = guidance.limited(4.0, 0.3, 0.6)
    scale = jnp.asarray([1.0, 4.0, 4.0, 4.0, 1.0, 1.0])[:, None]
    for time, wanted in ((t, scale), (0.7, 1.0), (0.45, 4.0)):
        plain = guidance.classifier_free(*each, wanted)(x, time)
        rescaled = guidance.rescale(*each, wanted, 0.6)(x, time)
        batched = (labelled, p, "v", labels, null)
        for got, truth in (
            (guidance.classifier_free(*each, w), plain),
            (guidance.interval(*each, 4.0, 0.3, 0.6), plain),
            (guidance.classifier_free_batched(*batched, w), plain),
            (guidance.rescale(*each, w, 0.6), rescaled),
            (guidance.classifier_free_batched(*batched, w, share=0.6), rescaled),
        ):
            # 1.0 and 4.0 times differences of order one, in float32.
            np.testing.assert_allclose(got(x, time), truth, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - rescaled).max() > 1e-3


def test_a_limited_scale_may_be_one_per_example():
    each = jnp.asarray([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    got = guidance.interval(conditional, unconditional, each, 0.3, 0.6)(x, 0.5)
    want = guidance.classifier_free(conditional, unconditional, each)(x, 0.5)
    np.testing.assert_array_equal(got, want)
    pictures = jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32)
    scales, times = jnp.asarray([2.0, 3.0, 4.0]).reshape(3, 1, 1, 1), jnp.asarray([0.1, 0.4, 0.9])
    cond, uncond = (lambda x, t: 0.5 * x), (lambda x, t: x)
    got = guidance.interval(cond, uncond, scales, 0.3, 0.6)(pictures, times)
    want = pictures * jnp.asarray([0.5, 1 - 0.5 * 3, 0.5]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_an_empty_or_impossible_interval_is_refused(low, high):
    with pytest.raises(ValueError, match="low and high must satisfy"):
        guidance.interval(conditional, unconditional, 2.0, low, high)


# ------------------------------------------------------------------------------------- rescale


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_moves_each_example_s_deviation_towards_the_conditional_one(share):
    pictures = jnp.asarray(rng.normal(0.3, 0.8, (4, 5, 5, 1)), jnp.float32)
    cond, uncond = (lambda x, t: 0.7 * x - 0.1), (lambda x, t: jnp.sin(3 * x))
    got = guidance.rescale(cond, uncond, 6.0, share)(pictures, 0.4)
    guided = np.asarray(guidance.classifier_free(cond, uncond, 6.0)(pictures, 0.4), np.float64)
    wanted = np.asarray(cond(pictures, 0.4), np.float64)
    for i in range(4):
        factor = share * wanted[i].std() / guided[i].std() + 1 - share
        np.testing.assert_allclose(got[i], factor * guided[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_the_unit_interval_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        guidance.rescale(conditional, unconditional, 2.0, share)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        guidance.classifier_free_batched(
            labelled, p, "v", jnp.arange(6) % 3, jnp.full(6, 3), 2.0, share=share
        )


# ---------------------------------------------------------------------------------- classifier


def log_probability(x, t):
    """Of the first component, exactly: log p(y = 0 | x_t)."""
    return mixture.log_responsibilities(x, t)[:, 0]


by_bayes = jax.jit(guidance.classifier(mixture.denoise, p, log_probability))


def test_the_exact_classifier_s_guidance_is_the_conditional_denoiser():
    for points in (0.3 * x, x, 10 * x):  # far out the probability is 0 in float32, not its log
        got = by_bayes(points, t)
        # Scores of order |x|/variance cancel in float32.
        size = np.abs(points).max()
        np.testing.assert_allclose(got, conditional(points, t), rtol=2e-3, atol=1e-3 * size)


def test_no_scale_is_no_guidance_and_twice_the_scale_twice_the_shift():
    guided = jax.jit(
        lambda scale: guidance.classifier(unconditional, p, log_probability, scale)(x, t)
    )
    plain, once, twice = (guided(scale) for scale in (0.0, 1.0, 2.0))
    np.testing.assert_allclose(plain, unconditional(x, t), rtol=1e-6)
    np.testing.assert_allclose(twice - plain, 2 * (once - plain), rtol=1e-4, atol=1e-4)


def test_an_example_s_guidance_does_not_depend_on_its_batch():
    others = x.at[0].set(-3.0).at[5].set(2.0)
    np.testing.assert_allclose(by_bayes(x, t)[1:5], by_bayes(others, t)[1:5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_bayes(x, t)[2:3], by_bayes(x[2:3], t[2:3]), rtol=1e-5, atol=1e-5)


def test_a_state_without_signal_is_not_guided():
    flow = PROCESSES["rectified_flow"].process
    gm = denoiser.gaussian_mixture(flow, [[0.9, -0.4], [-1.1, 0.5]], [0.3, 0.6], [1.0, 2.0])

    @jax.jit
    def both(x):
        log_prob = lambda x, t: gm.log_responsibilities(x, t)[:, 0]  # noqa: E731
        D = guidance.classifier(gm.denoise, flow, log_prob)
        return D(x, 1.0), gm.denoise(x, 1.0)

    np.testing.assert_allclose(*both(x), rtol=1e-6)


def test_a_limited_scale_may_be_a_list_and_no_function():
    assert guidance.limited([2.0, 3.0], 0.2, 0.6)(0.5).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="w must be a number or an array, got a function"):
        guidance.limited(lambda t: 2.0, 0.2, 0.6)
