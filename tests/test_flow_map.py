"""The flow map: on Gaussian data it is known, and all three of its equations hold to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course import denoiser, flow, flow_map, parameterization, process, samplers, sampling
from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet

PROCESSES = {
    "flow": (process.rectified_flow(), "flow"),
    "cosine": (process.vp_cosine(), "v"),
    "ve": (process.variance_exploding(0.02, 6.0), "x0"),
}
MEAN, STD = np.array([0.7, -0.4, 0.2], np.float32), np.array([0.5, 1.3, 0.8], np.float32)


def exact_jump(p, mean=MEAN, std=STD):
    """N(mean, std²) per coordinate: a state keeps its place in units of the standard deviation."""

    def D(x, t):
        alpha, sigma = (jnp.reshape(f, (-1, 1)) for f in process.levels(p, t, x))
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)

    def G(x, t, s):
        (a_t, s_t), (a_s, s_s) = (process.levels(p, u, x) for u in (t, s))
        moved = jnp.hypot(a_s * std, s_s) / jnp.hypot(a_t * std, s_t)
        x_s = a_s * mean + (x - a_t * mean) * moved
        apart = jnp.reshape(t > s, (-1, 1))  # where t = s the jump is the denoiser
        shrink = s_s / s_t
        whole = (x_s - shrink * x) / jnp.where(apart, a_s - a_t * shrink, 1)
        return jnp.where(apart, whole, D(x, t))

    return D, G


def wrong(G):
    """The same jump with a slip that grows with its length."""
    return lambda x, t, s: G(x, t, s) + 0.1 * jnp.reshape(t - s, (-1, 1)) * (1 + x)


def drawn(seed, n=64):
    rng = np.random.default_rng(seed)
    x0 = (MEAN + STD * rng.normal(size=(n, 3))).astype(np.float32)
    return x0, rng.normal(size=(n, 3)).astype(np.float32)


T, M, S = (np.linspace(a, b, 64, dtype=np.float32) for a, b in ((0.2, 0.99), (0.1, 0.6), (0, 0.5)))
KEY = jax.random.key(3)


# --- what holds by itself -------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
def test_landing_and_its_inverse(name):
    p, _ = PROCESSES[name]
    x, x0 = drawn(0)
    G = lambda x, t, s: x0  # noqa: E731 (any estimate)
    landed = flow_map.land(p, G, x, T, M)
    np.testing.assert_allclose(flow_map.estimate_of(p, x, landed, T, M), x0, atol=2e-3)
    for t in (T, np.zeros_like(T)):  # x itself, where nothing is left to do
        np.testing.assert_allclose(flow_map.land(p, G, x, t, t), x, atol=1e-6)


def test_a_denoiser_jumps_as_ddim_steps():
    p, _ = PROCESSES["cosine"]
    D, _ = exact_jump(p)
    x, _ = drawn(1)
    ddim, _ = samplers.ddim(p).step(D, x, 0.8, 0.3, KEY, ())
    np.testing.assert_allclose(
        flow_map.land(p, flow_map.of_denoiser(D), x, 0.8, 0.3), ddim, atol=1e-6
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_the_oracle_is_the_flow(name):
    """Heun along 200 short steps goes where the oracle of these tests jumps."""
    p, _ = PROCESSES[name]
    D, G = exact_jump(p)
    x, _ = drawn(2)
    x_s, _ = sampling.sample(samplers.heun(p), D, x, np.linspace(0.9, 0.2, 201), KEY)
    once, _ = sampling.sample(flow_map.jumps(p), G, x, np.array([0.9, 0.2], np.float32), KEY)
    np.testing.assert_allclose(once, x_s, rtol=1e-3, atol=1e-3)


# --- semigroup ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
def test_two_exact_jumps_are_one_and_two_wrong_ones_are_not(name):
    p, kind = PROCESSES[name]
    _, G = exact_jump(p)
    x0, eps = drawn(3)
    x = process.add_noise(p, x0, eps, T)
    landed = flow_map.land(p, G, flow_map.land(p, G, x, T, M), M, S)
    assert flow_map.landing_loss(p, kind, G, x, T, S, landed) < 1e-8
    assert flow_map.landing_loss(p, kind, wrong(G), x, T, S, landed) > 1e-4
    shortcut = flow_map.shortcut_loss
    # Its shortest halves are DDIM steps, which err by the square of their length, 2^-9.
    assert shortcut(G, G, p, kind, x0, KEY, lengths=8) < 1e-4
    assert shortcut(wrong(G), G, p, kind, x0, KEY, lengths=8) > 1e-3


def test_the_error_is_that_of_the_prediction():
    """An x0 that is off by d gives v − d/sigma in a process of constant variance."""
    p, _ = PROCESSES["cosine"]
    D, _ = exact_jump(p)
    x0, eps = drawn(4)
    x, shifted = process.add_noise(p, x0, eps, T), lambda x, t, s: D(x, t) + 0.25
    landed = flow_map.land(p, flow_map.of_denoiser(D), x, T, M)
    got = flow_map.landing_loss(p, "v", shifted, x, T, M, landed)
    np.testing.assert_allclose(got, np.mean((0.25 / p.sigma(T)) ** 2), rtol=1e-3)


def test_one_step_of_the_student_is_two_of_the_teacher():
    """A student fitted to one pair (t, s) for a linear teacher: the loss is 0 there, not before."""
    p, kind = PROCESSES["cosine"]
    D, _ = exact_jump(p)
    x0, _ = drawn(5)
    teacher = flow_map.of_denoiser(D)

    def student(x, t, s):
        middle = t - 0.5 / 5
        landed = flow_map.land(p, teacher, flow_map.land(p, teacher, x, t, middle), middle, s)
        return flow_map.estimate_of(p, x, landed, t, s)

    loss = lambda G: flow_map.progressive_loss(G, p, kind, x0, KEY, D, steps=5)  # noqa: E731
    assert loss(student) < 1e-9 < 1e-4 < loss(teacher)


def test_consistency_of_the_exact_jump_with_an_exact_teacher_is_of_second_order():
    """One DDIM step errs like the square of its length, and so does the exact jump's residual.

    In units of x0: those of v divide by sigma, and the step from the first time counts like h^1.5.
    """
    p, kind = PROCESSES["cosine"][0], "x0"
    D, G = exact_jump(p)
    x0, _ = drawn(6, 4096)
    loss = jax.jit(flow_map.consistency_loss, static_argnums=(0, 1, 2, 3),
                   static_argnames=("steps", "teacher"))  # fmt: skip
    errors = [float(loss(G, G, p, kind, x0, KEY, steps=n, teacher=D)) ** 0.5 for n in (16, 64)]
    assert 1.6 < np.log(errors[0] / errors[1]) / np.log(4) < 2.4
    assert float(loss(wrong(G), G, p, kind, x0, KEY, steps=32, teacher=D)) > 100 * errors[1] ** 2


def test_consistency_at_the_first_time_is_denoising():
    """From 1/steps the neighbour is the data itself: the only place where data come in."""
    p, _ = PROCESSES["flow"]
    x0, _ = drawn(7)
    perfect = lambda x, t, s: jnp.asarray(x0)  # noqa: E731
    got = flow_map.consistency_loss(perfect, wrong(perfect), p, "x0", x0, KEY, steps=1)
    assert got < 1e-12


def test_no_gradient_flows_through_a_target():
    p, kind = PROCESSES["flow"]
    D, _ = exact_jump(p)
    x0, eps = drawn(8)
    t, slope = jnp.asarray(T), jnp.asarray(eps - x0)

    def loss(student, reference):
        G, target = (lambda x, t, s, a=a: a * D(x, t) for a in (student, reference))
        return (
            flow_map.consistency_loss(G, target, p, kind, x0, KEY, steps=4)
            + flow_map.shortcut_loss(G, target, p, kind, x0, KEY, lengths=3)
            + flow_map.progressive_loss(G, p, kind, x0, KEY, lambda x, t: target(x, t, t), steps=4)
            + flow_map.tangent_loss(G, target, p, kind, x0, slope, t)
        )

    by_student, by_reference = jax.grad(loss, argnums=(0, 1))(0.9, 0.8)
    assert abs(by_student) > 1e-3 and by_reference == 0


@pytest.mark.parametrize("c", [0.03, 2.0])
def test_pseudo_huber_between_its_limits(c):
    errors = np.array([[0.0, 0.0], [3e-5, 4e-5], [300.0, -400.0], [0.1, 0.2]])
    length = np.sqrt((errors**2).sum(1))
    np.testing.assert_allclose(
        flow_map.pseudo_huber(c)(jnp.asarray(errors, jnp.float32)),
        length**2 / (np.sqrt(length**2 + c**2) + c), rtol=1e-5,
    )  # fmt: skip


# --- derivative -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROCESSES)
def test_along_the_flow_the_exact_jump_to_the_data_does_not_change(name):
    p, kind = PROCESSES[name]
    D, G = exact_jump(p)
    x0, eps = drawn(9)
    t = jnp.asarray(T)
    x = process.add_noise(p, x0, eps, t)
    slope = flow.velocity(p, D, x, t)
    size = jnp.abs(flow_map.along_path(lambda x, t, s: D(x, t), x, t, t, slope)[1]).max()
    assert jnp.abs(flow_map.along_path(G, x, t, 0 * t, slope)[1]).max() < 2e-5 * size
    # With c the derivative is not stretched to length 1: 0 stays 0.
    assert flow_map.tangent_loss(G, G, p, kind, x, slope, t) < 1e-6
    other = wrong(G)
    assert flow_map.tangent_loss(other, other, p, kind, x, slope, t) > 1e-2


def test_the_tangent_of_trigflow():
    """In the angle, F's target is F + cos·df/dθ, normalised: TrigFlow's form, written out."""
    p = process.vp_cosine(0.0)  # alpha = cos(πt/2)
    G = wrong(exact_jump(p)[1])
    x0, eps = drawn(10)
    t = jnp.asarray(T)
    x = process.add_noise(p, x0, eps, t)
    slope = parameterization.target("flow", p, x0, eps, t)
    theta = t[:, None] * np.pi / 2
    _, change = flow_map.along_path(G, x, t, 0 * t, slope)
    g = jnp.cos(theta) * change / (np.pi / 2)
    g = g / (jnp.linalg.norm(g, axis=1, keepdims=True) + 0.1)
    got = flow_map.tangent_loss(G, G, p, "v", x, slope, t)
    np.testing.assert_allclose(got, (g**2).mean(), rtol=1e-4)
    np.testing.assert_allclose(flow_map.angle(p, t), np.arccos(p.alpha(t)), atol=1e-3)


def mean_velocity_model(G, p):
    """The exact mean velocity as a network: u = (x − G)/t, its derivative by t included."""

    def model(x, t, cond, extras):
        return (x - G(x, t, t - extras[:, 0])) / jnp.reshape(t, (-1, 1))

    return model


def pairs(key, n):
    return jnp.asarray(T[:n]), jnp.asarray(M[:n] * 0.9)


def test_the_mean_velocity_solves_its_equation_with_the_flows_own_tangent():
    p, _ = PROCESSES["flow"]
    D, G = exact_jump(p)
    x0, eps = drawn(11)
    t, s = pairs(None, 64)
    x = process.add_noise(p, x0, eps, t)
    v = flow.velocity(p, D, x, t)
    u = lambda x, t, s: (x - G(x, t, s)) / jnp.reshape(t, (-1, 1))  # noqa: E731
    told, slope = flow_map.along_path(u, x, t, s, v)
    np.testing.assert_allclose(told, v - (t - s)[:, None] * slope, atol=3e-4)
    # The tangent (v, 0) of somebody who forgot the time does not solve it.
    forgot = jax.jvp(lambda x: u(x, t, s), (x,), (v,))[1]
    assert jnp.abs(told - (v - (t - s)[:, None] * forgot)).max() > 0.05


def test_mean_flow_is_flow_matching_where_both_times_are_one():
    p, _ = PROCESSES["flow"]
    _, G = exact_jump(p)
    x0, _ = drawn(12)
    same = lambda key, n: (jnp.asarray(T), jnp.asarray(T))  # noqa: E731
    model = mean_velocity_model(G, p)
    got = flow_map.mean_velocity_loss(model, x0, None, KEY, times=same, power=0.0)
    eps = jax.random.normal(jax.random.split(KEY)[1], x0.shape)
    x = process.add_noise(p, x0, eps, T)
    error = flow.velocity(p, exact_jump(p)[0], x, T) - (eps - x0)
    np.testing.assert_allclose(got, (error**2).sum(1).mean(), rtol=1e-3)
    normed = flow_map.mean_velocity_loss(model, x0, None, KEY, times=same)
    np.testing.assert_allclose(normed, 1, atol=0.01)


def test_the_exact_mean_velocity_is_a_stationary_point_of_its_loss():
    """The example's own tangent differs from the flow's: on average the gradient is 0."""
    p, _ = PROCESSES["flow"]
    _, G = exact_jump(p)
    n = 100_000
    x0, _ = drawn(13, n)
    model = mean_velocity_model(G, p)
    times = lambda key, n: (jnp.full(n, 0.8), jnp.full(n, 0.3))  # noqa: E731

    @jax.jit
    def gradient(offset):
        def loss(offset):  # the offsets of a model that is exact for (0, 0, 0)
            off = lambda x, t, cond, extras: model(x, t, cond, extras) + offset  # noqa: E731
            return flow_map.mean_velocity_loss(off, x0, None, KEY, times=times, power=0.0)

        return jax.grad(loss)(offset)

    assert jnp.abs(gradient(jnp.zeros(3))).max() < 4 * 2 * 2.5 / np.sqrt(n)
    assert jnp.abs(gradient(jnp.full(3, 0.1))).max() > 0.1


def test_guided_mean_flow_learns_the_guided_velocity():
    """With a label model that tells two constants, the target is w·v + (1 − w)·u(no label)."""
    model = lambda x, t, cond, extras: jnp.full_like(x, 0.3 if cond is None else 0.0)  # noqa: E731
    x0, _ = drawn(14)
    same = lambda key, n: (jnp.asarray(T), jnp.asarray(T))  # noqa: E731
    labels = jnp.zeros(64, jnp.int32)
    got = flow_map.mean_velocity_loss(model, x0, labels, KEY, times=same, guidance=2.5, power=0.0)
    v = jax.random.normal(jax.random.split(KEY)[1], x0.shape) - x0
    np.testing.assert_allclose(got, ((2.5 * v - 1.5 * 0.3) ** 2).sum(1).mean(), rtol=1e-5)


def test_times_of_mean_flow():
    t, s = flow_map.mean_flow_times(-0.4, 0.9, equal=0.25)(KEY, 20_000)
    t, s = np.asarray(t, np.float64), np.asarray(s, np.float64)
    assert (s <= t).all() and s.min() > 0 and t.max() < 1
    assert abs((s == t).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)
    logits = np.log(np.stack([t, s])[:, s < t]) - np.log1p(-np.stack([t, s])[:, s < t])
    assert abs(logits.mean() + 0.4) < 4 * 0.9 / np.sqrt(logits.size)
    assert abs(logits.std() / 0.9 - 1) < 4 / np.sqrt(logits.size)  # pairs are not independent


# --- distribution ---------------------------------------------------------------------------
def test_the_gradient_of_distribution_matching_is_the_scores_difference():
    """On two mixtures: sigma²/alpha·(score of the fakes − score of the data), by its own size."""
    p, _ = PROCESSES["cosine"]
    real = denoiser.gaussian_mixture(p, [[-1.0, 0.4, 0.0], [1.2, 0.1, 0.5]], [0.4, 0.6], [0.3, 0.7])
    fake = denoiser.gaussian_mixture(p, [[0.2, -0.6, 0.3]], [0.9], [1.0])
    x, eps = drawn(15)
    gradient = jax.grad(
        lambda x: flow_map.distribution_loss(p, x, eps, T, real.denoise, fake.denoise)
    )(jnp.asarray(x))
    x_t = process.add_noise(p, x, eps, T)
    alpha, sigma = (np.asarray(f(T))[:, None] for f in (p.alpha, p.sigma))
    pull = sigma**2 / alpha * (fake.score(x_t, T) - real.score(x_t, T))
    size = np.abs(x - real.denoise(x_t, T)).mean(1, keepdims=True)
    np.testing.assert_allclose(gradient, pull / size / 64, rtol=2e-3, atol=1e-5)


# --- sampling -------------------------------------------------------------------------------
def test_consistency_sampling_keeps_the_data_with_the_exact_jump():
    """Each step noises exact samples anew; they stay exact, whatever the times."""
    p, _ = PROCESSES["cosine"]
    _, G = exact_jump(p)
    times = np.array([1.0, 0.7, 0.35, 0.0], np.float32)
    n = 40_000
    noise = jax.random.normal(KEY, (n, 3))
    x0, path = sampling.sample(flow_map.consistency(p), flow_map.to_data(G), noise, times, KEY)
    assert np.abs((x0.mean(0) - MEAN) / STD).max() < 4 / np.sqrt(n)
    assert np.abs(x0.std(0) / STD - 1).max() < 4 / np.sqrt(2 * n)
    # And its last time is 0: stopping before leaves noise.
    assert (path[1].std(0) > STD).any()


# --- networks -------------------------------------------------------------------------------
def awake(model):
    graph, params = nnx.split(model)
    rng = np.random.default_rng(0)
    noised = lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(noised, params))


NETWORKS = {
    "MLP": (lambda **more: MLP(3, width=8, depth=1, num_classes=2, rngs=nnx.Rngs(0), **more), (3,)),
    "UNet": (lambda **more: UNet(1, (32,), num_classes=2, rngs=nnx.Rngs(0), **more), (4, 6, 1)),
    "DiT": (
        lambda **more: DiT((4, 6), 1, width=32, depth=1, num_classes=2, rngs=nnx.Rngs(0), **more),
        (4, 6, 1),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_told_further_numbers(name):
    make, shape = NETWORKS[name]
    model = awake(make(extras=2, time_scale=20.0))
    x, t, cond = np.ones((3, *shape), np.float32), np.full(3, 0.5, np.float32), np.array([0, 1, 2])
    call = jax.jit(lambda model, extras: model(x, t, cond, extras))
    none = model(x, t, cond)
    zeros = call(model, jnp.zeros((3, 2)))
    np.testing.assert_allclose(none, zeros, atol=1e-5)
    for k in (0, 1):  # each number counts, and each in its own way
        told = call(model, jnp.zeros((3, 2)).at[:, k].set(0.3))
        assert jnp.abs(told - zeros).max() > 1e-3
    with pytest.raises(
        ValueError, match=r"extras must have shape \[B, K\] = \[3, 2\], got \[3, 1\]"
    ):
        model(x, t, cond, jnp.zeros((3, 1)))
    plain, told = (jax.eval_shape(lambda e=e: nnx.state(make(extras=e))) for e in (0, 1))
    assert len(jax.tree.leaves(told)) == len(jax.tree.leaves(plain)) + 4  # two dense layers


def test_a_small_time_scale_keeps_the_derivative_small():
    x, t = jnp.ones((2, 3)), jnp.array([0.3, 0.6])
    slope = lambda model: jnp.abs(  # noqa: E731
        jax.jvp(lambda t: model(x, t), (t,), (jnp.ones(2),))[1]
    ).max()
    smooth, rough = (awake(MLP(3, width=32, depth=1, time_scale=c, rngs=nnx.Rngs(0)))
                     for c in (20.0, 1000.0))  # fmt: skip
    assert slope(smooth) * 5 < slope(rough)


def test_a_networks_jump_is_its_denoiser_where_both_times_are_one():
    p, kind = PROCESSES["cosine"]
    model = awake(NETWORKS["MLP"][0](extras=1))
    x, _ = drawn(16)
    cond = jnp.arange(64) % 3
    G, D = flow_map.network_jump(model, p, kind, cond), denoiser.denoiser(model, p, kind, cond)
    np.testing.assert_allclose(G(x, T, T), D(x, T), atol=1e-6)
    assert jnp.abs(G(x, T, S) - D(x, T)).max() > 1e-3
    np.testing.assert_allclose(flow_map.to_data(G)(x, 0.7), G(x, 0.7, 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, G, x: flow_map.progressive_loss(G, p, "v", x, KEY, None, 0), "steps must be"),
        (lambda p, G, x: flow_map.consistency_loss(G, G, p, "v", x, KEY, steps=1.5), "steps must"),
        (lambda p, G, x: flow_map.shortcut_loss(G, G, p, "v", x, KEY, 0), "lengths must be"),
        (lambda p, G, x: flow_map.tangent_loss(G, G, p, "v", x, x, T, 0.0), "c must be positive"),
        (lambda p, G, x: flow_map.pseudo_huber(-1.0), "c must be positive"),
        (lambda p, G, x: flow_map.mean_flow_times(std=0.0), "std must be positive"),
        (lambda p, G, x: flow_map.mean_flow_times(equal=1.2), r"equal must be in \[0, 1\]"),
        (lambda p, G, x: NETWORKS["MLP"][0](extras=-1), "extras must be"),
        (lambda p, G, x: NETWORKS["MLP"][0](time_scale=0.0), "time_scale must be positive"),
    ],
)
def test_a_bad_argument_is_named(call, message):
    p, _ = PROCESSES["cosine"]
    with pytest.raises(ValueError, match=message):
        call(p, exact_jump(p)[1], drawn(0)[0])


def test_distribution_matching_has_no_pull_where_the_data_says_the_same():
    x = jnp.ones((2, 3))
    same, other = (lambda x_t, t: jnp.ones_like(x_t)), (lambda x_t, t: 2 * jnp.ones_like(x_t))
    pull = jax.grad(
        lambda x: flow_map.distribution_loss(
            process.rectified_flow(), x, x, jnp.full(2, 0.5), same, other
        )
    )(x)
    assert pull.tolist() == [[0.0] * 3] * 2
