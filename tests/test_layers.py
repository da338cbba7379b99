import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from networks import drawn
from oracles import examples

from diffusion_course.models import attention as by_heads
from diffusion_course.models import layers
from diffusion_course.models.attention import attend, count_heads

rng = np.random.default_rng(27)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def array(*shape, mean=0.3, std=1.4):
    return rng.normal(mean, std, shape).astype(np.float32)


def rngs():
    return nnx.Rngs(0)


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v):
    """Softmax attention over the last two axes, in NumPy."""
    return softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])) @ v


def normalised(x, groups, epsilon=1e-5):
    """Group norm without scale and shift, in NumPy float64: x [B, H, W, C]."""
    parts = x.reshape(*x.shape[:3], groups, -1).astype(np.float64)
    mean = parts.mean((1, 2, 4), keepdims=True)
    variance = ((parts - mean) ** 2).mean((1, 2, 4), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def filled(make):
    """A layer whose parameters are all random numbers, and those numbers by their name."""
    layer = drawn(make, seed=3)
    return layer, nnx.to_pure_dict(nnx.state(layer, nnx.Param))


call = jax.jit(lambda layer, *inputs: layer(*inputs))


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
    layer, p = filled(lambda: layers.TimeEmbedding(8, rngs=rngs()))
    t = jnp.asarray([0.1, 0.9])
    h = silu(layers.sinusoidal_embedding(t, 8) @ p["first"]["kernel"] + p["first"]["bias"])
    want = h @ p["second"]["kernel"] + p["second"]["bias"]
    np.testing.assert_allclose(call(layer, t), want, atol=1e-5)


def test_the_sinusoids_are_float32_whatever_the_network_computes_in():
    layer = jax.eval_shape(lambda: layers.TimeEmbedding(8, dtype=jnp.bfloat16, rngs=rngs()))
    jaxpr = jax.make_jaxpr(lambda layer, t: layer(t))(layer, jnp.ones(2))
    waves = [e for e in jaxpr.eqns if e.primitive.name in ("sin", "cos")]
    assert len(waves) == 2 and {e.outvars[0].aval.dtype for e in waves} == {jnp.dtype("float32")}
    for half in (jnp.bfloat16, jnp.float16):
        with pytest.raises(ValueError, match=r"t must be float32, got dtype b?float16"):
            layers.sinusoidal_embedding(jnp.ones(2, half), 8)


# ------------------------------------------------------------------------------------- group norm


@pytest.mark.parametrize(("channels", "groups"), [(24, 8), (8, 8), (6, 1)])
def test_group_norm_equals_the_ready_made_one_in_value_and_gradient(channels, groups):
    ours = layers.GroupNorm(channels, groups, rngs=rngs())
    theirs = nnx.GroupNorm(channels, groups, epsilon=1e-5, rngs=rngs())
    params = {"scale": np.linspace(-1.0, 2.0, channels, dtype=np.float32),
              "bias": np.linspace(0.5, -0.7, channels, dtype=np.float32)}  # fmt: skip
    x, y = array(3, 4, 5, channels), array(3, 4, 5, channels)

    @jax.jit
    def values_and_gradients(params, x, y):
        def of(layer):
            graph, state = nnx.split(layer)
            leaves = jax.tree.structure(state).unflatten([params["bias"], params["scale"]])
            value, back = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), leaves, x)
            return value, *back(y)

        return of(ours), of(theirs)

    got, want = values_and_gradients(params, x, y)
    for mine, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Sums of 60 and more products.
        np.testing.assert_allclose(mine, plain, rtol=1e-3, atol=1e-4)
    value = normalised(x, groups) * params["scale"] + params["bias"]
    np.testing.assert_allclose(got[0], value, rtol=1e-4, atol=1e-4)


def test_group_norm_scales_and_shifts_each_image_and_channel():
    layer, p = filled(lambda: layers.GroupNorm(16, rngs=rngs()))
    x, scale, shift, y = array(3, 4, 6, 16), array(3, 16), array(3, 16), array(3, 4, 6, 16)

    @jax.jit
    def both(layer, *inputs):
        def plain(x, scale, shift):
            return layer(x) * (1 + scale[:, None, None]) + shift[:, None, None]

        results = []
        for function in (layer, plain):
            value, back = jax.vjp(function, *inputs)
            results.append((value, *back(y)))
        return results

    got, want = both(layer, x, scale, shift)
    for mine, plain in zip(got, want, strict=True):
        # Sums of up to 24 products of size 4, rounded in another order.
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-4)
    value = normalised(x, 8) * p["scale"] + p["bias"]
    value = value * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(got[0], value, rtol=1e-4, atol=1e-4)


def test_group_norm_multiplies_in_full_precision_on_every_device():
    layer = layers.GroupNorm(16, rngs=rngs())
    products = [
        equation.params["precision"]
        for equation in jax.make_jaxpr(layer)(array(2, 4, 4, 16)).eqns
        if equation.primitive.name == "dot_general"
    ]
    highest = jax.lax.Precision.HIGHEST
    assert len(products) == 3 and set(products) == {(highest, highest)}


def test_group_norm_survives_a_large_mean_and_treats_each_image_alone():
    layer = layers.GroupNorm(16, rngs=rngs())
    x = array(3, 6, 6, 16, mean=0.0, std=1.0)
    norm = jax.jit(layer)
    plain = norm(x)
    # 1000 + x is rounded to 6e-5; mean² − mean of squares would be wrong by 0.06.
    np.testing.assert_allclose(norm(x + 1000), plain, atol=2e-3)
    for i in range(3):
        others = np.where(np.arange(3)[:, None, None, None] == i, x, 7 * x - 3)
        np.testing.assert_allclose(norm(others)[i], plain[i], atol=1e-5)


# -------------------------------------------------------------------------------- moving of pixels


def test_upsampling_repeats_every_pixel_in_value_and_gradient():
    x, y = array(2, 3, 5, 4), array(2, 6, 10, 4)

    @jax.jit
    def value_and_gradient(x, y):
        value, back = jax.vjp(layers.upsample, x)
        return value, back(y)[0]

    value, gradient = value_and_gradient(x, y)
    np.testing.assert_array_equal(value, x.repeat(2, axis=1).repeat(2, axis=2))
    # Sums of four numbers in any order.
    want = y.reshape(2, 3, 2, 5, 2, 4).sum((2, 4))
    np.testing.assert_allclose(gradient, want, atol=1e-5)


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

    @jax.jit
    def outputs(x, emb):
        wider = layers.ResidualBlock(16, 24, 12, rngs=rngs())
        kernel, bias = wider.skip.kernel[...], wider.skip.bias[...]
        return layers.ResidualBlock(16, 16, 12, rngs=rngs())(x, emb), wider(x, emb), kernel, bias

    same, wider, kernel, bias = outputs(x, emb)
    np.testing.assert_array_equal(same, x)
    assert kernel.any()
    np.testing.assert_allclose(wider, x @ kernel + bias, atol=1e-5)


def test_a_residual_block_scales_and_shifts_by_the_embedding():
    block, p = filled(lambda: layers.ResidualBlock(16, 24, 12, rngs=rngs()))
    x, emb = array(2, 4, 6, 16), array(2, 12)

    def norm(x, p):
        return normalised(x, 8) * p["scale"] + p["bias"]

    def conv(x, p):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [(i, j) for i in range(3) for j in range(3)]
        return p["bias"] + sum(padded[:, i : i + 4, j : j + 6] @ p["kernel"][i, j] for i, j in taps)

    h = norm(conv(silu(norm(x, p["norm1"])), p["conv1"]), p["norm2"])
    film = silu(emb) @ p["film"]["kernel"] + p["film"]["bias"]
    h = h * (1 + film[:, None, None, :24]) + film[:, None, None, 24:]
    want = conv(silu(h), p["conv2"]) + x @ p["skip"]["kernel"] + p["skip"]["bias"]
    np.testing.assert_allclose(call(block, x, emb), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "head_size"), [(64, 16), (32, 32)])
def test_attention_is_scaled_dot_product_attention(channels, head_size):
    layer, p = filled(lambda: layers.Attention(channels, head_size, rngs=rngs()))
    x = array(2, 3, 5, channels)
    tokens = (normalised(x, 8) * p["norm"]["scale"] + p["norm"]["bias"]).reshape(2, 15, channels)
    qkv = (tokens @ p["qkv"]["kernel"]).reshape(2, 15, 3, -1, head_size)
    q, k, v = np.moveaxis(qkv, (2, 3), (0, 2))
    mixed = np.moveaxis(attention(q, k, v), 1, 2).reshape(2, 15, channels)
    want = x + (mixed @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(call(layer, x), want, rtol=1e-4, atol=1e-4)


def test_attention_starts_as_the_identity_and_sees_all_pixels_and_no_order():
    x = array(1, 4, 4, 32)
    order = rng.permutation(16)

    @jax.jit
    def outputs(x, kernel):
        layer = layers.Attention(32, rngs=rngs())
        start = layer(x)
        layer.out.kernel[...] = kernel
        influence = jax.grad(lambda x: layer(x)[0, 0, 0].sum())(x)
        return start, layer(x), influence

    def shuffled(x):
        return np.asarray(x).reshape(1, 16, 32)[:, order].reshape(x.shape)

    kernel = array(32, 32)
    start, y, influence = outputs(x, kernel)
    np.testing.assert_array_equal(start, x)
    assert (np.abs(influence).max(-1) > 0).all()
    y_shuffled = outputs(shuffled(x), kernel)[1]
    np.testing.assert_allclose(y_shuffled, shuffled(y), rtol=1e-4, atol=1e-4)


def test_attention_has_the_gradient_of_the_softmax_of_its_logits_even_for_large_ones():
    # With std 100 queries times keys reach 4e4, whose exponential is infinite.
    qkv, y = array(2, 7, 3 * 24), array(2, 7, 24)

    @jax.jit
    def both(qkv, y):
        def plain(qkv):
            q, k, v = (part.reshape(2, 7, 3, 8) for part in jnp.split(qkv, 3, axis=-1))
            return jax.nn.dot_product_attention(q, k, v).reshape(2, 7, 24)

        results = []
        for function in (lambda qkv: attend(qkv, 3), plain):
            value, back = jax.vjp(function, qkv)
            results.append((value, back(y)[0]))
        return results

    for got, want in zip(*both(qkv, y), strict=True):
        # Sums of seven products whose factors are below 10.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    large = array(2, 7, 3 * 24, std=100.0)
    (value, gradient), _ = both(large, y)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    # Each output is a mean of values, so it lies between them.
    values = large[..., 48:]
    assert (value <= values.max(1, keepdims=True) + 1e-3).all()
    assert (value >= values.min(1, keepdims=True) - 1e-3).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Attention(48, rngs=rngs()), "head_size must divide channels = 48, got 32"),
        (lambda: count_heads(8, 0), "head_size must be a whole number at least 1, got 0"),
        (lambda: layers.GroupNorm(12, rngs=rngs()), "groups must divide channels = 12, got 8"),
        (lambda: layers.GroupNorm(8, 0, rngs=rngs()), "groups must be .* at least 1, got 0"),
        (lambda: layers.Linear(2, 3, dtype=jnp.float16, rngs=rngs()), "dtype must .*got float16"),
        (lambda: layers.Conv3x3(2, 3, dtype=int, rngs=rngs()), "dtype must .*got int"),
        (lambda: layers.Conditioning(8, 0, rngs=rngs()), "num_classes must be .* 1, got 0"),
        (
            lambda: attend(jnp.zeros((1, 2, 8)), 3),
            r"qkv must have 3·heads·n = 9·n.*got 8",
        ),
        (lambda: attend(jnp.zeros((1, 2, 9)), 0), "heads must be .* at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make)


def test_layers_that_start_at_zero_are_zero():
    for layer in (
        layers.Conv3x3(3, 5, zero=True, rngs=rngs()),
        layers.Linear(3, 5, zero=True, rngs=rngs()),
    ):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(nnx.state(layer)))


@pytest.mark.parametrize(
    ("layer", "fan_in"), [(lambda: layers.Linear(96, 200, rngs=rngs()), 96),
                          (lambda: layers.Conv3x3(32, 80, rngs=rngs()), 9 * 32)],
)  # fmt: skip
def test_weights_start_with_variance_one_over_fan_in(layer, fan_in):
    kernel = np.asarray(layer().kernel[...])
    # The standard error of the variance of n uniform numbers is .9/sqrt(n): n > 19,000 here.
    np.testing.assert_allclose(kernel.var() * fan_in, 1, atol=0.03)
    assert np.abs(kernel).max() <= np.sqrt(3 / fan_in)


@pytest.mark.parametrize(("backend", "times"), [("cpu", 1), ("gpu", 1), ("tpu", 2)])
def test_a_tpu_computes_the_weights_of_attention_anew_for_the_gradient(backend, times, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    shape = jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.float32)

    def gradient(q, k, v):
        return jax.grad(lambda *a: jnp.sum(by_heads.attention(*a) ** 2), (0, 1, 2))(q, k, v)

    text = jax.jit(gradient).trace(shape, shape, shape).lower().as_text()
    assert text.count("stablehlo.exponential") == times


def test_a_scan_keeps_no_weights_of_attention_on_a_tpu(monkeypatch):
    q = jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.float32)

    def loss(q):
        turn = lambda x, _: (by_heads.attention(x, q, q).reshape(q.shape), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(turn, q, length=7)[0])

    def keeps(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        text = jax.jit(lambda q: jax.grad(loss)(q)).lower(q).as_text()
        return "tensor<7x2x3x5x5xf32>" in text

    assert keeps("cpu") and not keeps("tpu")


def test_attention_computed_anew_has_the_same_gradients():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 3, 5, 4)) for i in range(3))
    mask = jnp.array([[True, True, False, True, True], [False, True, True, True, False]])
    for m in (None, mask):
        kept, anew = (
            jax.grad(lambda *a, f=f, m=m: jnp.sum(f(*a, m) ** 2), (0, 1, 2))(q, k, v)
            for f in (by_heads._attention, jax.checkpoint(by_heads._attention))
        )
        for one, other in zip(kept, anew, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)  # another order at most
