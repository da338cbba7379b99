import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.models import layers

rng = np.random.default_rng(27)


def array(*shape, mean=0.3, std=1.4):
    return jnp.asarray(rng.normal(mean, std, shape), jnp.float32)


def rngs():
    return nnx.Rngs(0)


# -------------------------------------------------------------------------------------- embedding


def test_the_embedding_is_sines_and_cosines_of_a_thousand_steps():
    t, dim = np.array([0.0, 0.001, 0.37, 1.0], np.float32).astype(np.float64), 12
    want = np.zeros((4, dim))
    for i in range(6):
        frequency = 10_000.0 ** (-i / 6)
        want[:, i], want[:, i + 6] = np.cos(1000 * t * frequency), np.sin(1000 * t * frequency)
    got = layers.sinusoidal_embedding(jnp.asarray(t, jnp.float32), dim)
    # Angles of up to 1000 rounded by EPS32.
    np.testing.assert_allclose(got, want, atol=3e-4)
    slow = layers.sinusoidal_embedding(jnp.ones(1), 4, max_period=1e6)
    np.testing.assert_allclose(slow[0, 1::2], [np.cos(1.0), np.sin(1.0)], rtol=1e-5)


def test_neighbouring_steps_of_a_thousand_look_different():
    embedding = np.asarray(layers.sinusoidal_embedding(jnp.arange(1001) / 1000, 32))
    distance = np.linalg.norm(np.diff(embedding, axis=0), axis=1)
    assert distance.min() > 0.5 and np.abs(embedding).max() <= 1


@examples
@given(st.one_of(st.integers(-9, 1), st.integers(1, 9).map(lambda n: 2 * n + 1)))
def test_an_odd_or_empty_embedding_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim must be a positive even number, got {dim}$"):
        layers.sinusoidal_embedding(jnp.zeros(1), dim)


def test_the_time_embedding_is_two_dense_layers_on_the_sinusoids():
    layer, t = layers.TimeEmbedding(8, rngs=rngs()), jnp.asarray([0.1, 0.9])
    h = layers.sinusoidal_embedding(t, 8) @ layer.first.kernel[...] + layer.first.bias[...]
    h = h / (1 + jnp.exp(-h))
    want = h @ layer.second.kernel[...] + layer.second.bias[...]
    np.testing.assert_allclose(layer(t), want, atol=1e-5)


# ------------------------------------------------------------------------------------- group norm


@pytest.mark.parametrize(("channels", "groups"), [(24, 8), (8, 8), (6, 1)])
def test_group_norm_equals_the_ready_made_one_in_value_and_gradient(channels, groups):
    ours = layers.GroupNorm(channels, groups, rngs=rngs())
    theirs = nnx.GroupNorm(channels, groups, epsilon=1e-5, rngs=rngs())
    for layer in (ours, theirs):
        layer.scale[...] = jnp.linspace(-1.0, 2.0, channels)
        layer.bias[...] = jnp.linspace(0.5, -0.7, channels)
    x, weights = array(3, 4, 5, channels), array(3, 4, 5, channels)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)

    def gradients(layer):
        graph, params = nnx.split(layer)
        f = lambda params, x: (nnx.merge(graph, params)(x) * weights).sum()  # noqa: E731
        to_params, to_x = jax.jit(jax.grad(f, (0, 1)))(params, x)
        return to_params["scale"][...], to_params["bias"][...], to_x

    for got, want in zip(gradients(ours), gradients(theirs), strict=True):
        # Sums of 60 and more products.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_group_norm_scales_and_shifts_each_image_and_channel():
    layer, x = layers.GroupNorm(16, rngs=rngs()), array(3, 4, 6, 16)
    layer.scale[...], layer.bias[...] = array(16), array(16)
    scale, shift, y = array(3, 16), array(3, 16), array(3, 4, 6, 16)

    def plain(x, scale, shift):
        return layer(x) * (1 + scale[:, None, None]) + shift[:, None, None]

    for got, want in zip(
        [layer(x, scale, shift), *jax.vjp(layer, x, scale, shift)[1](y)],
        [plain(x, scale, shift), *jax.vjp(plain, x, scale, shift)[1](y)],
        strict=True,
    ):
        # Sums of up to 24 products of size 4, rounded in another order.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_group_norm_multiplies_in_full_precision_on_every_device():
    layer = layers.GroupNorm(16, rngs=rngs())
    products = [
        equation.params["precision"]
        for equation in jax.make_jaxpr(layer)(array(2, 4, 4, 16)).eqns
        if equation.primitive.name == "dot_general"
    ]
    highest = jax.lax.Precision.HIGHEST
    assert len(products) == 3 and set(products) == {(highest, highest)}


def test_group_norm_survives_a_large_mean():
    layer = layers.GroupNorm(16, rngs=rngs())
    x = array(2, 6, 6, 16, mean=0.0, std=1.0)
    # 1000 + x is rounded to 6e-5; mean² − mean of squares would be wrong by 0.06.
    np.testing.assert_allclose(layer(x + 1000), layer(x), atol=2e-3)


def test_group_norm_treats_each_image_alone():
    layer, x = layers.GroupNorm(16, rngs=rngs()), array(3, 4, 4, 16)
    for i in range(3):
        np.testing.assert_allclose(layer(x)[i], layer(x[i : i + 1])[0], atol=1e-5)


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="groups must divide channels = 12, got 8"):
        layers.GroupNorm(12, rngs=rngs())


# -------------------------------------------------------------------------------- moving of pixels


def test_upsampling_repeats_every_pixel_in_value_and_gradient():
    x, weights = array(2, 3, 5, 4), array(2, 6, 10, 4)
    repeat = lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)  # noqa: E731
    np.testing.assert_array_equal(layers.upsample(x), repeat(x))
    gradients = [
        jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (layers.upsample, repeat)
    ]
    # Sums of four numbers in any order.
    np.testing.assert_allclose(*gradients, atol=1e-5)


@examples
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_depth_to_space_undoes_space_to_depth(block, height, width, channels):
    x = np.arange(2 * height * width * block**2 * channels, dtype=np.float32)
    x = x.reshape(2, height * block, width * block, channels)
    deep = layers.space_to_depth(x, block)
    assert deep.shape == (2, height, width, block**2 * channels)
    np.testing.assert_array_equal(layers.depth_to_space(deep, block), x)
    np.testing.assert_array_equal(
        layers.space_to_depth(layers.depth_to_space(deep, block), block), deep
    )
    # The pixels of one block, row by row, and of no other.
    np.testing.assert_array_equal(
        deep[1, height - 1, 0].reshape(block, block, channels),
        x[1, -block:, :block],
    )


@pytest.mark.parametrize("shape", [(1, 5, 4, 1), (1, 4, 5, 1)])
def test_blocks_that_do_not_fit_are_refused(shape):
    size = f"{shape[1]}×{shape[2]}"
    with pytest.raises(ValueError, match=f"block must divide the image size {size}, got 2"):
        layers.space_to_depth(jnp.zeros(shape), 2)
    with pytest.raises(ValueError, match="block² must divide the 6 channels, got block = 2"):
        layers.depth_to_space(jnp.zeros((1, 2, 2, 6)), 2)


# ------------------------------------------------------------------------------------------ blocks


def test_a_residual_block_starts_as_the_identity_or_its_projection():
    x, emb = array(2, 4, 6, 16), array(2, 12)
    np.testing.assert_array_equal(layers.ResidualBlock(16, 16, 12, rngs=rngs())(x, emb), x)
    wider = layers.ResidualBlock(16, 24, 12, rngs=rngs())
    want = jnp.einsum("bhwc,cd->bhwd", x, wider.skip.kernel[...]) + wider.skip.bias[...]
    np.testing.assert_allclose(wider(x, emb), want, atol=1e-5)


def test_a_residual_block_scales_and_shifts_by_the_embedding():
    block = layers.ResidualBlock(16, 16, 12, rngs=rngs())
    block.conv2.kernel[...] = array(3, 3, 16, 16)
    x, emb = array(2, 4, 6, 16), array(2, 12)

    def silu(x):
        return x / (1 + jnp.exp(-x))

    h = block.norm2(block.conv1(silu(block.norm1(x))))
    film = silu(emb) @ block.film.kernel[...] + block.film.bias[...]
    h = h * (1 + film[:, None, None, :16]) + film[:, None, None, 16:]
    np.testing.assert_allclose(block(x, emb), x + block.conv2(silu(h)), rtol=1e-4, atol=1e-4)


def test_attention_starts_as_the_identity():
    x = array(2, 3, 5, 64)
    np.testing.assert_array_equal(layers.Attention(64, rngs=rngs())(x), x)


@pytest.mark.parametrize(("channels", "head_size"), [(64, 16), (32, 32)])
def test_attention_is_scaled_dot_product_attention(channels, head_size):
    layer = layers.Attention(channels, head_size, rngs=rngs())
    layer.out.kernel[...] = array(channels, channels)
    x = array(2, 3, 5, channels)
    tokens = layer.norm(x).reshape(2, 15, channels)
    parts = jnp.split(tokens @ layer.qkv.kernel[...], 3, axis=-1)
    q, k, v = (part.reshape(2, 15, channels // head_size, head_size) for part in parts)
    mixed = jax.nn.dot_product_attention(q, k, v).reshape(2, 15, channels)
    want = x + (mixed @ layer.out.kernel[...] + layer.out.bias[...]).reshape(x.shape)
    np.testing.assert_allclose(layer(x), want, rtol=1e-4, atol=1e-4)


def test_attention_has_the_gradient_of_the_softmax_of_its_logits():
    qkv, weights = array(2, 7, 3 * 24), array(2, 7, 24)

    def plain(qkv):
        q, k, v = (part.reshape(2, 7, 3, 8) for part in jnp.split(qkv, 3, axis=-1))
        return jax.nn.dot_product_attention(q, k, v).reshape(2, 7, 24)

    for got, want in zip(
        [layers.attend(qkv, 3), *jax.vjp(lambda x: layers.attend(x, 3), qkv)[1](weights)],
        [plain(qkv), *jax.vjp(plain, qkv)[1](weights)],
        strict=True,
    ):
        # Sums of seven products whose factors are below 10.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_attention_survives_large_logits():
    # Queries times keys reach 4e4, whose exponential is infinite.
    qkv = array(2, 5, 3 * 16, std=100.0)
    out, back = jax.vjp(lambda x: layers.attend(x, 2), qkv)
    assert jnp.isfinite(out).all() and jnp.isfinite(back(jnp.ones_like(out))[0]).all()
    # Each output is a mean of values, so it lies between them.
    values = qkv[..., 32:]
    assert (out <= values.max(1, keepdims=True) + 1e-3).all()
    assert (out >= values.min(1, keepdims=True) - 1e-3).all()


def test_attention_sees_all_pixels_and_no_order():
    layer = layers.Attention(32, rngs=rngs())
    layer.out.kernel[...] = array(32, 32)
    x = array(1, 4, 4, 32)
    order = rng.permutation(16)

    def shuffled(x):
        return x.reshape(1, 16, 32)[:, order].reshape(x.shape)

    np.testing.assert_allclose(layer(shuffled(x)), shuffled(layer(x)), rtol=1e-4, atol=1e-4)
    influence = jax.grad(lambda x: layer(x)[0, 0, 0].sum())(x)
    assert (np.abs(influence).max(-1) > 0).all()


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="head_size must divide channels = 48, got 32"):
        layers.Attention(48, rngs=rngs())


def test_layers_that_start_at_zero_are_zero():
    assert (layers.Conv3x3(3, 5, zero=True, rngs=rngs())(array(1, 4, 4, 3)) == 0).all()
    assert (layers.Linear(3, 5, zero=True, rngs=rngs())(array(7, 3)) == 0).all()


@pytest.mark.parametrize(
    ("layer", "fan_in"), [(lambda: layers.Linear(96, 200, rngs=rngs()), 96),
                          (lambda: layers.Conv3x3(32, 80, rngs=rngs()), 9 * 32)],
)  # fmt: skip
def test_weights_start_with_variance_one_over_fan_in(layer, fan_in):
    kernel = np.asarray(layer().kernel[...])
    # The standard error of the variance of n uniform numbers is .9/sqrt(n): n > 19,000 here.
    np.testing.assert_allclose(kernel.var() * fan_in, 1, atol=0.03)
    assert np.abs(kernel).max() <= np.sqrt(3 / fan_in)
