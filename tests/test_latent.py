"""Latent spaces: their scale, that they are frozen, their losses, and what runs in them."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course import (
    denoiser,
    editing,
    guidance,
    latent,
    process,
    samplers,
    sampling,
    weights,
)
from diffusion_course.data import Card, Dataset
from diffusion_course.evaluation import metrics, quality, reconstructions
from diffusion_course.models import quantize
from diffusion_course.models.classifier import Classifier, Resized, fitted, judge
from diffusion_course.models.vae import VAE, Autoencoder
from diffusion_course.weights import card

RNG = np.random.default_rng(14)

# Operation by operation, each of them would be compiled on its own.
loss_of = jax.jit(latent.autoencoder_loss)
feature_loss = jax.jit(latent.feature_loss)


class Linear(nnx.Module):
    """A linear autoencoder of 4×4×2 images with latents 2×2×3: what it does has a closed form."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.down = nnx.Param(jnp.asarray(rng.normal(0, 2.0, (8, 3)), jnp.float32))
        self.up = nnx.Param(jnp.asarray(rng.normal(0, 0.7, (3, 8)), jnp.float32))
        self.offset = nnx.Param(jnp.array([5.0, -0.3, 0.01]))

    def latents(self, x):
        blocks = x.reshape(len(x), 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(len(x), 2, 2, 8) @ self.down[...] + self.offset[...]

    def decode(self, z):
        blocks = (z @ self.up[...]).reshape(len(z), 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(len(z), 4, 4, 2)


def pictures(n, shape=(4, 4, 2)):
    return RNG.uniform(-1, 1, (n, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def space():
    return latent.standardised(Linear(), pictures(1200))


# --------------------------------------------------------------------------------------- scale


def test_latents_of_unseen_images_have_mean_0_and_standard_deviation_1(space):
    z = latent.encode_all(space, pictures(4000)).reshape(-1, 3)
    # 16,000 values each; those they were measured on are 4,800: 4 standard errors are .05, .04.
    np.testing.assert_allclose(z.mean(0), 0, atol=4 / np.sqrt(4800))
    np.testing.assert_allclose(z.std(0), 1, atol=4 / np.sqrt(2 * 4800))


def test_the_latents_that_were_measured_have_exactly_that_scale():
    x = pictures(1100)  # more than one part, and a part that is not whole
    found = latent.standardised(Linear(), x)
    own = np.asarray(Linear().latents(x), np.float64)
    np.testing.assert_allclose(found.shift, own.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.scale, 1 / own.std((0, 1, 2)), rtol=1e-5)
    z = latent.encode_all(found, x)
    assert z.dtype == np.float32 and z.shape == (1100, 2, 2, 3)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)  # 5/2 in float32, centred
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, rtol=1e-5)


def test_what_is_decoded_does_not_depend_on_the_scale(space):
    x = pictures(5)
    plain = latent.LatentSpace(space.model, jnp.zeros(3), jnp.ones(3))
    odd = latent.LatentSpace(space.model, jnp.array([-3.0, 0.4, 9.0]), jnp.array([0.1, 7.0, 2.0]))
    expected = space.model.decode(space.model.latents(x))
    for any_space in (space, plain, odd):
        # Latents near 10 are moved by as much, and back.
        np.testing.assert_allclose(any_space.decode(any_space.encode(x)), expected, atol=3e-5)
    assert not np.allclose(space.encode(x), odd.encode(x), atol=0.1)


def test_a_data_set_is_encoded_and_decoded_in_parts_as_in_one(space):
    x = pictures(1003)
    z = latent.encode_all(space, x)
    np.testing.assert_allclose(z, space.encode(jnp.asarray(x)), atol=1e-5)
    y = latent.decode_all(space, z)
    assert y.shape == x.shape and y.min() >= -1 and y.max() <= 1
    np.testing.assert_allclose(y, jnp.clip(space.decode(jnp.asarray(z)), -1, 1), atol=1e-5)
    assert np.abs(np.asarray(space.decode(jnp.asarray(z)))).max() > 1  # there was something to clip
    assert space.shape((4, 4, 2)) == (2, 2, 3)


def test_a_channel_that_never_changes_is_named():
    model = Linear()
    model.down[...] = model.down[...].at[:, 1].set(0)
    with pytest.raises(ValueError, match="x must have latents that vary in every channel"):
        latent.standardised(model, pictures(10))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 4, 2), np.float32), r"x must be of shape \[N, h, w, c\] .* got \[4, 4, 2\]"),
        (np.zeros((0, 4, 4, 2), np.float32), "x must be of shape"),
        (np.zeros((3, 4, 4, 2), np.uint8), "x must be floating-point numbers, got dtype uint8"),
    ],
)
def test_images_of_another_kind_are_named(space, x, message):
    with pytest.raises(ValueError, match=message):
        latent.encode_all(space, x)


# -------------------------------------------------------------------------------------- frozen


def test_no_gradient_reaches_the_autoencoder_but_one_reaches_the_latents(space):
    def through(space, z):
        return (space.decode(z) ** 2).sum() + (space.encode(space.decode(z)) ** 3).sum()

    z = jnp.asarray(RNG.normal(size=(2, 2, 2, 3)), jnp.float32)
    by_space, by_z = jax.grad(through, argnums=(0, 1))(space, z)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(nnx.state(by_space.model)))
    assert (by_z != 0).all()


def test_another_autoencoder_of_the_same_shape_does_not_compile_anew(space):
    traces = []

    @jax.jit
    def decode(space, z):
        traces.append(1)
        return space.decode(z)

    other = latent.LatentSpace(Linear(seed=1), space.shift + 1, space.scale)
    z = jnp.ones((1, 2, 2, 3))
    assert not np.allclose(decode(space, z), decode(other, z), atol=0.1)
    assert len(traces) == 1


# ------------------------------------------------------------- everything runs in latents as it is


P = process.vp_cosine()
MEANS = np.array([0.8, -0.6, 1.1], np.float32)  # of the latents of class 1; those of class 0: −


class Exact(nnx.Module):
    """The network of a perfect model: latents of class k are ±MEANS + .3·noise in every place."""

    null_label = 2

    def __call__(self, x, t, cond):
        rows = x.reshape(-1, 3)
        alpha, sigma = (f(t)[:, None, None, None] for f in (P.alpha, P.sigma))
        gain = alpha * 0.3**2 / ((alpha * 0.3) ** 2 + sigma**2)
        of_class = [s * MEANS + gain * (x - s * alpha * MEANS) for s in (-1.0, 1.0)]
        both = denoiser.gaussian_mixture(P, np.stack([-MEANS, MEANS]), [0.3, 0.3], [1.0, 1.0])
        places = jnp.repeat(t, rows.shape[0] // x.shape[0])
        x0 = jnp.stack([*of_class, both.denoise(rows, places).reshape(x.shape)])[
            cond, jnp.arange(len(x))
        ]
        eps = (x - alpha * x0) / jnp.maximum(sigma, 1e-6)
        return alpha * eps - sigma * x0  # v


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0])
def test_a_sampler_with_guidance_draws_latents_that_decode_to_their_class(space, w):
    n, times = 200, sampling.uniform(12)
    shape = space.shape((4, 4, 2))
    generate = sampling.generator(P, "v", samplers.ddim(P), times, shape)
    labels = np.arange(n) % 2
    z = np.asarray(generate(Exact(), jax.random.key(3), n, labels, w))
    assert z.shape == (n, 2, 2, 3)
    images = latent.decode_all(space, z)
    assert images.shape == (n, 4, 4, 2) and np.isfinite(images).all()
    side = np.sign((z * MEANS).sum(-1)).mean((1, 2)) * np.where(labels == 1, 1, -1)
    if w == 0:
        # Every place chooses on its own: 800 signs of mean 0.
        assert abs(side.mean()) < 4 / np.sqrt(800)
    else:
        assert (side == 1).all()
        # Guidance leaves the mean at w = 1 and moves it outwards at w = 2.
        mean = (z * np.where(labels == 1, 1, -1)[:, None, None, None]).mean((0, 1, 2))
        gap = mean / MEANS - 1
        assert (np.abs(gap) < 0.06).all() if w == 1 else (gap > -0.06).all()


def test_guidance_by_two_denoisers_equals_that_of_the_batched_model(space):
    z = jnp.asarray(RNG.normal(size=(4, 2, 2, 3)), jnp.float32)
    labels, null = jnp.array([0, 1, 1, 0]), jnp.full(4, 2)

    @jax.jit
    def both(z):
        apart = guidance.classifier_free(
            *(denoiser.denoiser(Exact(), P, "v", c) for c in (labels, null)), 2.5
        )
        together = guidance.classifier_free_batched(Exact(), P, "v", labels, null, 2.5)
        return apart(z, 0.4), together(z, 0.4)

    np.testing.assert_allclose(*both(z), atol=1e-5)


def test_inpainting_keeps_the_known_latents_exactly(space):
    labels = jnp.ones(6, int)
    D = denoiser.denoiser(Exact(), P, "v", labels)
    known = space.encode(jnp.asarray(pictures(6)))
    mask = np.zeros((2, 2, 1), bool)
    mask[0] = True
    start = jax.random.normal(jax.random.key(0), known.shape)
    z, _ = sampling.sample(
        samplers.ddpm(P), guidance.inpaint(D, known, mask), start, sampling.uniform(8),
        jax.random.key(1),
    )  # fmt: skip
    np.testing.assert_array_equal(z[:, 0], known[:, 0])
    assert not np.allclose(z[:, 1], known[:, 1], atol=0.1)
    # The decoder of blocks: pixels above know nothing of the latents below.
    np.testing.assert_allclose(space.decode(z)[:, :2], space.decode(known)[:, :2], atol=1e-5)


def test_sdedit_of_latents_keeps_them_at_strength_0_and_redraws_them_at_1(space):
    D = denoiser.denoiser(Exact(), P, "v", jnp.ones(40, int))
    z = space.encode(jnp.asarray(pictures(40)))
    sampler = samplers.ddim(P)
    edit = jax.jit(lambda s: editing.sdedit(sampler, D, P, z, s, 8, jax.random.key(2)))
    same, redrawn = edit(0.0), edit(1.0)
    np.testing.assert_array_equal(same, z)
    # 160 places of standard deviation .3 around the class's own mean.
    np.testing.assert_allclose(redrawn.mean((0, 1, 2)), MEANS, atol=4.5 * 0.3 / np.sqrt(160))


# -------------------------------------------------------------------------------------- losses


def test_the_reconstruction_is_each_images_mean_squared_error():
    x, y = pictures(3), pictures(3)
    expected = ((np.float64(x) - y) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(latent.reconstruction(x, y), expected, rtol=1e-5)


TINY = {"channels": (8,), "rngs": nnx.Rngs(0)}


@jax.jit
def plain_parts(model, x, key):
    code = model.encode(x)
    return model.decode(code.sample(key)), code.kl()


def test_the_loss_of_a_vae_is_distortion_and_beta_times_the_rate_per_pixel_value():
    model, x, key = VAE(2, 3, **TINY), jnp.asarray(pictures(3, (4, 6, 2))), jax.random.key(4)
    y, rate = (np.asarray(a) for a in plain_parts(model, x, key))
    distortion = ((np.asarray(x) - y) ** 2).mean((1, 2, 3))
    for beta in (0.0, 0.7):
        total, parts = loss_of(model, x, key, beta=beta)
        expected = (distortion + beta * rate / (4 * 6 * 2)).mean()
        assert float(total) == pytest.approx(float(expected), rel=1e-5)
        np.testing.assert_allclose(parts.distortion, distortion, rtol=1e-5)
        np.testing.assert_allclose(parts.order, rate, rtol=1e-5)
        np.testing.assert_array_equal(parts.features, 0)


def test_with_beta_2_s_squared_it_is_the_bound_of_a_decoder_with_noise_s():
    model, x, key, s = (
        VAE(1, 2, **TINY),
        jnp.asarray(pictures(3, (4, 4, 1))),
        jax.random.key(1),
        0.3,
    )
    y, rate = (np.asarray(a, np.float64) for a in plain_parts(model, x, key))
    squared = (np.asarray(x) - y) ** 2
    nats = (squared / (2 * s**2) + np.log(2 * np.pi * s**2) / 2).sum((1, 2, 3)) + rate
    loss = loss_of(model, x, key, beta=2 * s**2)[0]
    by_loss = 16 * (loss / (2 * s**2) + np.log(2 * np.pi * s**2) / 2)
    assert float(by_loss) == pytest.approx(float(nats.mean()), rel=1e-5)


def test_the_loss_of_a_plain_autoencoder_is_its_distortion():
    model, x = Autoencoder(2, 3, **TINY), jnp.asarray(pictures(3, (4, 6, 2)))
    total, parts = loss_of(model, x, jax.random.key(0), beta=5.0)
    y = model.decode(model.latents(x))
    assert float(total) == pytest.approx(float(((x - y) ** 2).mean()), rel=1e-5)
    np.testing.assert_array_equal(parts.order, 0)


def test_the_loss_of_a_quantised_one_reaches_encoder_codes_and_decoder():
    model, x = quantize.VQVAE(1, 2, codes=4, **TINY), jnp.asarray(pictures(3, (4, 6, 1)))
    z = model.encoder(x)
    codes = model.quantise(z).z
    y = model.decoder(codes)
    apart = ((np.asarray(z) - codes) ** 2).mean((1, 2, 3))
    expected = ((np.asarray(x) - y) ** 2).mean((1, 2, 3)) + 1.6 * apart
    total, parts = loss_of(model, x, jax.random.key(0), commitment=0.6)
    assert float(total) == pytest.approx(float(expected.mean()), rel=1e-5)
    np.testing.assert_allclose(parts.order, 1.6 * apart, rtol=1e-5)


@pytest.fixture(scope="module")
def expert():
    return Classifier(2, (4, 8), num_classes=3, width=8, features=5, rngs=nnx.Rngs(2))


@jax.jit
def activations(classifier, x):
    return classifier.activations(x)


def test_the_feature_loss_averages_squared_distances_of_directions(expert):
    x, y = (jnp.asarray(pictures(3, (4, 8, 2))) for _ in range(2))
    layers = []
    for a, b in zip(activations(expert, x), activations(expert, y), strict=True):
        a, b = (np.float64(m) / np.sqrt((np.float64(m) ** 2).sum(-1, keepdims=True) + 1e-6)
                for m in (a, b))  # fmt: skip
        layers.append(((a - b) ** 2).sum(-1).reshape(3, -1).mean(1))
    assert len(layers) == 4
    np.testing.assert_allclose(feature_loss(expert, x, y), np.mean(layers, 0), rtol=1e-4)
    # The two sides may be fused differently: float32 rounds at 1e-7, and this is a square.
    np.testing.assert_allclose(feature_loss(expert, x, x), 0, atol=1e-12)
    slope = jax.jit(jax.grad(lambda y: latent.feature_loss(expert, x, y).sum()))(y)
    assert (slope != 0).any() and np.isfinite(slope).all()


def test_the_weights_of_the_features_are_heard_and_the_classifier_is_not_trained(expert):
    model, x, key = VAE(2, 3, **TINY), jnp.asarray(pictures(2, (4, 8, 2))), jax.random.key(7)
    plain, parts = loss_of(model, x, key, beta=0.1, classifier=expert)
    assert (parts.features > 0).all()

    def loss(expert):
        return latent.autoencoder_loss(
            model, x, key, beta=0.1, classifier=expert, features=0.3
        )[0]  # fmt: skip

    weighed, slope = jax.jit(jax.value_and_grad(loss))(expert)
    assert float(weighed - plain) == pytest.approx(0.3 * float(parts.features.mean()), rel=1e-4)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))


def test_a_classifier_of_another_size_sees_the_image_resized(expert):
    assert fitted(expert, (4, 8, 2)) is expert and isinstance(fitted(expert, (8, 16, 2)), Resized)
    large, small = pictures(3, (8, 16, 2)), pictures(3, (4, 8, 2))
    # Twice as large with equal pixels in each block, a smooth image would do as well: constants do.
    for value in (-0.7, 0.2):
        wide, narrow = (np.full_like(a, value) for a in (large, small))
        np.testing.assert_allclose(Resized(expert)(wide), expert(narrow), atol=1e-5)
    shrunk = jax.image.resize(large, small.shape, "linear")
    classes, features = judge(Resized(expert), large)
    np.testing.assert_allclose(features, judge(expert, np.asarray(shrunk))[1], atol=1e-5)
    np.testing.assert_array_equal(classes, judge(expert, np.asarray(shrunk))[0])
    np.testing.assert_allclose(
        feature_loss(expert, large, large[::-1]),
        feature_loss(expert, shrunk, shrunk[::-1]),
        rtol=1e-3,
    )
    with pytest.raises(ValueError, match=r"shape \[B, H, W, 2\], got"):
        Resized(expert)(pictures(1, (8, 8, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, r"beta must be in \[0, inf\), got -0.1"),
        ({"commitment": -1.0}, r"commitment must be in \[0, inf\), got -1.0"),
        ({"features": -2.0}, r"features must be in \[0, inf\), got -2.0"),
        ({"features": 0.1}, "features must be 0 without a classifier, got 0.1"),
    ],
)
def test_bad_weights_of_the_loss_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        model, x = VAE(1, 2, **TINY), pictures(1, (4, 4, 1))
        latent.autoencoder_loss(model, x, jax.random.key(0), **options)


@pytest.mark.parametrize("loss", [latent.reconstruction, partial(latent.feature_loss, None)])
def test_losses_refuse_images_of_two_shapes(loss):
    with pytest.raises(ValueError, match="y must have the shape of x"):
        loss(pictures(2), pictures(1))


def test_an_autoencoder_is_measured_on_unseen_images_by_its_judge(expert):
    about = Card("blocks", "drawn here", "free", "Random numbers.")

    def drawn(n):
        return Dataset(pictures(n), np.arange(n, dtype=np.int32) % 3, ("a", "b", "c"), about)

    train, test = drawn(90), drawn(60)
    judge_of = fitted(expert, (4, 4, 2))
    found = reconstructions.measure(Linear(), judge_of, train, test)
    space = latent.standardised(Linear(), train.x)
    z = latent.encode_all(space, test.x)
    y = latent.decode_all(space, z)
    assert found.distortion == pytest.approx(((np.float64(y) - test.x) ** 2).mean(), rel=1e-5)
    assert found.rate == 0 and found.of == 60 and found.latents["of"] == 90
    np.testing.assert_allclose(found.latents["held_out_std"], z.std((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.latents["scale"], space.scale, rtol=1e-6)
    for images, share, distance in (
        (test.x, found.accuracy_before, found.frechet_floor),
        (y, found.accuracy, found.frechet),
    ):
        predicted, seen = quality.judge_all(judge_of, images)
        assert share == (predicted == test.labels).mean()
        moments = metrics.moments(quality.judge_all(judge_of, train.x)[1])
        assert distance == pytest.approx(metrics.frechet(seen, moments), rel=1e-6)


# ------------------------------------------------------------------------------------- weights


def test_a_released_autoencoder_comes_with_the_scale_of_its_card(tmp_path):
    model = VAE(1, 2, (8,), rngs=nnx.Rngs(3))
    about = {"class": "VAE", "latent_channels": 2, "channels": [8]}
    measured = {"latents": {"shift": [0.5, -2.0], "scale": [3.0, 0.25], "of": 10}}
    card.save_weights(tmp_path, model, card.Card("mine", about, {}, {}, measured))
    found = weights.latent_space("mine", folder=tmp_path)
    x = pictures(2, (4, 6, 1))
    own = np.asarray(model.latents(x))
    np.testing.assert_allclose(found.encode(x), (own - [0.5, -2.0]) * [3.0, 0.25], rtol=1e-5)
    assert weights.load("mine", folder=tmp_path).process is None
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {}}))
    with pytest.raises(ValueError, match="name must be that of an autoencoder's weights, got"):
        weights.latent_space("mine", folder=tmp_path)
