"""Consistency trajectories, and guidance that a network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_flow_map import PROCESSES, drawn, exact_jump, wrong

from diffusion_course import distillation, flow, flow_map, guidance, process, samplers, sampling
from diffusion_course.denoiser import denoiser
from diffusion_course.models.mlp import MLP

KEY = jax.random.key(5)


def linear(a):
    return lambda x, t, s: a * x


def loss_of(G, target, p, D, x0, **options):
    return distillation.trajectory_loss(G, target, p, x0, KEY, teacher=D, **options)


# --- trajectories ---------------------------------------------------------------------------
def test_the_loss_by_hand():
    """All maps linear: x0 estimates a·x (target), b·x (learnt), c·x (teacher, two steps)."""
    p, (x0, _) = process.vp_cosine(), drawn(1, 5)
    a, b, c = 0.7, -0.3, 0.4
    t, u, s = np.array(
        [[0.9, 0.8, 1.0, 0.5, 0.3], [0.6, 0.8, 0.7, 0.2, 0.1], [0.3, 0.1, 0, 0, 0.1]]
    )
    got = loss_of(
        linear(b), linear(a), p, lambda x, t: c * x, x0, teacher_steps=2,
        times=lambda key, n: tuple(jnp.asarray(r, jnp.float32) for r in (t, u, s)),
    )  # fmt: skip

    eps = np.asarray(jax.random.normal(jax.random.split(KEY)[1], x0.shape), np.float64)
    alpha, sigma = (lambda r, f=f: np.asarray(f(jnp.float32(r)), np.float64)[:, None]
                    for f in (p.alpha, p.sigma))  # fmt: skip

    def jump(x, t, s, k):
        shrink = sigma(s) / sigma(t)
        return shrink * x + (alpha(s) - alpha(t) * shrink) * k * x

    x = alpha(t) * x0 + sigma(t) * eps
    led = jump(jump(x, t, (t + u) / 2, c), (t + u) / 2, u, c)
    apart = jump(x, t, s, b) - jump(led, u, s, a)
    # What has arrived at s = 0 stays; all else goes on with the target's a·x.
    apart = np.where(s[:, None] == 0, apart, a * apart)
    assert got == pytest.approx((apart**2).mean(), rel=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_jumps_have_no_loss_but_the_teachers_steps(name):
    """DDIM's error over n steps falls as 1/n, and so the loss as 1/n²."""
    p, _ = PROCESSES[name]
    D, G = exact_jump(p)
    x0, _ = drawn(2, 256)
    few, more = (float(loss_of(G, G, p, D, x0, teacher_steps=n)) for n in (4, 16))
    assert 0.7 * 16 < few / more < 1.3 * 16
    assert loss_of(wrong(G), G, p, D, x0, teacher_steps=16) > 20 * more


def test_a_teacher_that_stops_at_once_asks_for_the_targets_own_jump():
    p, (x0, _) = process.rectified_flow(), drawn(3)
    D, G = exact_jump(p)

    def at_once(key, n):
        t, _, s = distillation.ordered_times(key, n)
        return t, t, s

    assert loss_of(G, G, p, D, x0, times=at_once) < 1e-12


def test_the_gradient_is_that_of_the_learnt_jump_alone():
    p, (x0, _) = process.vp_cosine(), drawn(4, 8)
    D, _ = exact_jump(p)

    def loss(b, a=0.6):
        return loss_of(linear(b), linear(a), p, D, x0)

    # Quadratic in b: the central difference is exact but for rounding.
    slope = (loss(0.9) - loss(0.1)) / 0.8
    assert jax.grad(loss)(0.5) == pytest.approx(float(slope), rel=1e-4)


def test_ordered_times_fill_their_triangle():
    t, u, s = distillation.ordered_times(jax.random.key(1), 40_000)
    # Means of products of independent uniforms; 4 standard errors of at most .29/200.
    for found, mean in ((t, 1 / 2), (s, 1 / 4), (u, 3 / 8)):
        assert abs(float(found.mean()) - mean) < 4 * 0.29 / 200


# --- a dial for guidance --------------------------------------------------------------------
def of_labels(x, t, cond):
    """A teacher of kind v whose answer depends on all three."""
    return jnp.sin(x) * t[:, None] + 0.3 * cond[:, None]


def told_the_answer(most, p, null):
    """The network that has learnt it: in v, guidance is the same extrapolation as in D."""

    def model(x, t, cond, extras):
        w = most * extras
        free = of_labels(x, t, jnp.full_like(cond, null))
        return free + w * (of_labels(x, t, cond) - free)

    return model


def scale_loss(model, most=4.0, null=7):
    x0, _ = drawn(6, 12)
    labels = np.arange(12) % 5
    p = process.vp_cosine()
    return distillation.scale_loss(model, of_labels, p, "v", x0, labels, null, KEY, most=most)


def test_the_network_that_answers_with_its_scale_has_no_loss():
    most, null = 4.0, 7
    right = told_the_answer(most, process.vp_cosine(), null)
    assert scale_loss(right) < 1e-9
    assert scale_loss(lambda x, t, c, e: right(x, t, c, e) + 0.2) == pytest.approx(0.04, rel=1e-3)
    assert scale_loss(lambda x, t, c, e: right(x, t, c, e / 2)) > 0.1


def test_a_told_network_is_the_guided_denoiser():
    p, (x, _) = process.vp_cosine(), drawn(7, 6)
    w, labels = np.array([0, 0.5, 1, 2, 3, 4], np.float32), np.arange(6) % 3
    right = told_the_answer(4.0, p, 7)
    told = denoiser(distillation.with_scale(right, w, 4.0), p, "v", labels)
    guided = guidance.classifier_free_batched(of_labels, p, "v", labels, np.full(6, 7), w)
    np.testing.assert_allclose(told(x, 0.4), guided(x, 0.4), atol=1e-5)


def test_no_gradient_flows_into_the_teacher():
    p, (x0, _) = process.vp_cosine(), drawn(8, 4)

    def loss(k):
        def teacher(x, t, cond):
            return k * x

        return distillation.scale_loss(
            lambda x, t, cond, extras: 0 * x, teacher, p, "v", x0, np.zeros(4, int), 1, KEY, most=2
        )

    assert loss(1.0) > 0 and jax.grad(loss)(1.0) == 0


# --- latent consistency models: the guided path, for every w --------------------------------
P, LEAST, MOST, NULL = process.vp_cosine(), 1.0, 3.0, 3
MEANS, WIDTH = jnp.array([[1.2, -0.5], [-0.4, 0.9], [0.3, 0.6], [0.0, 0.0]]), 0.6


def classes(x, t, cond):
    """The exact x0 of classes N(mean, WIDTH²), and of N(0, WIDTH²) for no label.

    Guidance moves the mean: D with w is that of N(w·mean, WIDTH²), whose flow map is known.
    """
    return _posterior(x, t, MEANS[cond])


def _posterior(x, t, mean):
    alpha, sigma = (f[:, None] for f in (P.alpha(t), P.sigma(t)))
    return mean + alpha * WIDTH**2 * (x - alpha * mean) / ((alpha * WIDTH) ** 2 + sigma**2)


def exact_student(x, t, cond, extras):
    """The map of the guided flow from t to 0, for the w that it is told."""
    mean = MOST * extras * MEANS[cond]
    alpha, sigma = (f[:, None] for f in (P.alpha(t), P.sigma(t)))
    return mean + WIDTH * (x - alpha * mean) / jnp.hypot(alpha * WIDTH, sigma)


def lcm_loss(model, averaged=None, teacher=classes, *, n=256, key=KEY, **options):
    x0 = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    options = {"steps": 100, "skip": 4, "least": LEAST, "most": MOST} | options

    @jax.jit  # one program, and not one for each operation
    def loss(x0, key):
        return distillation.scaled_consistency_loss(
            model, model if averaged is None else averaged, teacher, P, "x0", x0,
            np.arange(n) % 3, NULL, key, **options,
        )  # fmt: skip

    return loss(x0, key)


def test_the_loss_of_a_latent_consistency_model_by_hand():
    """A student a·x + b·w + c·label, an average of it, and the teacher of the classes."""

    def line(a, b, c):
        return lambda x, t, cond, extras: a * x + MOST * b * extras + c * cond[:, None]

    told, kept, n = (0.3, 0.2, -0.4), (0.5, -0.1, 0.6), 64
    got = lcm_loss(line(*told), line(*kept), n=n, steps=10, skip=3)

    key_scale, key_loss = jax.random.split(KEY)
    key_time, key_noise = jax.random.split(key_loss)
    w = np.asarray(jax.random.uniform(key_scale, (n,), jnp.float32, LEAST, MOST))[:, None]
    t = np.asarray(jax.random.randint(key_time, (n,), 1, 11))[:, None] / 10
    assert (t < 0.3).any() and LEAST < w.min() < w.max() < MOST
    s, label = np.maximum(t - 0.3, 0), (np.arange(n) % 3)[:, None]
    x0 = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    eps = np.asarray(jax.random.normal(key_noise, x0.shape))
    alpha, sigma = (
        lambda r, f=f: np.asarray(f(jnp.asarray(r, jnp.float32)), np.float64)
        for f in (P.alpha, P.sigma)
    )
    x = alpha(t) * x0 + sigma(t) * eps

    def score(mean):  # of the class's noisy distribution; guidance is the extrapolation of it
        return (alpha(t) * mean - x) / ((alpha(t) * WIDTH) ** 2 + sigma(t) ** 2)

    guided = (1 - w) * score(0) + w * score(np.asarray(MEANS)[label[:, 0]])
    # At t = 1 the state says nothing: there is the mean of the guided class.
    by_score = (x + sigma(t) ** 2 * guided) / np.maximum(alpha(t), 1e-3)
    x0_guided = np.where(t < 1, by_score, w * np.asarray(MEANS)[label[:, 0]])
    x_s = alpha(s) * x0_guided + sigma(s) / sigma(t) * (x - alpha(t) * x0_guided)
    (a, b, c), (A, B, C) = told, kept
    wanted = np.where(s > 0, A * x_s + B * w + C * label, x_s)
    error = (a * x + b * w + c * label - wanted) ** 2
    assert got == pytest.approx(error.mean(), rel=1e-4)


def test_the_guided_velocity_is_that_of_the_moved_class():
    """The augmented ODE: score and velocity by automatic differentiation of the log-densities."""
    x = np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32)
    t, w, labels = np.full(6, 0.6, np.float32), np.linspace(1, 3, 6, dtype=np.float32), LABELS_6

    def log_p(x, t, mean):
        alpha, sigma = P.alpha(t), P.sigma(t)
        return -jnp.sum((x - alpha * mean) ** 2) / 2 / ((alpha * WIDTH) ** 2 + sigma**2)

    D = guidance.classifier_free_batched(classes, P, "x0", labels, np.full(6, NULL), w)
    np.testing.assert_allclose(D(x, t), _posterior(x, t, w[:, None] * MEANS[labels]), atol=1e-5)

    scores = [jax.vmap(jax.grad(log_p))(x, t, mean) for mean in (MEANS[labels], 0 * MEANS[labels])]
    guided = w[:, None] * scores[0] + (1 - w[:, None]) * scores[1]
    # dx/dt = alpha'/alpha·x − (sigma·sigma' − sigma²·alpha'/alpha)·score
    (alpha, a_rate), (sigma, s_rate) = (jax.value_and_grad(f)(0.6) for f in (P.alpha, P.sigma))
    slope = a_rate / alpha * x - (sigma * s_rate - sigma**2 * a_rate / alpha) * guided
    np.testing.assert_allclose(flow.velocity(P, D, x, t), slope, rtol=1e-4, atol=1e-4)


LABELS_6 = np.arange(6) % 3


def test_the_map_of_the_guided_flow_has_no_loss_but_the_teachers_steps():
    """DDIM's error over a step falls as its square, and so the loss as its fourth power."""
    short, long = (float(lcm_loss(exact_student, skip=skip, steps=400)) for skip in (4, 16))
    assert 0.6 * 256 < long / short < 1.4 * 256


def test_a_student_that_is_not_told_w_cannot_be_right():
    """It has one answer for all w."""

    def deaf(x, t, cond, extras):
        return exact_student(x, t, cond, jnp.full_like(extras, 2 / MOST))

    of_told, of_deaf = (float(lcm_loss(student, steps=400)) for student in (exact_student, deaf))
    assert of_deaf > 100 * of_told  # and what is left of that falls with the step
    # Its one-step samples have the mean of w = 2, whatever w was asked for.
    noise = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    for w in (1.0, 3.0):
        asked, same = (
            denoiser(distillation.with_scale(student, w, MOST), P, "x0", LABELS_6)(noise, 1.0)
            for student in (exact_student, deaf)
        )
        np.testing.assert_allclose(asked - same, (w - 2) * MEANS[LABELS_6], atol=1e-5)


def test_who_guides_the_student_again_gets_the_square_of_w():
    noise, w = np.zeros((6, 2), np.float32), 2.0
    told = distillation.with_scale(exact_student, w, MOST)
    once = denoiser(told, P, "x0", LABELS_6)
    again = guidance.classifier_free_batched(told, P, "x0", LABELS_6, np.full(6, NULL), w)
    for D, power in ((once, 1), (again, 2)):
        mean, _ = sampling.sample(flow_map.consistency(P), D, noise, [1.0, 0.0], KEY)
        np.testing.assert_allclose(mean, w**power * MEANS[LABELS_6], atol=1e-5)
    # The teacher's path, guided once, leads where the student that is not guided again is.
    ddim = guidance.classifier_free_batched(classes, P, "x0", LABELS_6, np.full(6, NULL), w)
    led, _ = sampling.sample(samplers.ddim(P), ddim, noise, sampling.uniform(50), KEY)
    np.testing.assert_allclose(led, w * MEANS[LABELS_6], atol=0.02)


def test_with_w_of_one_it_is_consistency_distillation_without_guidance():
    one = float(np.nextafter(np.float32(1), np.float32(2)))  # the range must not be empty

    def student(x, t, cond, extras):
        return jnp.tanh(x) + extras * t[:, None]

    labels, x0 = np.arange(256) % 3, np.random.default_rng(0).normal(size=(256, 2))
    told = denoiser(distillation.with_scale(student, one, one), P, "x0", labels)
    G = flow_map.of_denoiser(told)
    plain = flow_map.consistency_loss(
        G, G, P, "x0", x0.astype(np.float32), jax.random.split(KEY)[1], steps=100, skip=4,
        teacher=denoiser(classes, P, "x0", labels),
    )  # fmt: skip
    assert lcm_loss(student, least=1.0, most=one) == pytest.approx(float(plain), rel=1e-5)
    assert lcm_loss(student, least=1.0, most=3.0) > 1.2 * plain


def test_no_gradient_flows_through_target_or_teacher():
    def student(k):
        return lambda x, t, cond, extras: k * exact_student(x, t, cond, extras)

    def loss(k, averaged, taught):
        def teacher(x, t, cond):
            return taught * classes(x, t, cond)

        return lcm_loss(student(k), student(averaged), teacher)

    slopes = jax.grad(loss, argnums=(0, 1, 2))(0.7, 0.8, 0.9)
    assert abs(slopes[0]) > 1e-2 and slopes[1:] == (0, 0)


def network(extras, seed):
    model = MLP(2, 32, num_classes=3, extras=extras, rngs=nnx.Rngs(seed))
    model.last.kernel[...] = jax.random.normal(jax.random.key(seed), (32, 2))  # it begins at zero
    return model


def test_a_student_begins_as_its_teacher_whatever_it_is_told():
    teacher, student = network(0, 0), network(1, 1)
    x, t, labels = np.ones((5, 2), np.float32), np.linspace(0, 1, 5, dtype=np.float32), np.arange(5)
    labels, w = labels % 4, np.array([[0.0], [0.2], [0.5], [0.7], [1.0]], np.float32)
    wanted = teacher(x, t, labels)
    assert np.abs(student(x, t, labels, w) - wanted).max() > 0.1
    distillation.begin_as(student, teacher)
    np.testing.assert_array_equal(student(x, t, labels, w), wanted)
    np.testing.assert_array_equal(teacher(x, t, labels), wanted)

    def loss(model):
        return jnp.sum(model(x, t, labels, w) ** 2)

    gradient = nnx.grad(loss)(student).embed.extras[0]
    assert np.abs(gradient.second.kernel[...]).max() > 1e-3  # it can hear from the first step on


def test_at_the_boundary_the_state_stays_as_it_is():
    told = distillation.with_scale(network(1, 2), 2.0, MOST)
    jump = flow_map.of_denoiser(denoiser(told, P, "v", np.arange(5) % 3))
    x = np.random.default_rng(4).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_array_equal(flow_map.land(P, jump, x, 0.0, 0.0), x)
    # And the estimate itself gets there about as fast as the noise goes (v varies a little with t).
    at = np.array([1e-2, 1e-3], np.float32)
    apart = [np.abs(jump(x, jnp.full(5, t), 0.0) - x).max() for t in at]
    assert apart[1] / apart[0] == pytest.approx(float(P.sigma(at[1]) / P.sigma(at[0])), rel=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_loss(of_labels, most=0), "most must be"),
        (lambda: lcm_loss(exact_student, least=3.0), r"least must be in \[0, 3\)"),
        (lambda: lcm_loss(exact_student, most=0.0), "most must be"),
        (lambda: lcm_loss(exact_student, skip=101), "skip must be"),
        (lambda: distillation.begin_as(network(0, 0), network(0, 1)), "got 0 new arrays"),
        (
            lambda: distillation.begin_as(
                network(1, 0), MLP(2, 16, num_classes=3, rngs=nnx.Rngs(0))
            ),
            "other old ones",
        ),
        (lambda: distillation.with_scale(of_labels, 5.0, 4.0), r"w must be in \[0, 4"),
        (
            lambda: loss_of(linear(1), linear(1), process.vp_cosine(), None, None, teacher_steps=0),
            "teacher_steps must be",
        ),
    ],
)
def test_a_bad_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("loss", ["scale", "consistency"])
def test_a_null_class_that_the_labels_dtype_cannot_hold_reaches_the_teacher(loss):
    seen = []

    def teacher(x, t, cond):
        seen.append(np.asarray(cond))
        return 0.5 * x

    def student(x, t, cond, extras):
        return 0.5 * x

    p, x0, labels = process.rectified_flow(), jnp.ones((2, 3)), np.array([3, 4], np.uint8)
    if loss == "scale":
        distillation.scale_loss(
            student, teacher, p, "flow", x0, labels, 256, jax.random.key(0), most=3.0
        )
    else:
        distillation.scaled_consistency_loss(
            student, student, teacher, p, "flow", x0, labels, 256, jax.random.key(0),
            steps=4, skip=1, least=1.0, most=3.0,
        )  # fmt: skip
    assert all(256 in cond for cond in seen) and seen
