"""Models with an exact likelihood: pixel by pixel, and by couplings. Against enumeration."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, shaken, shape_of

from diffusion_course import likelihood
from diffusion_course.models import autoregressive, quantize
from diffusion_course.models.autoregressive import PixelCNN
from diffusion_course.models.coupling import CouplingFlow

pytestmark = pytest.mark.usefixtures("quickly_compiled")
RNG = np.random.default_rng(21)


@cache
def pixels(levels=2, size=(2, 3), depth=2, num_classes=3):
    """A PixelCNN with random weights."""

    def make():
        return PixelCNN(
            levels, size, width=8, depth=depth, num_classes=num_classes, rngs=nnx.Rngs(0)
        )

    return drawn(make, seed=4)


def all_images(levels, rows, cols):
    return np.array(list(itertools.product(range(levels), repeat=rows * cols))).reshape(
        -1, rows, cols
    )


# -------------------------------------------------------------------------------- grey levels


def test_levels_and_numbers_are_each_others_inverse():
    for levels in (2, 17, 256):
        index = np.arange(levels).reshape(1, -1)
        x = autoregressive.from_levels(index, levels)
        assert x.min() == -1 and x.max() == 1
        np.testing.assert_array_equal(autoregressive.to_levels(x, levels), index)
        # Anywhere within half a step, and outside of [-1, 1].
        near = x + RNG.uniform(-0.49, 0.49, x.shape) * 2 / (levels - 1)
        np.testing.assert_array_equal(autoregressive.to_levels(near, levels), index)
    np.testing.assert_array_equal(autoregressive.to_levels(np.array([-3.0, 1.7]), 5), [0, 4])


# -------------------------------------------------------------------------------------- order


def slopes(model, size):
    """Whether the logits of pixel i have a slope in the vector of pixel j: [H·W, H·W]."""
    count = size[0] * size[1]
    graph, params = nnx.split(model)

    @jax.jit
    def slope(table):
        def logits(table):
            copy = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
            copy.level.embedding[...] = table
            # Every pixel has a level of its own, so that a row of the table is one pixel's.
            return copy(np.arange(count).reshape(1, *size)).reshape(count, -1)

        return jax.jacrev(logits)(table)

    found = np.asarray(slope(model.level.embedding[...]))  # [H·W, K, H·W, width]
    return np.abs(found).max(axis=(1, 3)) > 0


@pytest.mark.parametrize("size", [(3, 4), (4, 3)])
def test_a_pixel_depends_on_all_earlier_ones_and_on_no_other(size):
    # Deep enough to see the whole width; a blind spot would show as a missing entry.
    seen = slopes(pixels(levels=12, size=size, depth=4), size)
    np.testing.assert_array_equal(seen, np.tril(np.ones_like(seen), k=-1))


def test_the_last_pixel_is_not_read():
    model, x = pixels(levels=3, size=(3, 4)), RNG.integers(0, 3, (2, 3, 4))
    other = x.copy()
    other[:, -1, -1] = (other[:, -1, -1] + 1) % 3
    np.testing.assert_array_equal(model(x), model(other))


# --------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize(("levels", "size"), [(2, (2, 3)), (3, (2, 2)), (2, (3, 2))])
def test_the_probabilities_of_all_images_add_up_to_one(levels, size):
    model, images = pixels(levels, size), all_images(levels, *size)
    for label in (0, 2, 3):  # 3: no label
        cond = np.full(len(images), label)
        p = np.exp(np.asarray(autoregressive.log_prob(model, images, cond), np.float64))
        assert p.sum() == pytest.approx(1, abs=1e-5)  # float32, some 60 terms
        assert p.max() > 1.5 * p.min()  # not the uniform distribution


def test_images_are_drawn_as_often_as_their_probability_says():
    model, n = pixels(), 4096
    images = all_images(2, 2, 3)
    cond = np.repeat([1, 2], n // 2)
    x = autoregressive.sample(model, n, jax.random.key(3), cond)
    code = np.asarray(x).reshape(n, -1) @ 2 ** np.arange(5, -1, -1)
    for label in (1, 2):
        p = np.exp(autoregressive.log_prob(model, images, np.full(len(images), label)))
        count = np.bincount(code[cond == label], minlength=len(images))
        expected = np.asarray(p, np.float64) * n / 2
        chi_square = ((count - expected) ** 2 / expected).sum()
        # 63 degrees of freedom: mean 63, standard deviation √126; 5 of them above the mean.
        assert chi_square < 63 + 5 * np.sqrt(126)


def test_a_low_temperature_draws_the_likeliest_levels_and_the_number_is_checked():
    model = pixels(levels=3, size=(2, 2))
    cold = autoregressive.sample(model, 5, jax.random.key(0), temperature=1e-4)
    x = np.zeros((1, 2, 2), int)
    for row, col in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x[:, row, col] = model(x)[0, row, col].argmax()
    np.testing.assert_array_equal(cold, np.broadcast_to(x, (5, 2, 2)))


def test_an_untrained_model_needs_the_bits_of_the_levels():
    model = initial(lambda: PixelCNN(5, (2, 3), width=8, depth=1, rngs=nnx.Rngs(0)))
    log_p = autoregressive.log_prob(model, RNG.integers(0, 5, (4, 2, 3)))
    np.testing.assert_allclose(likelihood.bits_per_dim(log_p, 6), np.log2(5), rtol=1e-6)


def test_the_label_counts_and_its_absence_is_the_null_label():
    model, x = pixels(), RNG.integers(0, 2, (1, 2, 3))
    logits = [model(x, np.array([label])) for label in range(4)]
    for a, b in itertools.combinations(logits, 2):
        assert np.abs(np.asarray(a - b)).max() > 1e-3
    np.testing.assert_array_equal(model(x), logits[model.null_label])


def test_every_parameter_of_the_pixel_model_has_a_gradient():
    graph, params = nnx.split(pixels(levels=3, size=(3, 4)))
    x, cond = RNG.integers(0, 3, (16, 3, 4)), RNG.integers(0, 4, 16)

    @jax.jit
    def gradient(params):
        nats = lambda p: autoregressive.log_prob(nnx.merge(graph, p), x, cond).sum()  # noqa: E731
        return jax.grad(nats)(params)

    for path, slope in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(slope).max() > 0, path


def test_codes_become_images_and_images_codes():
    make = lambda: quantize.VQVAE(1, 3, 5, channels=(8,), stem=2, rngs=nnx.Rngs(0))  # noqa: E731
    vq = drawn(make, seed=2)
    x = jnp.asarray(RNG.uniform(-1, 1, (3, 8, 4, 1)), jnp.float32)
    index = vq.index(x)
    assert index.shape == (3, 4, 2)
    np.testing.assert_array_equal(vq.codebook[...][index], vq.latents(x))
    np.testing.assert_allclose(vq.decode_index(index), vq.decode(vq.latents(x)), atol=1e-6)
    with pytest.raises(ValueError, match="index must be in 0 … 4, got 5 … 5"):
        vq.decode_index(np.full((1, 4, 2), 5))


# ---------------------------------------------------------------------------------- couplings


@cache
def flow(dim, depth, std=0.3):
    make = lambda: CouplingFlow(  # noqa: E731
        dim, width=8, depth=depth, num_classes=3, rngs=nnx.Rngs(0)
    )
    return shaken(initial(make), seed=5, std=std)


@pytest.mark.parametrize(("dim", "depth"), [(2, 3), (6, 7)])
def test_a_flow_is_undone_and_its_volume_is_that_of_the_jacobian(dim, depth):
    model = flow(dim, depth)
    x, cond = jnp.asarray(RNG.normal(0.3, 1.2, (4, dim)), jnp.float32), np.array([0, 2, 3, 1])
    z, log_det = model(x, cond)
    np.testing.assert_allclose(model.inverse(z, cond), x, atol=3e-4)  # stretched rounding
    one = lambda row, label: model(row[None], label[None])[0][0]  # noqa: E731
    jacobian = jax.vmap(jax.jacfwd(one))(x, jnp.asarray(cond))
    sign, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    np.testing.assert_array_equal(sign, 1)
    # The Jacobian is in float32 as well, and nearly singular where it stretches.
    np.testing.assert_allclose(log_det, expected, rtol=3e-4, atol=3e-4)
    assert np.abs(expected).min() > 0.01
    # Every coordinate of the noise depends on every one of the data, if the couplings suffice.
    assert (np.abs(jacobian) > 0).all()


def test_the_density_of_a_flow_in_the_plane_adds_up_to_one():
    side = np.linspace(-20, 20, 501)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    model = flow(2, 3, std=0.2)
    log_p = jax.jit(model.log_prob)(jnp.asarray(grid, jnp.float32), np.full(len(grid), 1))
    p = np.exp(np.asarray(log_p, np.float64))
    assert p.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-4)
    edge = np.abs(grid).max(axis=1) > 19
    assert p[edge].max() < 1e-6  # nothing of it is left out
    normal = np.exp(-(grid**2).sum(1) / 2) / (2 * np.pi)
    assert np.abs(p - normal).max() > 0.02  # and it is another one than the noise's


def test_the_couplings_take_every_digit_of_the_index_in_turn():
    masks = [c.mask for c in flow(6, 7).couplings]
    assert masks[0] == (1, 0, 1, 0, 1, 0) and masks[1] == (0, 1, 0, 1, 0, 1)
    assert masks[2] == (1, 1, 0, 0, 1, 1) and masks[4] == (1, 1, 1, 1, 0, 0)
    assert masks[6] == masks[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: autoregressive.to_levels(np.zeros(2), 1), "levels must be a whole number at"),
        (lambda: autoregressive.to_levels(np.zeros(2, int), 4), "x must be floating-point"),
        (lambda: autoregressive.from_levels(np.array([4]), 4), "index must be in 0 … 3, got 4 … 4"),
        (lambda: PixelCNN(1, 8, rngs=nnx.Rngs(0)), "levels must be a whole number at least 2"),
        (lambda: PixelCNN(3, 0, rngs=nnx.Rngs(0)), "image_size must be a whole number at least 1"),
        (lambda: PixelCNN(3, 4, depth=0, rngs=nnx.Rngs(0)), "depth must be a whole number at"),
        (lambda: PixelCNN(3, 4, width=0, rngs=nnx.Rngs(0)), "width must be a whole number at"),
        (lambda: pixels()(np.zeros((1, 3, 2), int)), r"x must have shape \[B, 2, 3\], got \[1, 3"),
        (lambda: pixels()(np.full((1, 2, 3), 2)), "x must be in 0 … 1, got 2 … 2"),
        (lambda: pixels()(np.zeros((1, 2, 3), int), np.array([4])), "cond must be in 0 … 3, got 4"),
        (lambda: autoregressive.sample(pixels(), 0, jax.random.key(0)), "count must be a whole"),
        (
            lambda: autoregressive.sample(pixels(), 1, jax.random.key(0), temperature=0.0),
            "temperature must be positive",
        ),
        (lambda: autoregressive.sample(pixels(), 1, 0), "key must be one random key"),
        (lambda: CouplingFlow(1, rngs=nnx.Rngs(0)), "dim must be a whole number at least 2, got 1"),
        (lambda: CouplingFlow(2, depth=0, rngs=nnx.Rngs(0)), "depth must be a whole number at"),
        (lambda: flow(2, 3)(np.zeros((1, 3))), r"x must have shape \[B, 2\], got \[1, 3\]"),
        (lambda: flow(2, 3)(np.zeros((1, 2)), np.array([7])), "cond must be in 0 … 3, got 7 … 7"),
    ],
)
def test_bad_arguments_of_exact_models_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_without_labels_takes_none():
    model = shape_of(lambda: PixelCNN(2, (2, 3), width=8, depth=1, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="cond must be None: this model has no labels"):
        jax.eval_shape(model, jnp.zeros((1, 2, 3), int), jnp.zeros(1, int))
