"""What holds for every input: of guidance, samplers, sampling and editing.

Under `jax.disable_jit` a loop is Python's and a denoiser is called as often as it is evaluated;
nothing is compiled but single operations, once for each of a few shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples
from runs import ALL, SAMPLERS, SOLVERS

from diffusion_course import editing, guidance, process, samplers, sampling

SHAPES = [(3,), (2, 4), (3, 2, 2, 2)]
SEVERAL = ("heun", "dpm_solver 2", "dpm_solver 3", "pndm", "predictor_corrector")
ONE_EVALUATION = [name for name in (*SAMPLERS, *SOLVERS) if name not in SEVERAL]
KEY = jax.random.key(0)


def arrays(shape, dtype=np.float32, size=3.0):
    seeds = st.integers(0, 2**32 - 1)
    return seeds.map(lambda s: (size * np.random.default_rng(s).normal(size=shape)).astype(dtype))


@st.composite
def states(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return draw(arrays(draw(st.sampled_from(SHAPES)), dtype))


@st.composite
def grids(draw, most=4):
    """Times that fall strictly within [1, 0], of float64 or float32, often from 1 and to 0."""
    values = draw(st.sets(st.integers(1, 999), min_size=2, max_size=most + 1))
    times = np.sort(np.array(list(values)) / 1000)[::-1].copy()
    times[0] = draw(st.sampled_from([1.0, times[0]]))
    times[-1] = draw(st.sampled_from([0.0, times[-1]]))
    return times.astype(draw(st.sampled_from([np.float32, np.float64])))


scales = st.floats(-20, 20)
shares = st.floats(0, 1)


# --------------------------------------------------------------------------------------- samplers


@examples
@given(st.sampled_from([*(SAMPLERS | SOLVERS)]), st.sampled_from([*ALL]), states(), grids())
def test_every_run_is_finite_keeps_its_shape_and_asks_once_a_step(name, of, x, times):
    asked = []

    def D(x, t):
        asked.append(float(t))
        return jnp.tanh(x)

    with jax.disable_jit():
        sampler = (SAMPLERS | SOLVERS)[name](ALL[of])
        got, path = sampling.sample(sampler, D, x, times, KEY)
    assert got.shape == x.shape and path.shape == (len(times) - 1, *x.shape)
    assert got.dtype == path.dtype == np.float32
    assert np.isfinite(path).all()
    np.testing.assert_array_equal(path[-1], got)
    if name in ONE_EVALUATION:
        np.testing.assert_array_equal(np.float32(asked), np.float32(times[:-1]))
    assert min(asked) > 0
    if times[-1] == 0 and name in ONE_EVALUATION:
        before = path[-2] if len(times) > 2 else np.float32(x)
        np.testing.assert_array_equal(got, jnp.tanh(before))


@examples
@given(states(), st.sampled_from([*ALL]), st.floats(0, 1), st.floats(0, 1), shares)
def test_less_temperature_is_less_noise(x, of, one, other, temperature):
    s, t = sorted([np.float32(one), np.float32(other)])
    if not s < t:
        return
    x, p = jnp.asarray(x, jnp.float32), ALL[of]

    def step(make, temperature):
        return make(p, temperature=temperature).step(lambda x, t: 0 * x, x, t, s, KEY, ())[0]

    for make in (samplers.ddpm, lambda p, **k: samplers.ddim(p, 0.6, **k)):
        none, some, all_of_it = (np.float64(step(make, w)) for w in (0.0, temperature, 1.0))
        size = np.abs(all_of_it).max() + np.abs(none).max()
        want = none + temperature * (all_of_it - none)
        np.testing.assert_allclose(some, want, atol=1e-5 * size)


@examples
@given(states(), st.integers(1, 3), st.sampled_from([*ALL]), grids(2))
def test_repeats_cost_their_number_of_evaluations(x, repeats, of, times):
    asked = []

    def D(x, t):
        asked.append(float(t))
        return jnp.tanh(x)

    p = ALL[of]
    with jax.disable_jit():
        again = samplers.repaint(samplers.ddpm(p), p, repeats)
        got, path = sampling.sample(again, D, x, times, KEY)
    assert got.shape == x.shape and np.isfinite(path).all()
    to_data = times[-1] == 0
    assert len(asked) == repeats * (len(times) - 1 - to_data) + to_data


# ------------------------------------------------------------------------------------------ grids


@examples
@given(st.sampled_from([1, 2, 9, 30]), st.floats(0.5, 12), st.floats(1e-3, 0.3), st.floats(1, 60))
def test_every_grid_falls_from_one_to_zero(n, rho, low, high):
    p = process.vp_cosine()
    made = [sampling.uniform(n), sampling.quadratic(n)]
    made.append(sampling.karras(p, n, rho, sigma_min=low, sigma_max=high))
    made.append(sampling.log_snr_uniform(p, n, t_min=low, t_max=0.999))
    for times in made:
        assert times.shape == (n + 1,) and times.dtype == np.float32
        assert times[0] == 1 and times[-1] == 0 and (np.diff(times) < 0).all()


@examples
@given(st.sampled_from(SHAPES), st.sampled_from([*ALL]), st.floats(0, 1))
def test_a_start_has_its_shape_and_is_finite(shape, of, t):
    x = sampling.start_noise(ALL[of], KEY, shape, t)
    assert x.shape == shape and x.dtype == np.float32 and np.isfinite(x).all()
    np.testing.assert_allclose(x, ALL[of].sigma(t) * jax.random.normal(KEY, shape), rtol=1e-6)


# --------------------------------------------------------------------------------------- guidance


@st.composite
def scaled_states(draw):
    """A state and a scale in each of the shapes that one may have, with what it multiplies."""
    x = draw(states())
    shape = draw(st.sampled_from([(), (len(x),), (len(x),) + (1,) * (x.ndim - 1), x.shape]))
    w = draw(arrays(shape, size=5.0))
    full = w.reshape(w.shape + (1,) * (x.ndim - 1)) if w.ndim == 1 else w
    return np.float32(x), w, np.broadcast_to(full, x.shape)


@examples
@given(scaled_states(), st.floats(0.01, 1))
def test_guidance_is_its_formula_for_every_scale(arguments, t):
    x, w, full = arguments
    c, u = np.tanh(np.float64(x)), np.float64(x) / 2
    D_c, D_u = (lambda x, t: jnp.tanh(x)), (lambda x, t: x / 2)
    got = guidance.classifier_free(D_c, D_u, w)(x, t)
    assert got.shape == x.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, u + full * (c - u), rtol=1e-4, atol=1e-4)
    limited = guidance.interval(D_c, D_u, w, 0.2, 0.6)(x, t)
    inside = np.float32(0.2) <= np.float32(t) <= np.float32(0.6)
    want = u + full * (c - u) if inside else c
    np.testing.assert_allclose(limited, want, rtol=1e-4, atol=1e-4)


@examples
@given(states(), scales, shares, st.sampled_from([0.0, 1e-8, 1.0, 1e4]), st.floats(-3, 3))
def test_rescaled_estimates_are_finite_whatever_their_contrast(x, w, share, contrast, level):
    x = np.float32(level + contrast * x)
    plain = guidance.classifier_free(lambda x, t: jnp.sin(x), lambda x, t: x, w)(x, 0.5)
    got = guidance.rescale(lambda x, t: jnp.sin(x), lambda x, t: x, w, share)(x, 0.5)
    assert got.shape == x.shape and np.isfinite(got).all()
    # Every example keeps its direction; with a share of 0 it keeps all of it.
    none = guidance.rescale(lambda x, t: jnp.sin(x), lambda x, t: x, w, 0.0)(x, 0.5)
    np.testing.assert_allclose(none, plain, rtol=1e-6)


@examples
@given(st.sampled_from([2, 5]), scales, st.floats(0.01, 1), shares)
def test_one_batched_evaluation_is_two(n, w, t, share):
    labels, null = np.arange(n) % 3, np.full(n, 3)
    model = lambda x, t, cond: jnp.tanh(x + cond[:, None])  # noqa: E731
    x, p = np.float32(np.random.default_rng(n).normal(size=(n, 2))), process.vp_cosine()
    once = guidance.classifier_free_batched(model, p, "x0", labels, null, w, share)(x, t)
    each = [lambda x, t, cond=cond: model(x, t, cond) for cond in (labels, null)]
    np.testing.assert_allclose(once, guidance.rescale(*each, w, share)(x, t), rtol=1e-4, atol=1e-4)


@examples
@given(states(), st.sampled_from([*ALL]), st.floats(0, 1, exclude_min=True), scales)
def test_a_classifier_s_guidance_is_finite_at_every_level(x, of, t, scale):
    def log_prob(x, t):  # of a class whose states have larger sums, when there is any signal
        total = x.reshape(len(x), -1).sum(1)
        return jax.nn.log_sigmoid(ALL[of].alpha(t) * total / (1 + ALL[of].sigma(t) ** 2))

    x = np.float32(x)
    got = guidance.classifier(lambda x, t: x, ALL[of], log_prob, scale)(x, np.float32(t))
    assert got.shape == x.shape and np.isfinite(got).all()


@examples
@given(states(), st.data())
def test_known_pixels_are_known_and_the_others_are_the_denoiser_s(x, data):
    known = np.float32(data.draw(arrays(x.shape)))
    shape = data.draw(st.sampled_from([(), x.shape[-1:], x.shape]))
    bits = data.draw(arrays(shape)) > 0
    dtype = data.draw(st.sampled_from([bool, np.int32, np.float32]))
    D = guidance.inpaint(lambda x, t: jnp.tanh(x), known, np.asarray(bits).astype(dtype))
    got = D(np.float32(x), 0.3)
    np.testing.assert_array_equal(got, np.where(bits, known, jnp.tanh(np.float32(x))))


@examples
@given(st.sampled_from([(1, 1, 1, 2), (3, 2, 3, 2), (3, 4, 1, 2)]), st.integers(0, 99))
def test_matched_estimates_average_to_the_coarse_picture(shape, seed):
    r = np.random.default_rng(seed)
    x, coarse = (np.float32(r.normal(size=s)) for s in ((3, 4, 6, 2), shape))
    got = np.asarray(guidance.match_coarse(lambda x, t: jnp.tanh(x), coarse)(x, 0.5))
    _, h, w, _ = shape
    means = got.reshape(3, h, 4 // h, w, 6 // w, 2).mean((2, 4))
    np.testing.assert_allclose(means, np.broadcast_to(coarse, means.shape), atol=1e-5)


# ---------------------------------------------------------------------------------------- editing


@examples
@given(states(), st.floats(-1, 2), st.sampled_from([-1.0, 0.0, 1.0, 1e-4, None]))
def test_slerp_is_finite_and_the_same_from_both_ends(a, share, multiple):
    other = np.random.default_rng(1).normal(size=a.shape)
    b = other if multiple is None else a * multiple
    there, back = editing.slerp(a, b, share), editing.slerp(b, a, 1 - share)
    assert there.shape == a.shape and there.dtype == np.float32
    assert np.isfinite(there).all()
    # Near an angle of π the arc is a few float32 away from having no direction.
    np.testing.assert_allclose(there, back, rtol=1e-3, atol=1e-3 * np.abs(a).max())


@examples
@given(states(), st.sampled_from([*ALL]), grids(3), st.integers(0, 2))
def test_inversion_is_finite_keeps_its_shape_and_asks_once_a_refinement(x, of, times, refinements):
    asked = []

    def D(x, t):
        asked.append(float(t))
        return jnp.tanh(x)

    with jax.disable_jit():
        noise, path = editing.invert(ALL[of], D, x, times, refinements)
    assert noise.shape == x.shape and path.shape == (len(times) - 1, *x.shape)
    assert noise.dtype == np.float32 and np.isfinite(path).all()
    want = np.repeat(np.float32(times[:-1][::-1]), refinements + 1)
    np.testing.assert_array_equal(np.float32(asked), want)


@examples
@given(states(), st.sampled_from([*ALL]), st.sampled_from([0, 0.3, 1.0]), st.integers(1, 3))
def test_edits_are_finite_and_keep_their_shape(x, of, strength, steps):
    p = ALL[of]
    with jax.disable_jit():
        got = editing.sdedit(samplers.ddpm(p), lambda x, t: jnp.tanh(x), p, x, strength, steps, KEY)
    assert got.shape == x.shape and got.dtype == np.float32 and np.isfinite(got).all()
    if strength == 0:
        np.testing.assert_array_equal(got, np.float32(x))


# ------------------------------------------------------------------- wrong inputs, refused by name

p = process.vp_linear()
ddim = samplers.ddim(p)
X = np.zeros((2, 4, 4, 1), np.float32)
NOT_A_COUNT = st.one_of(st.integers(-9, 0), st.floats(), st.booleans(), st.none(), st.text())
OUTSIDE_THE_UNIT = st.one_of(
    st.floats(max_value=-1e-6), st.floats(min_value=1 + 1e-6), st.just(np.nan)
)
NEGATIVE = st.one_of(st.floats(max_value=-1e-6), st.sampled_from([np.nan, np.inf]))
REFUSALS = {
    "uniform n": (NOT_A_COUNT, lambda v: sampling.uniform(v)),
    "quadratic n": (NOT_A_COUNT, lambda v: sampling.quadratic(v)),
    "karras n": (NOT_A_COUNT, lambda v: sampling.karras(p, v)),
    "log_snr_uniform n": (NOT_A_COUNT, lambda v: sampling.log_snr_uniform(p, v)),
    "generator n": (
        NOT_A_COUNT,
        lambda v: sampling.generator(p, "v", ddim, [1, 0], (2,))(None, KEY, v),
    ),
    "karras rho": (st.one_of(NEGATIVE, st.just(0)), lambda v: sampling.karras(p, 3, rho=v)),
    "ddim eta": (OUTSIDE_THE_UNIT, lambda v: samplers.ddim(p, v)),
    "ddim temperature": (NEGATIVE, lambda v: samplers.ddim(p, temperature=v)),
    "ddpm temperature": (NEGATIVE, lambda v: samplers.ddpm(p, temperature=v)),
    "ddpm variance": (
        st.one_of(st.text(), st.none(), st.floats()),
        lambda v: samplers.ddpm(p, variance=v),
    ),
    "dpm_solver order": (
        st.one_of(NOT_A_COUNT, st.integers(4)),
        lambda v: samplers.dpm_solver(p, v),
    ),
    "repaint repeats": (NOT_A_COUNT, lambda v: samplers.repaint(ddim, p, v)),
    "start_noise t": (OUTSIDE_THE_UNIT, lambda v: sampling.start_noise(p, KEY, (2,), v)),
    "rescale share": (OUTSIDE_THE_UNIT, lambda v: guidance.rescale(None, None, 2.0, v)),
    "sdedit strength": (OUTSIDE_THE_UNIT, lambda v: editing.sdedit(ddim, None, p, X, v, 2, KEY)),
    "sdedit steps": (NOT_A_COUNT, lambda v: editing.sdedit(ddim, None, p, X, 0.5, v, KEY)),
    "refine strength": (
        OUTSIDE_THE_UNIT,
        lambda v: editing.refine(ddim, None, p, X, (4, 4), v, 2, KEY),
    ),
    "invert refinements": (
        st.one_of(st.integers(-9, -1), st.floats(), st.none()),
        lambda v: editing.invert(p, None, X, [1.0, 0.0], v),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_wrong_inputs_are_refused_by_name(case):
    values, call = REFUSALS[case]
    name = case.split()[1]

    @examples
    @given(values)
    def refused(value):
        if name == "variance" and value in ("posterior", "transition"):
            return
        with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
            call(value)

    refused()


@examples
@given(st.floats(-1, 2), st.floats(-1, 2))
def test_an_interval_lies_within_the_unit_interval_and_is_not_empty(low, high):
    if 0 <= low < high <= 1:
        guidance.limited(2.0, low, high)
        return
    with pytest.raises(ValueError, match="low and high must satisfy 0 <= low < high <= 1, got"):
        guidance.limited(2.0, low, high)
