"""Consistency trajectories, and guidance that a network is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_flow_map import PROCESSES, drawn, exact_jump, wrong

from diffusion_course import distillation, guidance, process
from diffusion_course.denoiser import denoiser

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_loss(of_labels, most=0), "most must be"),
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
