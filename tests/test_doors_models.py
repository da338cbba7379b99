"""What the networks are given: taken if it is right, refused by name if it is not.

Nothing here is compiled: shapes and dtypes are all that counts, and values are looked at before a
network computes anything.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import output_of, shape_of
from oracles import examples

from diffusion_course.models import doors, layers
from diffusion_course.models.classifier import Classifier
from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.models.patches import position_embedding
from diffusion_course.models.unet import UNet

few = settings(examples, max_examples=20)
MAKERS = {
    "UNet": (partial(UNet, 2, (8, 32), num_classes=3), (4, 6, 10, 2)),
    "DiT": (partial(DiT, (4, 6), 2, width=32, depth=1, num_classes=3), (4, 4, 6, 2)),
    "MLP": (partial(MLP, 3, 8, 1, num_classes=3), (4, 3)),
}
NETWORKS = {name: shape_of(lambda m=m: m(rngs=nnx.Rngs(0))) for name, (m, _) in MAKERS.items()}
every_network = pytest.mark.parametrize("name", MAKERS)
T, LABELS = np.float32([0.0, 0.3, 0.7, 1.0]), np.array([0, 2, 1, 3])
RIGHT = {name: (np.zeros(shape, np.float32), T, LABELS) for name, (_, shape) in MAKERS.items()}


def refused(model, arguments, message):
    """With concrete arguments, which the network must not get to compute with."""
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda model: model(*arguments), model)


@every_network
def test_what_the_docstring_allows_is_taken(name):
    model, (x, t, labels) = NETWORKS[name], RIGHT[name]
    want = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    for arguments in (
        (x, t, labels),
        (x, t, None),
        (x, t),
        (x.astype(np.float64), t.astype(np.float64), labels.astype(np.uint8)),
    ):
        assert jax.eval_shape(lambda model, a=arguments: model(*a), model) == want
    assert output_of(model, x, t, labels) == want  # traced


@every_network
@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        (0, lambda x: x.astype(np.uint8), "x must be floating-point numbers, got dtype uint8; pix"),
        (0, lambda x: x.astype(int), "x must be floating-point numbers, got dtype int64"),
        (0, lambda x: x.astype(bool), "x must be floating-point numbers, got dtype bool"),
        (0, lambda x: x.astype(np.float16), "x must be float32 or float64.*got dtype float16"),
        (0, lambda x: jnp.asarray(x, jnp.bfloat16), "x must be float32 .*got dtype bfloat16"),
        (0, lambda x: x[..., :1], r"x must have shape \[B, .*, got \[4, .*1\]"),
        (0, lambda x: x[None], r"x must have shape \[B, .*, got \[1, 4, "),
        (0, lambda x: x[0], r"x must have shape \[B, .*, got \["),
        (1, lambda t: t[:, None], r"t must have shape \[B\] = \[4\], one time .*got \[4, 1\]"),
        (1, lambda t: t[0], r"t must have shape \[B\] = \[4\].*got \[\]"),
        (1, lambda t: t[:1], r"t must have shape \[B\] = \[4\].*got \[1\]"),
        (1, lambda t: (9 * t).astype(int), r"t must be times in \[0, 1\], got dtype int.*n/T"),
        (1, lambda t: t.astype(np.float16), "t must be float32, got dtype float16"),
        (1, lambda t: jnp.asarray(t, jnp.bfloat16), "t must be float32, got dtype bfloat16"),
        (1, lambda t: 1000 * t, r"t must be in \[0, 1\], got 300.0 at index \[1\]"),
        (1, lambda t: t - 0.1, r"t must be in \[0, 1\], got -0.1"),
        (1, lambda t: t + np.float32(np.nan), r"t must be in \[0, 1\], got nan"),
        (2, lambda y: y[:, None], r"cond must be .*of shape \[4\], got int64 of shape \[4, 1\]"),
        (2, lambda y: y[:3], r"cond must be .*of shape \[4\], got int64 of shape \[3\]"),
        (2, lambda y: y.astype(np.float32), r"cond must be whole numbers .*got float32"),
        (2, lambda y: y > 1, r"cond must be whole numbers .*got bool"),
        (2, lambda y: y + 1, "cond must be in 0 … 3, got 1 … 4"),
        (2, lambda y: y - 1, "cond must be in 0 … 3, got -1 … 2"),
    ],
)  # fmt: skip
def test_every_broken_rule_names_the_argument(name, argument, change, message):
    arguments = list(RIGHT[name])
    arguments[argument] = change(arguments[argument])
    refused(NETWORKS[name], arguments, message)


@every_network
def test_a_tracer_s_value_is_unknown_and_its_shape_and_dtype_are_not(name):
    model, (x, t, labels) = NETWORKS[name], RIGHT[name]
    assert output_of(model, x, 5 * t, labels + 9).shape == x.shape
    for wrong, message in (
        ((x, t[:, None], labels), "t must have shape"),
        ((x, t, labels[:, None]), "cond must be whole numbers"),
        ((x.astype(np.uint8), t, labels), "x must be floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            output_of(model, *wrong)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, bool])
def test_the_classifier_refuses_what_it_was_not_built_for(dtype):
    model = shape_of(lambda: Classifier(2, (4, 8), 3, width=8, rngs=nnx.Rngs(0)))
    assert output_of(model, np.zeros((5, 4, 8, 2), np.float32)).shape == (5, 3)
    with pytest.raises(ValueError, match="x must be float"):
        output_of(model, np.zeros((5, 4, 8, 2), dtype))
    with pytest.raises(ValueError, match=r"x must have shape \[B, 4, 8, 2\], got \[5, 8, 4, 2\]"):
        output_of(model, np.zeros((5, 8, 4, 2), np.float32))


SIZES = {
    "UNet": ({"image_channels": 1, "blocks": 1, "stem": 1, "num_classes": 2}, UNet),
    "DiT": ({"image_size": 4, "image_channels": 1, "patch": 2, "width": 32, "depth": 1,
             "head_size": 32, "num_classes": 2}, DiT),
    "MLP": ({"dim": 2, "width": 8, "depth": 1, "num_classes": 2}, MLP),
    "Classifier": ({"image_channels": 1, "image_size": 4, "num_classes": 2, "width": 8,
                    "features": 4}, Classifier),
}  # fmt: skip


@few
@given(
    st.sampled_from([(name, size) for name, (sizes, _) in SIZES.items() for size in sizes]),
    st.sampled_from([0, -1, 1.0, 2.5, True, "2", float("nan")]),
)
def test_a_size_that_is_no_positive_whole_number_is_refused_by_name(which, value):
    name, size = which
    sizes, make = SIZES[name]
    with pytest.raises(ValueError, match=f"^{size} must .*got "):
        jax.eval_shape(lambda: make(**(sizes | {size: value}), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64, jnp.int32])
def test_a_dtype_that_a_network_cannot_compute_in_is_refused(dtype):
    for make in (partial(UNet, 1, (32,)), partial(DiT, 4, width=32)):
        with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got"):
            jax.eval_shape(lambda make=make: make(dtype=dtype, rngs=nnx.Rngs(0)))


@few
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
    st.booleans(),
)  # fmt: skip
def test_a_transformer_takes_images_of_any_shape_that_patches_tile(b, rows, cols, patch, c, square):
    cols = rows if square else cols
    size = (patch * rows, patch * cols)
    model = shape_of(
        lambda: DiT(size[0] if square else size, c, patch=patch, width=4, depth=1, head_size=4,
                    rngs=nnx.Rngs(0))
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((b, *size, c), jnp.float32)
    assert output_of(model, x, jax.ShapeDtypeStruct((b,), jnp.float32)) == x
    assert position_embedding(rows, cols, 8).shape == (rows * cols, 8)


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_a_unet_takes_images_of_any_shape_that_its_levels_halve(b, stem, rows, cols, two):
    multiple = stem * (2 if two else 1)
    model = shape_of(lambda: UNet(1, (32,) * (1 + two), stem=stem, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((b, rows * multiple, cols * multiple, 1), jnp.float32)
    t = jax.ShapeDtypeStruct((b,), jnp.float32)
    assert output_of(model, x, t) == x
    odd = jax.ShapeDtypeStruct((b, rows * multiple + 1, cols * multiple, 1), jnp.float32)
    if multiple > 1:
        with pytest.raises(ValueError, match=f"^x must .*multiples of {multiple}, got "):
            output_of(model, odd, t)
    else:
        assert output_of(model, odd, t) == odd


@few
@given(st.integers(-3, 9), st.integers(-3, 9), st.integers(-3, 9))
def test_a_grid_of_positions_is_taken_or_refused_by_name(rows, cols, dim):
    if rows > 0 and cols > 0 and dim > 0 and dim % 4 == 0:
        assert position_embedding(rows, cols, dim).shape == (rows * cols, dim)
        return
    with pytest.raises(ValueError, match=r"^(rows|cols|dim) must .*got "):
        position_embedding(rows, cols, dim)


@few
@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([np.float32, np.float64]))
def test_times_and_states_keep_their_values_as_float32(shape, dtype):
    x = np.full(shape, 0.3, dtype)
    got = doors.state(x, tuple("BHW"[: len(shape)]))
    assert got.shape == x.shape and got.dtype == jnp.float32
    np.testing.assert_array_equal(got, x.astype(np.float32))
    if len(shape) == 1:
        np.testing.assert_array_equal(doors.times(x, shape[0]), x.astype(np.float32))
    else:
        with pytest.raises(ValueError, match=r"^t must have shape"):
            doors.times(x)


@few
@given(st.one_of(st.none(), st.text(max_size=3), st.lists(st.integers(-1, 3), max_size=3)))
def test_an_image_size_is_one_or_two_positive_numbers(size):
    if isinstance(size, list) and len(size) == 2 and min(size) > 0:
        assert doors.sides(size) == tuple(size) == doors.sides(tuple(size))
        return
    with pytest.raises(ValueError, match=r"^image_size must .*got "):
        doors.sides(size)


@few
@given(st.integers(-2, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
def test_blocks_of_pixels_are_moved_or_refused_by_name(block, height, width, channels):
    x = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
    deeper = partial(layers.space_to_depth, block=block)
    flatter = partial(layers.depth_to_space, block=block)
    if block > 0 and height % block == 0 and width % block == 0:
        deep = (2, height // block, width // block, channels * block**2)
        assert jax.eval_shape(deeper, x).shape == deep
    else:
        with pytest.raises(ValueError, match=r"^block must .*got "):
            jax.eval_shape(deeper, x)
    if block > 0 and channels % block**2 == 0:
        flat = (2, height * block, width * block, channels // block**2)
        assert jax.eval_shape(flatter, x).shape == flat
    else:
        with pytest.raises(ValueError, match=r"^block.* must .*got "):
            jax.eval_shape(flatter, x)
    assert jax.eval_shape(layers.upsample, x).shape == (2, 2 * height, 2 * width, channels)
