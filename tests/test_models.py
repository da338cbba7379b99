"""The networks: what they compute, what they learn, and how they start."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, output_of, parameters, shaken, shape_of

from diffusion_course.models import fast
from diffusion_course.models.classifier import Classifier, judge
from diffusion_course.models.dit import Block, DiT
from diffusion_course.models.layers import layer_norm
from diffusion_course.models.mlp import MLP
from diffusion_course.models.patches import position_embedding
from diffusion_course.models.unet import UNet

rng = np.random.default_rng(28)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def images(*shape):
    return rng.normal(0.1, 0.8, shape).astype(np.float32)


def unet(**options):
    return UNet(**{"channels": (16, 32), "num_classes": 3, "rngs": nnx.Rngs(0)} | options)


def dit(**options):
    return DiT(**{"image_size": 8, "width": 32, "depth": 3, "num_classes": 3, "head_size": 16,
                  "rngs": nnx.Rngs(0)} | options)  # fmt: skip


def mlp(**options):
    return MLP(**{"width": 32, "depth": 2, "num_classes": 3, "rngs": nnx.Rngs(0)} | options)


T, LABELS = np.float32([0.1, 0.4, 0.6, 0.9]), np.array([0, 1, 2, 3])

# The U-Net has two of everything: levels, blocks, pixels in a stem, channels.
MODELS = {
    "mlp": (mlp, (4, 2)),
    "unet": (partial(unet, blocks=2, stem=2, image_channels=2), (4, 8, 16, 2)),
    "dit": (partial(dit, image_size=(8, 12), patch=4), (4, 8, 12, 1)),
}
every_model = pytest.mark.parametrize("name", MODELS)


@cache
def untrained(name):
    """Building and compiling a U-Net takes seconds, so each is built once."""
    return initial(MODELS[name][0])


@cache
def trained(name):
    return shaken(untrained(name), seed=5)


@cache
def program(graph):
    """The one program of a model that these tests compile: its output, loss and gradient."""

    def loss(params, x, t, cond, y):
        out = nnx.merge(graph, params)(x, t, cond)
        return jnp.mean((out - y) ** 2), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def value_and_gradient(model, x, t, cond, y):
    graph, params = nnx.split(model)
    (_, out), gradient = program(graph)(params, x, t, np.asarray(cond, np.int32), y)
    return np.asarray(out), gradient


def call(model, x, t, cond):
    return value_and_gradient(model, x, t, cond, np.zeros_like(x))[0]


@every_model
def test_an_untrained_model_says_zero_in_the_shape_of_its_input(name):
    shape = MODELS[name][1]
    got = call(untrained(name), images(*shape), T, LABELS)
    assert got.shape == shape and got.dtype == jnp.float32
    assert (got == 0).all()


def dead_parameters(gradient):
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]
        if not np.abs(leaf).max() > 0
    ]


@every_model
def test_every_parameter_learns_once_the_zero_layers_have_moved(name):
    shape = MODELS[name][1]
    graph, params = nnx.split(untrained(name))
    x, y = images(*shape), images(*shape)
    # Behind a layer that starts at zero nothing learns. Step 1 moves the network's last layer,
    # step 2 the zero layers inside its blocks, and from the third gradient on nothing is left.
    dead = []
    for _ in range(3):
        g = value_and_gradient(nnx.merge(graph, params), x, T, LABELS, y)[1]
        dead.append(len(dead_parameters(g)))
        params = jax.tree.map(
            lambda p, g: np.asarray(p) - 0.1 * np.asarray(g) / (1e-8 + np.abs(g).max()), params, g
        )
    assert dead[0] == len(jax.tree.leaves(params)) - 2  # all but the last kernel and bias
    assert dead_parameters(g) == []
    # Each class has a row of its own, the null class too.
    rows = np.asarray(g["embed"]["label"]["embedding"][...])
    assert rows.shape[0] == 4 and (np.abs(rows).max(1) > 0).all()


def count(model):
    return sum(int(np.prod(leaf.shape)) for leaf in parameters(model).values())


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

    model = shape_of(build)
    assert count(model) == unet_size(image, widths, blocks, stem, classes)
    x = jax.ShapeDtypeStruct((2, 16, 24, image), jnp.float32)
    assert output_of(model, x, T[:2]) == x


def test_the_mlp_has_as_many_parameters_as_its_description():
    w = 32
    want = 2 * (w * w + w) + (5 * w + w) + 3 * (w * w + w) + (w * 5 + 5)
    assert count(shape_of(lambda: MLP(5, w, 3, rngs=nnx.Rngs(0)))) == want
    labelled = shape_of(lambda: MLP(5, w, 3, num_classes=7, rngs=nnx.Rngs(0)))
    assert count(labelled) == want + 8 * w


@pytest.mark.parametrize("learned", [False, True])
def test_a_learned_variance_doubles_the_output(learned):
    points = output_of(shape_of(lambda: mlp(learned_variance=learned)), images(4, 2), T)
    pixels = output_of(
        shape_of(lambda: unet(learned_variance=learned, image_channels=3)), images(4, 4, 6, 3), T
    )
    assert points.shape[-1] == (4 if learned else 2) and pixels.shape[-1] == (6 if learned else 3)


@every_model
def test_the_output_depends_on_time_label_and_input_and_examples_do_not_mix(name):
    model, x = trained(name), images(*MODELS[name][1])
    whole = call(model, x, T, LABELS)
    for changed in (
        call(model, x, T + np.float32(0.05), LABELS),
        call(model, x, T, (LABELS + 1) % 4),
        call(model, x[::-1], T, LABELS),
    ):
        difference = np.abs(changed - whole).reshape(4, -1).max(1)
        assert (difference > 1e-4).all()
    for order in ([2, 0, 3, 1], [0, 0, 0, 0]):
        chosen = call(model, x[order], T[order], LABELS[order])
        # Sums in another order: rounding of activations of size 10.
        np.testing.assert_allclose(chosen, whole[order], rtol=1e-4, atol=1e-4)


@every_model
def test_no_label_is_the_null_label(name):
    make, shape = MODELS[name]
    model = shape_of(make)
    assert model.null_label == 3
    # Said as a program: without a label, the constant 3 is looked up and nothing else changes.
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    nothing = jax.make_jaxpr(lambda m, x, t: m(x, t))(model, x, T)
    null = jax.make_jaxpr(lambda m, x, t: m(x, t, jnp.full(4, 3)))(model, x, T)
    assert str(nothing) == str(null)
    one = jax.make_jaxpr(lambda m, x, t: m(x, t, jnp.full(4, 1)))(model, x, T)
    assert str(nothing) != str(one)


@pytest.mark.parametrize("make", [unet, mlp, dit])
def test_a_model_without_classes_refuses_labels(make):
    x = images(2, 2) if make is mlp else images(2, 8, 8, 1)

    model = shape_of(lambda: make(num_classes=None))
    assert output_of(model, x, T[:2]).shape == x.shape
    with pytest.raises(ValueError, match=r"cond must be None: this model has no labels"):
        output_of(model, x, T[:2], LABELS[:2])


@pytest.mark.parametrize("shape", [(2, 8, 6, 1), (2, 6, 8, 1), (2, 0, 4, 1)])
def test_images_that_the_levels_cannot_halve_are_refused(shape):
    for model in (lambda: unet(channels=(16, 32, 32)), lambda: unet(stem=2)):
        with pytest.raises(ValueError, match=r"H and W multiples of 4, got \[2, ") as error:
            output_of(shape_of(model), jnp.zeros(shape), T[:2])
        assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(("levels", "shape"), [(1, (2, 5, 7)), (1, (2, 1, 3)), (2, (2, 6, 10))])
def test_a_unet_takes_every_size_that_its_levels_can_halve(levels, shape):
    model = shape_of(lambda: unet(channels=(32,) * levels))
    x = jax.ShapeDtypeStruct((*shape, 1), jnp.float32)
    assert output_of(model, x, T[:2], LABELS[:2]) == x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet(channels=()), r"channels must name .* at least one level, got \(\)"),
        (lambda: unet(channels=32), "channels must name .* at least one level, got 32"),
        (lambda: unet(channels=(12, 32)), r"channels must be multiples of 8, got 12 in \(12, 32\)"),
        (lambda: unet(channels=(16, 24)), r"channels must end in a multiple of 32, got \(16, 24\)"),
        (lambda: dit(patch=3), "patch must divide image_size = 8, got 3"),
        (
            lambda: dit(image_size=(8, 6), patch=4),
            r"patch must divide image_size = \(8, 6\), got 4",
        ),
        (
            lambda: dit(image_size=(6, 8), patch=4),
            r"patch must divide image_size = \(6, 8\), got 4",
        ),
        (lambda: dit(image_size=(8, 8, 1)), r"image_size must be one number or .* got \(8, 8, 1\)"),
        (lambda: mlp(width=31), "width must be a multiple of 2, got 31"),
        (lambda: classifier(image_size=(8, 6)), "image_size must be a multiple of 4, got 6"),
        (lambda: classifier(width=12), "width must be a multiple of 8, got 12"),
        (lambda: dit(width=30, head_size=15), "width must be a multiple of 4, got 30"),
        (lambda: dit(width=40), "head_size must divide channels = 40, got 16"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_their_rule(make, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make)


# -------------------------------------------------------------------------------- the classifier


def classifier(**options):
    sizes = {"image_channels": 2, "image_size": (8, 12), "width": 8, "features": 6}
    return Classifier(**sizes | {"num_classes": 5, "rngs": nnx.Rngs(0)} | options)


def test_the_classifier_has_as_many_parameters_as_its_description():
    convolutions = (9 * 2 + 1) * 8 + (9 * 8 + 1) * 16 + (9 * 16 + 1) * 16
    norms, dense, last = 2 * 8 + 2 * 16, (16 * 2 * 3 + 1) * 6, (6 + 1) * 5
    assert count(shape_of(classifier)) == convolutions + norms + dense + last


def test_the_judge_gives_the_class_of_the_largest_logit_and_the_last_hidden_layer():
    model, x = initial(classifier), images(3, 8, 12, 2)
    classes, features = judge(model, x)
    assert classes.shape == (3,) and features.shape == (3, 6)
    logits = features @ np.asarray(model.last.kernel[...]) + np.asarray(model.last.bias[...])
    np.testing.assert_array_equal(classes, logits.argmax(-1))
    assert output_of(model, x).shape == (3, 5)
    assert np.abs(np.diff(features, axis=0)).max() > 1e-4


# --------------------------------------------------------------------------------- the transformer


@pytest.mark.parametrize(("size", "patch", "channels", "depth"), [(8, 2, 1, 4), (12, 4, 3, 2)])
def test_the_transformer_has_as_many_parameters_as_its_description(size, patch, channels, depth):
    w, pixels = 32, patch**2 * channels

    def dense(a, b):
        return a * b + b

    block = dense(w, 6 * w) + dense(w, 3 * w) + dense(w, w) + dense(w, 4 * w) + dense(4 * w, w)
    ends = dense(pixels, w) + dense(w, 2 * w) + dense(w, pixels)
    model = shape_of(
        lambda: dit(image_size=size, image_channels=channels, patch=patch, depth=depth)
    )
    assert count(model) == depth * block + ends + 2 * dense(w, w) + 4 * w


def test_the_last_layer_of_a_dit_reads_normalised_tokens():
    # A normalised token's channels add up to 0: a kernel of ones leaves nothing but the bias.
    model = initial(lambda: dit(image_size=(4, 8), image_channels=2, patch=2, depth=1))
    model.final.kernel[...] = jnp.ones_like(model.final.kernel[...])
    model.final.bias[...] = jnp.full_like(model.final.bias[...], 0.7)
    got = jax.jit(lambda model, x, t: model(x, t))(model, 5 * images(3, 4, 8, 2), jnp.full(3, 0.4))
    np.testing.assert_allclose(got, 0.7, atol=1e-4)  # sums of 32 numbers of size 1 in float32


def test_a_transformer_block_starts_as_the_identity_and_its_gates_open_it():
    block, x, emb = initial(lambda: Block(32, 2, rngs=nnx.Rngs(0))), images(2, 5, 32), images(2, 32)
    p = {name: np.asarray(leaf) for name, leaf in parameters(block).items()}
    gated = jax.jit(lambda block, bias, x, emb: with_bias(block, bias)(x, emb))

    def with_bias(block, six):
        block.modulation.bias[...] = jnp.repeat(six, 32)
        return block

    np.testing.assert_array_equal(gated(block, np.zeros(6, np.float32), x, emb), x)
    # Third of six: the gate of the attention.
    attention = gated(block, np.float32([0, 0, 1, 0, 0, 0]), x, emb) - x
    assert np.abs(attention).max() > 1e-2

    def dense(h, name):
        kernel, bias = (next(v for k, v in p.items() if name in k and part in k)
                        for part in ("kernel", "bias"))  # fmt: skip
        return h @ kernel + bias

    for shift, scale in ((0.0, 0.0), (0.3, -0.4)):
        # Fourth and fifth: shift and scale of what the dense network reads; sixth: its gate.
        got = gated(block, np.float32([0, 0, 0, shift, scale, 2]), x, emb)
        h = dense(normalised(x) * (1 + scale) + shift, "mlp_in")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        np.testing.assert_allclose(got, x + 2 * dense(h, "mlp_out"), rtol=1e-4, atol=1e-4)


def normalised(x, epsilon=1e-6):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def test_the_loop_over_blocks_applies_each_block_once_and_in_order():
    model = trained("dit")
    tokens, emb = images(2, 6, 32), images(2, 32)
    graph, params = nnx.split(model.blocks)
    one = jax.jit(lambda params, tokens, emb: nnx.merge(graph, params)(tokens, emb))
    want = tokens
    for n in range(3):
        want = one(jax.tree.map(lambda p, n=n: np.asarray(p)[n], params), want, emb)
    got = jax.jit(lambda model, tokens, emb: model._through_blocks(tokens, emb))(model, tokens, emb)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.split(untrained("dit").blocks)[1])]
    drawn = [leaf for leaf in leaves if leaf.ndim == 3 and leaf.any()]
    assert len(drawn) == 4 and all(np.abs(leaf[0] - leaf[1]).max() > 0.1 for leaf in drawn)


def test_a_patch_knows_its_place_and_its_neighbours_pixels_do_not_move():
    # Only the pixels of one patch change: without attention (gates at zero) no other patch does.
    model, x = untrained("dit"), images(*MODELS["dit"][1])
    graph, params = nnx.split(model)
    params["final"]["kernel"][...] = images(32, 16)
    opened = nnx.merge(graph, params)
    other = x.copy()
    other[:, 4:8, 8:12] += 1
    moved = np.abs(call(opened, other, T, LABELS) - call(opened, x, T, LABELS)).max((0, 3)) > 1e-4
    want = np.zeros((8, 12), bool)
    want[4:8, 8:12] = True
    np.testing.assert_array_equal(moved, want)
    # Equal patches at six places get six outputs.
    same = call(opened, np.tile(x[:, :4, :4], (1, 2, 3, 1)), T, LABELS)[0, ..., 0]
    patches = same.reshape(2, 4, 3, 4).transpose(0, 2, 1, 3).reshape(6, 16)
    distance = np.abs(patches[:, None] - patches[None]).max(-1)
    assert distance[~np.eye(6, dtype=bool)].min() > 1e-2


def test_layer_norm_is_mean_0_and_variance_1():
    x = images(3, 5, 32) * 7 + 2
    np.testing.assert_allclose(layer_norm(jnp.asarray(x)), normalised(x), rtol=1e-4, atol=1e-5)


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
        output_of(shape_of(dit), jnp.zeros(shape), T[:2])
    assert str(list(shape)) in str(error.value)


# ------------------------------------------------------------------------------------- half digits


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_bfloat16_stays_near_float32_and_parameters_stay_float32(name, monkeypatch):
    if name == "dit":
        (make, shape), fine = MODELS[name], trained(name)
    else:  # of one level, which compiles in a third of the time
        make, shape = partial(unet, channels=(32,), image_channels=2), (4, 4, 5, 2)
        fine = drawn(make, seed=6)
    half = shape_of(partial(make, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in parameters(half).values()} == {jnp.dtype("float32")}
    coarse = nnx.merge(nnx.split(half)[0], nnx.state(fine))
    x, y = images(*shape), images(*shape)
    rough, rough_gradient = value_and_gradient(coarse, x, T, LABELS, y)
    exact, exact_gradient = value_and_gradient(fine, x, T, LABELS, y)
    assert rough.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(rough_gradient)} == {jnp.dtype("float32")}
    # bfloat16 has 8 bits, a relative error of .004 per operation; some thirty follow each other.
    assert relative_error(rough, exact) < 0.03
    assert relative_error(rough, exact) > 1e-5  # it did compute in another type
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)])
            for g in (rough_gradient, exact_gradient)]  # fmt: skip
    assert relative_error(*flat) < 0.05

    if name == "unet":  # and a whole network is the same with plain convolutions
        used = []
        monkeypatch.setattr(
            fast,
            "conv3x3",
            lambda *args: used.append(fast.quick_way(*args)) or fast.plain_conv(*args),
        )
        plain = jax.jit(lambda model, x, t, cond: model(x, t, cond))(fine, x, T, LABELS)
        assert {fast.winograd, fast.thin_conv} <= set(used)
        # Ten layers deep: ten times the error of one.
        np.testing.assert_allclose(exact, plain, rtol=0, atol=1e-3 * np.abs(plain).max())


def relative_error(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: MLP(2, width=16, depth=1, num_classes=3, rngs=nnx.Rngs(seed)),
        lambda seed: UNet(1, (32,), num_classes=3, rngs=nnx.Rngs(seed)),
        lambda seed: DiT(8, width=32, depth=1, num_classes=3, rngs=nnx.Rngs(seed)),
        lambda seed: classifier(rngs=nnx.Rngs(seed)),
    ],
    ids=["MLP", "UNet", "DiT", "Classifier"],
)
def test_models_of_one_shape_have_one_structure(make):
    # Else each would be compiled anew: the structure is part of what a compiled program is for.
    first, second = (nnx.split(shape_of(partial(make, seed)))[0] for seed in (0, 1))
    assert first == second and hash(first) == hash(second)
