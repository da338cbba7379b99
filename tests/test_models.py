from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_course.models.dit import Block, DiT, layer_norm, position_embedding
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet

rng = np.random.default_rng(28)


def images(*shape):
    return jnp.asarray(rng.normal(0.1, 0.8, shape), jnp.float32)


def unet(**options):
    return UNet(**{"channels": (16, 32), "num_classes": 3, "rngs": nnx.Rngs(0)} | options)


def dit(**options):
    return DiT(**{"image_size": 8, "width": 32, "depth": 3, "num_classes": 3, "head_size": 16,
                  "rngs": nnx.Rngs(0)} | options)  # fmt: skip


def mlp(**options):
    return MLP(**{"width": 32, "depth": 2, "num_classes": 3, "rngs": nnx.Rngs(0)} | options)


T, LABELS = jnp.asarray([0.1, 0.4, 0.6, 0.9]), jnp.asarray([0, 1, 2, 3])

SHAPES = {"mlp": (4, 2), "unet": (4, 8, 8, 1), "dit": (4, 8, 8, 1), "deep unet": (4, 8, 16, 3)}
every_model = pytest.mark.parametrize("name", ["mlp", "unet", "dit"])


@cache
def untrained(name):
    """Building a U-Net takes seconds, so each is built once."""
    if name == "mlp":
        return mlp()
    if name == "dit":
        return dit()
    deep = {"blocks": 2, "stem": 2, "image_channels": 3}
    return unet(**deep) if name == "deep unet" else unet()


call = jax.jit(lambda model, x, t, cond: model(x, t, cond))


@cache
def shaken(name):
    """The model with every parameter moved a little, as training would."""
    graph, params = nnx.split(untrained(name))
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


@every_model
def test_an_untrained_model_says_zero_in_the_shape_of_its_input(name):
    got = call(untrained(name), images(*SHAPES[name]), T, LABELS)
    assert got.shape == SHAPES[name] and got.dtype == jnp.float32
    assert (got == 0).all()


def dead_parameters(gradient):
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]
        if not np.abs(leaf).max() > 0
    ]


@pytest.mark.parametrize("name", ["mlp", "deep unet", "dit"])
def test_every_parameter_learns_once_the_zero_layers_have_moved(name):
    graph, params = nnx.split(untrained(name))
    x, y = images(*SHAPES[name]), images(*SHAPES[name])

    @jax.jit
    def gradient(params):
        def loss(params):
            return jnp.mean((nnx.merge(graph, params)(x, T, LABELS) - y) ** 2)

        return jax.grad(loss)(params)

    # Behind a layer that starts at zero nothing learns. Step 1 moves the network's last layer,
    # step 2 the zero layers inside its blocks, and from the third gradient on nothing is left.
    dead = []
    for _ in range(3):
        g = gradient(params)
        dead.append(len(dead_parameters(g)))
        params = jax.tree.map(lambda p, g: p - 0.1 * g / (1e-8 + jnp.abs(g).max()), params, g)
    assert dead[0] == len(jax.tree.leaves(params)) - 2  # all but the last kernel and bias
    assert dead_parameters(g) == []
    # Each class has a row of its own, the null class too.
    rows = g["embed"]["label"]["embedding"][...]
    assert rows.shape[0] == 4 and (np.abs(rows).max(1) > 0).all()


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def unet_size(image, widths, blocks, stem, classes):
    """Parameters of the U-Net, counted layer by layer from its description."""
    dim = 4 * widths[0]

    def conv(a, b, side=3):
        return side * side * a * b + b

    def dense(a, b):
        return a * b + b

    def block(a, b):
        skip = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(a, b) + dense(dim, 2 * b) + 2 * b + conv(b, b) + skip

    pixels, bottom = stem**2 * image, widths[-1]
    total = 2 * dense(dim, dim) + conv(pixels, widths[0])
    total += (classes + 1) * dim if classes is not None else 0
    ins = [widths[0], *(w for w in widths for _ in range(blocks))]  # what the skips carry
    outs = [w for w in widths for _ in range(blocks)]
    total += sum(block(a, b) for a, b in zip(ins, outs, strict=False))
    total += block(bottom, bottom) + 2 * bottom + 3 * bottom**2 + dense(bottom, bottom)
    width = bottom
    for skip, out in zip(reversed(ins[1:]), reversed(outs), strict=True):
        total += block(width + skip, out)
        width = out
    total += sum(conv(w, w) for w in widths[:-1]) + sum(conv(w, w) for w in widths[1:])
    return total + 2 * (width + widths[0]) + conv(width + widths[0], pixels)


@pytest.mark.parametrize(
    ("image", "widths", "blocks", "stem", "classes"),
    [
        (1, (32, 64), 1, 1, 10),
        (1, (16, 32), 1, 1, None),
        (3, (16, 24, 32), 2, 2, 3),
        (2, (32,), 3, 1, 1),
    ],
)
def test_the_unet_has_as_many_parameters_as_its_description(image, widths, blocks, stem, classes):
    def build():
        return UNet(image, widths, blocks=blocks, stem=stem, num_classes=classes, rngs=nnx.Rngs(0))

    assert count(nnx.eval_shape(build)) == unet_size(image, widths, blocks, stem, classes)
    x = jnp.zeros((2, 16, 24, image))
    assert jax.eval_shape(lambda: build()(x, T[:2])).shape == x.shape


def test_the_mlp_has_as_many_parameters_as_its_description():
    w = 32
    want = 2 * (w * w + w) + (5 * w + w) + 3 * (w * w + w) + (w * 5 + 5)
    assert count(MLP(5, w, 3, rngs=nnx.Rngs(0))) == want
    assert count(MLP(5, w, 3, num_classes=7, rngs=nnx.Rngs(0))) == want + 8 * w


@every_model
def test_the_output_depends_on_time_label_and_input(name):
    model, x = shaken(name), images(*SHAPES[name])
    base = call(model, x, T, LABELS)
    for changed in (
        call(model, x, T + 0.05, LABELS),
        call(model, x, T, (LABELS + 1) % 4),
        call(model, x[::-1], T, LABELS),
    ):
        difference = np.abs(changed - base).reshape(4, -1).max(1)
        assert (difference > 1e-4).all()


@every_model
def test_no_label_is_the_null_label_and_examples_do_not_mix(name):
    model, x = shaken(name), images(*SHAPES[name])
    assert model.null_label == 3
    np.testing.assert_allclose(
        call(model, x, T, None), call(model, x, T, jnp.full(4, 3)), rtol=1e-5, atol=1e-5
    )
    whole = call(model, x, T, LABELS)
    order = jnp.asarray([2, 0, 3, 1])
    shuffled = call(model, x[order], T[order], LABELS[order])
    # Sums in another order: rounding of activations of size 10.
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-4, atol=1e-4)
    first = jnp.asarray([0, 0, 0, 0])
    alone = call(model, x[first], T[first], LABELS[first])
    np.testing.assert_allclose(alone, whole[first], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [unet, mlp, dit])
def test_a_model_without_classes_refuses_labels(make):
    x = images(2, 2) if make is mlp else images(2, 8, 8, 1)

    def shape_of(*cond):
        return jax.eval_shape(lambda: make(num_classes=None)(x, T[:2], *cond)).shape

    assert shape_of() == x.shape
    with pytest.raises(ValueError, match=r"cond must be None: this model has no labels"):
        shape_of(LABELS[:2])


@pytest.mark.parametrize("shape", [(2, 8, 6, 1), (2, 6, 8, 1), (8, 8, 1)])
def test_images_that_the_levels_cannot_halve_are_refused(shape):
    with pytest.raises(ValueError, match=r"H and W multiples of 4, got shape") as error:
        jax.eval_shape(lambda: unet(channels=(16, 32, 32))(jnp.zeros(shape), T[:2]))
    assert str(shape) in str(error.value)


def test_the_stem_counts_among_the_halvings():
    with pytest.raises(ValueError, match="H and W multiples of 4, got shape"):
        jax.eval_shape(lambda: unet(stem=2)(jnp.zeros((2, 6, 6, 1)), T[:2]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet(channels=()), r"channels must name at least one level, got \(\)"),
        (lambda: unet(blocks=0), "blocks must be at least 1, got 0"),
        (lambda: unet(channels=(12, 32)), "groups must divide channels = 12, got 8"),
        (lambda: unet(channels=(16, 24)), "head_size must divide channels = 24, got 32"),
        (lambda: mlp(depth=0), "depth must be at least 1, got 0"),
        (lambda: dit(depth=0), "depth must be at least 1, got 0"),
        (lambda: dit(patch=3), "patch must divide image_size = 8, got 3"),
        (lambda: dit(patch=0), "patch must divide image_size = 8, got 0"),
        (lambda: dit(width=30, head_size=15), "width must be a multiple of 4, got 30"),
        (lambda: dit(width=40), "head_size must divide channels = 40, got 16"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_their_rule(make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make)


# --------------------------------------------------------------------------------- the transformer


@pytest.mark.parametrize(("size", "patch", "channels", "depth"), [(8, 2, 1, 4), (12, 4, 3, 2)])
def test_the_transformer_has_as_many_parameters_as_its_description(size, patch, channels, depth):
    w, pixels = 32, patch**2 * channels

    def dense(a, b):
        return a * b + b

    block = dense(w, 6 * w) + dense(w, 3 * w) + dense(w, w) + dense(w, 4 * w) + dense(4 * w, w)
    ends = dense(pixels, w) + dense(w, 2 * w) + dense(w, pixels)
    model = dit(image_size=size, image_channels=channels, patch=patch, depth=depth)
    assert count(model) == depth * block + ends + 2 * dense(w, w) + 4 * w


def test_a_transformer_block_starts_as_the_identity_and_its_gates_open_it():
    block, x, emb = Block(32, 2, rngs=nnx.Rngs(0)), images(2, 5, 32), images(2, 32)
    np.testing.assert_array_equal(block(x, emb), x)
    # Third of six: the gate of the attention.
    block.modulation.bias[...] = jnp.repeat(jnp.asarray([0.0, 0, 1, 0, 0, 0]), 32)
    attention = block(x, emb) - x
    assert np.abs(attention).max() > 1e-2
    block.modulation.bias[...] = jnp.repeat(jnp.asarray([0.0, 0, 0, 0, 0, 2]), 32)
    h = layer_norm(x) @ block.mlp_in.kernel[...] + block.mlp_in.bias[...]
    h = 0.5 * h * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    want = x + 2 * (h @ block.mlp_out.kernel[...] + block.mlp_out.bias[...])
    np.testing.assert_allclose(block(x, emb), want, rtol=1e-4, atol=1e-4)


def test_the_loop_over_blocks_applies_each_block_once_and_in_order():
    model = shaken("dit")
    tokens, emb = images(2, 16, 32), images(2, 32)
    graph, params = nnx.split(model.blocks)
    want = tokens
    for n in range(3):
        want = nnx.merge(graph, jax.tree.map(lambda p, n=n: p[n], params))(want, emb)
    np.testing.assert_allclose(model._through_blocks(tokens, emb), want, rtol=1e-4, atol=1e-4)
    first = [np.asarray(leaf)[0] for leaf in jax.tree.leaves(params) if leaf.ndim == 3]
    second = [np.asarray(leaf)[1] for leaf in jax.tree.leaves(params) if leaf.ndim == 3]
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(first, second, strict=True))


def test_layer_norm_equals_the_ready_made_one():
    x = images(3, 5, 32) * 7 + 2
    ready = nnx.LayerNorm(32, use_bias=False, use_scale=False, epsilon=1e-6, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer_norm(x), ready(x), rtol=1e-4, atol=1e-5)


def test_positions_hold_the_row_and_the_column():
    grid = position_embedding(3, 5, 16).reshape(3, 5, 16)
    row, col = grid[..., :8], grid[..., 8:]
    np.testing.assert_array_equal(row, np.broadcast_to(row[:, :1], row.shape))
    np.testing.assert_array_equal(col, np.broadcast_to(col[:1], col.shape))
    want = [np.cos(2.0), np.cos(2 / 10), np.cos(2 / 100), np.cos(2 / 1000)]
    np.testing.assert_allclose(row[2, 0, :4], want, rtol=1e-6)
    np.testing.assert_allclose(col[0, 2, :4], want, rtol=1e-6)
    flat = grid.reshape(15, 16)
    assert np.linalg.norm(flat[:, None] - flat[None], axis=-1)[~np.eye(15, dtype=bool)].min() > 0.5


@pytest.mark.parametrize("shape", [(2, 8, 6, 1), (2, 8, 8, 3), (8, 8, 1)])
def test_images_of_another_shape_than_the_transformers_are_refused(shape):
    with pytest.raises(ValueError, match=r"x must have shape \[B, 8, 8, 1\], got") as error:
        jax.eval_shape(lambda: dit()(jnp.zeros(shape), T[:2]))
    assert str(shape) in str(error.value)


# ------------------------------------------------------------------------------------- half digits


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_bfloat16_stays_near_float32_and_parameters_stay_float32(name):
    make = {"unet": unet, "dit": dit}[name]
    half, _ = nnx.split(jax.eval_shape(lambda: make(dtype=jnp.bfloat16)))
    params = nnx.state(shaken(name))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x, y = images(*SHAPES[name]), images(*SHAPES[name])

    def run(graph):
        def loss(params):
            out = nnx.merge(graph, params)(x, T, LABELS)
            return jnp.mean((out - y) ** 2), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, coarse), coarse_gradient = run(half)
    (_, fine), fine_gradient = run(nnx.split(shaken(name))[0])
    assert coarse.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(coarse_gradient)} == {jnp.dtype("float32")}
    # bfloat16 has 8 bits, a relative error of .004 per operation; some thirty follow each other.
    assert relative_error(coarse, fine) < 0.03
    assert relative_error(coarse, fine) > 1e-5  # it did compute in another type
    flat = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)])
            for g in (coarse_gradient, fine_gradient)]  # fmt: skip
    assert relative_error(*flat) < 0.05


def relative_error(got, want):
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: MLP(2, width=16, depth=1, num_classes=3, rngs=rngs),
        lambda rngs: UNet(1, (32,), num_classes=3, rngs=rngs),
        lambda rngs: DiT(8, width=32, depth=1, num_classes=3, rngs=rngs),
    ],
    ids=["MLP", "UNet", "DiT"],
)
def test_models_of_one_shape_have_one_structure(make):
    # Else each would be compiled anew: the structure is part of what a compiled program is for.
    first, second = (nnx.split(make(nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert first == second and hash(first) == hash(second)
