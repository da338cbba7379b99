from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from oracles import GAUSSIAN, PROCESSES, examples, within_standard_errors
from runs import one_of_all

from diffusion_course import denoiser, guidance, process, samplers, sampling
from diffusion_course.models.mlp import MLP

rng = np.random.default_rng(26)
BLOB = denoiser.gaussian_mixture(process.vp_cosine(), [[0.7, -0.2]], [0.5], [1.0])


def grids(n):
    yield sampling.uniform(n)
    yield sampling.quadratic(n)
    yield sampling.karras(process.edm(), n)
    yield sampling.karras(process.vp_linear(), n)
    yield sampling.karras(process.vp_cosine(), n, sigma_max=80.0)
    yield sampling.log_snr_uniform(process.vp_linear(), n)
    yield sampling.log_snr_uniform(process.rectified_flow(), n, t_max=0.999)
    yield sampling.log_snr_uniform(PROCESSES["linear chain"].process, n)


# ------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize("n", [1, 2, 250])
def test_every_grid_falls_strictly_from_one_to_zero_in_n_steps(n):
    for times in grids(n):
        assert times.shape == (n + 1,) and times.dtype == np.float32
        assert times[0] == 1 and times[-1] == 0
        assert (np.diff(times) < 0).all()


def test_a_uniform_grid_of_T_steps_is_the_chain_and_a_strided_one_starts_at_one():
    np.testing.assert_allclose(sampling.uniform(1000), 1 - np.arange(1001) / 1000, atol=1e-7)
    np.testing.assert_allclose(sampling.uniform(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(sampling.quadratic(4), [1, 9 / 16, 1 / 4, 1 / 16, 0])


def test_karras_is_the_papers_grid():
    # Equation 5 with the defaults of table 1 and 18 steps.
    want = [80.0, 57.586, 40.786, 28.375, 19.352, 12.910, 8.4009, 5.3152, 3.2568]
    want += [1.9233, 1.0882, 0.58535, 0.29644, 0.13952, 0.059947, 0.022934, 0.0075280, 0.002]
    i = np.arange(18)
    formula = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(formula, want, rtol=2e-4)
    for p in (process.edm(), process.vp_cosine(), process.vp_linear()):
        times = sampling.karras(p, 18, sigma_max=80.0)
        ratio = np.asarray(p.sigma(times) / p.alpha(times))
        # The first time is 1 whatever sigma_max; t is rounded by EPS32, sigma ~ t⁷.
        np.testing.assert_allclose(ratio[1:-1], want[1:], rtol=2e-4)
        assert ratio[-1] == 0


@pytest.mark.parametrize("rho", [1.0, 3.0, 12.0])
def test_karras_has_equal_steps_in_the_rho_th_root(rho):
    p = process.variance_exploding(0.02, 31.0)
    sigma = np.asarray(p.sigma(sampling.karras(p, 12, rho, sigma_min=0.05)))[:-1]
    np.testing.assert_allclose(sigma[[0, -1]], [31.0, 0.05], rtol=1e-4)
    np.testing.assert_allclose(np.diff(sigma ** (1 / rho), 2), 0, atol=1e-4 * sigma[0] ** (1 / rho))


@pytest.mark.parametrize("name", ["linear chain", "sub_vp", "rectified_flow", "edm"])
def test_log_snr_uniform_has_equal_steps_of_log_snr(name):
    o = PROCESSES[name]
    t_min, t_max = 0.02, 0.97
    times = sampling.log_snr_uniform(o.process, 15, t_min, t_max).astype(np.float64)
    log_snr = 2 * np.log(o.alpha(times[1:-1]) / o.sigma(times[1:-1]))
    ends = [2 * np.log(o.alpha(t) / o.sigma(t)) for t in (t_max, t_min)]
    # The first time is moved to 1; the others are float32 places of float32 values.
    np.testing.assert_allclose(log_snr, np.linspace(*ends, 15)[1:], atol=2e-3)
    assert times[0] == 1 and times[-2] == pytest.approx(t_min, rel=1e-4)


# ----------------------------------------------------------------------------------------- sample


@pytest.mark.parametrize("grid", [sampling.karras, sampling.log_snr_uniform])
def test_a_grid_asked_for_while_a_function_is_traced_is_made_of_numbers(grid):
    p, seen = process.edm(), []

    @jax.jit
    def traced(x):
        seen.append(grid(p, 5))
        return x * seen[0][1]

    traced(1.0)
    assert isinstance(seen[0], np.ndarray)
    np.testing.assert_array_equal(seen[0], grid(p, 5))


@pytest.mark.parametrize(("make", "n"), [(samplers.ddpm, 37), (samplers.ddim, 1)])
def test_the_denoiser_is_evaluated_once_per_step_at_the_step_s_own_time(make, n):
    p, called, traced = process.vp_cosine(), [], []

    def D(x, t):
        traced.append(t)
        jax.debug.callback(lambda t: called.append(float(t)), t, ordered=True)
        return 0.5 * x

    times = sampling.uniform(n)
    sampling.sample(make(p), D, jnp.ones((2, 3)), times, jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.float32(called), times[:-1])
    # One loop: the program holds the denoiser once (tracing may look at it a second time).
    assert len(traced) <= 2


WHERE = ("linear chain", "vp_cosine", "sub_vp", "edm", "rectified_flow")


@pytest.mark.parametrize("make", [samplers.ddpm, samplers.ddim], ids=["ddpm", "ddim"])
def test_a_run_is_the_plain_loop_and_its_path_holds_every_state(make):
    key, times = jax.random.key(8), sampling.uniform(6)
    x_start = rng.normal(size=(5, 2)).astype(np.float32)

    def parts(index):
        p = one_of_all(index, WHERE)
        return p, make(p), denoiser.GaussianMixture(p, *BLOB[1:]).denoise

    @jax.jit
    def run(index):
        p, sampler, D = parts(index)
        return sampling.sample(sampler, D, p.sigma(1.0) * x_start, times, key)

    @jax.jit
    def step(index, i, x, t, s):
        _, sampler, D = parts(index)
        return sampler.step(D, x, t, s, jax.random.fold_in(key, i), ())[0], D(x, t)

    for index, name in enumerate(WHERE):
        got, path = run(index)
        assert path.shape == (6, 5, 2)
        np.testing.assert_array_equal(path[-1], got)
        # Nothing divides by zero, and the loop ends with what the denoiser says.
        assert np.isfinite(path).all()
        x = float(PROCESSES[name].sigma(1.0)) * x_start
        for i in range(6):
            x, said = step(index, i, x, *times[i : i + 2])
            # A fused program rounds differently.
            scale = np.abs(path[i]).max()
            np.testing.assert_allclose(path[i], x, atol=2e-4 * scale)
        np.testing.assert_allclose(x, said, rtol=1e-5, atol=1e-6)


def test_the_state_of_a_sampler_is_carried_from_step_to_step():
    def step(D, x, t, s, key, state):
        return x + state + (t - s), state + 1

    counting = samplers.Sampler(lambda x: jnp.zeros(()), step)
    x, path = sampling.sample(
        counting, lambda x, t: x, jnp.zeros((1, 1)), [0.9, 0.5, 0.2], jax.random.key(0)
    )
    np.testing.assert_allclose(path[:, 0, 0], [0.4, 1.7], rtol=1e-6)
    assert x.shape == (1, 1)


def test_sampling_works_under_jit_vmap_and_grad():
    o = PROCESSES["vp_linear"]
    p = o.process
    times = sampling.uniform(12)

    def run(x, mean, key, times):
        def D(x, t):  # the exact denoiser of N(mean, 0.5²)
            alpha, sigma = p.alpha(t), p.sigma(t)
            gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
            return mean + gain * (x - alpha * mean)

        return sampling.sample(samplers.ddim(p, 0.5), D, x, times, key)[0]

    x = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    key, compiled = jax.random.key(5), jax.jit(run)
    want = compiled(x, 0.7, key, times)
    np.testing.assert_allclose(run(x, 0.7, key, times), want, atol=1e-5)
    keys = jax.random.split(key, 4)
    mapped = jax.jit(jax.vmap(lambda key: run(x, 0.7, key, times)))(keys)
    np.testing.assert_allclose(mapped[2], compiled(x, 0.7, keys[2], times), atol=1e-5)
    assert np.abs(mapped[1] - mapped[2]).min() > 1e-6
    # Everything is linear in the mean: the gradient is the difference of two runs.
    slopes = jax.jit(jax.grad(lambda x, mean: run(x, mean, key, times).sum(), argnums=(0, 1)))
    of_x, of_mean = slopes(x, 0.7)
    difference = (compiled(x, 1.7, key, times) - want).sum()
    assert float(of_mean) == pytest.approx(float(difference), rel=1e-3)
    assert np.isfinite(of_x).all()


@pytest.mark.parametrize("name", ["vp_linear", "edm", "vp_cosine"])
@pytest.mark.parametrize("t", [1.0, 0.6])
def test_a_start_has_the_process_s_own_noise_level(name, t):
    o = PROCESSES[name]
    x = sampling.start_noise(o.process, jax.random.key(2), (100_000, 1), t)
    assert x.dtype == jnp.float32
    within_standard_errors(x, 0, float(o.sigma(t)))


# -------------------------------------------------------------------------------------- generator


class Labelled(nnx.Module):
    """A labelled MLP whose outputs are not zero."""

    def __init__(self, width=16, seed=0):
        self.net = MLP(width=width, depth=2, num_classes=3, rngs=nnx.Rngs(seed))
        self.null_label = self.net.null_label
        kernel = self.net.last.kernel
        kernel[...] = 0.1 * jax.random.normal(jax.random.key(seed), kernel[...].shape)

    def __call__(self, x, t, cond):
        return self.net(x, t, cond)


def traced(sampler):
    """The sampler, and a list that grows by one whenever its step is traced."""
    traces = []

    def step(*arguments):
        traces.append(1)
        return sampler.step(*arguments)

    return samplers.Sampler(sampler.init, step), traces


def make():
    """A generator of its own, and what grows when it is traced; `generate` is everybody's."""
    p = process.vp_cosine()
    sampler, traces = traced(samplers.ddim(p, 0.5))
    return sampling.generator(p, "v", sampler, sampling.uniform(5), (2,)), traces


generate, _ = make()
MODEL = Labelled()
LABELS, KEY = np.array([0, 2, 1]), jax.random.key(3)


def test_a_generator_is_the_sampler_run_from_noise():
    p = process.vp_cosine()

    @jax.jit
    def expected(model, labels, w):
        start, steps = jax.random.split(KEY)
        x = sampling.start_noise(p, start, (3, 2))
        each = (denoiser.denoiser(model, p, "v", cond) for cond in (labels, jnp.full(3, 3)))
        D = guidance.classifier_free(*each, w)
        return sampling.sample(samplers.ddim(p, 0.5), D, x, sampling.uniform(5), steps)[0]

    want = {w: expected(MODEL, LABELS, w) for w in (0.0, 1.0, 2.5)}
    assert np.abs(want[0.0] - want[1.0]).max() > 1e-3
    np.testing.assert_allclose(generate(MODEL, KEY, 3, LABELS), want[1.0], atol=1e-5)
    np.testing.assert_allclose(generate(MODEL, KEY, 3), want[0.0], atol=1e-5)
    np.testing.assert_allclose(generate(MODEL, KEY, 3, np.full(3, 3)), want[0.0], atol=1e-5)
    for w in (0.0, np.float32(1.0), 2.5):  # a NumPy number goes the guided way
        np.testing.assert_allclose(generate(MODEL, KEY, 3, LABELS, w), want[float(w)], atol=1e-5)
    each = generate(MODEL, KEY, 3, LABELS, np.array([0.0, 1.0, 2.5]))
    for i, w in enumerate(want):
        np.testing.assert_allclose(each[i], want[w][i], atol=1e-5)


def test_models_of_one_shape_and_all_scales_share_one_program():
    generate, traces = make()
    labels, key = LABELS, KEY
    models = [MODEL, *(Labelled(seed=seed) for seed in (1, 2))]
    outputs = [generate(model, key, 3, labels) for model in models]
    assert len(traces) == 1
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3  # the weights are not those of the first
    for w in (2.0, 3.5, 4, np.float64(2.5), np.float32(2.5), jnp.float32(7.0)):
        generate(MODEL, key, 3, labels, w)
    assert len(traces) == 2
    generate(models[2], key, 3, np.array([1, 1, 1]), 2.0)
    assert len(traces) == 2


def test_weights_are_no_constants_of_the_compiled_program():
    texts = []
    for width in (16, 128):
        program = jax.jit(lambda model, key: generate(model, key, 4))
        texts.append(program.lower(Labelled(width), jax.random.key(0)).as_text())
    # 49 times as many weights; the text grows by the digits of the shapes.
    assert len(texts[1]) < 1.05 * len(texts[0])
    assert max(len(line) for line in texts[1].splitlines()) < 2000


def test_a_generator_draws_the_data_with_the_exact_model():
    o, n = PROCESSES["vp_cosine"], 20_000
    p = o.process
    gm = denoiser.gaussian_mixture(p, GAUSSIAN[0][:, None], *GAUSSIAN[1:])

    def model(x, t, cond):  # the exact v = (alpha·x − x0)/sigma
        x0 = gm.denoise(x, t)
        return (p.alpha(t)[:, None] * x - x0) / p.sigma(t)[:, None]

    model = jax.tree_util.Partial(model)
    generate = sampling.generator(p, "v", samplers.ddim(p), sampling.uniform(200), (1,))
    # DDIM with 200 steps is off by 0.002 in the std, less than one standard error.
    within_standard_errors(generate(model, jax.random.key(4), n), 0.7, 0.5)


# ---------------------------------------------------------------------------------- bad arguments


@examples
@given(st.one_of(st.integers(-50, 0), st.floats(0.5, 9), st.none(), st.text(max_size=2)))
def test_grids_without_a_step_are_refused(n):
    p = process.vp_linear()
    for grid in (
        sampling.uniform,
        sampling.quadratic,
        lambda n: sampling.karras(p, n),
        lambda n: sampling.log_snr_uniform(p, n),
    ):
        with pytest.raises(ValueError, match="n must be a whole number at least 1, got") as error:
            grid(n)
        assert str(error.value).endswith(f"got {n!r}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: sampling.karras(p, 9, rho=0), "rho must be positive and finite, got 0"),
        (
            lambda p: sampling.karras(p, 9, sigma_min=0),
            "0 < sigma_min < sigma_max < infinity, and .*; got",
        ),
        (lambda p: sampling.karras(p, 9, sigma_min=3, sigma_max=2), "got 3 and 2"),
        (lambda p: sampling.karras(process.rectified_flow(), 9), "got 0.002 and inf"),
        (lambda p: sampling.log_snr_uniform(p, 9, 0.0), "0 < t_min < t_max <= 1, got 0.0 and 1.0"),
        (lambda p: sampling.log_snr_uniform(p, 9, 0.3, 0.2), "t_max <= 1, got 0.3 and 0.2"),
        (lambda p: sampling.log_snr_uniform(p, 9, 0.3, 1.2), "t_max <= 1, got 0.3 and 1.2"),
        (
            lambda p: sampling.log_snr_uniform(process.vp_cosine(), 9),
            "t_max must have a finite log-SNR, got t_max = 1.0 where it is -inf.*t_max = 0.999",
        ),
    ],
)
def test_bad_grids_are_named_with_their_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call(process.vp_linear())


@examples
@given(st.lists(st.floats(-0.5, 1.5, width=32), max_size=6))
def test_times_that_do_not_fall_within_the_unit_interval_are_refused(times):
    falls = all(t > s for t, s in pairwise(times))
    legal = len(times) >= 2 and falls and times[0] <= 1 and times[-1] >= 0
    stay = samplers.Sampler(lambda x: (), lambda D, x, t, s, key, state: (x, state))
    x, D = np.ones((1, 1)), lambda x, t: x
    call = lambda: sampling.sample(stay, D, x, times, jax.random.key(0))  # noqa: E731
    if legal:
        call()
        return
    with pytest.raises(ValueError, match="times must"):
        call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_times_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=r"times must fall strictly within \[1, 0\], got"):
        sampling.sample(
            samplers.ddim(process.vp_linear()),
            None,
            jnp.ones((1, 1)),
            [bad, 0.0],
            jax.random.key(0),
        )


@pytest.mark.parametrize("kind", ["eps", "score"])
@pytest.mark.parametrize("name", ["vp_cosine", "rectified_flow", "zero-SNR chain"])
def test_kinds_that_cannot_see_x0_in_pure_noise_are_refused(kind, name):
    p = PROCESSES[name].process
    rule = f"kind must recover x0 at t = 1.0, where alpha is 0; got '{kind}'"
    with pytest.raises(ValueError, match=rule):
        sampling.generator(p, kind, samplers.ddim(p), sampling.uniform(4), (2,))
    # A grid that starts where some signal is left is fine.
    sampling.generator(p, kind, samplers.ddim(p), [0.99, 0.5, 0.0], (2,))


def test_a_generator_refuses_an_unknown_kind_and_a_bad_grid():
    p = process.vp_linear()
    with pytest.raises(ValueError, match="kind must be one of"):
        sampling.generator(p, "noise", samplers.ddim(p), sampling.uniform(4), (2,))
    with pytest.raises(ValueError, match="times must fall strictly"):
        sampling.generator(p, "v", samplers.ddim(p), [0.0, 1.0], (2,))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"whole numbers of shape \[3\], got int.* of shape \[2\]"),
        (1, r"whole numbers of shape \[3\], got int.* of shape \[\]"),
        # A row may be a caption of three words: three of them are wanted.
        ([[0, 1, 2]], r"whole numbers of shape \[3, 3\], got int.* of shape \[1, 3\]"),
        ([[0], [1], [2]], r"whole numbers of shape \[3\], got int.* of shape \[3, 1\]"),
        ([0.0, 1.0, 2.0], r"whole numbers of shape \[3\], got float.* of shape \[3\]"),
        ([0, 1, 4], r"in 0 … 3, got 0 … 4"),
        ([0, -1, 2], r"in 0 … 3, got -1 … 2"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match="labels must be " + message):
        generate(MODEL, KEY, 3, labels)


@pytest.mark.parametrize("w", [0.0, 2, 3.5])
def test_a_scale_without_labels_is_refused(w):
    with pytest.raises(ValueError, match=f"w must be 1 where no labels are given, got {w}"):
        generate(MODEL, KEY, 3, w=w)


def test_generation_may_be_part_of_a_larger_program():
    whole = jax.jit(lambda model, labels, w: generate(model, KEY, 3, labels, w))
    want = generate(MODEL, KEY, 3, LABELS, 2.0)
    np.testing.assert_allclose(whole(MODEL, LABELS, 2.0), want, atol=1e-5)


def test_labels_for_a_model_without_classes_are_refused():
    model = MLP(width=16, depth=1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="labels must be None"):
        generate(model, jax.random.key(0), 2, [0, 1])


@pytest.mark.parametrize("one", [np.float32(1), np.int64(1), jnp.float32(1)])
def test_a_scale_of_one_may_be_of_any_type(one):
    p = process.rectified_flow()
    run = sampling.generator(p, "flow", samplers.ddim(p), sampling.uniform(2), (3,))
    model = MLP(3, width=8, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(
        run(model, jax.random.key(0), 2, w=one), run(model, jax.random.key(0), 2)
    )
