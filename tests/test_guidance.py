import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES

from diffusion_course import denoiser, guidance, parameterization

rng = np.random.default_rng(24)

o = PROCESSES["vp_linear"]
p = o.process
conditional = denoiser.gaussian_mixture(p, [[0.9, -0.4]], [0.3], [1.0]).denoise
unconditional = denoiser.gaussian_mixture(
    p, [[0.9, -0.4], [-1.1, 0.5]], [0.3, 0.6], [1.0, 2.0]
).denoise
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
    slope = jax.jacfwd(guided)(2.0)
    np.testing.assert_allclose(slope, conditional(x, t) - unconditional(x, t), atol=1e-6)


def test_guidance_composes_with_clipping():
    D = denoiser.clip(guidance.classifier_free(conditional, unconditional, 9.0), -0.5, 0.5)
    assert np.abs(D(x, t)).max() == 0.5
