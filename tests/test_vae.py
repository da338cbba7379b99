"""Autoencoders: their codes against closed forms, their shapes, and that all of them learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn

from diffusion_course import bound
from diffusion_course.models import quantize
from diffusion_course.models.layers import ResidualBlock
from diffusion_course.models.vae import VAE, Autoencoder, ConditionalVAE, Decoder, Encoder, Gaussian

RNG = np.random.default_rng(3)
TINY = {"channels": (8, 16), "rngs": nnx.Rngs(0)}


def code(shape=(3, 2, 4, 5)):
    """A code whose means and variances are of many sizes."""
    mean, log_variance = RNG.normal(0.4, 1.3, shape), RNG.uniform(-4, 2, shape)
    return Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(log_variance, jnp.float32))


def images(shape):
    return jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32)


# ------------------------------------------------------------------------------------ Gaussian


def test_the_rate_is_the_closed_form_summed_over_each_example():
    q = code()
    m, v = (np.asarray(a, np.float64) for a in (q.mean, np.exp(np.float64(q.log_variance))))
    expected = 0.5 * (m**2 + v - np.log(v) - 1).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(q.kl(), expected, rtol=1e-5)  # sums of 40 in float32
    by_bound = bound.gaussian_kl(q.mean, q.log_variance, 0.0, 0.0).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(q.kl(), by_bound, rtol=1e-5)


def test_the_rate_is_the_mean_log_ratio_of_densities_of_its_own_samples():
    q, n = code((2, 3)), 40_000
    z = np.asarray(jax.vmap(q.sample)(jax.random.split(jax.random.key(1), n)), np.float64)
    m, v = np.float64(q.mean), np.exp(np.float64(q.log_variance))
    ratio = (-0.5 * ((z - m) ** 2 / v + np.log(v)) + 0.5 * z**2).sum(axis=2)
    error = ratio.std(axis=0) / np.sqrt(n)
    assert (np.abs(ratio.mean(axis=0) - q.kl()) < 4 * error).all()
    assert (error < 0.02 * np.asarray(q.kl())).all()  # fine enough to see a missing term


def test_a_standard_normal_code_costs_nothing_and_the_next_one_has_all_its_digits():
    zero = jnp.zeros((1, 7))
    assert Gaussian(zero, zero).kl() == 0
    # (exp(δ) − δ − 1)/2 = δ²/4 for a small δ, where exp(δ) − 1 loses all digits in float32.
    nearly = Gaussian(zero, zero + 1e-3).kl()
    assert float(nearly[0]) == pytest.approx(7 * 1e-6 / 4, rel=1e-3)


def test_samples_have_the_mean_and_the_variance_of_their_code():
    q, n = code((2, 3)), 20_000
    z = np.asarray(jax.vmap(q.sample)(jax.random.split(jax.random.key(2), n)))
    std = np.exp(np.asarray(q.log_variance) / 2)
    np.testing.assert_array_less(np.abs(z.mean(0) - q.mean), 4.5 * std / np.sqrt(n))
    np.testing.assert_allclose(z.std(0), std, rtol=4.5 / np.sqrt(2 * n))


def test_gradients_reach_the_mean_and_the_variance_through_a_sample():
    q, key = code((2, 3)), jax.random.key(5)
    by_mean, by_log_variance = jax.grad(lambda q: q.sample(key).sum())(q)
    np.testing.assert_array_equal(by_mean, 1)
    np.testing.assert_allclose(by_log_variance, (q.sample(key) - q.mean) / 2, rtol=1e-4)


# -------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("channels", "stem", "factor"), [((8,), 1, 1), ((8,), 2, 2), ((8, 16), 2, 4), ((16, 8), 1, 2)]
)
def test_encoder_and_decoder_have_the_shapes_that_they_promise(channels, stem, factor):
    def build(make):
        rngs = nnx.Rngs(0)
        return make(3, 5, channels=channels, stem=stem, rngs=rngs)

    encoder, decoder = (nnx.eval_shape(partial(build, make)) for make in (Encoder, Decoder))
    x = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    z = jax.eval_shape(lambda model, x: model(x), encoder, x)
    assert z.shape == (2, 8 // factor, 12 // factor, 5) and encoder.factor == factor
    assert jax.eval_shape(lambda model, z: model(z), decoder, z).shape == x.shape


@pytest.mark.parametrize("make", [Autoencoder, VAE, quantize.VQVAE])
def test_every_parameter_of_an_autoencoder_has_a_gradient(make):
    from diffusion_course import latent

    model = make(3, 2, blocks=2, **TINY)
    # The last convolution of a block starts at zero and hides what lies before it.
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    x = images((6, 8, 12, 3))

    @jax.jit
    def gradient(params):
        loss = lambda p: latent.autoencoder_loss(nnx.merge(graph, p), x, jax.random.key(0), beta=1)  # noqa: E731
        return jax.grad(lambda p: loss(p)[0])(params)

    for path, slope in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(slope).max() > 0, path


def test_the_parts_of_a_variational_encoder_are_its_mean_and_its_variance():
    model = VAE(1, 2, **TINY)
    x = images((2, 8, 4, 1))
    q = model.encode(x)
    np.testing.assert_array_equal(model.latents(x), q.mean)
    assert q.mean.shape == q.log_variance.shape == (2, 2, 1, 2)
    np.testing.assert_array_equal(
        jnp.concatenate([q.mean, q.log_variance], axis=-1), model.encoder(x)
    )
    # However far a variance runs, it stays a number.
    model.encoder.conv_out.bias[...] = jnp.array([0.0, 0.0, 1e4, -1e4])
    std = jnp.exp(model.encode(x).log_variance / 2)
    assert np.isfinite(std).all() and (std > 0).all() and np.isfinite(model.encode(x).kl()).all()


def test_a_residual_block_without_an_embedding_is_one_whose_film_is_zero():
    plain, told = (ResidualBlock(8, 16, dim, rngs=nnx.Rngs(1)) for dim in (None, 4))
    told.film.kernel[...], told.film.bias[...] = jnp.zeros((4, 32)), jnp.zeros(32)
    for name in ("conv1", "conv2", "skip"):
        kernel = RNG.normal(0, 0.2, getattr(told, name).kernel.shape)
        for block in (plain, told):
            getattr(block, name).kernel[...] = jnp.asarray(kernel, jnp.float32)
    x = jnp.asarray(RNG.normal(size=(2, 4, 4, 8)), jnp.float32)
    np.testing.assert_array_equal(plain(x), told(x, jnp.ones((2, 4))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAE(1, 0, **TINY), "latent_channels must be a whole number at least 1, got 0"),
        (lambda: VAE(0, 2, **TINY), "image_channels must be a whole number at least 1, got 0"),
        (lambda: VAE(1, 2, (8, 12), rngs=nnx.Rngs(0)), "channels must be multiples of 8, got 12"),
        (lambda: VAE(1, 2, (), rngs=nnx.Rngs(0)), "channels must name the width of at least one"),
        (lambda: VAE(1, 2, blocks=0, **TINY), "blocks must be a whole number at least 1, got 0"),
        (lambda: VAE(1, 2, stem=0, **TINY), "stem must be a whole number at least 1, got 0"),
        (lambda: VAE(3, 2, **TINY).encode(images((2, 8, 6, 3))), "W multiples of 4, got .2, 8, 6"),
        (lambda: VAE(3, 2, **TINY).encode(images((2, 8, 8, 1))), r"shape \[B, H, W, 3\], got"),
        (lambda: VAE(3, 2, **TINY).decode(images((2, 2, 2, 3))), r"shape \[B, h, w, 2\], got"),
        (lambda: quantize.VQVAE(1, 2, 0, **TINY), "codes must be a whole number at least 1, got 0"),
    ],
)
def test_bad_sizes_of_an_autoencoder_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------- labels


def conditional():
    sizes = {"latent_channels": 2, "channels": (8,)}
    return drawn(lambda: ConditionalVAE(3, (4, 6), 2, **sizes, rngs=nnx.Rngs(0)), seed=6)


def test_a_conditional_autoencoder_has_one_latent_vector_and_hears_the_label_at_both_ends():
    model, x = conditional(), images((2, 4, 6, 2))
    code = model.encode(x, np.array([0, 2]))
    assert code.mean.shape == code.log_variance.shape == (2, 2)
    swapped = model.encode(x, np.array([2, 0]))
    assert (np.abs(np.asarray(code.mean - swapped.mean)).max(axis=1) > 1e-3).all()
    z = jnp.ones((4, 2))
    told = np.asarray(model.decode(z, np.arange(4)))
    assert told.shape == (4, 4, 6, 2)
    for i, j in ((0, 1), (0, 2), (1, 2), (0, 3)):
        assert np.abs(told[i] - told[j]).max() > 1e-3
    # No label is a vector of zeros, at both ends.
    np.testing.assert_array_equal(model.decode(z), model.decode(z, np.full(4, model.null_label)))
    np.testing.assert_array_equal(model.encode(x).mean, model.encode(x, np.full(2, 3)).mean)


def test_every_parameter_of_a_conditional_autoencoder_has_a_gradient():
    graph, params = nnx.split(conditional())
    x, labels = images((6, 4, 6, 2)), np.array([0, 1, 2, 0, 1, 2])

    @jax.jit
    def gradient(params):
        def cost(params):
            model = nnx.merge(graph, params)
            code = model.encode(x, labels)
            mean = model.decode(code.sample(jax.random.key(0)), labels)
            log_p = bound.discretized_log_likelihood(x, mean, model.log_variance[...], 17)
            return (code.kl() - log_p.reshape(6, -1).sum(axis=1)).mean()

        return jax.grad(cost)(params)

    for path, slope in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(slope).max() > 0, path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConditionalVAE(0, 8, rngs=nnx.Rngs(0)), "num_classes must be a whole number at"),
        (lambda: ConditionalVAE(3, 7, rngs=nnx.Rngs(0)), "image_size must be a multiple of 2"),
        (lambda: conditional().encode(images((2, 4, 6, 1))), r"shape \[B, 4, 6, 2\], got \[2, 4"),
        (lambda: conditional().decode(images((2, 3))), r"shape \[B, 2\], got \[2, 3\]"),
        (lambda: conditional().decode(images((2, 2)), np.array([0, 4])), "cond must be in 0 … 3"),
        (lambda: conditional().decode(images((2, 2)), np.array([0])), r"shape \[2\], got"),
    ],
)
def test_bad_arguments_of_a_conditional_autoencoder_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -------------------------------------------------------------------------------- quantisation


def test_each_vector_gets_its_nearest_code():
    codebook, z = RNG.normal(3.0, 1.0, (7, 3)), RNG.normal(3.0, 1.5, (4, 5, 3))
    found = quantize.nearest_code(codebook, z)
    distances = ((z[..., None, :] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(found.index, distances.argmin(-1))
    np.testing.assert_array_equal(found.z, codebook.astype(np.float32)[found.index])
    twice = quantize.nearest_code(np.ones((3, 2)), np.zeros((4, 2)))
    np.testing.assert_array_equal(twice.index, 0)  # equally near: the first


def test_straight_through_has_the_codes_value_and_the_identitys_gradient():
    codebook, z = images((6, 3)), images((4, 3))

    def rounded(z):
        return quantize.straight_through(z, quantize.nearest_code(codebook, z).z)

    # z + (q − z) is q up to the rounding of float32.
    np.testing.assert_allclose(rounded(z), quantize.nearest_code(codebook, z).z, atol=1e-6)
    jacobian = jax.jacrev(rounded)(z).reshape(12, 12)
    np.testing.assert_array_equal(jacobian, np.eye(12))
    plain = jax.jacrev(lambda z: quantize.nearest_code(codebook, z).z)(z)
    assert (plain == 0).all()  # without it, nothing


def test_the_codebook_loss_moves_the_codes_and_the_commitment_the_encoder():
    z, codes = images((3, 4, 2)), images((3, 4, 2))
    expected = ((np.asarray(z) - codes) ** 2).mean(axis=(1, 2))
    slope = 2 * (np.asarray(z) - codes) / 8
    for loss, by_z, by_codes in (
        (quantize.codebook_loss, 0 * slope, -slope),
        (quantize.commitment_loss, slope, 0 * slope),
    ):
        np.testing.assert_allclose(loss(z, codes), expected, rtol=1e-6)
        found = jax.grad(lambda *pair, loss=loss: loss(*pair).sum(), argnums=(0, 1))(z, codes)
        np.testing.assert_allclose(found[0], by_z, rtol=1e-5)
        np.testing.assert_allclose(found[1], by_codes, rtol=1e-5)


def test_perplexity_counts_the_codes_in_use():
    for used in (1, 3, 8):  # equally often
        index = np.tile(np.arange(used), 5).reshape(5, used)
        assert float(quantize.perplexity(index, 8)) == pytest.approx(used, rel=1e-6)
    share = np.array([0.5, 0.25, 0.125, 0.125])  # 2^1.75 by the entropy in bits
    index = np.repeat(np.arange(4), (16 * share).astype(int))
    assert float(quantize.perplexity(index, 9)) == pytest.approx(2**1.75, rel=1e-6)
    np.testing.assert_allclose(quantize.usage(index, 5), [*share, 0])


def test_dead_codes_are_revived_where_the_encoder_is_and_the_others_stay():
    z = RNG.normal(5.0, 0.5, (4, 6, 3)).astype(np.float32)
    near, far = z.reshape(-1, 3)[[2, 9, 17]], RNG.normal(-50.0, 1.0, (5, 3)).astype(np.float32)
    codebook = np.concatenate([far[:2], near, far[2:]])
    before = quantize.usage(quantize.nearest_code(codebook, z).index, 8)
    assert set(np.flatnonzero(np.asarray(before) == 0)) == {0, 1, 5, 6, 7}
    alive = quantize.revive(codebook, before, z, jax.random.key(0))
    np.testing.assert_array_equal(alive[2:5], near)
    rows = {tuple(row) for row in z.reshape(-1, 3)}
    moved = [tuple(row) for row in np.asarray(alive)[[0, 1, 5, 6, 7]]]
    assert set(moved) <= rows and len(set(moved)) == 5  # no two at one place
    after = quantize.nearest_code(alive, z)
    assert quantize.perplexity(after.index, 8) > quantize.perplexity(
        quantize.nearest_code(codebook, z).index, 8
    )
    assert ((after.z - z) ** 2).sum() < ((quantize.nearest_code(codebook, z).z - z) ** 2).sum()
    # Codes that are used, but no more than `least`, are moved as well; and fewer vectors than
    # codes are no obstacle.
    share = np.array([0.6, 0.3, 0.1])
    revived = quantize.revive(far[:3], share, z[0, :1], jax.random.key(1), least=0.3)
    np.testing.assert_array_equal(revived, [far[0], z[0, 0], z[0, 0]])


def test_a_quantised_autoencoder_decodes_what_lies_near_a_code_as_that_code():
    model = quantize.VQVAE(1, 3, codes=5, **TINY)
    x = images((2, 8, 4, 1))
    z = model.latents(x)
    assert {tuple(v) for v in np.asarray(z).reshape(-1, 3)} <= {
        tuple(v) for v in np.asarray(model.codebook[...])
    }
    np.testing.assert_array_equal(model.decode(z + 1e-3), model.decoder(z))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize.nearest_code(np.ones(3), np.ones((2, 3))), r"codebook must .* \[K, D\]"),
        (lambda: quantize.nearest_code(np.ones((4, 3)), np.ones((2, 4))), "z must .* with D = 3"),
        (lambda: quantize.straight_through(np.ones(3), np.ones(2)), "quantised must have the"),
        (lambda: quantize.usage(np.array([0, 4]), 4), "index must be in 0 … 3, got 0 … 4"),
        (lambda: quantize.usage(np.array([], int), 4), "index must hold at least one index"),
        (lambda: quantize.perplexity(np.array([0.5]), 4), "index must be whole numbers"),
        (lambda: quantize.perplexity(np.array([0]), 0), "codes must be a whole number at least 1"),
        (
            lambda: quantize.revive(
                np.ones((4, 3)), np.ones(3), np.ones((2, 3)), jax.random.key(0)
            ),
            r"share must have shape \[K\] = \[4\], got \[3\]",
        ),
        (
            lambda: quantize.revive(
                np.ones((4, 3)), np.ones(4), np.ones((2, 3)), jax.random.key(0), least=1.0
            ),
            r"least must be in \[0, 1\), got 1.0",
        ),
    ],
)
def test_bad_arguments_of_quantisation_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
